"""Two training loops in turns, each in a process of its own: what step.py and scaling.py measure with.

Windows alternate, so that a machine that is slow for a while is slow for both, and every ratio is of neighbours. How many steps
a window has is adapted to either side, such that it lasts about `seconds`.
"""

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import Spread
from peers.feed import Size
from process import Worker, WorkerEnded, started

from overtone import SparseMixture

SCRIPT = Path(__file__).parent / "step_worker.py"
LEAST_ROWS = 8192
WARM_STEPS, WARM_WINDOWS = 20, 3  # before anything counts: as many steps, or as long as so many windows
PAUSE = 0.1  # seconds; threads spin a little after their last work
# Memory that the allocator keeps, in large pages, instead of giving it back and faulting it in again at every step; and
# float32 products through oneDNN, where torch's default on this processor is the slower MKL.
LARGE = str(2**34)
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": LARGE,
    "MALLOC_TOP_PAD_": str(2**28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "THP_MEM_ALLOC_ENABLE": "1",
}
ENVIRONMENTS: dict[str, tuple[dict[str, str], list[str]]] = {
    "shipped": ({}, []),
    "tuned": (TUNED, ["--precision=medium"]),
}


@dataclass(frozen=True)
class Side:
    """Who runs, on what and how."""

    library: str
    method: str
    size: Size
    env: str


@dataclass(frozen=True)
class Bench:
    """How everybody is measured."""

    python: Path
    folder: Path
    windows: int
    seconds: float
    threads: int | None

    @contextmanager
    def worker(self, side: Side) -> Iterator[Worker]:
        """It builds its model meanwhile."""
        size = side.size
        variables, options = ENVIRONMENTS[side.env]
        command = [str(self.python), "-W", "ignore", str(SCRIPT), side.library, side.method, str(self.rows(size))]
        command += [f"--latents={size.latents}", f"--batch={size.batch}", *options]
        if self.threads:
            command.append(f"--threads={self.threads}")
        variables = variables | {"HF_HOME": str(self.folder / "huggingface")}
        with started(command, self.folder / f"{side.library}.log", variables) as worker:
            yield worker

    def rows(self, size: Size) -> Path:
        """Sparse mixtures of unit-norm features, written once: 20 to 30 of 4096 features in a row, and a little noise."""
        path = self.folder / f"rows-{size.d}-{size.batch}.npy"
        if not path.exists():
            rows = size.batch * max(2, math.ceil(LEAST_ROWS / size.batch))
            mixture = SparseMixture(4096, size.d, sparsities=tuple(range(20, 31)), noise=0.01)
            np.save(path, mixture.rows(rows).x.numpy())
        return path


@dataclass
class Outcome:
    """What one side did."""

    side: Side
    seconds_per_step: list[float] = field(default_factory=list)
    steps: int = 0
    status: str = "ok"
    about: dict[str, Any] = field(default_factory=dict)  # the worker's first line
    report: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> list[float]:
        return [self.side.size.batch / seconds for seconds in self.seconds_per_step]


class _Failed(RuntimeError):
    """A side cannot go on."""


class _Runner:
    """One side at work."""

    def __init__(self, worker: Worker, outcome: Outcome):
        self.worker, self.outcome = worker, outcome

    def ask(self, request: Any) -> dict[str, Any]:
        return self._checked(lambda: self.worker.ask(request))

    def begin(self) -> None:
        self.outcome.about = self._checked(self.worker.answer)

    def _checked(self, answer: Any) -> dict[str, Any]:
        try:
            found = answer()
        except WorkerEnded as ended:
            lines = str(ended).strip().splitlines()
            found = {"error": f"the process ended: {lines[0]} {lines[-1]}"}
        if "error" in found:
            self.outcome.status = found["error"]
            raise _Failed
        return found

    def warm_up(self, seconds: float) -> None:
        """Until steps take what they take, then choose how many make a window."""
        self.ask({"steps": 1})
        spent, done, steps, each = 0.0, 0, 1, math.inf
        while done < 1 or (done < WARM_STEPS and spent < WARM_WINDOWS * seconds):
            took = self.ask({"steps": steps})["seconds"]
            spent, done, each = spent + took, done + steps, min(each, took / steps)
            steps = max(1, min(WARM_STEPS - done, round(seconds / each)))
        self.outcome.steps = max(1, round(seconds / each))

    def window(self) -> None:
        time.sleep(PAUSE)
        self.outcome.seconds_per_step.append(self.ask({"steps": self.outcome.steps})["seconds"] / self.outcome.steps)

    def finish(self) -> None:
        self.outcome.report = self.ask("report")


def in_turns(bench: Bench, ours: Side, other: Side) -> tuple[Outcome, Outcome]:
    """Both sides' windows; where one side fails, its status says why and neither has figures."""
    outcomes = Outcome(ours), Outcome(other)
    with bench.worker(ours) as one, bench.worker(other) as two:
        runners = _Runner(one, outcomes[0]), _Runner(two, outcomes[1])
        try:
            for work in (_Runner.begin, lambda runner: runner.warm_up(bench.seconds)):
                for runner in runners:
                    work(runner)
            for _ in range(bench.windows):
                for runner in runners:
                    runner.window()
            for runner in runners:
                runner.finish()
        except _Failed:
            for outcome in outcomes:
                outcome.seconds_per_step.clear()
    return outcomes


@contextmanager
def bench(python: Path, windows: int, seconds: float, threads: int | None) -> Iterator[Bench]:
    """A bench with a folder that goes when it is done."""
    if not python.exists():
        raise SystemExit(f"--python {python} is not there; make it with: make bench-env")
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(python.absolute(), Path(folder), windows, seconds, threads)


def ratios(ours: Outcome, other: Outcome) -> list[float]:
    """How many times as fast ours was per token, of neighbouring windows."""
    return [a / b for a, b in zip(ours.tokens_per_s, other.tokens_per_s, strict=True)]


def spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Median, lowest and highest as entries of a result; None where there are no values."""
    found = Spread.of(values) if values else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
