"""What the benchmarks share: rows to measure on, times, bytes read from the disk, tables."""

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from overtone.seeds import generator

CHUNK_ROWS = 16_384


class Spread(NamedTuple):
    """Several measurements of one quantity."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        return Spread(statistics.median(values), min(values), max(values))

    def shown(self, form: str = ".2f") -> str:
        """Median and range, as text."""
        return f"{self.median:{form}} ({self.low:{form}}–{self.high:{form}})"


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table, numbers to the right; wide enough also where the output is no terminal."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(width=max(150, Console().width)).print(table)


class Timed(NamedTuple):
    """How long some work took, and how many of the bytes it read came from the disk instead of the page cache."""

    seconds: float
    disk_bytes: int


def random_chunks(rows: int, d: int) -> Iterator[Float[Tensor, "chunk d"]]:
    """So many random rows, float32; every chunk is the first one shifted, which is quicker to make."""
    x = torch.randn(CHUNK_ROWS, d, generator=generator(0, "benchmark rows"))
    for i, start in enumerate(range(0, rows, CHUNK_ROWS)):
        yield x.roll(i, dims=1)[: rows - start]


def timed(work: Callable[[], None]) -> Timed:
    """Do some work, once what went before has come to rest."""
    settle()
    before, began = counter("read_bytes"), time.perf_counter()
    work()
    return Timed(time.perf_counter() - began, counter("read_bytes") - before)


def settle() -> None:
    """Free dropped streams (they are reference cycles), and wait until no read-ahead is under way."""
    gc.collect()
    before = 0
    while (now := counter("rchar")) > before + 4096:  # looking at the counter is reading, too
        before = now
        time.sleep(0.2)


def counter(name: str) -> int:
    """A counter of this process, all its threads together: rchar, bytes read; read_bytes, those of them from the disk."""
    return int(Path("/proc/self/io").read_text().split(f"{name}: ")[1].split()[0])


def in_new_process(function: Callable[..., float], *args: Any) -> float:
    """function(*args) in a fresh interpreter, whose memory nothing has touched before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
