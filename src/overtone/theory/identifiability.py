"""Can X = H V be taken apart in one way only? Up to permutation, scaling and splitting (maths.md eq. T5–T7)."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from overtone.seeds import generator
from overtone.theory.conditions import LEAST, coherence


class Decomposition(NamedTuple):
    """X = H V."""

    h: Float[Tensor, "rows features"]
    v: Float[Tensor, "features d"]


class Difference(NamedTuple):
    """How far a second decomposition is from a first, once permutation, scaling and splitting are undone.

    Attributes:
        epsilon: largest 1 − cos between a feature and its counterpart, in both directions (maths.md eq. T5).
        parts: how many features of the second stand for each of the first: 1, or more where it is split.
        coefficient_error: ‖Σ_{j stands for i} h'_j ‖v'_j‖ − h_i ‖v_i‖‖ over ‖h ‖v‖‖ (Frobenius norms).
    """

    epsilon: float
    parts: Int[Tensor, " features"]
    coefficient_error: float


class Ambiguity(NamedTuple):
    """Another decomposition of the same rows that meets the same conditions, and how far off its features are.

    Attributes:
        epsilon: largest 1 − cos found: no procedure can know these features better than that. 0: none found, which
            proves nothing.
        kind: "shear" – v_i + t v_j in place of v_i, for D_i ⊆ D_j; "merge" – v_i + t v_j in place of both, for h_j = t h_i
            always; "none".
        pair: (i, j); (−1, −1) for "none".
        t: how much of v_j; negative where v_j is taken away.
        nested: number of pairs with D_i ⊆ D_j.
    """

    epsilon: float
    kind: Literal["shear", "merge", "none"]
    pair: tuple[int, int]
    t: float
    nested: int


def difference(first: Decomposition, second: Decomposition) -> Difference:
    """ε between two decompositions of the same rows; features that never occur are left out.

    The definition, of arXiv 2506.14002, is known as "any other decomposition equals V up to permutation, scaling and splitting,
    in cosine"; that each feature's counterpart is the one of largest cosine is inferred. Invariant to permuting either side, to
    positively rescaling features, and to splitting a feature of the second.
    """
    used = (first.h != 0).any(0)
    cosine = normalize(first.v.double(), dim=1) @ normalize(second.v.double(), dim=1).T
    present = used[:, None] & (second.h != 0).any(0)[None, :]
    cosine = torch.where(present, cosine, -math.inf)
    there = present.any(0)
    if not bool(used.any()) or not bool(there.any()):
        raise ValueError("a decomposition in which no feature occurs has nothing to compare; give rows with features")
    owner = cosine.argmax(0)
    parts = torch.zeros(len(first.v), dtype=torch.int64).index_add_(0, owner, there.long())
    worst = torch.cat([1 - cosine.amax(0)[there], 1 - cosine.amax(1)[used]]).max().clamp(min=0)
    mine = first.h.double() * first.v.double().norm(dim=1)
    theirs = second.h.double() * second.v.double().norm(dim=1)
    gathered = torch.zeros_like(mine).index_add_(1, owner[there], theirs[:, there])
    return Difference(float(worst), parts, float((gathered - mine).norm() / mine.norm()))


def split(pair: Decomposition, feature: int, parts: int, *, seed: int = 0) -> Decomposition:
    """The same rows, with one feature's rows divided at random between `parts` copies of it (appended at the end).

    Splitting keeps H sparse, bounded away from 0 and co-occurring as little: no condition on H excludes it.
    """
    if not 0 <= feature < len(pair.v):
        raise ValueError(f"feature={feature} is not in 0 … {len(pair.v) - 1}")
    if parts < 2:
        raise ValueError(f"parts={parts} must be at least 2 to split anything")
    which = torch.randint(parts, (len(pair.h),), generator=generator(seed, "split"))
    column = pair.h[:, feature : feature + 1] * (which[:, None] == torch.arange(parts))
    rest = torch.arange(len(pair.v)) != feature
    return Decomposition(
        torch.cat([pair.h[:, rest], column], dim=1),
        torch.cat([pair.v[rest], pair.v[feature : feature + 1].expand(parts, -1)]),
    )


def sheared(pair: Decomposition, i: int, j: int, t: float) -> Decomposition:
    """The same rows with v_i + t v_j in place of v_i, and h_j − t h_i in place of h_j (maths.md eq. T6)."""
    h, v = pair.h.clone(), pair.v.clone()
    v[i] += t * v[j]
    h[:, j] -= t * h[:, i]
    return Decomposition(h, v)


def ambiguity(
    h: Float[Tensor, "rows features"],
    v: Float[Tensor, "features d"],
    *,
    max_coherence: float | None = None,
    least: int = LEAST,
) -> Ambiguity:
    """A lower bound on the ε of ε-identifiability of this H and V, by construction.

    The theorem's ε = o(1) has no constant that could be computed. What can be: other decompositions of the same rows. Where
    feature i occurs only with j, any t up to min h_j/h_i gives one (eq. T6) that is as sparse and co-occurs as little; V1 alone
    limits it, |cos| ≤ μ. This is what absorption looks like from the side of the model. Of all such t, the one furthest from
    v_i is taken. Ours; a bound from below, since other constructions may exist.

    Args:
        h: H, non-negative.
        v: V.
        max_coherence: μ that another decomposition may have; None: the coherence of V itself.
        least: rows in which a feature has to occur to be looked at; of rarer ones nesting is chance.

    Invariant to permuting features, to positively rescaling them, and to repeating rows.
    """
    support = (h > 0).float()
    together = support.T @ support
    times = together.diagonal()
    inside = (together == times[:, None]) & (times >= least)[:, None]
    nested = inside.fill_diagonal_(False).nonzero().tolist()
    seen = times > 0
    mu = coherence(v[seen]) if max_coherence is None else max_coherence
    gram = v.double() @ v.double().T
    best = Ambiguity(0.0, "none", (-1, -1), 0.0, len(nested))
    for i, j in nested:
        rows = h[:, i] > 0
        ratio = h[rows, j].double() / h[rows, i].double()
        most = float(ratio.min())
        low, high = _shears(gram, i, j, mu, seen)
        for t in (max(low, -1e6), min(high, most)):
            best = _further(best, gram, (i, j), t, "shear")
        if times[i] == times[j] and float(ratio.max()) <= most * (1 + 1e-5):
            best = _merged(best, gram, (i, j), most, mu, seen)
    return best


def _shears(gram: Tensor, i: int, j: int, mu: float, seen: Tensor) -> tuple[float, float]:
    """The interval of t around 0 in which |cos(v_i + t v_j, v_k)| ≤ μ for every feature k ≠ i.

    Each k gives a quadratic in t, (g_ik + t g_jk)² − μ² g_kk ‖v_i + t v_j‖² ≤ 0.
    """
    others = seen.clone()
    others[i] = False
    norm = mu**2 * gram.diagonal()[others]
    g_i, g_j = gram[i][others], gram[j][others]
    a = g_j.square() - norm * gram[j, j]
    b = 2 * (g_i * g_j - norm * gram[i, j])
    c = (g_i.square() - norm * gram[i, i]).clamp(max=0)
    return -_first_root(a, -b, c), _first_root(a, b, c)


def _first_root(a: Tensor, b: Tensor, c: Tensor) -> float:
    """Smallest t ≥ 0 at which one of the quadratics a t² + b t + c, with c ≤ 0, would rise above 0; ∞ if none does."""
    root = (b.square() - 4 * a * c).sqrt()  # NaN where a quadratic stays below 0
    # Of the two forms of the crossing from below, the one that does not cancel.
    t = torch.where(b > 0, -2 * c / (b + root), (root - b) / (2 * a))
    never = root.isnan() | ((b <= 0) & (a <= 0))
    return float(t.masked_fill(never, math.inf).min()) if len(t) else math.inf


def _further(
    best: Ambiguity, gram: Tensor, pair: tuple[int, int], t: float, kind: Literal["shear", "merge"]
) -> Ambiguity:
    """The better of what was found and of v_i + t v_j."""
    i, j = pair
    length = math.sqrt(max(float(gram[i, i] + 2 * t * gram[i, j] + t * t * gram[j, j]), 0.0))
    if length == 0:
        return best
    off = 1 - float(gram[i, i] + t * gram[i, j]) / (length * math.sqrt(float(gram[i, i])))
    if kind == "merge":
        off = max(off, 1 - float(gram[i, j] + t * gram[j, j]) / (length * math.sqrt(float(gram[j, j]))))
    return Ambiguity(off, kind, pair, t, best.nested) if off > best.epsilon + 1e-12 else best


def _merged(best: Ambiguity, gram: Tensor, pair: tuple[int, int], t: float, mu: float, seen: Tensor) -> Ambiguity:
    """As `_further`, for v_i + t v_j in place of both, where that is coherent with no third feature."""
    i, j = pair
    others = seen.clone()
    others[[i, j]] = False
    length = float(gram[i, i] + 2 * t * gram[i, j] + t * t * gram[j, j])
    cosine = (gram[i] + t * gram[j]).abs() / (gram.diagonal() * length).clamp(min=1e-300).sqrt()
    coherent = bool((cosine[others] > mu + 1e-9).any())
    return best if coherent else _further(best, gram, pair, t, "merge")
