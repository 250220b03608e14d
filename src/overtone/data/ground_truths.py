"""Ground truths of the literature beside the imbalanced set: features that occur independently, and features in a hierarchy.

Everything follows from seeds. What a paper leaves open is a parameter, marked so.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.laws import CoefficientLaw, check_coefficients, coefficients, directions, relative_frequencies
from overtone.data.synthetic import CodedRows, GroundTruth
from overtone.seeds import generator

ProbabilityLaw = Literal["constant", "log-uniform"]


@dataclass(frozen=True, eq=False)
class IndependentFeatures(GroundTruth):
    """x = Σ_i s_i c_i v_i with s_i ~ Bernoulli(p_i) and magnitudes c_i, all independent.

    Args:
        features: V, unit rows.
        probability: p_i of every feature.
        law: of the magnitudes, `laws.coefficients`.
        least: least magnitude c_min (log-normal: mean of the logarithm).
        spread: what the law's draws are multiplied by (log-normal: standard deviation of the logarithm).
    """

    features: Float[Tensor, "features d"] = field(repr=False)
    probability: Float[Tensor, " features"] = field(repr=False)
    law: CoefficientLaw = "exponential"
    least: float = 0.0
    spread: float = 1.0

    def __post_init__(self):
        check_coefficients(self.law, self.least, self.spread)
        if len(self.probability) != len(self.features):
            raise ValueError(f"{len(self.probability)} probabilities for {len(self.features)} features; give one each")
        if not (float(self.probability.min()) >= 0 and 0 < float(self.probability.max()) <= 1):
            raise ValueError("probabilities must lie between 0 and 1, and not all be 0")

    def occurrence(self) -> Float[Tensor, " features"]:
        """p_i."""
        return self.probability

    def coded(self, rows: int, generator: torch.Generator) -> CodedRows:
        """Fresh rows with their coefficients as entries."""
        active = torch.rand(rows, len(self.features), generator=generator) < self.probability
        drawn = coefficients(self.law, (int(active.sum()),), generator, least=self.least, spread=self.spread)
        return CodedRows.of(torch.zeros(active.shape).masked_scatter_(active, drawn), self.features)


def linear_representation_bench(
    n_features: int = 1000,
    d: int = 768,
    *,
    sparsity: float = 0.99,
    coherence: float = 0.1,
    least: float = 0.0,
    spread: float = 1.0,
    seed: int = 0,
) -> IndependentFeatures:
    """The Linear Representation Bench (arXiv 2512.05534): features of bounded coherence, each in 1 − S of the rows.

    Args:
        n_features: n.
        d: width of a row.
        sparsity: S, share of rows that a feature does not occur in.
        coherence: M, the largest inner product of two features.
        least: c_min (not given by the paper).
        spread: β, mean of the exponential part of a magnitude (not given by the paper).
        seed: seed of the features.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity={sparsity} is a share of rows and must lie between 0 and 1 (exclusive)")
    features = separated_features(n_features, d, coherence, seed=seed)
    return IndependentFeatures(features, torch.full((n_features,), 1 - sparsity), "exponential", least, spread)


def sanity_check(
    n_features: int = 3200,
    d: int = 100,
    *,
    probability: ProbabilityLaw = "constant",
    l0: float = 20.0,
    spread: float = 0.25,
    seed: int = 0,
) -> IndependentFeatures:
    """The sanity check of arXiv 2602.14111: 32 times as many features as dimensions, magnitudes LogNormal(0, 0.25).

    Args:
        n_features: n.
        d: width of a row.
        probability: "constant" – p = l0/n for all; "log-uniform" – even in the logarithm between 10^−5.5 and 10^−1.2, then scaled
            to sum to l0 (the limits alone give 20.4 for n = 3200).
        l0: mean number of features of a row.
        spread: standard deviation of the magnitudes' logarithm.
        seed: seed of the features, uniform on the sphere.
    """
    if probability not in ProbabilityLaw.__args__:
        raise ValueError(f"probability={probability!r} is not one of {', '.join(ProbabilityLaw.__args__)}")
    law = "geometric" if probability == "log-uniform" else "equal"
    p = l0 * relative_frequencies(law, n_features, ratio=10 ** (5.5 - 1.2))
    if float(p.max()) > 1:
        raise ValueError(
            f"l0={l0} of n_features={n_features} would need probabilities up to {float(p.max()):.3g}; lower l0"
        )
    return IndependentFeatures(directions("gaussian", n_features, d, seed=seed), p.float(), "log-normal", 0.0, spread)


def separated_features(
    n_features: int,
    d: int,
    coherence: float,
    *,
    seed: int = 0,
    margin: float = 1e-3,
    spread: float = 1e-3,
    step: float = 0.05,
    patience: int = 2000,
) -> Float[Tensor, "features d"]:
    """Unit rows with inner products of at most `coherence`, by projected gradient descent from uniform ones.

    Descends Σ_{i≠j} max(0, ⟨v_i, v_j⟩ − (M − ε))² + λ Σ_{i≠j} max(0, ⟨v_i, v_j⟩)² on the sphere until the largest product is at
    most M (arXiv 2512.05534, which does not give ε, λ and the step).

    Args:
        n_features: rows.
        d: width.
        coherence: M.
        seed: seed of the start.
        margin: ε.
        spread: λ.
        step: step of the descent.
        patience: steps after which to give up.

    Raises:
        ValueError: not reached; more vectors than d dimensions hold so far apart.
    """
    v = torch.randn(n_features, d, generator=generator(seed, "features"))
    largest = 1.0
    for _ in range(patience):
        v = torch.nn.functional.normalize(v, dim=1)
        gram = (v @ v.T).fill_diagonal_(-1.0)
        largest = float(gram.max())
        if largest <= coherence:
            return v
        pull = (gram - (coherence - margin)).clamp(min=0) + spread * gram.clamp(min=0)
        v = v - step * 4 * pull @ v
    raise ValueError(
        f"{n_features} features in d={d} still have coherence {largest:.3g} > {coherence} after {patience} steps; "
        "raise coherence or d, or lower n_features"
    )


@dataclass(frozen=True, eq=False)
class Hierarchy(GroundTruth):
    """Features of which some occur only with their parent, siblings excluding each other (the toy of arXiv 2506.03093).

    A parent occurs with `parent_probability`; where it does, one of its children does, each with `child_probability`, or none.
    Leaves occur independently. Features are orthonormal but for siblings, which have a mutual cosine and span what they spanned.

    Args:
        parents: number of parents.
        children: children per parent.
        leaves: features without relatives.
        parent_probability: of each parent.
        child_probability: of each child, given its parent; children times this is at most 1.
        leaf_probability: of each leaf.
        cosine: of siblings, in [0, 1).
        magnitude: mean of the coefficients.
        spread: their standard deviation; what would fall below 0 counts as 0.
        d: width of a row; at least the number of features.
        seed: seed of the features.
    """

    parents: int = 3
    children: int = 3
    leaves: int = 8
    parent_probability: float = 0.2
    child_probability: float = 0.2
    leaf_probability: float = 0.05
    cosine: float = 0.0
    magnitude: float = 1.5
    spread: float = 0.25
    d: int = 20
    seed: int = 0
    features: Float[Tensor, "features d"] = field(init=False, repr=False)

    def __post_init__(self):
        if min(self.parents, self.children) < 1 or self.leaves < 0:
            raise ValueError(
                f"parents={self.parents}, children={self.children} and leaves={self.leaves} must be at least 1, 1 and 0"
            )
        for name in ("parent_probability", "child_probability", "leaf_probability"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in (0, 1]")
        if self.children * self.child_probability > 1:
            raise ValueError(
                f"{self.children} siblings of child_probability={self.child_probability} exclude each other: at most 1 in all"
            )
        if not 0 <= self.cosine < 1:
            raise ValueError(f"cosine={self.cosine} must lie in [0, 1)")
        if self.d < self.n_features:
            raise ValueError(f"d={self.d} cannot hold {self.n_features} independent features; raise it")
        object.__setattr__(self, "features", self._directions())

    @property
    def n_features(self) -> int:
        """Parents first, then the children of each in turn, then leaves."""
        return self.parents * (1 + self.children) + self.leaves

    @property
    def parent_of(self) -> Int[Tensor, " features"]:
        """Index of every feature's parent, −1 for those that have none."""
        none = torch.tensor([-1])
        of_children = torch.arange(self.parents).repeat_interleave(self.children)
        return torch.cat([none.expand(self.parents), of_children, none.expand(self.leaves)])

    def _directions(self) -> Float[Tensor, "features d"]:
        draws = torch.randn(self.d, self.d, generator=generator(self.seed, "features"), dtype=torch.float64)
        v = torch.linalg.qr(draws).Q[: self.n_features]
        gram = torch.full((self.children, self.children), self.cosine, dtype=torch.float64).fill_diagonal_(1.0)
        values, vectors = torch.linalg.eigh(gram)
        # The symmetric root has the Gram matrix wanted and moves each sibling as little as can be.
        root = (vectors * values.sqrt()) @ vectors.T
        siblings = v[self.parents : self.parents * (1 + self.children)].view(self.parents, self.children, self.d)
        siblings.copy_(root @ siblings.clone())
        return v.float().contiguous()

    def occurrence(self) -> Float[Tensor, " features"]:
        """Shares of all rows, those without any feature included."""
        child = self.parent_probability * self.child_probability
        counts = self.parents, self.parents * self.children, self.leaves
        shares = torch.tensor([self.parent_probability, child, self.leaf_probability])
        return shares.repeat_interleave(torch.tensor(counts))

    def coded(self, rows: int, generator: torch.Generator) -> CodedRows:
        """Fresh rows with their coefficients as entries."""

        def uniform(columns: int) -> Tensor:
            return torch.rand(rows, columns, generator=generator)

        parents = uniform(self.parents) < self.parent_probability
        # One draw per parent says which child there is: beyond the last one, none.
        which = (uniform(self.parents) / self.child_probability).long()
        children = parents[..., None] & (which[..., None] == torch.arange(self.children))
        leaves = uniform(self.leaves) < self.leaf_probability
        support = torch.cat([parents, children.flatten(1), leaves], dim=1)
        size = torch.randn(support.shape, generator=generator) * self.spread + self.magnitude
        return CodedRows.of(support * size.clamp(min=0), self.features)
