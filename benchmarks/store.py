"""The shuffled stream of a store against reading the same number of bytes in order, both from the disk.

    python benchmarks/store.py [--gib 5] [--widths 384 768 1536] [--memory-mib 256] [--repeats 5] [--batches N]
                               [--folder DIR] [--json PATH]

In turns: so many bytes read in order; as many by the stream (an epoch, or N batches of 4096 rows, float32); the stream once
more with all of it in the page cache, which leaves what it costs the processor. Before the first and the second the files are
put out of the page cache; "from disk" says how much of the bytes then came from the disk (first, second, third). That the
disk's host keeps a cache of its own cannot be excluded. Peak memory is measured in a process of its own, above what it holds
right before the stream is made; the store must be at least 20 times as large as the stream's memory.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import tyro
from common import MIB, Spread, in_new_process, peak_mib, random_chunks, restart_peak, timed
from rich.console import Console
from rich.table import Table

from overtone import Store, StoreStream, import_rows
from overtone.cli.common import write_json

BATCH = 4096
LARGER = 20  # times the stream's memory


def row_files(store: Store) -> list[Path]:
    """The files that hold the store's rows."""
    return [store.path / file.path for shard in store.manifest.shards for file in shard.sites.values()]


def evict(store: Store) -> None:
    """Put the store's rows out of the page cache."""
    for path in row_files(store):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_in_order(store: Store, size: int) -> None:
    """Read the first `size` bytes of the store's files."""
    buffer = memoryview(bytearray(8 * MIB))
    for path in row_files(store):
        with path.open("rb", buffering=0) as file:
            while size > 0 and (count := file.readinto(buffer[:size])):
                size -= count


def read_stream(store: Store, memory_mib: int, batches: int, seed: int) -> None:
    """Make a stream and take so many batches from it."""
    stream = StoreStream(store, BATCH, memory_mib=memory_mib, seed=seed)
    for _ in range(batches):
        next(stream)


def stream_peak_mib(path: Path, memory_mib: int, batches: int) -> float:
    """The stream's peak memory above what the process held right before the stream was made."""
    store = Store(path)
    before = restart_peak()
    read_stream(store, memory_mib, batches, seed=0)
    return peak_mib() - before


def measure(store: Store, memory_mib: int, repeats: int, limit: int | None) -> dict[str, Any]:
    """All that is measured on one store."""
    d, rows = store.sites["x"], store.rows()
    if rows * d * 2 < LARGER * memory_mib * MIB:
        raise ValueError(
            f"{rows * d * 2 / MIB:,.0f} MiB of rows are less than {LARGER} times memory_mib={memory_mib}; raise --gib or "
            "lower --memory-mib"
        )
    batches = rows // BATCH if limit is None else min(limit, rows // BATCH)
    read = batches * BATCH
    size = read * d * 2
    rounds = []
    for seed in range(repeats):
        evict(store)
        in_order = timed(lambda: read_in_order(store, size))
        evict(store)
        # Both with one seed, so that the second finds in the page cache just what the first has read.
        rounds.append([in_order, *(timed(lambda s=seed: read_stream(store, memory_mib, batches, s)) for _ in range(2))])
    in_order, shuffled, cached = zip(*rounds, strict=True)
    return {
        "d": d,
        "rows": read,
        "in_order_mb_per_s": Spread.of([size / t.seconds / 1e6 for t in in_order])._asdict(),
        "shuffled_mb_per_s": Spread.of([size / t.seconds / 1e6 for t in shuffled])._asdict(),
        "ratio": Spread.of([a.seconds / b.seconds for a, b in zip(in_order, shuffled, strict=True)])._asdict(),
        "shuffled_rows_per_s": Spread.of([read / t.seconds for t in shuffled])._asdict(),
        "cached_rows_per_s": Spread.of([read / t.seconds for t in cached])._asdict(),
        "from_disk": [Spread.of([t.disk_bytes / size for t in part]).median for part in (in_order, shuffled, cached)],
        "peak_mib": in_new_process(stream_peak_mib, store.path, memory_mib, batches),
        "bound_mib": memory_mib,
    }


def table_of(results: list[dict[str, Any]], title: str) -> Table:
    """The results, a line per width."""
    table = Table(title=title)
    for column in (
        "d",
        "in order, MB/s",
        "shuffled, MB/s",
        "shuffled : in order",
        "shuffled, rows/s",
        "cached, rows/s",
    ):
        table.add_column(column, justify="right")
    for column in ("from disk, %", "peak, MiB", "bound, MiB"):
        table.add_column(column, justify="right")
    for found in results:
        table.add_row(
            str(found["d"]),
            *(f"{found[name]['median']:,.0f}" for name in ("in_order_mb_per_s", "shuffled_mb_per_s")),
            Spread(**found["ratio"]).shown(),
            *(f"{found[name]['median']:,.0f}" for name in ("shuffled_rows_per_s", "cached_rows_per_s")),
            " ".join(f"{100 * share:.0f}" for share in found["from_disk"]),
            f"{found['peak_mib']:,.0f}",
            f"{found['bound_mib']:,.0f}",
        )
    return table


def main(
    gib: float = 5.0,
    widths: tuple[int, ...] = (384, 768, 1536),
    memory_mib: int = 256,
    repeats: int = 5,
    batches: int | None = None,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    results = []
    for d in widths:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            chunks = random_chunks(round(gib * 2**30 / (d * 2)), d)
            store = import_rows(chunks, Path(scratch, "store"), site="x", origin="benchmark", held_out=0)
            results.append(measure(store, memory_mib, repeats, batches))
    title = f"{gib:g} GiB of bfloat16 rows; a stream of {memory_mib} MiB; medians (ranges) of {repeats}"
    Console().print(table_of(results, title))
    write_json(json, {"gib": gib, "memory_mib": memory_mib, "repeats": repeats, "results": results})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
