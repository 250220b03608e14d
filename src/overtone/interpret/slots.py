"""Slots: for every latent the few best of many offers, in memory that is there from the start."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class Windows(NamedTuple):
    """Windows of text; the first axes are those of what holds them.

    Attributes:
        row: the row that the window is around, counted over the text; −1: an empty slot.
        start: the first row of the window.
        context: the first row of its context.
        token_ids: its tokens, −1 after its end.
        codes: a latent's code on each of them.
    """

    row: Int[Tensor, "*slots"]
    start: Int[Tensor, "*slots"]
    context: Int[Tensor, "*slots"]
    token_ids: Int[Tensor, "*slots width"]
    codes: Float[Tensor, "*slots width"]


class Placed(NamedTuple):
    """Which offers were taken, and where they were put."""

    owner: Int[Tensor, " taken"]
    slot: Int[Tensor, " taken"]
    offer: Int[Tensor, " taken"]


class Slots:
    """The `size` offers with the largest keys of each owner; of equal keys those of the earliest rows.

    What is kept is a function of the set of offers: not of their order, nor of how they come in batches.
    """

    def __init__(self, owners: int, size: int, width: int):
        self.keys = torch.full((owners, size), -torch.inf, dtype=torch.float64)
        empty = torch.full((owners, size), -1)
        self.windows = Windows(
            empty,
            empty.clone(),
            empty.clone(),
            torch.full((owners, size, width), -1, dtype=torch.int32),
            torch.zeros(owners, size, width),
        )
        self.least = self.keys[:, 0].clone()

    def offer(
        self,
        owner: Int[Tensor, " offers"],
        key: Float[Tensor, " offers"],
        row: Int[Tensor, " offers"],
        windows: Callable[[Int[Tensor, " taken"]], Windows],
    ) -> Placed:
        """Keep what is better than the worst that is kept.

        Args:
            owner: whose each offer is.
            key: finite numbers, the larger the better.
            row: the row it is of; the earlier one is better where keys are equal.
            windows: the windows of some of the offers, by their numbers: only those that are kept are ever made.
        """
        better = (key >= self.least[owner]).nonzero()[:, 0]
        touched, of = owner[better].unique(return_inverse=True)
        size = self.keys.shape[1]
        held = len(touched) * size
        group = torch.cat([torch.arange(len(touched)).repeat_interleave(size), of])
        keys = torch.cat([self.keys[touched].flatten(), key[better]])
        rows = torch.cat([self.windows.row[touched].flatten(), row[better]])
        order = torch.from_numpy(np.lexsort((rows.numpy(), -keys.numpy(), group.numpy())))
        place = torch.arange(len(order))
        starts = torch.searchsorted(group[order], torch.arange(len(touched)))
        kept = place - starts[group[order]] < size
        # By owner both, and as many of the one as of the other.
        freed = order[~kept & (order < held)]
        taken = order[kept & (order >= held)] - held
        placed = Placed(touched[freed // size], freed % size, better[taken])
        self.keys[placed.owner, placed.slot] = key[placed.offer]
        for mine, new in zip(self.windows, windows(placed.offer), strict=True):
            mine[placed.owner, placed.slot] = new
        self.least[touched] = self.keys[touched].amin(1)
        return placed

    def ordered(self, *, by_key: bool) -> tuple[Windows, Int[Tensor, "owners size"]]:
        """The windows and the slots they were in, best key first or strongest code first, empty slots last; ties by row."""
        row, start = self.windows.row, self.windows.start
        codes = self.windows.codes.gather(2, (row - start)[..., None])[..., 0]
        size = torch.where(row >= 0, self.keys if by_key else codes.abs().double(), -torch.inf)
        by_row = row.argsort(dim=1, stable=True)
        order = by_row.gather(1, size.gather(1, by_row).argsort(dim=1, descending=True, stable=True))
        owner = torch.arange(len(order))[:, None]
        return Windows(*(part[owner, order] for part in self.windows)), order
