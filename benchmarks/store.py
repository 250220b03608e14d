"""The shuffled stream of a store against reading the same number of bytes in order, both from the disk.

    python benchmarks/store.py [--gib 5] [--widths 384 768 1536] [--memory-mib 256] [--repeats 5] [--batches N]
                               [--folder DIR] [--json PATH]

In turns: so many bytes read in order; as many by the stream (an epoch, or N batches of 4096 rows, float32); the stream once
more with all of it in the page cache, which leaves what it costs the processor. Before the first and the second the files are
put out of the page cache; "from disk" says how much of the bytes then came from the disk (first, second, third). That the
disk's host keeps a cache of its own cannot be excluded. Peak memory is measured in a process of its own, above what it holds
right before the stream is made; the bound (memory_mib) is for the rows in flight, the batches come on top. The store must be
at least 20 times as large as the bound.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import tyro
from common import Spread, in_new_process, random_chunks, show, timed
from process import MIB, peak_mib, restart_peak

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
        "batch_mib": BATCH * d * 4 / MIB,
    }


def line_of(found: dict[str, Any]) -> list[str]:
    """The results of one store as a line of the table."""

    def median(name: str) -> str:
        return f"{found[name]['median']:,.0f}"

    return [
        str(found["d"]),
        median("in_order_mb_per_s"),
        median("shuffled_mb_per_s"),
        Spread(**found["ratio"]).shown(),
        median("shuffled_rows_per_s"),
        median("cached_rows_per_s"),
        " / ".join(f"{100 * share:.0f}" for share in found["from_disk"]),
        *(f"{found[name]:,.0f}" for name in ("peak_mib", "bound_mib", "batch_mib")),
    ]


COLUMNS = (
    *("d", "in order\nMB/s", "shuffled\nMB/s", "shuffled :\nin order", "shuffled\nrows/s", "from cache\nrows/s"),
    *("from disk\n%", "peak\nMiB", "bound\nMiB", "one batch\nMiB"),
)


def main(
    gib: float = 5.0,
    widths: tuple[int, ...] = (384, 768, 1536),
    memory_mib: int = 256,
    repeats: int = 5,
    batches: int | None = None,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    if gib * 1024 < LARGER * memory_mib:
        raise SystemExit(
            f"--gib {gib:g} is less than {LARGER} times --memory-mib {memory_mib}; raise the one or lower the other"
        )
    results = []
    for d in widths:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            chunks = random_chunks(round(gib * 2**30 / (d * 2)), d)
            store = import_rows(chunks, Path(scratch, "store"), site="x", origin="benchmark", held_out=0)
            results.append(measure(store, memory_mib, repeats, batches))
    title = f"{gib:g} GiB of bfloat16 rows; a stream of {memory_mib} MiB; medians (ranges) of {repeats}"
    show(title, COLUMNS, [line_of(found) for found in results])
    write_json(json, {"gib": gib, "memory_mib": memory_mib, "repeats": repeats, "results": results})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
