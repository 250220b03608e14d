"""What ranks that share the rows of a batch decide and add up together: the largest entries of all, sums over all entries."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.ops.deferred import EntrySum
from overtone.ops.transposed import Transposed
from overtone.parallel import Axis


@torch.no_grad()
def among_largest(values: Float[Tensor, " n"], room: int, axis: Axis) -> Bool[Tensor, " n"]:
    """Which of the ranks' values are among the `room` largest of all ranks together.

    Exact; of equal values that of the earlier rank, then the first wins: with rows dealt out in order, the earlier row's. Each
    rank sends its values and nothing else.
    """
    longest = int(axis.max(torch.tensor(len(values), device=values.device)))
    padded = values.new_full((longest,), -torch.inf)
    padded[: len(values)] = values
    everyone = axis.gather(padded)
    if everyone.numel() <= room:
        return torch.ones_like(values, dtype=torch.bool)
    kth = everyone.flatten().topk(room, sorted=False).values.amin()
    tied = everyone == kth
    left = room - (everyone > kth).sum() - tied[: axis.rank].sum()
    own = values == kth
    return (values > kth) | (own & (own.cumsum(0) <= left))


@torch.no_grad()
def among_largest_of_rows(
    values: Float[Tensor, " n"], rows: Int[Tensor, " n"], batch: int, k: int, axis: Axis
) -> Bool[Tensor, " n"]:
    """Which of the ranks' entries of the same rows are among the k largest of their row, all ranks' latents together.

    Exact; of equal values that of the earlier rank, then the first wins: with latents dealt out in order, the lower latent's.

    Args:
        values: of entries in the order of rows, then of latents, at most k of a row.
        rows: theirs.
        batch: how many rows there are.
        k: entries per row.
        axis: ranks that each have some of the latents.
    """
    if axis.size == 1:
        return torch.ones_like(values, dtype=torch.bool)
    starts = torch.searchsorted(rows, torch.arange(batch, device=rows.device))
    place = torch.arange(len(rows), device=rows.device) - starts[rows]
    own = values.new_full((batch, k), -torch.inf)
    own[rows, place] = values
    everyone = axis.gather(own)
    kth = everyone.transpose(0, 1).flatten(1).topk(k).values[:, -1:]
    tied = own == kth
    left = k - (everyone > kth).sum((0, 2)) - (everyone[: axis.rank] == kth).sum((0, 2))
    kept = (own > kth) | (tied & (tied.cumsum(1) <= left[:, None]))
    return kept[rows, place]


def is_better_joined(one: EntrySum, ranks: Axis) -> bool:
    """Whether the rows of all tables are less to send than a row per latent, which a ring sends twice. The same on all ranks."""
    return len(one.tables) * len(one.tables[0]) * ranks.size < 2 * (len(one.transposed.offsets) - 1)


def join(one: EntrySum, entries: list[int], axis: Axis) -> EntrySum:
    """The sum over the entries of all ranks, whose rows follow each other: that of one process that has all rows.

    Args:
        one: this rank's.
        entries: how many each rank has.
        axis: the ranks.
    """
    order, total = one.transposed.order, len(one.transposed.offsets) - 1
    batch = len(one.tables[0])
    # As the codes are: in the order of rows, in which the ranks' entries only have to be laid end to end.
    places = torch.empty(2, len(order), dtype=torch.int32, device=order.device)
    places[0, order] = one.transposed.latents.to(torch.int32)
    places[1, order] = one.transposed.rows.to(torch.int32) + axis.rank * batch
    latents, rows = axis.concatenate(places.T, entries).long().T.contiguous()
    values = axis.concatenate(one.values, entries)
    tables = [axis.concatenate(table) for table in one.tables]
    return EntrySum(Transposed.of(latents, rows, total), values, tables, one.sizes)
