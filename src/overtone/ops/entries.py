"""The active entries of some rows, as an encoder on the CPU finds them."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.ops.transposed import Transposed


class Tally(NamedTuple):
    """What an encoder may have counted on its way.

    Attributes:
        offsets: entries of row r are offsets[r] … offsets[r + 1] − 1.
        fired: entries of each latent.
        peak: the largest of them, 0 for none.
    """

    offsets: Int[Tensor, " rows_and_1"]
    fired: Int[Tensor, " latents"]
    peak: Float[Tensor, " latents"]


class Entries(NamedTuple):
    """Some entries of the pre-activations in the order of rows, then of latents, and seen from the latents."""

    pre: Float[Tensor, " entries"]
    rows: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    transposed: Transposed
    tally: Tally | None = None

    def where(self, kept: Bool[Tensor, " entries"]) -> "Entries":
        """Some of them."""
        place = kept.cumsum(0) - 1
        rows, latents, order = self.rows[kept], self.latents[kept], self.transposed.order
        order = place[order[kept[order]]]
        total = len(self.transposed.offsets) - 1
        return Entries(self.pre[kept], rows, latents, Transposed.of(latents, rows, total, order))
