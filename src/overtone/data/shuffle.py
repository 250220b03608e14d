"""A true global shuffle of a store, at the speed of reading it in order, in bounded memory.

Every shard's rows lie on disk in a uniformly random order (drawn at the harvest), in blocks. An epoch merges the shards as
one riffles decks of cards: window after window, the number of rows from each shard is drawn from the multivariate
hypergeometric distribution – as if each next row were drawn from all that remain –, these rows are read in large pieces and
shuffled in memory. Riffled this way, uniformly random orders give a uniformly random order (docs/store.md has the proof).
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.store import TRAIN, Store
from overtone.data.stream import Batch
from overtone.data.windows import Part, Wanted, Window, read_rows
from overtone.seeds import generator

# Bytes that stay together on disk and in every epoch. Larger ones read faster (at 1 MiB, several under way, as fast as
# the disk goes), smaller ones make epochs more independent: a window takes at least BLOCKS of each shard where it can.
LARGEST_BLOCK, SMALLEST_BLOCK, BLOCKS = 2**20, 2**16, 8
READERS = 8
HYPERGEOMETRIC_LIMIT = 10**9  # rows; numpy's

Interval = tuple[int, int]
Key = tuple[int, int, int]  # epoch, window, place in a batch at which it begins
Pool = tuple[int, list[Interval]]  # epoch, positions of it that are still to be dealt out


class Visit(NamedTuple):
    """Positions start … stop − 1 of an epoch, all in one window; `drawn`: rows that the reader has drawn before them."""

    epoch: int
    window: int
    start: int
    stop: int
    drawn: int

    def upto(self, position: int) -> "Visit":
        """What is left of it from a position on."""
        return self._replace(start=position, drawn=self.drawn + position - self.start)


class Epoch:
    """The order of one epoch: how many rows of every shard each window holds, and which ones.

    Args:
        sizes: rows of every shard.
        window: rows per window (the last one may have fewer).
        block: rows per block: what stays together on disk.
        seed, number: the order depends on nothing else.
    """

    def __init__(self, sizes: Sequence[int], window: int, block: int, seed: int, number: int):
        self.block, self.seed, self.number = block, seed, number
        rng = np.random.default_rng([seed % 2**63, number])
        self.counts = _riffle(np.asarray(sizes, dtype=np.int64), window, rng)
        self.starts = np.cumsum(self.counts, axis=0) - self.counts  # of each window in each shard's own order
        self._blocks = [rng.permutation(-(-size // block)).astype(np.int32) for size in sizes]
        self._sizes = sizes

    def extents(self, window: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first row on disk, rows) of the pieces that make up a window."""
        for shard, (start, count) in enumerate(zip(self.starts[window], self.counts[window], strict=True)):
            yield from ((shard, *piece) for piece in self._pieces(shard, int(start), int(start + count)))

    def _pieces(self, shard: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Rows start … stop − 1 of a shard in this epoch's order of its blocks, as (first row on disk, rows)."""
        if start == stop:
            return
        blocks, size = self._blocks[shard], self._sizes[shard]
        lengths = np.full(len(blocks), self.block)
        lengths[blocks == len(blocks) - 1] = size - (len(blocks) - 1) * self.block  # the last block may be short
        ends = np.cumsum(lengths)
        for i in range(int(np.searchsorted(ends, start, side="right")), len(blocks)):
            begin = ends[i] - lengths[i]
            if begin >= stop:
                return
            low, high = max(start, int(begin)), min(stop, int(ends[i]))
            yield int(blocks[i]) * self.block + low - int(begin), high - low

    def shuffled(self, window: int) -> Int[Tensor, " rows"]:
        """The order of a window's rows, once they are in memory."""
        rows = int(self.counts[window].sum())
        return torch.randperm(rows, generator=generator(self.seed, f"order of window {window}", self.number))


def _riffle(sizes: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Rows that every window takes from every shard, (windows, shards): drawn without replacement from all that remain."""
    remaining, counts = sizes.copy(), []
    while (total := int(remaining.sum())) > 0:
        take = min(window, total)
        if total < HYPERGEOMETRIC_LIMIT:
            count = rng.multivariate_hypergeometric(remaining, take, method="marginals")
        else:
            count = _draw_from_many(remaining, take, rng)
        counts.append(count)
        remaining = remaining - count
    return np.stack(counts)


def _draw_from_many(remaining: np.ndarray, take: int, rng: np.random.Generator) -> np.ndarray:
    """The same for more rows than numpy's hypergeometric distribution knows: binomial, which is its limit for many rows."""
    count, rest = np.zeros_like(remaining), int(remaining.sum())
    for shard, size in enumerate(remaining.tolist()):
        drawn = int(rng.binomial(take, size / rest)) if rest else 0
        rest -= size
        count[shard] = min(max(drawn, take - rest), size, take)  # what the later shards cannot give, this one must
        take -= int(count[shard])
    return count


def shares(intervals: Sequence[Interval], world: int) -> list[list[Interval]]:
    """The positions dealt out to `world` ranks in equal, disjoint, covering parts (sizes differ by at most one)."""
    total = sum(b - a for a, b in intervals)
    cuts = [rank * total // world for rank in range(world + 1)]
    return [_slice(intervals, low, high) for low, high in itertools.pairwise(cuts)]


def _slice(intervals: Sequence[Interval], low: int, high: int) -> list[Interval]:
    """Positions low … high − 1 of the concatenated intervals."""
    found, before = [], 0
    for a, b in intervals:
        start, stop = max(a, a + low - before), min(b, a + high - before)
        if start < stop:
            found.append((start, stop))
        before += b - a
    return found


def _endless(pools: list[Pool], rows: int) -> Iterator[Pool]:
    """The pools, then whole epochs."""
    yield from pools
    for epoch in itertools.count(pools[-1][0] + 1):
        yield epoch, [(0, rows)]


def _visits(pools: list[Pool], rows: int, window: int, rank: int, world: int, skip: int) -> Iterator[Visit]:
    """A rank's windows without end, after its first `skip` rows. No method: a stream must not hold itself alive."""
    drawn = skip
    for epoch, intervals in _endless(pools, rows):
        for a, b in shares(intervals, world)[rank]:
            used = min(skip, b - a)
            skip -= used
            start = a + used
            while start < b:
                number = start // window
                stop = min(b, (number + 1) * window)
                yield Visit(epoch, number, start, stop, drawn)
                drawn += stop - start
                start = stop


class StoreStream:
    """The rows of a store, every row exactly once per epoch, in a new global order every epoch.

    The order depends on the store, `seed`, `memory_mib` and the sites read together, not on `batch` or `world`. Ranks get
    disjoint parts that cover the epoch, also when it is resumed with another `world`. Every batch has `batch` rows: one
    that reaches the epoch's end is filled from the next.

    Args:
        store: the store.
        batch: rows per batch (and rank).
        site: what is read; may be left out when the store has one site. Several are laid side by side, for a crosscoder.
        target: the site to reconstruct; None: `site` itself.
        sites: further sites to read, for `next_rows`.
        split: "train" or "held_out".
        seed: of the order.
        memory_mib: memory for rows in flight: the window being used and the next one, being read in the background. The
            batches that are handed out, a few of them at a time, come on top.
        rank, world: this reader's number, and how many there are.
    """

    def __init__(
        self,
        store: Store,
        batch: int,
        *,
        site: str | Sequence[str] | None = None,
        target: str | None = None,
        sites: Sequence[str] = (),
        split: str = TRAIN,
        seed: int = 0,
        memory_mib: int = 512,
        rank: int = 0,
        world: int = 1,
    ):
        if batch < 1 or memory_mib < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch={batch} and memory_mib={memory_mib} must be at least 1, rank={rank} from 0 to world−1 (world={world})"
            )
        self.store, self.batch, self.split, self.seed, self.rank, self.world = store, batch, split, seed, rank, world
        self.layout = store.layout(site or next(iter(sites), None), target)
        own = [block.site for block in (*self.layout.reads, *self.layout.reconstructs)]
        self.sites = tuple(dict.fromkeys((*own, *map(store.site, sites))))
        self._shards = store.shards(split)
        self._starts = [{s: store.data_start(shard, s) for s in self.sites} for shard in self._shards]
        self.rows = sum(shard.rows for shard in self._shards)
        self._row_bytes = {s: store.sites[s] * store.dtype.itemsize for s in self.sites}
        wanted = memory_mib * 2**20 // (2 * sum(self._row_bytes.values()))
        self.window = min(self.rows, max(wanted, 1))
        self._epoch = self._order(0)
        self._identity = self._identify()
        self._pools: list[Pool] = [(0, [(0, self.rows)])]
        self._drawn = 0  # rows this rank has drawn from the pools
        self._part, self._begin = Part.of(batch, 0, 1), 0  # what is read of every batch; rows drawn before one of them
        self._pin = torch.cuda.is_available()
        self._loaded: dict[Key, Window] = {}
        self._spare: list[dict[str, Tensor]] = []
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="overtone-window")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="overtone-read")
        self._coming: tuple[Key, Future[Window]] | None = None
        self._visits = self._plan()
        self._visit, self._next = next(self._visits), next(self._visits)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return Batch.part(self.layout, self.next_rows(), self.batch)

    def deal(self, rank: int, ranks: int) -> None:
        """From now on leave out of every batch what is not the part of this one of `ranks` ranks, and do not read it.

        The part is contiguous; order and position are those of whole batches. ValueError: a batch of fewer rows than ranks.
        """
        part = Part.of(self.batch, rank, ranks)
        self._begin = self._drawn
        if part != self._part:
            if self._coming is not None:
                wait([self._coming[1]])
            self._part, self._loaded, self._coming, self._spare = part, {}, None, []

    def next_rows(self) -> dict[str, Float[Tensor, "batch _"]]:
        """Site → the next batch of its rows (or a rank's part of them); row i is of the same token at every site."""
        parts: dict[str, list[Tensor]] = {s: [] for s in self.sites}
        taken = 0
        while taken < self.batch:
            visit = self._visit
            take = min(self.batch - taken, visit.stop - visit.start)
            window, first = self._get(visit), visit.start - visit.window * self.window
            at = window.order[first : first + take][self._part.between(taken, taken + take)]
            for s in self.sites:
                parts[s].append(window.rows[s].index_select(0, at))
            taken += take
            self._drawn += take
            self._visit = visit.upto(visit.start + take)
            if self._visit.start == visit.stop:
                self._visit, self._next = self._next, next(self._visits)
        return {s: self._finish(pieces) for s, pieces in parts.items()}

    def _finish(self, pieces: list[Tensor]) -> Float[Tensor, "batch d"]:
        x = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).float()
        return x.pin_memory() if self._pin else x

    def state_dict(self) -> dict[str, Any]:
        """What was dealt out, to how many ranks, and how far each has come; the same on every rank."""
        pools = [[epoch, [list(i) for i in intervals]] for epoch, intervals in self._pools]
        return {"pools": pools, "world": self.world, "drawn": self._drawn, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, with the same number of ranks or another one.

        Raises ValueError when the store, its split, the seed or the memory is not the one it was saved with.
        """
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the stream of {self.store.path} has {name}={value}, the saved position was of {name}={state.get(name)}; "
                    "resume with the same store, split, seed and memory"
                )
        pools: list[Pool] = [(epoch, [(a, b) for a, b in intervals]) for epoch, intervals in state["pools"]]
        self._pools, self._drawn = pools, state["drawn"]
        if state["world"] != self.world:
            self._pools, self._drawn = self._left(pools, state["world"], state["drawn"]), 0
        self._begin = self._drawn
        self._visits = self._plan()
        self._visit, self._next = next(self._visits), next(self._visits)

    def _identify(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same."""
        digest = hashlib.sha256(self._epoch.counts.tobytes())
        for shard in self._shards:
            digest.update("".join(shard.sites[s].sha256 for s in sorted(self.sites)).encode())
        sites = sorted(self.sites)
        names = {"split": self.split, "sites": sites, "rows": self.rows, "seed": self.seed, "window": self.window}
        return {**names, "checksum": digest.hexdigest()[:16]}

    def _left(self, pools: list[Pool], world: int, drawn: int) -> list[Pool]:
        """What is not yet drawn after each of `world` ranks has drawn so many rows."""
        missing, left = [drawn] * world, []
        for epoch, intervals in _endless(pools, self.rows):
            rest: list[Interval] = []
            for rank, share in enumerate(shares(intervals, world)):
                size = sum(b - a for a, b in share)
                used = min(missing[rank], size)
                missing[rank] -= used
                rest += _slice(share, used, size)
            if rest:
                left.append((epoch, rest))
            if not any(missing):
                return left or [(epoch + 1, [(0, self.rows)])]
        raise AssertionError("there is always another epoch")

    def _plan(self) -> Iterator[Visit]:
        """This rank's windows, from where it stands, without end."""
        return _visits(self._pools, self.rows, self.window, self.rank, self.world, self._drawn)

    def _key(self, visit: Visit) -> Key:
        """What of the visit's window is read: all of it, or parts of batches, of which the window begins at a certain place."""
        first = visit.drawn - (visit.start - visit.window * self.window) - self._begin
        return visit.epoch, visit.window, 0 if self._part.whole else first % self.batch

    def _get(self, visit: Visit) -> Window:
        """The visit's window in memory; the next visit's is read in the background meanwhile."""
        key, ahead = self._key(visit), self._key(self._next)
        if key not in self._loaded:
            coming, self._coming = self._coming, None
            found = coming[1].result() if coming is not None else None
            if coming is None or coming[0] != key:  # a new position was loaded
                found = self._read(key, found.rows if found else self._buffers())
            self._spare += [window.rows for window in self._loaded.values()]
            assert found is not None
            self._loaded = {key: found}
        if ahead != key and self._coming is None:
            buffers = self._spare.pop() if self._spare else self._buffers()
            self._coming = ahead, self._ahead.submit(self._read, ahead, buffers)
        return self._loaded[key]

    def _buffers(self) -> dict[str, Tensor]:
        rows = self._part.most(self.window)
        return {s: torch.empty(rows, self.store.sites[s], dtype=self.store.dtype) for s in self.sites}

    def _order(self, number: int) -> Epoch:
        row = max(self._row_bytes.values())
        slice_bytes = self.window * row // len(self._shards)
        block = max(1, min(LARGEST_BLOCK, max(SMALLEST_BLOCK, slice_bytes // BLOCKS)) // row)
        return Epoch([shard.rows for shard in self._shards], self.window, block, self.seed, number)

    def _read(self, key: Key, buffers: dict[str, Tensor]) -> Window:
        """Read a window's rows into `buffers`, several pieces at a time."""
        number, window, phase = key
        if self._epoch.number != number:
            self._epoch = self._order(number)
        wanted = Wanted.of(self._epoch.shuffled(window), self._part, phase)
        jobs, done = [], 0
        for shard, first, rows in self._epoch.extents(window):
            into, which = wanted.within(done, rows)
            done += rows
            for s in self.sites if into.start < into.stop else ():
                path = self.store.path / self._shards[shard].sites[s].path
                start = self._starts[shard][s] + first * self._row_bytes[s]
                jobs.append(self._readers.submit(read_rows, path, start, which, buffers[s][into]))
        for job in jobs:
            job.result()
        return Window(buffers, wanted.order)
