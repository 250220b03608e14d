"""The stream of a store head to head with SAELens' cached activations, on the same rows, in turns.

    python benchmarks/store_peers.py --peer-python /path/to/venv/bin/python [--peer-dtype float32] [--widths 384 768 1536]
                                     [--rows 400000] [--rounds 5] [--batches 50] [--threads 1] [--memory-mib M]
                                     [--peer-prefetch] [--folder DIR] [--json PATH]

The peer's environment needs `pip install sae-lens`; that of `make bench-env` will do.
See peers/saelens_store.py for how SAELens' own writer and reader are
driven. In every round each side delivers N batches of 4096 rows as float32, everything in the page cache; a first round is
not counted. Our rows lie on disk as bfloat16. SAELens has no such stores: float32 is its default, float16 its nearest.

Memory: SAELens mixes within a buffer of 64 contexts of 128 tokens, 8192 rows in its dtype. Our stream gets as many bytes for its
two windows (rounded up to a MiB), unless --memory-mib says otherwise; against float32 a window then has 8192 rows, too. (We
shuffle over all the store whatever the window; SAELens over its buffer.)

Threads are those of torch. Our stream also has threads that read ahead, which SAELens has with --peer-prefetch (off by
default, as it is there).
"""

import math
import os
import platform
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from common import Spread, random_chunks, settle, show, timed
from process import MIB, Worker, started

from overtone import Store, StoreStream, __version__, import_rows
from overtone.cli.common import write_json
from overtone.data.exchange import read_chunks

BATCH = 4096
BUFFER_BATCHES, CONTEXT = 64, 128  # of SAELens' buffer
PEER = Path(__file__).parent / "peers" / "saelens_store.py"


def check_peer(python: Path) -> None:
    """SystemExit when that Python is not there or has no sae_lens."""
    code = "import importlib.util, sys; sys.exit(3 * (importlib.util.find_spec('sae_lens') is None))"
    try:
        status = subprocess.run([str(python), "-c", code]).returncode
    except OSError as error:
        raise SystemExit(f"--peer-python {python} cannot be run: {error.strerror}") from error
    if status:
        raise SystemExit(
            f"--peer-python {python} has no package sae_lens; install it there: {python} -m pip install sae-lens"
        )


def write_array(path: Path, rows: int, d: int) -> None:
    """Random rows as an array of float32."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, d))
    done = 0
    for chunk in random_chunks(rows, d):
        array[done : done + len(chunk)] = chunk.numpy()
        done += len(chunk)
    array.flush()


def take(stream: StoreStream, batches: int) -> None:
    """Take so many batches of float32."""
    for _ in range(batches):
        next(stream)


def compare(store: Store, other: Worker, memory_mib: int, rounds: int, batches: int) -> dict[str, Any]:
    """Rows per second of both, in turns; the first round does not count."""
    os.sync()  # what is still to be written would disturb
    stream = StoreStream(store, BATCH, memory_mib=memory_mib)
    ours, theirs = [], []
    for _ in range(rounds + 1):
        ours.append(timed(lambda: take(stream, batches)))
        settle()
        theirs.append(other.ask(batches)["seconds"])
    rows, ours, theirs = batches * BATCH, ours[1:], theirs[1:]
    return {
        "d": stream.layout.d,
        "ours_rows_per_s": Spread.of([rows / t.seconds for t in ours])._asdict(),
        "peer_rows_per_s": Spread.of([rows / seconds for seconds in theirs])._asdict(),
        "ratio": Spread.of([b / a.seconds for a, b in zip(ours, theirs, strict=True)])._asdict(),
        "ours_disk_bytes": sum(t.disk_bytes for t in ours),
        "memory_mib": memory_mib,
        "window_rows": stream.window,
    }


@dataclass(frozen=True)
class Settings:
    """What is compared, and how; see above."""

    peer_python: Path
    peer_dtype: Literal["float32", "float16"] = "float32"
    widths: tuple[int, ...] = (384, 768, 1536)
    rows: int = 400_000
    rounds: int = 5
    batches: int = 50
    threads: int = 1
    memory_mib: int | None = None
    peer_prefetch: bool = False
    folder: Path | None = None
    json: Path | None = None

    def memory(self, d: int) -> int:
        """MiB for our stream: what the peer's buffer takes."""
        size = BUFFER_BATCHES * CONTEXT * d * getattr(torch, self.peer_dtype).itemsize
        return self.memory_mib or math.ceil(size / MIB)

    def peer_options(self) -> list[str]:
        """Options of saelens_store.py."""
        options = {"dtype": self.peer_dtype, "threads": self.threads, "batch": BATCH, "buffer-batches": BUFFER_BATCHES}
        return [f"--{name}={value}" for name, value in options.items()] + ["--prefetch"] * self.peer_prefetch

    def measure(self, d: int, folder: Path) -> dict[str, Any]:
        """All that is measured at one width."""
        array = folder / "rows.npy"
        write_array(array, self.rows, d)
        store = import_rows(read_chunks(array), folder / "store", site="x", origin="benchmark", held_out=0)
        command = [str(self.peer_python), str(PEER), str(array), str(folder / "peer"), *self.peer_options()]
        environment = {"HF_HOME": str(folder / "huggingface"), "TMPDIR": str(folder)}
        with started(command, folder / "peer.log", environment) as other:
            written = other.answer()
            array.unlink()
            return compare(store, other, self.memory(d), self.rounds, self.batches) | {"peer": written}


COLUMNS = ("d", "overtone, rows/s", "SAELens, rows/s", "overtone : SAELens", "our window, rows", "our memory, MiB")


def main(settings: Settings) -> None:
    check_peer(settings.peer_python)
    torch.set_num_threads(settings.threads)
    results = []
    for d in settings.widths:
        with tempfile.TemporaryDirectory(dir=settings.folder) as scratch:
            results.append(settings.measure(d, Path(scratch)))
    lines = [
        [
            str(found["d"]),
            *(Spread(**found[name]).shown(",.0f") for name in ("ours_rows_per_s", "peer_rows_per_s")),
            Spread(**found["ratio"]).shown(),
            *(f"{found[name]:,}" for name in ("window_rows", "memory_mib")),
        ]
        for found in results
    ]
    ours = {"overtone": __version__, "torch": torch.__version__, "python": platform.python_version()}
    show(
        f"bfloat16 rows against {settings.peer_dtype} rows, medians (ranges) of {settings.rounds} rounds",
        COLUMNS,
        lines,
    )
    for name, versions in (("overtone", ours), ("SAELens", results[0]["peer"]["versions"])):
        print(f"{name}: " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    asked = {name: value for name, value in asdict(settings).items() if name not in ("peer_python", "folder", "json")}
    write_json(settings.json, {"settings": asked, "versions": ours, "results": results})


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
