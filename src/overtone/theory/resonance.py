"""Theorem 6.1 of arXiv 2506.14002 as functions: the width it asks for, and the frequencies at which features are recovered.

The theorem has "≳" and "≲": constants that it leaves open are parameters here, 1 unless said otherwise.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Band(NamedTuple):
    """Target frequencies that recover.

    Attributes:
        low: the lower edge.
        high: the upper edge; below `low` where the theorem promises nothing.
        limit: which of the three terms of the upper edge is the least: "sparsity" n^(−(1+1/s)/2), "separation"
            n^(−2(1+ε)²/s) or "dimension" d^(1−ς)/n.
    """

    low: float
    high: float
    limit: str

    @property
    def empty(self) -> bool:
        """Whether no frequency is promised to recover."""
        return self.high < self.low

    @property
    def octaves(self) -> float:
        """log₂(high/low): negative for an empty band."""
        return math.log2(self.high / self.low)


@dataclass(frozen=True)
class Setting:
    """The numbers that Theorem 6.1 is about (maths.md eq. T8–T10).

    Args:
        n_features: n.
        d: width of a row.
        sparsity: s, active features per row; real where it stands for a mean.
        epsilon: ε in (0, 1), the theorem's: a small one lowers the width and the probability.
        varsigma: ς in (0, 1), the theorem's: 1/ς steps suffice, and a large one takes its share of d.
        lower: constant of the lower edge of the band.
        upper: constant of the upper edge.
        constant: constant of the width.
    """

    n_features: float
    d: int
    sparsity: float
    epsilon: float = 0.05
    varsigma: float = 0.1
    lower: float = 1.0
    upper: float = 1.0
    constant: float = 1.0

    def __post_init__(self):
        if self.n_features < 1 or self.d < 1:
            raise ValueError(f"n_features={self.n_features} and d={self.d} must both be at least 1")
        if not 0 < self.sparsity <= self.n_features:
            raise ValueError(f"sparsity={self.sparsity} must lie between 0 and n_features={self.n_features}")
        for name in ("epsilon", "varsigma"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1 (exclusive)")
        for name in ("lower", "upper", "constant"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")

    @property
    def occurrence(self) -> float:
        """f = s/n, how often every feature occurs."""
        return self.sparsity / self.n_features

    @property
    def heavy(self) -> bool:
        """Whether superposition is heavy, d < √n."""
        return self.d < math.sqrt(self.n_features)

    @property
    def steps(self) -> float:
        """T = 1/ς."""
        return 1 / self.varsigma

    @property
    def probability(self) -> float:
        """1 − n^(−4ε), with which all features are recovered at least."""
        return 1 - self.n_features ** (-4 * self.epsilon)

    def upper_edges(self) -> dict[str, float]:
        """The three terms of the upper edge, by the names of `Band.limit` (maths.md eq. T9)."""
        n, s = self.n_features, self.sparsity
        return {
            "sparsity": self.upper * n ** (-(1 + 1 / s) / 2),
            "separation": self.upper * n ** (-2 * (1 + self.epsilon) ** 2 / s),
            "dimension": self.upper * self.d ** (1 - self.varsigma) / n,
        }

    def band(self) -> Band:
        """Target frequencies p of modified BA at which all features are recovered (maths.md eq. T9).

        Rises with d until `saturating_d`; does not depend on how often anything fires.
        """
        edges = self.upper_edges()
        limit = min(edges, key=lambda name: edges[name])
        return Band(self.lower / self.n_features, edges[limit], limit)

    def saturating_d(self) -> float:
        """The width d beyond which the band no longer widens: about √n where s is large (derived from eq. T9)."""
        edges = self.upper_edges()
        return (self.n_features * min(edges["sparsity"], edges["separation"]) / self.upper) ** (1 / (1 - self.varsigma))

    def log10_width(self, frequency: float) -> float:
        """log₁₀ of the latents that the theorem asks for, n p^(−s/(1−ε)²) (maths.md eq. T8). Falls as p rises."""
        _check_frequency(frequency)
        exponent = self.sparsity / (1 - self.epsilon) ** 2
        return math.log10(self.constant * self.n_features) - exponent * math.log10(frequency)

    def sparsity_in_reach(self, latents: int, frequency: float) -> float:
        """The largest s for which so many latents suffice at this p: (8) solved for s; 0 for fewer latents than features."""
        _check_frequency(frequency)
        spare = math.log(latents / (self.constant * self.n_features))
        return max(0.0, (1 - self.epsilon) ** 2 * spare / -math.log(frequency))


class Predicted(NamedTuple):
    """What is expected of every feature, given target frequencies.

    Attributes:
        low, high: the band of targets that would recover it.
        recovered: whether one of the targets lies in it.
    """

    low: Float[Tensor, " features"]
    high: Float[Tensor, " features"]
    recovered: Bool[Tensor, " features"]


def predict(frequency: Float[Tensor, " features"], targets: Float[Tensor, " targets"], setting: Setting) -> Predicted:
    """Which features some target frequency resonates with.

    The theorem knows one frequency, f = s/n. For features of different frequencies it is read here, as inferred: a feature of
    frequency f_i stands where one of s/f_i equally frequent ones would (maths.md eq. T11), with the same d, s, ε and ς. One that
    never occurs is not recovered.

    Args:
        frequency: f_i.
        targets: target activation frequencies, in any order, repeated or not.
        setting: of the whole; its n is not used.
    """
    low, high = torch.full_like(frequency, math.inf), torch.zeros_like(frequency)
    for i, f in enumerate(frequency.tolist()):
        if 0 < f <= 1:
            band = replace(setting, n_features=max(setting.sparsity / f, setting.sparsity, 1.0)).band()
            low[i], high[i] = band.low, band.high
    inside = (targets[None] >= low[:, None]) & (targets[None] <= high[:, None])
    return Predicted(low, high, inside.any(1))


class Octave(NamedTuple):
    """Features whose frequency lies in [low, high).

    Attributes:
        low, high: the octave; high = 2 low.
        features: how many there are.
        predicted: share of them that is predicted to be recovered.
        measured: share that was, where something was measured.
    """

    low: float
    high: float
    features: int
    predicted: float
    measured: float | None


def by_octave(
    frequency: Float[Tensor, " features"],
    predicted: Bool[Tensor, " features"],
    recovered: Bool[Tensor, " features"] | None = None,
) -> list[Octave]:
    """Prediction against measurement by octaves of frequency, the most frequent first; features that never occur are left out."""
    octave = torch.where(frequency > 0, frequency.log2().floor(), -math.inf)
    result = []
    for power in sorted({o for o in octave.tolist() if o > -math.inf}, reverse=True):
        here = octave == power
        measured = None if recovered is None else float(recovered[here].double().mean())
        result.append(
            Octave(2.0**power, 2.0 ** (power + 1), int(here.sum()), float(predicted[here].double().mean()), measured)
        )
    return result


def _check_frequency(frequency: float) -> None:
    if not 0 < frequency < 1:
        raise ValueError(f"frequency={frequency} must lie between 0 and 1 (exclusive)")
