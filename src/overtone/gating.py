"""Selections whose gate has weights of its own. Each is a frozen value; `selection.py` has those that need none."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from overtone import ops
from overtone.ops import AnyCodes, Encoded
from overtone.parallel import World
from overtone.selection import Weight


@dataclass(frozen=True)
class ThresholdJumpReLU:
    """z = y · 1{y > θ} with one trained threshold θ = exp(log_threshold) per latent (maths.md eq. 20; arXiv 2407.14435).

    θ learns through the entries near it alone, by the rectangle kernel (eq. 21). While training, codes therefore list every
    entry with y > θ − ε/2: those below θ are exactly 0 and do not fire, and `codes.gate` says which are above, with the
    kernel's gradient, for `losses` such as `L0`. The steered `JumpReLU` has its threshold in the encoder bias instead.

    Args:
        start: θ before training, in units of the normalised input. The higher, the sparser and faster is the start.
        bandwidth: ε, the width of the kernel, in the same units. The authors have start = bandwidth = 0.001.
    """

    start: float = 0.05
    bandwidth: float = 0.02

    def __post_init__(self):
        for name in ("start", "bandwidth"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")

    def weights(self, latents: int, d: int) -> dict[str, Weight]:
        """The logarithms of the thresholds."""
        return {"log_threshold": Weight(torch.full((latents,), math.log(self.start)))}

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        log_threshold: Float[Tensor, " latents"],
    ) -> Encoded:
        """Codes of rows alone: entries above θ and no others. θ gets no gradient."""
        return _above(x, W_enc, b_enc, centre, log_threshold.detach().exp())

    def encode_shared(
        self,
        parts: Sequence[Tensor],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        world: World,
        log_threshold: Float[Tensor, " latents"],
    ) -> Iterator[Encoded]:
        """Codes of a training batch, with the entries that θ learns from; each row alone, whoever has the others."""
        half = self.bandwidth / 2
        for x in parts:
            threshold = log_threshold.exp()
            near = ops.encode_threshold(x, W_enc, b_enc - threshold.detach() + half, centre=centre).codes
            z, opened = _Jump.apply(near.values, near.at(threshold), half)  # pyright: ignore[reportGeneralTypeIssues]
            yield _encoded(near.with_values(z), gate=near.with_values(opened))


@dataclass(frozen=True)
class LatentThreshold:
    """z = max(y, 0) · 1{y > θ}, one fixed θ per latent, in its weight `thresholds`: JumpReLU as other tools save it.

    θ gets no gradient. To train thresholds, there is `ThresholdJumpReLU`.
    """

    def weights(self, latents: int, d: int) -> dict[str, Weight]:
        """The thresholds."""
        return {"thresholds": Weight(torch.zeros(latents), trained=False)}

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        thresholds: Float[Tensor, " latents"],
    ) -> Encoded:
        """Codes: entries above θ and above 0."""
        # At or below 0 a threshold changes nothing, since codes are positive.
        return _above(x, W_enc, b_enc, centre, thresholds.clamp(min=0))


def _above(x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor, threshold: Tensor) -> Encoded:
    """y where it is above its latent's threshold, which gets no gradient."""
    above = ops.encode_threshold(x, W_enc, b_enc - threshold, centre=centre).codes
    return _encoded(above.with_values(torch.where(above.values > 0, above.values + above.at(threshold), 0)))


def _encoded(codes: AnyCodes, gate: AnyCodes | None = None) -> Encoded:
    return Encoded(codes, *codes.tally(codes.values.detach()), gate)


class _Jump(Function):
    """From v = y − θ + ε/2 > 0 (0 where there is no entry): y · 1{y > θ} and 1{y > θ}, with the kernel's gradients for θ."""

    @staticmethod
    def forward(ctx, v: Tensor, threshold: Tensor, half: float):
        ctx.save_for_backward(v, threshold)
        ctx.half = half
        opened = (v > half).to(v.dtype)
        return (v + (threshold - half)) * opened, opened

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        v, threshold = ctx.saved_tensors
        grad_z, grad_opened = grads
        kernel = ((v > 0) & (v < 2 * ctx.half)).to(v.dtype) / (2 * ctx.half)
        return grad_z * (v > ctx.half), -kernel * (threshold * grad_z + grad_opened), None


@dataclass(frozen=True)
class Gated:
    """z = 1{π > 0} · max(e^r ∘ W_enc(x − b_dec) + b_mag, 0) with gates π = W_enc(x − b_dec) + b_enc (arXiv 2404.16014).

    What decides and what measures share W_enc up to a trained scale e^r per latent (maths.md eq. 24). `codes.gate` holds
    max(π, 0), through which the gate learns: the losses `GateL1` and `GateReconstruction` act on it.
    """

    def weights(self, latents: int, d: int) -> dict[str, Weight]:
        """Scale and bias of the magnitudes; the bias of the gate is the encoder's."""
        return {"r_mag": Weight(torch.zeros(latents)), "b_mag": Weight(torch.zeros(latents))}

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        r_mag: Float[Tensor, " latents"],
        b_mag: Float[Tensor, " latents"],
    ) -> Encoded:
        """Codes, and the gates."""
        # The magnitudes' gradient must not reach the gates' bias, so the operation sees that bias as a constant.
        fixed = b_enc.detach()
        gate = ops.encode_threshold(x, W_enc, fixed, centre=centre).codes
        pi, is_open = gate.values, gate.values > 0
        magnitude = (pi - gate.at(fixed)) * gate.at(r_mag.exp()) + gate.at(b_mag)
        codes = gate.with_values(torch.where(is_open, magnitude, 0).relu())
        learning = pi + torch.where(is_open, gate.at(b_enc - fixed), 0)
        return Encoded(codes.nonzero(), *codes.tally(pi.detach()), gate.with_values(learning))
