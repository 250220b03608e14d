"""How long a checkpoint stops training: written on the spot, and from a copy in the background.

    .venv/bin/python benchmarks/checkpoints.py [--folder DIR] [--repeats 7] [--json OUT]

They take turns, with training steps between. `new copy` is a copy into memory that the process has not had before. `step` is one
on its own, `meanwhile` the first one while a checkpoint is being written. Milliseconds, medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro

from overtone import ArrayStream, Run, gba, start, topk
from overtone.cli.common import write_json
from overtone.resumption import Writer, save_state
from overtone.training import step_once

# Name, method, latents, d, batch
SIZES = (
    ("quickstart", gba(l0=64), 1536, 384, 512),
    ("gba 16,384 × 768", gba(l0=32), 16_384, 768, 512),
    ("topk 16,384 × 768", topk(32), 16_384, 768, 512),
    ("topk 65,536 × 768", topk(32), 65_536, 768, 64),
)


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def measured(method, latents: int, d: int, batch: int, root: Path, repeats: int) -> dict[str, float]:
    run = Run(method, latents, steps=10**6, batch=batch)
    stream = ArrayStream(torch.randn(max(batch, 2048), d, generator=torch.Generator().manual_seed(0)), batch)
    state, writer = start(run, stream), Writer()

    def step() -> None:
        step_once(run, state, next(stream))

    step()
    tensors = [w.detach() for w in state.dictionary.parameters()]
    tensors += [t for moments in state.optimiser.state.values() for t in moments.values()]
    found: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        times = {"on the spot": milliseconds(lambda: save_state(run, state, stream, root))}
        step()
        times["step"] = milliseconds(step)
        times["background"] = milliseconds(lambda: save_state(run, state, stream, root, writer=writer))
        times["meanwhile"] = milliseconds(step)
        writer.wait()
        step()
        times["new copy"] = milliseconds(lambda: [t.clone() for t in tensors])
        step()
        if turn:  # the first time, memory is new to all
            for name, value in times.items():
                found.setdefault(name, []).append(value)
    size = sum(t.numel() * t.element_size() for t in tensors) / 2**20
    return {"MiB": size} | {name: statistics.median(values) for name, values in found.items()}


def main(folder: Path | None = None, repeats: int = 7, json: Path | None = None) -> None:
    results = {}
    for name, *size in SIZES:
        with tempfile.TemporaryDirectory(dir=folder) as root:
            results[name] = measured(*size, Path(root), repeats)
        print(name, {key: round(value, 1) for key, value in results[name].items()}, flush=True)
    write_json(json, results)


if __name__ == "__main__":
    tyro.cli(main)
