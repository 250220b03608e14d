"""Gradients of a matrix's rows that are sums over entries, left unsummed until somebody goes over the rows anyway.

An optimiser does: summed there, in cache, such a gradient never exists as a matrix (overtone.ops.row_update).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from overtone.ops.transposed import Transposed


class EntrySum(NamedTuple):
    """For every latent Σ over its entries of value · table[row].

    Attributes:
        transposed: the entries by latent.
        values: one per entry, as the codes are.
        tables: of each group of latents.
        sizes: of the groups.
    """

    transposed: Transposed
    values: Float[Tensor, " nnz"]
    tables: Sequence[Float[Tensor, "batch d"]]
    sizes: Sequence[int]

    def summed(self) -> Float[Tensor, "latents d"]:
        """The matrix."""
        return self.transposed.sums(self.values, self.tables, self.sizes)

    def table_of(self, latent: int) -> Float[Tensor, "batch d"]:
        """The table of the group that a latent is in."""
        end = 0
        for table, size in zip(self.tables, self.sizes, strict=True):
            end += size
            if latent < end:
                return table
        raise IndexError(f"latent {latent} is not among {end}")


_sinks: ContextVar[dict[int, list[EntrySum]]] = ContextVar("sinks")


@contextmanager
def deferring(*weights: Tensor) -> Iterator[list[list[EntrySum]]]:
    """Operations called within leave their sums to these weights' gradients in lists, one per weight, on their way back.

    What other operations add to a gradient is in `grad`, as ever.
    """
    sinks = {id(weight): [] for weight in weights}
    before = _sinks.set(sinks)
    try:
        yield [sinks[id(weight)] for weight in weights]
    finally:
        _sinks.reset(before)


def sink_of(weight: Tensor) -> list[EntrySum] | None:
    """Where sums to the gradient of a weight are to be left; None: to be made."""
    return _sinks.get({}).get(id(weight))
