"""Sums and dot products over segments of entries: compiled by numba where the extra `fast` is installed, else torch's."""

from functools import cache
from importlib.util import find_spec

import numpy as np
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
    """`weighted_sums` over segments that are many and short."""
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


def sort_by_latent(
    latents: Int[Tensor, " nnz"], rows: Int[Tensor, " nnz"], latents_total: int
) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"], Int[Tensor, " nnz"], Int[Tensor, " latents_and_1"]]:
    """Entries in the order of latents: which are where, their latents and rows, and where each latent's start; compiled alone."""
    from overtone.ops import compiled

    order, by_latent, by_latent_rows = np.empty((3, len(latents)), np.int64)
    offsets = np.zeros(latents_total + 1, np.int64)
    compiled.sort_by_latent(latents.numpy(), rows.numpy(), offsets, order, by_latent, by_latent_rows)
    order, by_latent, by_latent_rows = (torch.from_numpy(part) for part in (order, by_latent, by_latent_rows))
    return order, by_latent, by_latent_rows, torch.from_numpy(offsets)
