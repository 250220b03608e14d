"""What each part of the default GBA does for recovery: take one out at a time, on the paper's imbalanced set.

    python benchmarks/ablation.py [--seeds 3] [--law constant] [--steps 3000] [--only "default" …] [--json PATH]

Prints FRR at 0.8 / 0.9 at the end of training and the best FRR at 0.9 seen on the way, which no run knows of.
"""

import json as json_module
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from overtone import (
    Codes,
    Dictionary,
    Method,
    Reconstruction,
    Run,
    UnitNorm,
    gba,
    imbalanced,
    ops,
    recovery,
    start,
    train,
)
from overtone.cli.common import spread
from overtone.data.laws import CoefficientLaw
from overtone.spectrum import group_sizes


@dataclass(frozen=True)
class FrequentFirst:
    """The control: `RarestFirst` in the opposite order."""

    groups: int

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        order = torch.arange(dictionary.latents).flip(0)
        scaled = codes.entries if dictionary.scale is None else codes.entries.scaled(dictionary.scale)
        sizes = group_sizes(dictionary.latents, self.groups)[::-1]
        explained = ops.decode_groups(scaled.permuted(order), dictionary.W_dec[order], sizes, dictionary.b_dec.detach())
        return ops.half_square_error(explained, target)


def variants() -> dict[str, Method]:
    """The default and everything one step away from it."""
    default = gba()
    unit, centre, adaptation = default.rules
    return {
        "default": default,
        "one loss for all groups": replace(default, losses=(Reconstruction(),)),
        "the most frequent explain first": replace(default, losses=(FrequentFirst(10),)),
        "biases start at 0": replace(default, rules=(unit, centre, replace(adaptation, start="zero"))),
        "no limit on narrowing": replace(default, rules=(unit, centre, replace(adaptation, narrowest=1.0))),
        "trained centre": replace(default, parametrisation=replace(default.parametrisation, centre="trained")),
        "centre at 0": replace(default, rules=(UnitNorm(), adaptation)),
        "T = 50": replace(default, rules=(unit, centre, replace(adaptation, interval=50))),
    }


def score(job: tuple[str, int, CoefficientLaw, int]) -> dict:
    name, seed, law, steps = job
    torch.set_num_threads(1)
    truth = imbalanced(seed=seed, law=law)
    stream = truth.stream(512, rows=50_000, seed=seed)
    run = Run(method=variants()[name], latents=768, steps=steps, seed=seed, log_every=steps // 12)
    state, path = start(run, stream), []
    for record in train(run, stream, state):
        found = recovery(state.dictionary.W_dec.detach(), truth.features).frr
        path.append({"step": record.step, "frr": found, "explained_variance": record.explained_variance})
    return {"variant": name, "seed": seed, "law": law, "path": path}


def main(
    seeds: int = 3,
    seed: int = 0,
    law: CoefficientLaw = "uniform",
    steps: int = 3000,
    only: tuple[str, ...] = (),
    json: Path | None = None,
) -> None:
    names = only or tuple(variants())
    jobs = [(name, s, law, steps) for name in names for s in range(seed, seed + seeds)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(score, jobs))
    table = Table(title=f"Imbalanced set, {law} coefficients, {steps} steps, {seeds} seeds")
    table.add_column("variant")
    for column in ("FRR 0.8 (%)", "FRR 0.9 (%)", "best 0.9 on the way", "expl. var."):
        table.add_column(column, justify="right")
    for name in names:
        paths = [r["path"] for r in results if r["variant"] == name]
        table.add_row(
            name,
            spread([100 * p[-1]["frr"][0.8] for p in paths]),
            spread([100 * p[-1]["frr"][0.9] for p in paths]),
            spread([100 * max(point["frr"][0.9] for point in p) for p in paths]),
            spread([p[-1]["explained_variance"] for p in paths], 2),
        )
    Console().print(table)
    if json is not None:
        json.write_text(json_module.dumps(results, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
