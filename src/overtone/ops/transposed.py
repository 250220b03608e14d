"""Codes seen from the latents: weight gradients as one sequential pass over the weights."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from overtone.ops.memory import lend

# Numbers per block of a gradient: a block is summed in cache, then written to memory that is recycled.
_BLOCK = 2**20


class Transposed(NamedTuple):
    """The entries of sparse codes in the order of latents, then of rows (CSC).

    Atoms are far more memory than rows of the batch. In this order every atom is read or written once, and what is
    gathered at random is the batch, which fits in cache: three to four times as fast as the order of rows.

    Attributes:
        order: entry of the codes at every place.
        latents: latent at every place, ascending.
        rows: row at every place.
        offsets: places of latent m are offsets[m] … offsets[m + 1] − 1.
    """

    order: Int[Tensor, " nnz"]
    latents: Int[Tensor, " nnz"]
    rows: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " latents_and_1"]

    @classmethod
    def of(cls, latents: Int[Tensor, " nnz"], rows: Int[Tensor, " nnz"], latents_total: int) -> "Transposed":
        """From the entries in the order of rows."""
        order = _stable_order(latents, latents_total)
        offsets = pad(torch.bincount(latents, minlength=latents_total).cumsum(0), (1, 0))
        return cls(order, latents.index_select(0, order), rows.index_select(0, order), offsets)

    def sums(self, values: Float[Tensor, " nnz"], table: Float[Tensor, "rows d"]) -> Float[Tensor, "latents d"]:
        """Σ over a latent's entries of value · table[row]; `values` in the order of the codes."""
        values, latents = values.index_select(0, self.order), len(self.offsets) - 1
        out = lend(latents, table.shape[1])
        size = max(1, _BLOCK // table.shape[1])
        for first in range(0, latents, size):
            offsets = self.offsets[first : first + size + 1]
            begin, end = int(offsets[0]), int(offsets[-1])
            out[first : first + size] = weighted_sums(table, self.rows[begin:end], offsets - begin, values[begin:end])
        return out

    def dots(self, atoms: Float[Tensor, "latents d"], table: Float[Tensor, "rows d"]) -> Float[Tensor, " nnz"]:
        """atoms[latent] · table[row] for every entry, in the order of the codes."""
        # What embedding_bag calls the gradient of its weights; the kernel has no other name.
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            atoms, table, self.rows, self.offsets, self.latents, 0, -1
        )
        return torch.empty_like(dots).scatter_(0, self.order, dots)


def weighted_sums(
    table: Float[Tensor, "entries d"],
    index: Int[Tensor, " nnz"],
    offsets: Int[Tensor, " segments_and_1"],
    values: Float[Tensor, " nnz"],
) -> Float[Tensor, "segments d"]:
    """Σ value · table[index] over every segment."""
    return embedding_bag(index, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def _stable_order(latents: Int[Tensor, " nnz"], latents_total: int) -> Int[Tensor, " nnz"]:
    """The permutation that sorts by latent and keeps the order of rows; narrow keys sort several times as fast."""
    if latents_total <= 2**16:
        # numpy sorts 16-bit keys by counting, torch only where they are many.
        return torch.from_numpy(latents.numpy().astype(np.uint16).argsort(kind="stable"))
    return latents.to(torch.int32).sort(stable=True).indices
