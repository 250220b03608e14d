"""Selection rules: from pre-activations to codes. Each is a frozen value; calling it is a pure function.

A rule receives the pre-activations y = W_enc (x − b_dec) + b_enc and the encoder bias b_enc that they contain, because
JumpReLU's magnitude must not depend on the bias that gates it.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Selection(Protocol):
    """Pre-activations and the bias inside them → codes of the same shape."""

    def __call__(
        self, pre: Float[Tensor, "batch latents"], bias: Float[Tensor, " latents"]
    ) -> Float[Tensor, "batch latents"]:
        """Codes: zero where a latent is not selected."""
        ...


@dataclass(frozen=True)
class ReLU:
    """z = max(y, 0) (maths.md eq. 4)."""

    def __call__(
        self, pre: Float[Tensor, "batch latents"], bias: Float[Tensor, " latents"]
    ) -> Float[Tensor, "batch latents"]:
        """Codes."""
        return pre.relu()


@dataclass(frozen=True)
class JumpReLU:
    """z = (y − b) · 1{y > 0}: the bias gates and never changes the magnitude (maths.md eq. 3).

    With b ≤ 0 this is the field's JumpReLU of threshold θ = −b on w·(x − b_dec).
    """

    def __call__(
        self, pre: Float[Tensor, "batch latents"], bias: Float[Tensor, " latents"]
    ) -> Float[Tensor, "batch latents"]:
        """Codes."""
        return (pre - bias) * (pre > 0)


@dataclass(frozen=True)
class SmoothReLU:
    """z = softplus(β y)/β, the smooth activation that the recovery theorem asks for (maths.md eq. 11)."""

    beta: float = 50.0

    def __post_init__(self):
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} must be positive")

    def __call__(
        self, pre: Float[Tensor, "batch latents"], bias: Float[Tensor, " latents"]
    ) -> Float[Tensor, "batch latents"]:
        """Codes; positive everywhere, so count activity on the pre-activations."""
        return torch.nn.functional.softplus(pre, beta=self.beta)


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of every row, clipped at 0 (Gao et al., arXiv 2406.04093)."""

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")

    def __call__(
        self, pre: Float[Tensor, "batch latents"], bias: Float[Tensor, " latents"]
    ) -> Float[Tensor, "batch latents"]:
        """Codes."""
        latents = pre.shape[-1]
        if self.k > latents:
            raise ValueError(f"k={self.k} exceeds latents={latents}; lower k or widen the dictionary")
        values, index = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, index, values.relu())
