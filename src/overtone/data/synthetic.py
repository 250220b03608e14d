"""Ground truths: rows X = H V whose features V are known (arXiv 2506.14002, section 2; maths.md eq. 18)."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.fresh import RowLaw
from overtone.data.laws import (
    CoefficientLaw,
    DirectionLaw,
    FrequencyLaw,
    check_coefficients,
    coefficients,
    directions,
    relative_frequencies,
)
from overtone.ops.codes import SparseCodes, concatenate


class Samples(NamedTuple):
    """Rows and the coefficients they were made of."""

    x: Float[Tensor, "rows d"]
    h: Float[Tensor, "rows features"]


class CodedRows(NamedTuple):
    """Rows and the coefficients they were made of, as the few entries that are not zero: for any number of features."""

    x: Float[Tensor, "rows d"]
    codes: SparseCodes

    @classmethod
    def of(cls, h: Float[Tensor, "rows features"], features: Float[Tensor, "features d"]) -> "CodedRows":
        """x = H V of a matrix H."""
        return cls(h @ features, SparseCodes.from_dense(h))


class GroundTruth(RowLaw[CodedRows]):
    """Rows that are sums of known features, and streams over them.

    Attributes:
        features: V, one unit row per feature.
    """

    features: Float[Tensor, "features d"]

    @property
    def width(self) -> int:
        """d."""
        return self.features.shape[1]

    @abstractmethod
    def occurrence(self) -> Float[Tensor, " features"]:
        """f_i, the share of rows in which each feature occurs."""

    @abstractmethod
    def coded(self, rows: int, generator: torch.Generator) -> CodedRows:
        """Fresh rows with their coefficients as entries."""

    def sample(self, rows: int, generator: torch.Generator) -> Samples:
        """Fresh rows with their coefficients."""
        x, codes = self.coded(rows, generator)
        return Samples(x, codes.dense())

    def drawn(self, rows: int, generator: torch.Generator) -> CodedRows:
        """As `coded`, but rows that are zero, which have no direction, are drawn again."""
        parts, missing = [], rows
        while missing:
            part = self.coded(missing, generator)
            some = (part.x != 0).any(1)
            parts.append(part if some.all() else CodedRows(part.x[some], part.codes.of_rows(some)))
            missing -= len(parts[-1].x)
        return _joined(parts)

    def coded_rows(self, rows: int, *, seed: int = 0) -> CodedRows:
        """A fixed data set, its coefficients as entries."""
        return _joined(list(self.parts(rows, seed=seed)))

    def rows(self, rows: int, *, seed: int = 0) -> Samples:
        """A fixed data set; of thousands of features, take `coded_rows`."""
        x, codes = self.coded_rows(rows, seed=seed)
        return Samples(x, codes.dense())


def _joined(parts: list[CodedRows]) -> CodedRows:
    if len(parts) == 1:
        return parts[0]
    return CodedRows(torch.cat([part.x for part in parts]), concatenate([part.codes for part in parts]))


@dataclass(frozen=True, eq=False)
class SparseMixture(GroundTruth):
    """x = Σ_i h_i v_i (+ noise): exactly s features per row, s drawn from a mixture, coefficients i.i.d. and ≥ 0.

    Args:
        n_features: n.
        d: width of a row.
        sparsities: the values s may take, each equally likely.
        law: of the non-zero coefficients, `laws.coefficients`.
        least: smallest coefficient (log-normal: mean of the logarithm).
        spread: what the law's draws are multiplied by (log-normal: standard deviation of the logarithm).
        frequencies: how often features occur, `laws.relative_frequencies`; or numbers they are in proportion to.
        zipf_exponent: exponent of the Zipf law.
        frequency_ratio: of the most frequent feature to the least frequent, of the geometric law.
        co_occurrence: ρ₂, the share of a feature's rows in which its most frequent companion occurs, too (maths.md eq. G4):
            features 2k and 2k + 1 are companions; None: supports are as independent as s allows. Needs equal frequencies.
        noise: standard deviation of Gaussian noise per coordinate.
        directions: of the features V, `laws.directions`.
        cosine: expected cosine of neighbouring features, where directions are correlated.
        seed: seed of the features V.
        features: V, to give it yourself: (n_features, d).

    Every feature's occurrence frequency is exact in expectation (systematic sampling over a random order), whatever the law.
    """

    n_features: int = 128
    d: int = 42
    sparsities: tuple[int, ...] = (3, 20)
    law: CoefficientLaw = "uniform"
    least: float = 0.0
    spread: float = 1.0
    frequencies: FrequencyLaw | Float[Tensor, " features"] = "equal"
    zipf_exponent: float = 0.5
    frequency_ratio: float = 100.0
    co_occurrence: float | None = None
    noise: float = 0.0
    directions: DirectionLaw = "gaussian"
    cosine: float = 0.5
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
        check_coefficients(self.law, self.least, self.spread)
        if self.noise < 0:
            raise ValueError(f"noise={self.noise} is a standard deviation and must be at least 0")
        if self.features is None:
            v = directions(self.directions, self.n_features, self.d, seed=self.seed, cosine=self.cosine)
            object.__setattr__(self, "features", v)
        elif tuple(self.features.shape) != (self.n_features, self.d):
            raise ValueError(
                f"features have shape {tuple(self.features.shape)}, expected ({self.n_features}, {self.d}) = (n_features, d)"
            )
        self._check_frequencies()
        if self.co_occurrence is not None:
            self._check_co_occurrence(self.co_occurrence)

    def _check_frequencies(self) -> None:
        given = self.frequencies
        if isinstance(given, Tensor) and (given.shape != (self.n_features,) or not bool((given > 0).all())):
            raise ValueError(f"frequencies must be {self.n_features} numbers above 0, one for every feature")
        too_often = float(self.occurrence(max(self.sparsities)).max())
        if too_often > 1:
            raise ValueError(
                f"with sparsity {max(self.sparsities)} the most frequent feature would occur {too_often:.3g} times per row; "
                f"flatten its law (zipf_exponent={self.zipf_exponent}, frequency_ratio={self.frequency_ratio}), lower the "
                f"sparsity, or raise n_features={self.n_features}"
            )

    def _check_co_occurrence(self, wanted: float) -> None:
        if self.frequencies != "equal" or self.n_features % 2:
            raise ValueError(
                f"co_occurrence={wanted} pairs features of equal frequency: give frequencies='equal' and an even n_features"
            )
        least, most = self._companions
        if not least <= wanted <= most:
            raise ValueError(
                f"co_occurrence={wanted} must lie between {least:.4g} (independent) and {most:.4g} (always in pairs) for "
                f"sparsities={self.sparsities} of n_features={self.n_features}"
            )

    @property
    def _companions(self) -> tuple[float, float]:
        """ρ₂ of rows with independent supports, and of rows made of pairs; where s is odd, one of them is broken."""
        total = sum(self.sparsities)
        independent = sum(s * (s - 1) / max(self.n_features - 1, 1) for s in self.sparsities)
        return independent / total, sum(s - s % 2 for s in self.sparsities) / total

    def occurrence(self, sparsity: float | None = None) -> Float[Tensor, " features"]:
        """f_i, the share of rows in which each feature occurs; of rows with one sparsity, or of all rows."""
        s = sum(self.sparsities) / len(self.sparsities) if sparsity is None else sparsity
        if isinstance(self.frequencies, Tensor):
            return s * (self.frequencies.double() / self.frequencies.double().sum())
        return s * relative_frequencies(
            self.frequencies, self.n_features, exponent=self.zipf_exponent, ratio=self.frequency_ratio
        )

    def coded(self, rows: int, generator: torch.Generator) -> CodedRows:
        """Fresh rows with their coefficients as entries."""
        which = torch.randint(len(self.sparsities), (rows,), generator=generator)
        s = torch.tensor(self.sparsities)[which]
        support = _systematic_support(s, self.occurrence(1), generator)
        if self.co_occurrence is not None:
            least, most = self._companions
            in_pairs = torch.rand(rows, generator=generator) < (self.co_occurrence - least) / (most - least)
            support[in_pairs] = _paired_support(s[in_pairs], self.n_features, generator)
        shape = (rows, self.n_features)
        h = support * coefficients(self.law, shape, generator, least=self.least, spread=self.spread)
        made = CodedRows.of(h, self.features)
        if not self.noise:
            return made
        return made._replace(x=made.x + self.noise * torch.randn(made.x.shape, generator=generator))


def imbalanced(**changes: Any) -> SparseMixture:
    """The paper's imbalanced set (arXiv 2506.14002; n = 128, d = 42, half of the rows s = 3, half s = 20)."""
    return SparseMixture(**changes)


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


def _paired_support(
    s: Int[Tensor, " rows"], n_features: int, generator: torch.Generator
) -> Float[Tensor, "rows features"]:
    """0/1 rows with exactly s ones, in pairs (2k, 2k + 1); where s is odd, one of all that were drawn is left out."""
    pairs = _systematic_support((s + 1) // 2, torch.full((n_features // 2,), 2 / n_features).double(), generator)
    support = pairs.repeat_interleave(2, dim=1)
    lottery = torch.rand(support.shape, generator=generator) * support
    left_out = torch.zeros_like(support).scatter_(1, lottery.argmax(1, keepdim=True), 1.0)
    return support - left_out * (s % 2)[:, None]
