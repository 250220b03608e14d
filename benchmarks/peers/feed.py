"""What every library's own training loop is fed with: ready batches; between windows of steps it talks to the parent.

So nobody's step is copied: a step lasts from the moment a loop takes its batch to the moment it comes for the next one, and
holds whatever that library does in it.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

K = 32  # active latents of TopK and its kin
STEPS = 1_000_000  # announced to the loops, for their schedules; the parent ends them long before
# Of Matryoshka's groups: dictionary_learning's demonstration; SAELens has no default either.
MATRYOSHKA = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)


class Size(NamedTuple):
    """A configuration."""

    d: int
    latents: int
    batch: int


class Training(NamedTuple):
    """A library's loop, ready to run, and the mean number of latents that are active in its model on some rows."""

    run: Callable[[], Any]
    l0: Callable[[Tensor], float] | None


class Feed:
    """The rows in batches, without end.

    Answers {"steps": n} with the seconds of the next n steps, and "report" with what `report` gives.

    Args:
        rows: (rows, d) float32, in memory; a multiple of the batch.
        batch: rows of a batch.
        say: tells the parent.
        ready: called when the loop comes for its first batch; what it gives is the worker's first line.
        report: called where the parent asks for a report.
    """

    def __init__(
        self,
        rows: Tensor,
        batch: int,
        say: Callable[[dict[str, Any]], None],
        ready: Callable[[], dict[str, Any]],
        report: Callable[[], dict[str, Any]],
    ):
        self.batches, self.say, self.ready, self.report = rows.split(batch), say, ready, report
        self.given = self.left = 0
        self.began: float | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if not self.left:
            self.talk()
        self.left -= 1
        self.given += 1
        return self.batches[self.given % len(self.batches)]

    def talk(self) -> None:
        """Say how long the window took, and wait for the next one; end where nobody asks any more."""
        self.say(self.ready() if self.began is None else {"seconds": time.perf_counter() - self.began})
        for line in sys.stdin:
            request = json.loads(line)
            if request == "report":
                self.say(self.report())
                continue
            self.left = request["steps"]
            self.began = time.perf_counter()
            return
        raise SystemExit
