"""Loss terms that make codes sparse, and those by which gates learn. Frozen values, pure."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from overtone.dictionary import Codes, Dictionary
from overtone.losses import check_coefficient, rows_of
from overtone.ops import AnyCodes, half_square_error


@dataclass(frozen=True)
class L1:
    """coefficient · Σ_m |z_m| ‖a_m w_m‖, averaged over rows: the decoder norm makes the term blind to rescaling."""

    coefficient: float

    def __post_init__(self):
        check_coefficient(self.coefficient)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        return self.coefficient * _per_row(dictionary, codes.entries, _sizes(dictionary, codes.entries))


@dataclass(frozen=True)
class Lp:
    """coefficient · λ_p Σ_m (|z_m| ‖a_m w_m‖)^p, averaged over rows, with λ_p such that the term is worth what L1's is.

    p below 1 weighs whether a latent fires more than how much (maths.md eq. 26; arXiv 2408.00113). The authors anneal p and
    multiply their coefficient, at each change, by the ratio of the penalty before to the penalty after; λ_p, taken on the
    batch itself and without gradient, is the product of these ratios. `Ramp` anneals p.

    Args:
        coefficient: that of L1.
        p: exponent, in (0, 1].
        floor: added to what is raised, in units of the normalised input: bounds the gradient p·floor^(p − 1) of small codes.
    """

    coefficient: float
    p: float = 1.0
    floor: float = 1e-3

    def __post_init__(self):
        check_coefficient(self.coefficient)
        if not 0 < self.p <= 1:
            raise ValueError(f"p={self.p} must lie in (0, 1]")
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor={self.floor} must be positive and finite")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        sizes = _sizes(dictionary, codes.entries)
        raised = (sizes + self.floor) ** self.p - self.floor**self.p
        sums, world = torch.stack([sizes.detach().sum(), raised.detach().sum()]), dictionary.world
        before, after = world.rows.mean(world.latents.sum(sums))
        worth = before / after.clamp(min=torch.finfo(sizes.dtype).tiny)
        return self.coefficient * worth * _per_row(dictionary, codes.entries, raised)


@dataclass(frozen=True)
class L0:
    """coefficient · Σ_m 1{y_m > θ_m}, averaged over rows, or coefficient · (that mean / target − 1)² (maths.md eq. 22, 22b).

    The gradient reaches the thresholds of `ThresholdJumpReLU` alone, by its kernel (arXiv 2407.14435).

    Args:
        coefficient: λ. The authors' loss has no ½ before the squared error: half of their λ does the same here.
        target: mean number of active latents to steer to; None: as few as the reconstruction lets there be.
    """

    coefficient: float
    target: float | None = None

    def __post_init__(self):
        check_coefficient(self.coefficient)
        if self.target is not None and not 0 < self.target < math.inf:
            raise ValueError(f"target={self.target} is a number of active latents and must be positive and finite")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        gate = _gate(dictionary, codes)
        l0 = dictionary.world.rows.mean(_per_row(dictionary, gate, gate.values))
        return self.coefficient * (l0 if self.target is None else (l0 / self.target - 1).square())


@dataclass(frozen=True)
class Tanh:
    """coefficient · Σ_m tanh(scale · |z_m| ‖a_m w_m‖), averaged over rows: counts active latents, and large codes do not feel it.

    λ_S of Anthropic's January 2025 update (maths.md eq. 23). Their rows have norm √d and their squared error no ½: on unit rows
    their settings are scale 4√d, coefficient 20/(2d), and a bandwidth of 2/√d.
    """

    coefficient: float
    scale: float

    def __post_init__(self):
        check_coefficient(self.coefficient)
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale} must be positive and finite")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        sizes = _sizes(dictionary, codes.entries)
        return self.coefficient * _per_row(dictionary, codes.entries, torch.tanh(self.scale * sizes))


@dataclass(frozen=True)
class PreActivation:
    """coefficient · Σ_m max(θ_m − y_m, 0) ‖a_m w_m‖, averaged over rows: pulls latents that are silent back to their threshold.

    λ_P of Anthropic's January 2025 update (maths.md eq. 23). Of all latents, as they have it, it needs every pre-activation:
    some B·M numbers of memory and, forward and backward, three dense products of 2·B·M·d operations each – more than the whole
    of a sparse step. Of dead latents alone (`after`), as SAELens has it, it costs next to nothing once few are dead.

    Args:
        coefficient: λ_P.
        after: rows without firing after which a latent is dead; None: all latents are pulled.
    """

    coefficient: float
    after: int | None = None

    def __post_init__(self):
        check_coefficient(self.coefficient)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        if not hasattr(dictionary, "log_threshold"):
            raise ValueError(
                f"{dictionary.select} has no trained threshold; PreActivation belongs to ThresholdJumpReLU"
            )
        some = slice(None) if self.after is None else dictionary.dead(self.after)
        threshold = dictionary.get_parameter("log_threshold")[some].exp()
        y = linear(rows_of(codes) - dictionary.reading_centre, dictionary.W_enc[some], dictionary.b_enc[some])
        norms = dictionary.site_norms[some].sum(1)
        return self.coefficient * dictionary.world.latents.sum(((threshold - y).relu() @ norms).mean())


@dataclass(frozen=True)
class GateL1:
    """coefficient · Σ_m max(π_m, 0) ‖a_m w_m‖, averaged over rows: L1 on the gates of `Gated` (maths.md eq. 25)."""

    coefficient: float

    def __post_init__(self):
        check_coefficient(self.coefficient)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        gate = _gate(dictionary, codes)
        return self.coefficient * _per_row(dictionary, gate, _sizes(dictionary, gate))


@dataclass(frozen=True)
class GateReconstruction:
    """½ ‖Σ_m a_m w_m max(π_m, 0) + b_dec − x‖², averaged over rows, through the frozen decoder (maths.md eq. 25).

    What teaches the gates of `Gated` to open on what explains the data; atoms, scales and the decoder's b_dec get no gradient.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        explained = dictionary.decode_frozen(_gate(dictionary, codes))
        return half_square_error(explained, target)


def _sizes(dictionary: Dictionary, codes: AnyCodes) -> Tensor:
    """|z_m| ‖a_m w_m‖: what does not change when scale moves between codes and atoms."""
    signed = codes.scaled(dictionary.site_norms.sum(1)).values
    # Not abs(), whose gradient at 0 is 0: entries below a trained threshold are 0 and learn from what they would cost.
    return torch.where(signed < 0, -signed, signed)


def _per_row(dictionary: Dictionary, codes: AnyCodes, values: Tensor) -> Float[Tensor, ""]:
    """Sum over a row's entries, averaged over rows."""
    return dictionary.world.latents.sum(values.sum()) / codes.rows_total


def _gate(dictionary: Dictionary, codes: Codes) -> AnyCodes:
    if codes.gate is None:
        raise ValueError(
            f"{dictionary.select} gave no gates for a penalty to act on; use ThresholdJumpReLU (codes of `encode_batch`) or Gated"
        )
    return codes.gate
