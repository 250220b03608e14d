"""What ranks that share the rows read of a store: their parts of every batch, against whole batches of which they drop the rest.

    python benchmarks/reading.py [--gib 2] [--widths 384 1536 4096] [--ranks 1 2 4] [--memory-mib 128] [--batches 60]
                                 [--folder DIR] [--json PATH]

As many processes as ranks, each with a stream of its own and one thread, read batches of 4096 rows at the same time, the store in
the page cache: seconds a batch are those of the slowest, and those of a processor in all of them together. Bytes that a rank asks
for are counted by the system (rchar); those that come from the disk for it (read_bytes) are of the first rank alone, with the
files out of the page cache before. Both are shares of what whole batches have, and the windows read ahead count.
"""

import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from common import CHUNK_ROWS, counter, random_chunks, show
from store import BATCH, evict

from overtone import Store, StoreStream, import_rows
from overtone.cli.common import write_json


class Read(NamedTuple):
    """What reading some batches took a rank: wall and processor seconds, bytes asked for and bytes from the disk."""

    seconds: float
    processor: float
    asked: int
    disk: int


def read(path: Path, memory_mib: int, batches: int, rank: int, ranks: int) -> Read:
    """Take so many batches, or a rank's part of them."""
    stream = StoreStream(Store(path), BATCH, memory_mib=memory_mib)
    stream.deal(rank, ranks)
    before = counter("rchar"), counter("read_bytes")
    began, worked = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(stream)
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    if stream._coming is not None:  # what is under way would be counted or not as chance has it
        stream._coming[1].result()
    return Read(seconds, processor, counter("rchar") - before[0], counter("read_bytes") - before[1])


def _work(results: Any, barrier: Barrier, path: Path, memory_mib: int, batches: int, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    read(path, memory_mib, 1, rank, ranks)  # what only the first reading costs
    barrier.wait()
    results.put(read(path, memory_mib, batches, rank, ranks))


def together(path: Path, memory_mib: int, batches: int, processes: int, ranks: int) -> list[Read]:
    """What so many processes at the same time find: ranks of as many, or readers of all rows where `ranks` is 1."""
    context = multiprocessing.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(processes)
    workers = [
        context.Process(target=_work, args=(results, barrier, path, memory_mib, batches, rank % ranks, ranks))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return found


def measure(store: Store, memory_mib: int, batches: int, ranks: int) -> dict[str, Any]:
    """Whole batches and parts of them on so many ranks."""
    found: dict[str, Any] = {"ranks": ranks}
    for name, parts in (("whole", 1), ("parts", ranks)):
        evict(store)
        alone = read(store.path, memory_mib, batches, 0, parts)
        all_rows = read(store.path, memory_mib, batches, 0, 1)  # puts the rest into the page cache
        several = together(store.path, memory_mib, batches, ranks, parts)
        found[name] = {
            "asked": alone.asked / all_rows.asked,
            "disk": alone.disk / all_rows.asked,
            "seconds": max(one.seconds for one in several) / batches,
            "processor": sum(one.processor for one in several) / batches,
        }
    return found


COLUMNS = (
    *(
        "d",
        "bytes\na row",
        "ranks",
        "asked for\n%",
        "from disk\n%",
        "whole:\ns a batch",
        "processor\ns",
        "parts:\ns a batch",
    ),
    "processor\ns",
)


def main(
    gib: float = 2.0,
    widths: tuple[int, ...] = (384, 1536, 4096),
    ranks: tuple[int, ...] = (1, 2, 4),
    memory_mib: int = 128,
    batches: int = 60,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    torch.set_num_threads(1)
    results, lines = [], []
    for d in widths:
        rows = round(gib * 2**30 / (d * 2))
        if rows < BATCH * batches or rows < CHUNK_ROWS:
            raise SystemExit(
                f"--gib {gib:g} holds {rows} rows of width {d}, fewer than {batches} batches; lower --batches"
            )
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            store = import_rows(
                random_chunks(rows, d), Path(scratch, "store"), site="x", origin="benchmark", held_out=0
            )
            for size in ranks:
                found = {"d": d, **measure(store, memory_mib, batches, size)}
                results.append(found)
                shares = [f"{100 * found['parts'][name]:.1f}" for name in ("asked", "disk")]
                times = [f"{found[way][name]:.4f}" for way in ("whole", "parts") for name in ("seconds", "processor")]
                lines.append([str(d), str(2 * d), str(size), *shares, *times])
    show(f"{gib:g} GiB of bfloat16 rows, {memory_mib} MiB in flight, {batches} batches of {BATCH}", COLUMNS, lines)
    write_json(json, {"gib": gib, "memory_mib": memory_mib, "batches": batches, "results": results})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
