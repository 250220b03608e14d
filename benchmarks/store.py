"""The shuffled stream of a store against reading the same bytes in order, from disk and not from the page cache.

    python benchmarks/store.py [--gib 5] [--widths 384 768 1536] [--memory-mib 256] [--repeats 5] [--folder DIR]

Interleaved: a sequential read of all the store's bytes, then one epoch of the stream, again and again; the files are put out
of the page cache before each. Prints medians of bytes/s and rows/s, their ratio, and the process' peak memory above what
it had before the stream was made.
"""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from overtone import Store, StoreStream, import_rows
from overtone.seeds import generator

CHUNK_ROWS = 16_384


def rows_of(gib: float, d: int) -> Iterator[torch.Tensor]:
    """Random rows, so many GiB of bfloat16; every chunk is the first one shifted, which is quicker to make."""
    x = torch.randn(CHUNK_ROWS, d, generator=generator(0, "benchmark rows"))
    for i in range(round(gib * 2**30 / (CHUNK_ROWS * d * 2))):
        yield x.roll(i, dims=1)


def evict(store: Store) -> list[Path]:
    """Put the store's rows out of the page cache; gives their files."""
    files = [store.path / shard.sites["x"].path for shard in store.manifest.shards]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return files


def sequential(store: Store) -> float:
    """Seconds to read every byte in order."""
    files, buffer = evict(store), memoryview(bytearray(8 * 2**20))
    began = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def shuffled(store: Store, memory_mib: int, epoch: int) -> float:
    """Seconds for one epoch of float32 batches of 4096 rows."""
    evict(store)
    began = time.perf_counter()
    stream = StoreStream(store, 4096, memory_mib=memory_mib, seed=epoch)
    total = 0.0
    for _ in range(stream.rows // 4096):
        total += float(next(stream).x[0, 0])
    return time.perf_counter() - began


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    gib: float = 5.0,
    widths: tuple[int, ...] = (384, 768, 1536),
    memory_mib: int = 256,
    repeats: int = 5,
    folder: Path | None = None,
) -> None:
    table = Table(title=f"{gib:g} GiB of bfloat16 rows, {memory_mib} MiB for the stream, median of {repeats}")
    for column in (
        "d",
        "in order, MB/s",
        "shuffled, MB/s",
        "ratio (range)",
        "shuffled, rows/s",
        "peak above start, MiB",
    ):
        table.add_column(column, justify="right")
    for d in widths:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            rows = rows_of(gib, d)
            store = import_rows(rows, Path(scratch, "store"), site="x", origin="benchmark", held_out=0)
            size, before = store.rows() * d * 2 / 1e6, peak_mib()
            times = [(sequential(store), shuffled(store, memory_mib, epoch)) for epoch in range(repeats)]
            ratios = [a / b for a, b in times]
            order, shuffle = (statistics.median(column) for column in zip(*times, strict=True))
            table.add_row(
                str(d),
                f"{size / order:,.0f}",
                f"{size / shuffle:,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                f"{store.rows() / shuffle:,.0f}",
                f"{peak_mib() - before:,.0f}",
            )
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
