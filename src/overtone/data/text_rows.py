"""Rows in the order of the text, whole contexts at a time, with their tokens: what looking at latents in context reads."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.activations import Activations
from overtone.data.shards import Shard, StoreError, read_index
from overtone.data.store import HELD_OUT, Store
from overtone.layout import Layout, side_by_side

BATCH = 4096  # rows at a time; more where a context is longer


class TextRows(NamedTuple):
    """Rows of whole contexts, in the order of the text.

    Attributes:
        x: the rows.
        token_ids: the token of each.
        context: a number that the rows of one context share, and neighbouring contexts do not.
        first: the number of the first row, counted over all of the text.
    """

    x: Float[Tensor, "rows d"]
    token_ids: Int[Tensor, " rows"]
    context: Int[Tensor, " rows"]
    first: int = 0

    @property
    def bounds(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """(the first row of every row's context, the row after its last), counted from this batch's first row."""
        starts, of = _context_starts(self.context)
        return starts[:-1][of], starts[1:][of]


def _context_starts(context: Int[Tensor, " rows"]) -> tuple[Int[Tensor, " contexts_and_1"], Int[Tensor, " rows"]]:
    """(where contexts begin, and where the last ends; the context of every row, counted from 0)."""
    _, of, lengths = torch.unique_consecutive(context, return_inverse=True, return_counts=True)
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), of


def _pieces(context: Int[Tensor, " rows"], batch: int) -> Iterator[slice]:
    """The rows about `batch` at a time, never cutting a context."""
    starts, _ = _context_starts(context)
    begin = 0
    while begin < len(context):
        place = int(torch.searchsorted(starts, begin + batch, right=True)) - 1
        # A context longer than a batch is one.
        end = int(starts[place if starts[place] > begin else place + 1])
        yield slice(begin, end)
        begin = end


def activations_rows(activations: Activations, batch: int = BATCH) -> Iterator[TextRows]:
    """The rows of activations in memory."""
    for part in _pieces(activations.context, batch):
        yield TextRows(activations.x[part], activations.token_ids[part], activations.context[part], part.start)


def store_rows(
    store: Store,
    site: str | Sequence[str] | None = None,
    split: str = HELD_OUT,
    *,
    batch: int = BATCH,
    limit: int | None = None,
) -> Iterator[TextRows]:
    """A store's rows as they stood in the text, float32; in memory is one shard at a time.

    Args:
        store: the store.
        site: what is read; several are laid side by side.
        split: "train" or "held_out".
        batch: rows at a time, to the end of a context.
        limit: about so many rows at most, from the beginning of every shard in proportion.

    Raises:
        StoreError: rows that were imported without a text.
    """
    layout = store.layout(site)
    share = 1.0 if limit is None else min(1.0, limit / max(1, store.rows(split)))
    first = 0
    for shard in store.shards(split):
        yield from _shard_rows(store, shard, layout, batch, math.ceil(shard.rows * share), first)
        first += shard.rows


def _shard_rows(store: Store, shard: Shard, layout: Layout, batch: int, limit: int, first: int) -> Iterator[TextRows]:
    index = read_index(store.path, shard)
    if index.token_ids is None or index.context is None:
        raise StoreError(f"{store.path}: these rows were imported without a text, so they have no tokens")
    place = torch.empty(shard.rows, dtype=torch.long)
    place[index.order.long()] = torch.arange(shard.rows)
    disk = {block.site: store.read(shard, block.site) for block in layout.reads}
    for part in _pieces(index.context[:limit], batch):
        x = side_by_side(layout.reads, {name: rows[place[part]].float() for name, rows in disk.items()})
        yield TextRows(x, index.token_ids[part], index.context[part], first + part.start)
