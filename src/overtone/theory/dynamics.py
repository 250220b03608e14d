"""Modified BA as a recursion of projections: what its latents do, without rows and without atoms (maths.md eq. T12–T15)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from overtone.data.synthetic import GroundTruth
from overtone.seeds import generator


class Mixture(NamedTuple):
    """What the recursion knows of the data.

    Attributes:
        h: coefficients of rows scaled to unit norm, h̃ = h/‖h V‖, less their means, float64.
        gram: G = V Vᵀ, float64.
    """

    h: Float[Tensor, "rows features"]
    gram: Float[Tensor, "features features"]


class Path(NamedTuple):
    """Projections over time.

    Attributes:
        projections: α_mi(t) = ⟨w_m, v_i⟩ for t = 0 … steps.
        bias: b, of all latents.
    """

    projections: list[Float[Tensor, "latents features"]]
    bias: float

    def recovered(self, threshold: float) -> list[float]:
        """FRR(τ) at every step (maths.md eq. 17); V has unit rows, so projections are cosines."""
        return [float((a.amax(0) >= threshold).double().mean()) for a in self.projections]


@dataclass(frozen=True)
class ModifiedBA:
    """The algorithm's constants, as in the method `modified_ba`.

    Args:
        frequency: p, which fixes the bias.
        step: η.
        beta: sharpness of the smooth ReLU.
    """

    frequency: float = 0.005
    step: float = 10.0
    beta: float = 50.0

    def __post_init__(self):
        if not 0 < self.frequency < 1:
            raise ValueError(f"frequency={self.frequency} must lie between 0 and 1 (exclusive)")
        for name in ("step", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")


def mixture(truth: GroundTruth, rows: int = 8192, *, seed: int = 0) -> Mixture:
    """Coefficients and Gram matrix of a ground truth; the norm of a row is √(hᵀ G h).

    Raises:
        ValueError: rows that are more than H V, with noise or an offset.
    """
    parts = [truth.drawn(min(2048, rows - i), generator(seed, "mixture", i)) for i in range(0, rows, 2048)]
    h = torch.cat([part.codes.dense() for part in parts]).double()
    if not torch.allclose(parts[0].x, parts[0].codes.dense() @ truth.features, atol=1e-4, rtol=1e-4):
        raise ValueError(
            "rows of this truth are not H V alone; the recursion knows neither noise nor offsets: take them away"
        )
    gram = truth.features.double() @ truth.features.double().T
    h = h / ((h @ gram) * h).sum(1, keepdim=True).sqrt()
    return Mixture(h - h.mean(0), gram)


def random_projections(truth: GroundTruth, latents: int, *, seed: int = 0) -> Float[Tensor, "latents features"]:
    """α(0) of atoms drawn uniformly on the sphere."""
    w = torch.randn(latents, truth.features.shape[1], generator=generator(seed, "atoms"), dtype=torch.float64)
    return (w / w.norm(dim=1, keepdim=True)) @ truth.features.double().T


def bias_of(start: Float[Tensor, "latents features"], data: Mixture, frequency: float) -> float:
    """b = −Q_{1−p} of the projections of rows on all latents, pooled (maths.md eq. 11)."""
    pooled = (start @ data.h.T).flatten()
    return -float(pooled.kthvalue(max(1, math.ceil((1 - frequency) * len(pooled)))).values)


def advance(
    alpha: Float[Tensor, "latents features"], data: Mixture, bias: float, algorithm: ModifiedBA
) -> Float[Tensor, "latents features"]:
    """One step of all projections (maths.md eq. T12–T14): α ← (α + η G c)/‖w + η g‖ with c = E[ψ(y) h̃].

    Latents do not see each other: a permutation of them is a permutation of the result.
    """
    y = alpha @ data.h.T + bias
    psi = softplus(y, beta=algorithm.beta) + torch.sigmoid(algorithm.beta * y) * (y - bias)
    pull = psi @ data.h / len(data.h)
    gradient = pull @ data.gram
    squared = (
        1 + 2 * algorithm.step * (alpha * pull).sum(1) + algorithm.step**2 * (pull * gradient).sum(1)
    )  # ‖w + η g‖² for a unit w: ⟨w, g⟩ = ⟨α, c⟩ and ‖g‖² = cᵀ G c
    return (alpha + algorithm.step * gradient) / squared.sqrt()[:, None]


def follow(start: Float[Tensor, "latents features"], data: Mixture, algorithm: ModifiedBA, steps: int) -> Path:
    """The projections' path from `start`, in full batches of the mixture's rows."""
    if steps < 0:
        raise ValueError(f"steps={steps} cannot be negative")
    bias = bias_of(start, data, algorithm.frequency)
    path = [start]
    for _ in range(steps):
        path.append(advance(path[-1], data, bias, algorithm))
    return Path(path, bias)
