"""What everything around the optimiser's step costs: reading rows from a store, statistics, records, checkpoints.

    python benchmarks/around.py [--latents 16384] [--d 768] [--batch 2048] [--l0 32] [--steps 500] [--checkpoint-every 500]
                                [--folder DIR] [--json PATH]

Trains a run folder from a store, as `overtone train --store` does, with a record every 50 steps, and adds up the time of each
part: `stream` is waiting for batches (the store's reader works in a thread besides), `statistics` merging counts and peaks and
steering biases by them, `records` the evaluation that goes into a record, `checkpoints` writing the state and looking for
numbers that are not finite. Shares are of the time that is left, the step alone.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tyro
from common import random_chunks, show

from overtone import Run, StoreStream, firing, gba, import_rows, resumption, runs, steering, training
from overtone.cli.common import write_json

ALLOWED = 0.05
SHARD_BATCHES = 32


@dataclass
class Clock:
    """Seconds spent in some functions, by the name of the part that they are."""

    seconds: dict[str, float] = field(default_factory=dict)
    inside: bool = False  # a part within a part is the outer one's

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.seconds[part] = 0.0

        def run(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return function(*arguments, **options)
            self.inside, began = True, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.inside, self.seconds[part] = False, self.seconds[part] + time.perf_counter() - began

        return run


PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "stream": ((StoreStream, "__next__"),),
    "statistics": ((steering.BiasAdaptation, "after_step"), (training.firing, "merge"), (firing, "observe")),
    "records": ((training, "_record"),),
    "checkpoints": ((resumption, "save_state"), (training, "_refuse_divergence")),
}


def main(
    latents: int = 16_384,
    d: int = 768,
    batch: int = 2048,
    l0: float = 32,
    steps: int = 500,
    checkpoint_every: int = 500,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        store = import_rows(random_chunks(SHARD_BATCHES * batch, d), root / "store", site="x", origin="random numbers")
        run = Run(gba(l0=l0), latents=latents, batch=batch, steps=steps, checkpoint_every=checkpoint_every)
        runs.claim_folder(root / "run")
        made = runs.RunFolder.create(root / "run", run)
        clock = Clock()
        with ExitStack() as patches:
            for part, places in PARTS.items():
                for number, (owner, function) in enumerate(places):
                    timed = clock.timed(f"{part} {number}", getattr(owner, function))
                    patches.enter_context(patch.object(owner, function, timed))
            began = time.perf_counter()
            records = list(runs.execute(made, StoreStream(store, batch)))
            whole = time.perf_counter() - began
    spent = {part: sum(clock.seconds[f"{part} {i}"] for i in range(len(places))) for part, places in PARTS.items()}
    alone = sum(record.step_seconds for record in records) - spent["statistics"]
    around = sum(spent.values())
    lines = [[part, f"{seconds:.2f}", f"{100 * seconds / alone:.2f}"] for part, seconds in spent.items()]
    total = [["all of these", f"{around:.2f}", f"{100 * around / alone:.2f}"], ["the steps alone", f"{alone:.2f}", ""]]
    show(
        f"{steps} steps of GBA, L0 {l0:g}: {whole:.1f} s with start and end",
        ("part", "s", "% of step"),
        [*lines, *total],
    )
    print(f"allowed: {100 * ALLOWED:g} %")
    if json is not None:
        write_json(json, {"spent": spent, "steps_alone": alone, "whole": whole, "share": around / alone})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
