"""Windows of an epoch in memory, and how their rows are read: all of them, or what one of several ranks has of every batch."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.shards import StoreError, bytes_of

# Bytes between two rows that are read over and thrown away, since a read of its own saves nothing: a disk hands out pages, and
# asking takes as long as copying one.
GAP = 4096


class Part(NamedTuple):
    """What one of several ranks has of every batch: its places low … high − 1."""

    batch: int
    low: int
    high: int

    @staticmethod
    def of(batch: int, rank: int, ranks: int) -> "Part":
        """The part of rank number `rank` of `ranks`, contiguous; parts differ by at most one row."""
        if not 0 <= rank < ranks <= batch:
            raise ValueError(
                f"batch={batch} has no part for rank={rank} of {ranks}; start at most as many ranks as a batch has rows"
            )
        return Part(batch, rank * batch // ranks, (rank + 1) * batch // ranks)

    @property
    def whole(self) -> bool:
        """Whether it is all of the batch."""
        return self.high - self.low == self.batch

    def most(self, rows: int) -> int:
        """The most rows that it has of `rows` in a row."""
        full, rest = divmod(rows, self.batch)
        return full * (self.high - self.low) + min(rest, self.high - self.low)

    def among(self, rows: int, phase: int) -> Int[Tensor, " part"]:
        """Which of `rows` rows are of the part, if the first of them is at place `phase` of its batch."""
        place = (torch.arange(rows) + phase) % self.batch
        return ((place >= self.low) & (place < self.high)).nonzero().flatten()

    def between(self, start: int, stop: int) -> slice:
        """Which of a batch's rows start … stop − 1 are of the part, counted from `start`."""
        return slice(max(self.low - start, 0), max(min(stop, self.high) - start, 0))


class Window(NamedTuple):
    """A window in memory.

    Attributes:
        rows: site → rows as they were read.
        order: position in the window → the row's number; −1 where it was not read.
    """

    rows: dict[str, Tensor]
    order: Int[Tensor, " window"]


class Wanted(NamedTuple):
    """The rows of a window that are read, in the order on disk.

    Attributes:
        order: as of the `Window`.
        numbers: which of the rows that make up the window they are; None: all.
    """

    order: Int[Tensor, " window"]
    numbers: np.ndarray | None = None

    @staticmethod
    def of(order: Int[Tensor, " window"], part: Part, phase: int) -> "Wanted":
        """What a part of every batch wants of a window in which row order[i] comes at position i."""
        if part.whole:
            return Wanted(order)
        positions = part.among(len(order), phase)
        numbers, first = order[positions].sort()
        where = torch.full_like(order, -1)
        where[positions[first]] = torch.arange(len(positions))
        return Wanted(where, numbers.numpy())

    def within(self, first: int, rows: int) -> tuple[slice, np.ndarray | None]:
        """Of the window's rows from `first` on: which of those read they are, and their numbers, counted from `first`."""
        if self.numbers is None:
            return slice(first, first + rows), None
        low, high = np.searchsorted(self.numbers, (first, first + rows)).tolist()
        return slice(low, high), self.numbers[low:high] - first


def read_rows(path: Path, start: int, rows: np.ndarray | None, into: Float[Tensor, "rows d"]) -> None:
    """Read rows that lie in one piece of a file.

    Args:
        path: the file.
        start: byte at which the piece begins.
        rows: numbers of the rows in the piece, ascending; None: the first ones.
        into: where they go.

    Raises:
        StoreError: the file is missing or ends too early.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing; the store is damaged") from error
    try:
        if rows is None:
            _fill(file, start, bytes_of(into), path)
            return
        if hasattr(os, "posix_fadvise"):  # else the system reads ahead what lies between, and more than all there is
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        size = into.shape[1] * into.element_size()
        piece = into.new_empty(int(rows[-1]) + 1, into.shape[1])
        view = bytes_of(piece)
        for first, last in runs(rows, size):
            _fill(file, start + first * size, view[first * size : last * size], path)
        torch.index_select(piece, 0, torch.from_numpy(rows), out=into)
    finally:
        os.close(file)


def runs(rows: np.ndarray, size: int) -> list[tuple[int, int]]:
    """(first row, row after the last) of what is read to have these rows of `size` bytes: less than GAP apart is one run."""
    cuts = np.flatnonzero((np.diff(rows) - 1) * size >= GAP) + 1
    starts, ends = rows[np.r_[0, cuts]], rows[np.r_[cuts - 1, len(rows) - 1]] + 1
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _fill(file: int, offset: int, view: memoryview, path: Path) -> None:
    while len(view):
        count = os.preadv(file, [view], offset)
        if not count:
            raise StoreError(f"{path} is cut short; overtone store verify, of its store, says what else is")
        view, offset = view[count:], offset + count
