"""Ground truths: rows X = H V whose features V are known (arXiv 2506.14002, section 2; maths.md eq. 18)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.data.stream import ArrayStream, Batch
from overtone.layout import Layout
from overtone.seeds import generator

CoefficientLaw = Literal["uniform", "constant", "half-normal", "exponential"]
FrequencyLaw = Literal["equal", "zipf"]


class Samples(NamedTuple):
    """Rows and the coefficients they were made of."""

    x: Float[Tensor, "rows d"]
    h: Float[Tensor, "rows features"]


class GroundTruth(ABC):
    """Rows that are sums of known features, and streams over them.

    Attributes:
        features: V, one unit row per feature.
    """

    features: Float[Tensor, "features d"]

    @abstractmethod
    def occurrence(self) -> Float[Tensor, " features"]:
        """f_i, the share of rows in which each feature occurs."""

    @abstractmethod
    def sample(self, rows: int, generator: torch.Generator) -> Samples:
        """Fresh rows with their coefficients."""

    def drawn(self, rows: int, generator: torch.Generator) -> Samples:
        """As `sample`, but rows without any feature, which have no direction, are drawn again."""
        parts, missing = [], rows
        while missing:
            part = self.sample(missing, generator)
            some = (part.h != 0).any(1)
            parts.append(part if some.all() else Samples(part.x[some], part.h[some]))
            missing -= len(parts[-1].x)
        return parts[0] if len(parts) == 1 else Samples(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def rows(self, rows: int, *, seed: int = 0) -> Samples:
        """A fixed data set."""
        draws = generator(seed, "fixed rows")
        blocks = [self.drawn(min(8192, rows - i), draws) for i in range(0, rows, 8192)]
        return Samples(torch.cat([b.x for b in blocks]), torch.cat([b.h for b in blocks]))

    def stream(self, batch: int, *, rows: int | None = None, seed: int = 0) -> "ArrayStream | FreshStream":
        """A stream over `rows` fixed rows, or over fresh ones without end."""
        if rows is None:
            return FreshStream(self, batch, seed=seed)
        return ArrayStream(self.rows(rows, seed=seed).x, batch, seed=seed, source="synthetic rows")


@dataclass(frozen=True, eq=False)
class SparseMixture(GroundTruth):
    """x = Σ_i h_i v_i (+ noise): exactly s features per row, s drawn from a mixture, coefficients i.i.d. and ≥ 0.

    Args:
        n_features: n.
        d: width of a row.
        sparsities: the values s may take, each equally likely.
        law: of the non-zero coefficients: uniform on [0, 1], constant 1, half-normal |N(0, 1)| or exponential.
        frequencies: how often features occur: all equally, or proportional to 1/rank^zipf_exponent.
        zipf_exponent: exponent of the Zipf law.
        noise: standard deviation of Gaussian noise per coordinate.
        seed: seed of the features V (i.i.d. Gaussian directions, unit norm).
        features: V, to give it yourself: (n_features, d).

    Every feature's occurrence frequency is exact in expectation (systematic sampling over a random order), whatever the law.
    """

    n_features: int = 128
    d: int = 42
    sparsities: tuple[int, ...] = (3, 20)
    law: CoefficientLaw = "uniform"
    frequencies: FrequencyLaw = "equal"
    zipf_exponent: float = 0.5
    noise: float = 0.0
    seed: int = 0
    features: Float[Tensor, "features d"] = field(default=None, repr=False)  # pyright: ignore[reportAssignmentType]

    def __post_init__(self):
        for name in ("n_features", "d"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.sparsities or min(self.sparsities) < 1 or max(self.sparsities) > self.n_features:
            raise ValueError(
                f"sparsities={self.sparsities} must be between 1 and n_features={self.n_features} active features per row"
            )
        for name, allowed in (("law", CoefficientLaw), ("frequencies", FrequencyLaw)):
            if getattr(self, name) not in allowed.__args__:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed.__args__)}")
        if self.features is None:
            v = torch.randn(self.n_features, self.d, generator=generator(self.seed, "features"))
            object.__setattr__(self, "features", v / v.norm(dim=1, keepdim=True))
        elif tuple(self.features.shape) != (self.n_features, self.d):
            raise ValueError(
                f"features have shape {tuple(self.features.shape)}, expected ({self.n_features}, {self.d}) = (n_features, d)"
            )
        too_often = float(self.occurrence(max(self.sparsities)).max())
        if too_often > 1:
            raise ValueError(
                f"with sparsity {max(self.sparsities)} the most frequent feature would occur {too_often:.3g} times per row; "
                f"lower zipf_exponent={self.zipf_exponent} or the sparsity, or raise n_features={self.n_features}"
            )

    def occurrence(self, sparsity: float | None = None) -> Float[Tensor, " features"]:
        """f_i, the share of rows in which each feature occurs; of rows with one sparsity, or of all rows."""
        s = sum(self.sparsities) / len(self.sparsities) if sparsity is None else sparsity
        rank = torch.arange(1, self.n_features + 1, dtype=torch.float64)
        weight = rank**-self.zipf_exponent if self.frequencies == "zipf" else torch.ones_like(rank)
        return s * weight / weight.sum()

    def sample(self, rows: int, generator: torch.Generator) -> Samples:
        """Fresh rows with their coefficients."""
        which = torch.randint(len(self.sparsities), (rows,), generator=generator)
        s = torch.tensor(self.sparsities)[which]
        support = _systematic_support(s, self.occurrence(1), generator)
        h = support * self._coefficients(rows, generator)
        x = h @ self.features
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return Samples(x, h)

    def _coefficients(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows features"]:
        shape = (rows, self.n_features)
        match self.law:
            case "constant":
                return torch.ones(shape)
            case "half-normal":
                return torch.randn(shape, generator=generator).abs()
            case "exponential":
                return torch.empty(shape).exponential_(generator=generator)
            case _:
                # 1 − U: uniform on (0, 1], so that a feature that occurs never has coefficient 0.
                return 1 - torch.rand(shape, generator=generator)


def imbalanced(**changes: Any) -> SparseMixture:
    """The paper's imbalanced set (arXiv 2506.14002; n = 128, d = 42, half of the rows s = 3, half s = 20)."""
    return SparseMixture(**changes)


class FreshStream:
    """Rows never seen before. Batch i depends on (seed, i) alone: the position is one integer."""

    def __init__(self, truth: GroundTruth, batch: int, *, seed: int = 0):
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        self.truth, self.batch, self.seed, self.position = truth, batch, seed, 0
        self.layout = Layout.of(truth.features.shape[1])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        x = self.truth.drawn(self.batch, generator(self.seed, "fresh rows", self.position)).x
        self.position += 1
        return Batch(x, x)

    def state_dict(self) -> dict[str, Any]:
        """Number of batches given."""
        return {"position": self.position, "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        for name in ("batch", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the stream has {name}={getattr(self, name)}, the saved position was of {name}={state[name]}; "
                    "resume with the same settings"
                )
        self.position = state["position"]


def _systematic_support(
    s: Tensor, probability: Float[Tensor, " features"], generator: torch.Generator
) -> Float[Tensor, "rows features"]:
    """0/1 rows with exactly s ones, P(feature i) = s · probability_i: systematic sampling over a random order per row."""
    rows, n = len(s), len(probability)
    order = torch.rand(rows, n, generator=generator).argsort(1)
    edges = (s[:, None] * probability[order]).cumsum(1)
    # The last edge is s up to rounding; make it exact so that every row has exactly s ones.
    edges[:, -1] = s.double()
    offset = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    marks = (edges + offset).floor()
    chosen = marks - torch.cat([torch.zeros_like(marks[:, :1]), marks[:, :-1]], dim=1)
    return torch.zeros(rows, n).scatter_(1, order, chosen.float())
