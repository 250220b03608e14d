"""SynthSAEBench's model of activations (arXiv 2602.14687): Zipf frequencies, trees of features, correlations.

The law is that of SAELens' generator (`sae_lens.synthetic`; benchmarks/truths.py compares), sampled in another way: children
are drawn only where their parent occurs, so that a row costs as many numbers as there are features without a parent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.special import ndtr, ndtri

from overtone.data.laws import directions
from overtone.data.synthetic import CodedRows, GroundTruth
from overtone.ops.codes import SparseCodes, concatenate
from overtone.ops.loops import weighted_sums
from overtone.seeds import generator

# Rows whose entries are made together, and numbers in the largest temporary.
_ROWS, _NUMBERS = 1024, 2**20
# Points of the quasi-random integral over the common factors; features' frequencies are then exact to about a percent of theirs.
_POINTS = 4096
# What is left to a feature of its own when common factors would explain all of it.
_LEAST_OWN = 0.01


@dataclass(frozen=True, eq=False)
class FeatureForest(GroundTruth):
    """x = bias + Σ_i h_i v_i, features in trees: a child only with its parent, of siblings at most one (maths.md eqs. G5–G8).

    Features are numbered by rank: the most frequent are the roots, then come their children, level by level, then features
    without relatives. The defaults are SynthSAEBench-16k v2; `synth_sae_bench` scales them.

    Probabilities are raised for what parents and siblings take from them only approximately, as in SAELens' generator, so that
    frequencies lie below the Zipf law (`announced`): 34 features per row instead of 59. `occurrence` has the true ones.

    Args:
        n_features: n.
        d: width of a row.
        roots: number of trees.
        branching: children of every inner node.
        depth: levels below the roots.
        most: Zipf probability of the first feature.
        least: of the last one.
        exponent: of the Zipf law between them.
        rank: number of common factors that make features correlate.
        correlation: standard deviation of a loading on a factor; two Gaussians correlate by about √rank · correlation².
        magnitudes: mean of the first feature's magnitude and of the last one's; linear between them.
        deviations: mean and standard deviation of the normal law whose sizes are the magnitudes' standard deviations.
        bias: norm of what is added to every row.
        exclusive: whether of siblings only one, drawn evenly, is left.
        scaled: whether a child's magnitude is multiplied by its parent's, relative to its mean (v1 was published without).
        compensated: whether probabilities of children are raised for what parents and siblings take from them.
        push_apart: whether features are made less coherent than random ones, half a minute's work at 16 384.
        seed: seed of everything fixed: features, bias, factors, deviations.
    """

    n_features: int = 16_384
    d: int = 768
    roots: int = 128
    branching: int = 4
    depth: int = 3
    most: float = 0.4
    least: float = 5e-4
    exponent: float = 0.5
    rank: int = 25
    correlation: float = 0.1
    magnitudes: tuple[float, float] = (5.0, 4.0)
    deviations: tuple[float, float] = (0.5, 0.5)
    bias: float = 0.5
    exclusive: bool = True
    scaled: bool = True
    compensated: bool = True
    push_apart: bool = True
    seed: int = 0
    features: Float[Tensor, "features d"] = field(init=False, repr=False)
    offset: Float[Tensor, " d"] = field(init=False, repr=False)
    firing: Float[Tensor, " features"] = field(init=False, repr=False)
    mean: Float[Tensor, " features"] = field(init=False, repr=False)
    deviation: Float[Tensor, " features"] = field(init=False, repr=False)
    threshold: Float[Tensor, " features"] = field(init=False, repr=False)
    loading: Float[Tensor, "features rank"] = field(init=False, repr=False)

    def __post_init__(self):
        self._check()
        away = torch.randn(self.d, generator=generator(self.seed, "bias"))
        spread = torch.randn(self.n_features, generator=generator(self.seed, "deviations"))
        firing, factor = self._firing(), self._factor()
        own = (1 - factor.square().sum(1)).sqrt()
        fixed = {
            "features": directions(
                "low-coherence" if self.push_apart else "gaussian", self.n_features, self.d, seed=self.seed
            ),
            "offset": self.bias * away / away.norm(),
            "firing": firing.float(),
            "mean": torch.linspace(*self.magnitudes, self.n_features),
            "deviation": (self.deviations[0] + self.deviations[1] * spread).abs(),
            # In units of a feature's own part of its Gaussian; −∞ for one that always fires.
            "threshold": (-ndtri(firing) / own).float(),
            "loading": (factor / own[:, None]).float(),
        }
        for name, value in fixed.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        for name in ("n_features", "d", "branching", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("roots", "depth", "correlation", "bias"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.in_trees > self.n_features:
            raise ValueError(
                f"{self.roots} trees of depth {self.depth} and branching {self.branching} have {self.in_trees} nodes, more than "
                f"n_features={self.n_features}; plant fewer roots"
            )
        if not 0 < self.least <= self.most <= 1:
            raise ValueError(f"least={self.least} and most={self.most} are probabilities: 0 < least ≤ most ≤ 1")
        if min(self.magnitudes) <= 0:
            raise ValueError(f"magnitudes={self.magnitudes} are means of what is cut off at 0; give numbers above 0")
        if self.deviations[1] < 0:
            raise ValueError(f"deviations={self.deviations}: a standard deviation cannot be negative")

    @property
    def levels(self) -> list[slice]:
        """The features of each level of the trees, roots first."""
        sizes = [self.roots * self.branching**level for level in range(self.depth + 1)]
        return [slice(sum(sizes[:level]), sum(sizes[: level + 1])) for level in range(len(sizes))]

    @property
    def in_trees(self) -> int:
        """Features in trees; those after them have no relatives."""
        return self.levels[-1].stop

    @property
    def parent_of(self) -> Int[Tensor, " features"]:
        """Index of every feature's parent, −1 for those that have none."""
        index = torch.arange(self.n_features)
        child = (index >= self.roots) & (index < self.in_trees)
        return torch.where(child, (index - self.roots) // self.branching, -1)

    @property
    def announced(self) -> Float[Tensor, " features"]:
        """The Zipf law between `most` and `least`, which frequencies follow approximately (eq. G5)."""
        weight = torch.arange(1, self.n_features + 1, dtype=torch.float64) ** -self.exponent
        share = (weight - weight[-1]) / (weight[0] - weight[-1]).clamp(min=1e-300)
        return self.least + (self.most - self.least) * share

    def _siblings(self, level: slice, values: Float[Tensor, "*points features"]) -> Float[Tensor, "*points parents b"]:
        return values[..., level].unflatten(-1, (-1, self.branching))

    def _firing(self) -> Float[Tensor, " features"]:
        """Probabilities before the trees have taken theirs (eq. G6)."""
        p = self.announced
        raised = p.clone()
        for above, level in zip(self.levels[:-1], self.levels[1:], strict=True) if self.compensated else ():
            given = self._siblings(level, p) / p[above, None]
            rivals = given.sum(1, keepdim=True) - given if self.exclusive else 0.0
            raised[level] = (given * (1 + rivals)).flatten()
        return raised.clamp(max=1)

    def _factor(self) -> Float[Tensor, "features rank"]:
        """Loadings of unit Gaussians on the common factors; something is left to every feature of its own."""
        drawn = torch.randn(self.n_features, self.rank, generator=generator(self.seed, "factors"), dtype=torch.float64)
        factor = self.correlation * drawn
        common = factor.square().sum(1, keepdim=True)
        return factor * ((1 - _LEAST_OWN) / common.clamp(min=1 - _LEAST_OWN)).sqrt()

    def occurrence(self) -> Float[Tensor, " features"]:
        """f_i of all features: exact without common factors, else an integral over them at fixed quasi-random points (eq. G8)."""
        common = torch.quasirandom.SobolEngine(self.rank, scramble=True, seed=0).draw(_POINTS, dtype=torch.float64)
        common = ndtri(common.clamp(1e-12, 1 - 1e-12)).float()
        positive = ndtr(self.mean / self.deviation)
        total = torch.zeros(self.n_features, dtype=torch.float64)
        for some in common.split(max(1, _NUMBERS // self.n_features)):
            fires = ndtr(torch.addmm(-self.threshold, some, self.loading.T)) * positive
            total += self._occurring(fires).sum(0)
        return total / _POINTS

    def _occurring(self, fires: Float[Tensor, "points features"]) -> Float[Tensor, "points features"]:
        """Probabilities in rows, of those that independent features would have without their trees."""
        occurs = fires.double()
        for above, level in zip(self.levels[:-1], self.levels[1:], strict=True):
            given = self._siblings(level, occurs)
            if self.exclusive:
                given = _lone(given)
            occurs[:, level] = (occurs[:, above, None] * given).flatten(1)
        return occurs

    def coded(self, rows: int, generator: torch.Generator) -> CodedRows:
        """Fresh rows with their coefficients as entries."""
        parts = [self._entries(min(_ROWS, rows - start), generator) for start in range(0, rows, _ROWS)]
        codes = parts[0] if len(parts) == 1 else concatenate(parts)
        return CodedRows(weighted_sums(self.features, codes.latents, codes.offsets, codes.values) + self.offset, codes)

    def _entries(self, rows: int, draws: torch.Generator) -> SparseCodes:
        common = torch.randn(rows, self.rank, generator=draws)
        row, feature = self._without_parent(common, draws)
        value = torch.randn(len(row), generator=draws).mul_(self.deviation[feature]).add_(self.mean[feature])
        there = value > 0
        entries = [(row[there], feature[there], value[there])]
        entries.extend(self._descend(entries[0], common, draws))
        row, feature, value = (torch.cat(column) for column in zip(*entries, strict=True))
        # One key for both: entries by row, then by feature.
        place, order = (row * self.n_features + feature).sort()
        offsets = torch.nn.functional.pad(torch.bincount(row, minlength=rows).cumsum(0), (1, 0))
        return SparseCodes(value[order], place % self.n_features, offsets, self.n_features)

    def _without_parent(
        self, common: Float[Tensor, "rows rank"], draws: torch.Generator
    ) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"]]:
        """Rows and features that fire, of roots and of features without relatives."""
        alone = torch.cat([torch.arange(self.roots), torch.arange(self.in_trees, self.n_features)])
        loading, threshold = self.loading[alone].T.contiguous(), self.threshold[alone]
        step = max(1, _NUMBERS // max(len(alone), 1))
        found = []
        for start in range(0, len(common), step):
            some = common[start : start + step]
            gaussian = torch.randn(len(some), len(alone), generator=draws).addmm_(some, loading)
            fired = (gaussian > threshold).nonzero()
            found.append(torch.stack([fired[:, 0] + start, alone[fired[:, 1]]]))
        row, feature = torch.cat(found, dim=1)
        return row, feature

    def _descend(
        self,
        parents: tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"], Float[Tensor, " nnz"]],
        common: Float[Tensor, "rows rank"],
        draws: torch.Generator,
    ) -> Iterator[tuple[Int[Tensor, " _"], Int[Tensor, " _"], Float[Tensor, " _"]]]:
        """Entries of every level below the roots, each from those of the level above."""
        b = self.branching
        is_root = parents[1] < self.roots
        parents = parents[0][is_root], parents[1][is_root], parents[2][is_root]
        for _ in range(self.depth):
            row, parent, above = parents
            # Level by level, in the order of their parents: node i's children follow one another from roots + b·i on.
            child = self.roots + b * parent[:, None] + torch.arange(b)
            shape = child.shape
            # Siblings' loadings lie side by side: one long row to fetch instead of b short ones.
            loadings = self.loading[self.roots : self.in_trees].view(-1, b * self.rank).index_select(0, parent)
            shared = torch.bmm(loadings.view(*shape, self.rank), common.index_select(0, row)[:, :, None]).squeeze(2)
            value = torch.randn(shape, generator=draws).mul_(self.deviation[child]).add_(self.mean[child])
            there = (torch.randn(shape, generator=draws).add_(shared) > self.threshold[child]) & (value > 0)
            if self.exclusive:
                there = _one_of(there, draws)
            if self.scaled:
                value = value * (above / self.mean[parent])[:, None]
            of, which = there.nonzero(as_tuple=True)
            parents = row[of], child[of, which], value[of, which]
            yield parents


def _one_of(candidates: Bool[Tensor, "groups b"], draws: torch.Generator) -> Bool[Tensor, "groups b"]:
    """One candidate of every group that has any, each as likely as another."""
    lots = torch.rand(candidates.shape, generator=draws).masked_fill_(~candidates, -1.0)
    return candidates & (torch.arange(candidates.shape[1]) == lots.argmax(1, keepdim=True))


def _lone(given: Float[Tensor, "*groups b"]) -> Float[Tensor, "*groups b"]:
    """How likely each of independent candidates is the one drawn: g_i E[1 / (1 + K_i)], with K_i of the others there.

    E[1 / (1 + K_i)] = ∫₀¹ Π_{j≠i} (1 − g_j (1 − t)) dt: Gauss' rule of ⌈b/2⌉ nodes is exact for polynomials of degree b − 1.
    """
    nodes, weights = _gauss(-(-given.shape[-1] // 2))
    share = torch.zeros_like(given)
    for t, weight in zip(nodes, weights, strict=True):
        each = 1 - given * (1 - t)
        share += weight * each.prod(-1, keepdim=True) / each
    return given * share


def _gauss(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights of Gauss–Legendre on [0, 1], by the eigenvalues of the recurrence (Golub and Welsch)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return ((values + 1) / 2).tolist(), vectors[0].square().tolist()


def synth_sae_bench(n_features: int = 16_384, d: int | None = None, *, seed: int = 0, **changes: Any) -> FeatureForest:
    """SynthSAEBench-16k v2 (arXiv 2602.14687), or the same law with fewer features.

    At 16 384 features: d = 768, 128 roots, Zipf from 0.4 to 5e-4. With n features, everything is as it was at the same
    relative rank [ours]: n/128 roots; d and the mean number of features of a row (34.5) shrink with √(n/16384), probabilities
    grow by as much. So 4096 features have d = 384, 1024 have 192.

    Args:
        n_features: n, at least 128.
        d: width of a row, where it should be another.
        seed: seed of the features.
        changes: other settings of `FeatureForest`.
    """
    if n_features < 128:
        raise ValueError(f"n_features={n_features} leaves no tree: there is one per 128 features")
    shrink = (n_features / 16_384) ** 0.5
    width = round(768 * shrink) if d is None else d
    settings: dict[str, Any] = {"roots": n_features // 128, "least": 5e-4 / shrink, **changes}
    return FeatureForest(n_features, width, seed=seed, **settings)
