"""Codes seen from the latents: everything that reads or writes atoms goes over them once, in their order.

Latents that fire often are dense: a block of atoms with enough entries is one matrix product, not many sums of rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from overtone.ops.loops import are_compiled, dots_into, sort_by_latent, weighted_sums_into
from overtone.ops.memory import lend
from overtone.ops.precision import fast_float32

# Numbers per block of atoms: a block is summed in cache, then written to memory that is recycled.
BLOCK = 2**20
# From this share of non-zero codes on, a product with all of them is faster than sums over the others.
_DENSE = 1 / 12


class Block(NamedTuple):
    """Neighbouring latents of one group, and their entries.

    Attributes:
        group: index of the group.
        latents: of the block.
        entries: places of their entries, in the order of latents.
        dense: whether so many of its codes are not zero that it is treated as a matrix.
    """

    group: int
    latents: slice
    entries: slice
    dense: bool

    @property
    def width(self) -> int:
        """How many latents."""
        return self.latents.stop - self.latents.start


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
    def of(
        cls,
        latents: Int[Tensor, " nnz"],
        rows: Int[Tensor, " nnz"],
        latents_total: int,
        order: Int[Tensor, " nnz"] | None = None,
    ) -> "Transposed":
        """From the entries in the order of rows, and the order by latent where that is known."""
        if are_compiled():
            return cls(*sort_by_latent(latents, rows, latents_total))
        order = stable_order(latents, latents_total) if order is None else order
        offsets = pad(torch.bincount(latents, minlength=latents_total).cumsum(0), (1, 0))
        return cls(order, latents.index_select(0, order), rows.index_select(0, order), offsets)

    def blocks(self, sizes: Sequence[int], width: int, batch: int) -> list[Block]:
        """The latents of groups of these sizes in blocks of at most `width`, of rows of a batch.

        Compiled loops take neighbouring blocks that are not dense as one, however many.
        """
        firsts, groups, total = [], [], 0
        for group, size in enumerate(sizes):
            starts = range(total, total + size, width)
            firsts += starts
            groups += [group] * len(starts)
            total += size
        ends = [*firsts[1:], total]
        entries = self.offsets[torch.tensor([*firsts, total])].tolist()
        blocks: list[Block] = []
        for i, (group, first, end) in enumerate(zip(groups, firsts, ends, strict=True)):
            dense = is_dense(entries[i + 1] - entries[i], batch, end - first)
            block, before = Block(group, slice(first, end), slice(entries[i], entries[i + 1]), dense), blocks[-1:]
            if before and are_compiled() and not dense and (before[0].group, before[0].dense) == (group, False):
                blocks.pop()
                first, start = before[0].latents.start, before[0].entries.start
                block = Block(group, slice(first, end), slice(start, entries[i + 1]), False)
            blocks.append(block)
        return blocks

    def sums(
        self, values: Float[Tensor, " nnz"], tables: Sequence[Float[Tensor, "batch d"]], sizes: Sequence[int]
    ) -> Float[Tensor, "latents d"]:
        """Σ over a latent's entries of value · table[row], each group with its own table; `values` as the codes are."""
        values = values.index_select(0, self.order)
        d = tables[0].shape[1]
        out = lend(len(self.offsets) - 1, d)
        for block in self.blocks(sizes, max(1, BLOCK // d), len(tables[0])):
            table, here = tables[block.group], block.entries
            if block.dense:
                with fast_float32():
                    torch.mm(self.matrix(block, values, len(table)), table, out=out[block.latents])
            else:
                bounds = self.offsets[block.latents.start : block.latents.stop + 1] - here.start
                weighted_sums_into(out[block.latents], table, self.rows[here], bounds, values[here])
        return out

    def dots(
        self, atoms: Float[Tensor, "latents d"], tables: Sequence[Float[Tensor, "batch d"]], sizes: Sequence[int]
    ) -> Float[Tensor, " nnz"]:
        """atoms[latent] · table[row] for every entry, each group with its own table; in the order of the codes."""
        sorted_dots = lend(len(self.order))
        for block in self.blocks(sizes, max(1, BLOCK // atoms.shape[1]), len(tables[0])):
            table, here = tables[block.group], block.entries
            if block.dense:
                with fast_float32():
                    products = torch.mm(atoms[block.latents], table.T, out=lend(block.width, len(table)))
                torch.index_select(products.view(-1), 0, self._places(block, len(table)), out=sorted_dots[here])
            else:
                bounds = self.offsets[block.latents.start : block.latents.stop + 1] - here.start
                segments = self.latents[here] - block.latents.start
                dots_into(sorted_dots[here], atoms[block.latents], table, self.rows[here], bounds, segments)
        return torch.empty_like(sorted_dots).scatter_(0, self.order, sorted_dots)

    def matrix(self, block: Block, values: Float[Tensor, " nnz"], batch: int) -> Float[Tensor, "width batch"]:
        """The codes of a block with their zeros; `values` in the order of latents."""
        z = lend(block.width, batch).zero_()
        z.view(-1).scatter_(0, self._places(block, batch), values[block.entries])
        return z

    def _places(self, block: Block, batch: int) -> Int[Tensor, " entries"]:
        """Where the entries of a block lie in its matrix."""
        return (self.latents[block.entries] - block.latents.start) * batch + self.rows[block.entries]


def is_dense(entries: int, batch: int, width: int) -> bool:
    """Whether codes with so many entries are better treated as a matrix."""
    return entries > _DENSE * batch * width


def stable_order(latents: Int[Tensor, " nnz"], latents_total: int) -> Int[Tensor, " nnz"]:
    """The permutation that sorts by latent and keeps the order of rows; narrow keys sort several times as fast."""
    if latents_total <= 2**16:
        # numpy sorts 16-bit keys by counting, torch only where they are many.
        return torch.from_numpy(latents.numpy().astype(np.uint16).argsort(kind="stable"))
    return latents.to(torch.int32).sort(stable=True).indices
