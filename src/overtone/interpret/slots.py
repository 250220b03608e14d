"""Slots: for every latent the few best of many offers, in memory that is there from the start."""

from collections.abc import Callable
from typing import NamedTuple

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
    """The `size` offers of highest rank of each owner; of equal ranks those of the earliest rows.

    What is kept is a function of the set of offers: not of their order, nor of how they come in batches. No two offers of an
    owner may be of the same row.
    """

    def __init__(self, owners: int, size: int, width: int):
        # Empty slots are below every offer, and no two of them alike, so that there is always one least.
        self.keys = -1 - torch.arange(size).repeat(owners, 1)
        self.least = self.keys[:, -1].clone()
        empty = torch.full((owners, size), -1)
        self.windows = Windows(
            empty,
            empty.clone(),
            empty.clone(),
            torch.full((owners, size, width), -1, dtype=torch.int32),
            torch.zeros(owners, size, width),
        )

    def offer(
        self,
        owner: Int[Tensor, " offers"],
        rank: Int[Tensor, " offers"],
        row: Int[Tensor, " offers"],
        windows: Callable[[Int[Tensor, " taken"]], Windows],
    ) -> Placed:
        """Keep what is better than the worst that is kept.

        Args:
            owner: whose each offer is, ascending.
            rank: 0 to 2³¹ − 1, the larger the better.
            row: the row it is of, below 2³²; the earlier one is better where ranks are equal.
            windows: the windows of some of the offers, by their numbers: only those that are kept are ever made.
        """
        key = _key(rank, row)
        better = (key > self.least[owner]).nonzero()[:, 0]
        touched, of, counts = owner[better].unique_consecutive(return_inverse=True, return_counts=True)
        if not len(touched):
            return Placed(better, better, better)
        most = int(counts.max())
        held, new = self.keys[touched], torch.full((len(touched), most), torch.iinfo(torch.long).min)
        new[of, torch.arange(len(of)) - (counts.cumsum(0) - counts)[of]] = key[better]
        # The least that stays. Keys are all different, so that it tells what goes and what comes.
        least = torch.cat([held, new], dim=1).kthvalue(most + 1, dim=1).values
        freed, taken = (held < least[:, None]).nonzero(), better[key[better] >= least[of]]
        # By owner both, and as many of the one as of the other.
        placed = Placed(touched[freed[:, 0]], freed[:, 1], taken)
        self.keys[placed.owner, placed.slot] = key[taken]
        for mine, made in zip(self.windows, windows(taken), strict=True):
            mine[placed.owner, placed.slot] = made
        self.least[touched] = least
        return placed

    def ordered(self) -> tuple[Windows, Int[Tensor, "owners size"]]:
        """The windows, highest rank first and empty slots last, and the slots that they were in."""
        return self._in_order(self.keys.argsort(dim=1, descending=True))

    def by_strength(self) -> Windows:
        """The windows by the code on the row that each is around, largest first and empty slots last; ties as in ranks."""
        row, start = self.windows.row, self.windows.start
        codes = self.windows.codes.gather(2, (row - start)[..., None])[..., 0]
        keys = torch.where(row >= 0, _key(strength_rank(codes), row), -1)
        return self._in_order(keys.argsort(dim=1, descending=True, stable=True))[0]

    def _in_order(self, order: Int[Tensor, "owners size"]) -> tuple[Windows, Int[Tensor, "owners size"]]:
        owner = torch.arange(len(order))[:, None]
        return Windows(*(part[owner, order] for part in self.windows)), order


def strength_rank(codes: Float[Tensor, "*some"]) -> Int[Tensor, "*some"]:
    """Ranks of codes by their size: the bits of a float32 that is not negative stand in its order."""
    return codes.float().abs().contiguous().view(torch.int32).long()


def _key(rank: Int[Tensor, "*some"], row: Int[Tensor, "*some"]) -> Int[Tensor, "*some"]:
    return (rank << 32) + (2**32 - 1 - row)


def codes_between(
    key: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"],
    low: Int[Tensor, " some"],
    high: Int[Tensor, " some"],
    width: int,
) -> Float[Tensor, "some width"]:
    """The values whose keys, ascending, are from `low` to below `high`, each at its distance from `low`; 0 elsewhere."""
    first, last = (torch.searchsorted(key, edge) for edge in (low, high))
    counts = last - first
    codes, of = torch.zeros(len(low), width), torch.arange(len(low)).repeat_interleave(counts)
    entry = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of] + first[of]
    codes[of, key[entry] - low[of]] = values[entry]
    return codes
