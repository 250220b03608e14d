"""Selection rules: which latents of a row are active, and with which codes. Each is a frozen value.

A rule computes the pre-activations y = W_enc (x − centre) + b_enc itself, through `overtone.ops`: what selects can so run
in the same pass as what computes, and only the active entries ever leave it. A rule that is a function of finished
pre-activations, as a new one may be, hands it to `ops.encode_with`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from overtone import ops
from overtone.ops import Encoded


class Weight(NamedTuple):
    """A tensor that a selection owns besides the encoder's.

    Attributes:
        start: its value before training. Where its first axis is that of the latents, permuting latents permutes it.
        trained: whether the optimiser moves it; otherwise an after-step rule may.
    """

    start: Tensor
    trained: bool = True


@runtime_checkable
class Selection(Protocol):
    """From rows and encoder weights to sparse codes. `BatchSelection` and `WeightedSelection` say what one may do besides."""

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *args: Any,
        **own: Any,
    ) -> Encoded:
        """Codes of the rows, each alone; permuting latents permutes them. `own`: the selection's own weights by name."""
        ...


@runtime_checkable
class BatchSelection(Selection, Protocol):
    """A selection that codes a training batch otherwise than rows alone."""

    def encode_batch(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *args: Any,
        **own: Any,
    ) -> Encoded:
        """Codes of the rows of a training batch; permuting latents permutes them."""
        ...


@runtime_checkable
class WeightedSelection(Selection, Protocol):
    """A selection with weights of its own: the dictionary keeps them under their names and hands them to `encode`."""

    def weights(self, latents: int, d: int) -> dict[str, Weight]:
        """Its weights before training, by name, for a dictionary of so many latents and such rows."""
        ...


@dataclass(frozen=True)
class ReLU:
    """z = max(y, 0) (maths.md eq. 4)."""

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return ops.encode_threshold(x, W_enc, b_enc, centre=centre)


@dataclass(frozen=True)
class JumpReLU:
    """z = (y − b) · 1{y > 0}: the bias gates and never changes the magnitude (maths.md eq. 3).

    With b ≤ 0 this is the field's JumpReLU of threshold θ = −b on w·(x − b_dec).
    """

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return ops.encode_threshold(x, W_enc, b_enc, centre=centre, jump=True)


@dataclass(frozen=True)
class SmoothReLU:
    """z = softplus(β y)/β, the smooth activation that the recovery theorem asks for (maths.md eq. 11).

    Codes are positive everywhere, so every latent is an entry of every row; a latent fires where y > 0 all the same.
    """

    beta: float = 50.0

    def __post_init__(self):
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} must be positive")

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return ops.encode_with(partial(softplus, beta=self.beta), x, W_enc, b_enc, centre=centre)


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of every row, clipped at 0 (Gao et al., arXiv 2406.04093)."""

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return ops.encode_topk(x, W_enc, b_enc, self.k, centre=centre)


@dataclass(frozen=True)
class BatchTopK:
    """The k · batch largest pre-activations of a batch, clipped at 0 (Bussmann et al., arXiv 2412.06410).

    Rows share a budget while training. Afterwards each is coded alone: y where it exceeds the dictionary's `threshold`,
    which `ThresholdEMA` learns.
    """

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")

    def weights(self, latents: int, d: int) -> dict[str, Weight]:
        """What rows alone are compared with; a rule learns it."""
        return {"threshold": Weight(torch.zeros(()), trained=False)}

    def encode_batch(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        threshold: Float[Tensor, ""],
    ) -> Encoded:
        """Codes of a training batch, which needs no threshold."""
        return ops.encode_batch_topk(x, W_enc, b_enc, self.k, centre=centre)

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        threshold: Float[Tensor, ""],
    ) -> Encoded:
        """Codes of rows alone."""
        return ops.encode_threshold(x, W_enc, b_enc, centre=centre, threshold=float(threshold))
