"""Sums and dot products over segments of entries: compiled by numba where the extra `fast` is installed, else torch's."""

from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


@cache
def are_compiled() -> bool:
    """Whether loops can be compiled here."""
    return find_spec("numba") is not None


def weighted_sums(
    table: Float[Tensor, "entries d"],
    index: Int[Tensor, " nnz"],
    offsets: Int[Tensor, " segments_and_1"],
    values: Float[Tensor, " nnz"],
) -> Float[Tensor, "segments d"]:
    """Σ value · table[index] over every segment."""
    return embedding_bag(index, table, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)


def weighted_sums_into(
    out: Float[Tensor, "segments d"],
    table: Float[Tensor, "entries d"],
    index: Int[Tensor, " nnz"],
    offsets: Int[Tensor, " segments_and_1"],
    values: Float[Tensor, " nnz"],
) -> None:
    """`weighted_sums` over segments that are many and short, of a table that fits in cache."""
    if not are_compiled():
        out.copy_(weighted_sums(table, index, offsets, values))
        return
    from overtone.ops import compiled

    compiled.as_torch()
    compiled.segment_sums(table.numpy(), index.numpy(), offsets.numpy(), values.numpy(), out.numpy())


def dots_into(
    out: Float[Tensor, " nnz"],
    atoms: Float[Tensor, "segments d"],
    table: Float[Tensor, "entries d"],
    index: Int[Tensor, " nnz"],
    offsets: Int[Tensor, " segments_and_1"],
    segments: Int[Tensor, " nnz"],
) -> None:
    """out = atoms[segment] · table[index] for every entry; `segments` says which segment each is of."""
    if not are_compiled():
        # What embedding_bag calls the gradient of its weights; the kernel has no other name.
        gradient = torch.ops.aten._embedding_bag_per_sample_weights_backward
        out.copy_(gradient(atoms, table, index, offsets, segments, 0, -1))
        return
    from overtone.ops import compiled

    compiled.as_torch()
    compiled.segment_dots(atoms.numpy(), table.numpy(), index.numpy(), offsets.numpy(), out.numpy())
