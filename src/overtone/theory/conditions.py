"""The conditions of identifiability, H1–H3 and V1, measured on coefficients H and features V (maths.md eq. T1–T4)."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

LEAST = 20  # occurrences below which a share of a feature's rows says little


class Tally(NamedTuple):
    """Sufficient statistics of coefficients, gathered block by block.

    Attributes:
        rows: rows with at least one feature.
        active: Σ over rows of the number of active features.
        most: largest number of active features of a row (H1).
        together: |D_i ∩ D_j|, rows in which both features occur; |D_i| on the diagonal.
        smallest: smallest non-zero coefficient of every feature; ∞ where it never occurs.
        total: Σ of every feature's coefficients.
        square: Σ of their squares.
    """

    rows: int
    active: int
    most: int
    together: Int[Tensor, "features features"]
    smallest: Float[Tensor, " features"]
    total: Float[Tensor, " features"]
    square: Float[Tensor, " features"]

    @property
    def occurrences(self) -> Int[Tensor, " features"]:
        """|D_i|."""
        return self.together.diagonal()


class Conditions(NamedTuple):
    """H1–H3 and V1 as numbers. Invariant to permuting features and to positively rescaling any of them (h_i c, v_i / c).

    Attributes:
        rows: rows with at least one feature.
        n_features: features that occur in at least `least` of them; the others have no say.
        unseen: features that do not.
        d: width of a row.
        mean_active: mean number of active features per row.
        most_active: s, the largest (H1).
        frequency: f_i of every feature, those without a say included.
        smallest: min over features of (smallest non-zero coefficient)/(mean non-zero coefficient) (H2; eq. T2).
        evenness: median over features of E[h]²/E[h²] over non-zero coefficients: 1 if all are equal, ¾ for uniform ones.
        co_occurrence: ρ₂ = max_{i≠j} |D_i ∩ D_j|/|D_i| (H3; eq. T3).
        pair: the i and j of this maximum; (−1, −1) for fewer than two features.
        co_occurrence_by_chance: what ρ₂ would hardly exceed on so many rows were features independent (`chance`); what lies below
            says nothing against H3.
        coherence: μ = max_{i≠j} |cos(v_i, v_j)| (V1; eq. T4).
        random_coherence: about what as many uniform directions would have.
    """

    rows: int
    n_features: int
    unseen: int
    d: int
    mean_active: float
    most_active: int
    frequency: Float[Tensor, " features"]
    smallest: float
    evenness: float
    co_occurrence: float
    pair: tuple[int, int]
    co_occurrence_by_chance: float
    coherence: float
    random_coherence: float

    @property
    def co_occurrence_bound(self) -> float:
        """n^(−1/2), which H3 asks ρ₂ to be far below."""
        return self.n_features**-0.5 if self.n_features else math.nan


def tally(blocks: Iterable[Float[Tensor, "_ features"]]) -> Tally:
    """Gather the statistics of coefficients; invariant to how rows are split into blocks.

    Raises:
        ValueError: no rows, or a negative coefficient.
    """
    result: Tally | None = None
    for h in blocks:
        part = _tally(h)
        result = part if result is None else _merged(result, part)
    if result is None or not result.rows:
        raise ValueError("no row has an active feature: nothing to measure the conditions on; give other rows")
    return result


def _tally(h: Float[Tensor, "rows features"]) -> Tally:
    if bool((h < 0).any()):
        raise ValueError(
            f"coefficients as low as {float(h.min()):.3g}: the model has H ≥ 0; take codes of a method that has no negative ones"
        )
    occurs = h > 0
    active = occurs.sum(1)
    support = occurs.float()  # products of 0s and 1s are exact in float32 up to 2²⁴ rows a block
    return Tally(
        rows=int((active > 0).sum()),
        active=int(active.sum()),
        most=int(active.max()) if len(h) else 0,
        together=(support.T @ support).long(),
        smallest=torch.where(occurs, h, math.inf).amin(0) if len(h) else torch.full(h.shape[1:], math.inf),
        total=h.double().sum(0),
        square=h.double().square().sum(0),
    )


def _merged(a: Tally, b: Tally) -> Tally:
    return Tally(
        a.rows + b.rows,
        a.active + b.active,
        max(a.most, b.most),
        a.together + b.together,
        torch.minimum(a.smallest, b.smallest),
        a.total + b.total,
        a.square + b.square,
    )


def conditions(found: Tally, features: Float[Tensor, "features d"], *, least: int = LEAST) -> Conditions:
    """H1–H3 and V1 from gathered statistics.

    Args:
        found: from `tally`.
        features: V, in the order of H's columns.
        least: occurrences from which on a feature counts. ρ₂ is a maximum of shares: of a feature seen twice it is ½ or 1 by
            chance.
    """
    if len(features) != len(found.smallest):
        raise ValueError(
            f"{len(features)} features for {len(found.smallest)} columns of H; give one row of V per column"
        )
    if least < 1:
        raise ValueError(f"least={least} must be at least 1")
    times = found.occurrences
    seen = (times >= least).nonzero().squeeze(1)
    frequency = times.double() / found.rows
    mean = found.total[seen] / times[seen]
    evenness = mean.square() / (found.square[seen] / times[seen])
    share = found.together[seen][:, seen].double() / times[seen][:, None].double()
    rho, pair = _largest(share.fill_diagonal_(-1.0))
    n, d = len(seen), features.shape[1]
    return Conditions(
        rows=found.rows,
        n_features=n,
        unseen=len(times) - n,
        d=d,
        mean_active=found.active / found.rows,
        most_active=found.most,
        frequency=frequency.float(),
        smallest=float((found.smallest[seen] / mean).min()) if n else math.nan,
        evenness=float(evenness.median()) if n else math.nan,
        co_occurrence=rho if n > 1 else 0.0,
        pair=(int(seen[pair[0]]), int(seen[pair[1]])) if n > 1 else (-1, -1),
        co_occurrence_by_chance=chance(times[seen], float(frequency[seen].max())) if n > 1 else 0.0,
        coherence=coherence(features[seen]),
        random_coherence=random_coherence(n, d),
    )


def coherence(features: Float[Tensor, "features d"]) -> float:
    """μ, the largest |cos| of two different features (maths.md eq. T4); 0 for fewer than two.

    Invariant to permuting features and to rescaling them.
    """
    if len(features) < 2:
        return 0.0
    unit = normalize(features, dim=1)
    return float((unit @ unit.T).fill_diagonal_(0).abs().max().clamp(max=1.0))


def random_coherence(n_features: int, d: int) -> float:
    """About the coherence of `n_features` uniform directions, √(4 ln n / d), at most 1.

    Cosines are nearly N(0, 1/d), and this is where the n(n−1)/2 of them begin to be fewer than one.
    """
    return min(1.0, math.sqrt(4 * math.log(n_features) / d)) if n_features > 1 else 0.0


def chance(occurrences: Int[Tensor, " features"], frequency: float) -> float:
    """What the largest share |D_i ∩ D_j|/|D_i| hardly exceeds, were features independent and as frequent as `frequency`.

    The share x at which Chernoff's bound, exp(−|D_i| KL(x ‖ f)), on each of the n(n−1) shares makes them sum to one. Falls
    towards `frequency` with the number of rows.
    """
    n = len(occurrences)
    if n < 2 or frequency >= 1:
        return min(frequency, 1.0) if n > 1 else 0.0
    rare = int(occurrences.min())
    low, high = frequency, 1.0
    for _ in range(60):
        x = (low + high) / 2
        divergence = x * math.log(x / frequency)
        if x < 1:
            divergence += (1 - x) * math.log((1 - x) / (1 - frequency))
        low, high = (x, high) if rare * divergence < math.log(n * (n - 1)) else (low, x)
    return high


def _largest(share: Float[Tensor, "n n"]) -> tuple[float, tuple[int, int]]:
    if not share.numel():
        return 0.0, (0, 0)
    where = int(share.argmax())
    return float(share.max()), divmod(where, len(share))
