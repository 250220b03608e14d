"""Selection rules: which latents of a row are active, and with which codes. Each is a frozen value.

A rule computes the pre-activations y = W_enc (x − centre) + b_enc itself, through `overtone.ops`: what selects can so run
in the same pass as what computes, and only the active entries ever leave it. A rule that is a function of finished
pre-activations, as a new one may be, hands it to `ops.encode_with`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from overtone import ops
from overtone.ops import Encoded
from overtone.parallel import ALONE, Axis, World


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
    """From rows and encoder weights to sparse codes. The protocols below say what one may do besides."""

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
class RankedSelection(Selection, Protocol):
    """A selection that compares a row's latents with each other: ranks that share the latents have to ask each other."""

    def encode_among(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *args: Any,
        ranks: Axis,
        **own: Any,
    ) -> Encoded:
        """Codes of the rows over this rank's latents, each row alone."""
        ...


@runtime_checkable
class SharedSelection(Selection, Protocol):
    """A selection of training batches that are not in one place: every rank has some of the rows, in parts."""

    def encode_shared(
        self,
        parts: Sequence[Tensor],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *args: Any,
        world: World,
        **own: Any,
    ) -> Iterator[Encoded]:
        """Codes of one part after the other of this rank's rows of a training batch, over its latents.

        They are those that one process gives the whole batch at once. Whoever asks learns from a part before asking for the
        next, so that what codes need for their gradients is not there for all rows.
        """
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
class _Budget:
    """A number of latents that are active per row, always or on average."""

    k: int

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")


@dataclass(frozen=True)
class TopK(_Budget):
    """The k largest pre-activations of every row, clipped at 0 (Gao et al., arXiv 2406.04093)."""

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return self.encode_among(x, W_enc, b_enc, centre, ranks=ALONE)

    def encode_among(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        ranks: Axis,
    ) -> Encoded:
        """Codes over this rank's latents."""
        return ops.encode_topk(x, W_enc, b_enc, self.k, centre=centre, ranks=ranks)


@dataclass(frozen=True)
class AbsTopK(_Budget):
    """The k pre-activations of every row that are largest in size, sign kept (Zhu et al., arXiv 2510.00404).

    One latent then serves a direction and its opposite. It fires where it is active, with either sign.
    """

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return self.encode_among(x, W_enc, b_enc, centre, ranks=ALONE)

    def encode_among(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        ranks: Axis,
    ) -> Encoded:
        """Codes over this rank's latents."""
        return ops.encode_abs_topk(x, W_enc, b_enc, self.k, centre=centre, ranks=ranks)


@dataclass(frozen=True)
class GroupMax(_Budget):
    """The largest pre-activation of each of k groups of neighbouring latents, clipped at 0 (as eai-sparsify's "groupmax").

    Costs one pass and no sort, and latents of one group never fire together. Permuting latents within groups permutes codes.
    """

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return ops.encode_group_max(x, W_enc, b_enc, self.k, centre=centre)


@dataclass(frozen=True)
class MatchingPursuit:
    """Greedy steps on the residual of what earlier ones explain (Costa et al., arXiv 2506.03093; maths.md eq. 30).

    Atoms have to be tied unit rows without output scales, so that the encoder's residual is the reconstruction's; there is no
    encoder bias, what is given is ignored. Codes are ≥ 0: a row stops where no atom has a positive product with its residual.

    Args:
        steps: T, the most atoms that a row gets.
        residual: norm of a row's residual, in units of the normalised input, under which it stops; None: never.
        stop_on_repeat: a row also stops after a step that picked an atom again, as SAELens has it.
    """

    steps: int
    residual: float | None = None
    stop_on_repeat: bool = False

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.residual is not None and not 0 < self.residual < math.inf:
            raise ValueError(f"residual={self.residual} is a norm and must be positive and finite, or None")

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        residual = self.residual or 0.0
        return ops.encode_pursuit(
            x, W_enc, self.steps, residual=residual, stop_on_repeat=self.stop_on_repeat, centre=centre
        )


@dataclass(frozen=True)
class Threshold:
    """z = y · 1{y > τ} of y = W_enc (x − centre), one fixed τ for all latents; the encoder bias is ignored (maths.md eq. 31).

    With encoder rows from `WhitenedEncoder` this is the threshold autoencoder of atoms (arXiv 2509.20784), whose support is exact
    for τ within `atoms.support_interval`.
    """

    tau: float

    def __post_init__(self):
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"tau={self.tau} must be finite and not negative")

    def encode(
        self,
        x: Float[Tensor, "batch d"],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
    ) -> Encoded:
        """Codes."""
        return ops.encode_threshold(x, W_enc, torch.zeros_like(b_enc), centre=centre, threshold=self.tau)


@dataclass(frozen=True)
class BatchTopK(_Budget):
    """The k · batch largest pre-activations of a batch, clipped at 0 (Bussmann et al., arXiv 2412.06410).

    Rows share a budget while training. Afterwards each is coded alone: y where it exceeds the dictionary's `threshold`,
    which `ThresholdEMA` learns, and 0 as well: a threshold below 0, the sign of one never learnt, lets all positive y through.
    """

    def weights(self, latents: int, d: int) -> dict[str, Weight]:
        """What rows alone are compared with; a rule learns it."""
        return {"threshold": Weight(torch.zeros(()), trained=False)}

    def encode_shared(
        self,
        parts: Sequence[Tensor],
        W_enc: Float[Tensor, "latents d"],
        b_enc: Float[Tensor, " latents"],
        centre: Float[Tensor, " d"],
        *,
        world: World,
        threshold: Float[Tensor, ""],
    ) -> Iterator[Encoded]:
        """Codes of a training batch, which needs no threshold: the budget is that of all parts of all ranks."""
        return ops.encode_batch_topk_in_parts(parts, W_enc, b_enc, self.k, centre=centre, world=world)

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
        return ops.encode_threshold(x, W_enc, b_enc, centre=centre, threshold=max(float(threshold), 0.0))
