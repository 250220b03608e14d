"""`overtone recover`: which method finds the true features of data with a known answer?"""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.progress import TextColumn
from rich.table import Table

from overtone.cli.common import console, progress_bar, spread, write_json
from overtone.data.synthetic import CoefficientLaw, FrequencyLaw, SparseMixture
from overtone.metrics.recovery import recovery
from overtone.recipes import SUITES, Suite
from overtone.training import start, train


@dataclass(frozen=True)
class Job:
    """One method on one seed's ground truth; plain values, so that it travels to a worker process."""

    suite: str
    method: str
    seed: int
    truth: SparseMixture
    rows: int | None
    latents: int
    steps: int


def recover(
    suite: Annotated[Literal["imbalanced"], tyro.conf.Positional],
    methods: tuple[str, ...] = (),
    seeds: int = 1,
    seed: int = 0,
    n_features: int = 128,
    d: int = 42,
    sparsities: tuple[int, ...] = (3, 20),
    rows: int | None = None,
    fresh: bool = False,
    law: CoefficientLaw = "uniform",
    frequencies: FrequencyLaw = "equal",
    zipf_exponent: float = 0.5,
    noise: float = 0.0,
    latents: int | None = None,
    steps: int | None = None,
    jobs: int | None = None,
    json: Path | None = None,
) -> None:
    """Train dictionaries on synthetic data whose features are known, and count how many each method finds.

    Prints the feature recovery rate (FRR): the share of true features that some latent points to with cosine ≥ 0.8 or 0.9,
    at the end of training. No method sees the truth.

    Args:
        suite: imbalanced – half of the rows mix 3 features, half 20 (arXiv 2506.14002).
        methods: which to train: gba, gba-wrong, gba-paper, ba, modified-ba, topk-10, topk-20, topk-30, topk-50, l1. Default: all
            but gba-paper and modified-ba.
        seeds: how many seeds; each has its own features, rows and initial weights.
        seed: the first seed.
        n_features: number of true features n.
        d: dimension of the rows.
        sparsities: how many features a row mixes; each number equally often.
        rows: number of rows that training goes through again and again (default 50,000).
        fresh: draw new rows for every step instead.
        law: distribution of the coefficients.
        frequencies: all features equally often, or Zipf.
        zipf_exponent: exponent of the Zipf law.
        noise: standard deviation of Gaussian noise added to every coordinate.
        latents: dictionary width (default 6 per true feature).
        steps: training steps.
        jobs: trainings at a time (default: one per core).
        json: write the results to this file.
    """
    chosen = SUITES[suite]
    names = _checked(chosen, methods)
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")
    if fresh and rows is not None:
        raise ValueError(f"--fresh draws new rows for every step, --rows {rows} fixes them; give one of the two")
    for name, value in (("rows", rows), ("jobs", jobs)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    rows = None if fresh else chosen.rows if rows is None else rows
    options = {
        "n_features": n_features,
        "d": d,
        "sparsities": sparsities,
        "law": law,
        "frequencies": frequencies,
        "zipf_exponent": zipf_exponent,
        "noise": noise,
    }
    width = chosen.width * n_features if latents is None else latents
    length = chosen.steps if steps is None else steps
    for name in names:  # settings that a method cannot have are found now, not after the others have run
        chosen.run(chosen.contestants[name].make(), latents=width, steps=length, seed=seed)
    work = [
        Job(chosen.name, name, s, chosen.truth(seed=s, **options), rows, width, length)
        for name in names
        for s in range(seed, seed + seeds)
    ]
    began = time.perf_counter()
    results = sorted(_all(work, jobs or os.cpu_count() or 1), key=lambda r: (names.index(r["method"]), r["seed"]))
    settings = {**options, "rows": rows, "latents": width, "steps": length, "batch": chosen.batch}
    console.print(_table(chosen, names, results, settings))
    console.print(f"{len(work)} trainings in {time.perf_counter() - began:.0f} s")
    write_json(json, {"suite": chosen.name, "settings": settings, "results": results})


def _checked(suite: Suite, methods: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(methods or suite.default_methods))
    unknown = [name for name in names if name not in suite.contestants]
    if unknown:
        raise ValueError(
            f"--methods {unknown[0]} is unknown in suite {suite.name}; known: {', '.join(suite.contestants)}"
        )
    return names


def _all(work: list[Job], jobs: int) -> Iterator[dict[str, Any]]:
    """Results as they come. Each training is too small for several threads, so processes share the cores."""
    context = multiprocessing.get_context("spawn")
    with progress_bar(TextColumn("{task.completed:.0f} of {task.total:.0f} trainings")) as progress:
        task = progress.add_task("Training", total=len(work))
        with ProcessPoolExecutor(min(jobs, len(work)), mp_context=context) as pool:
            futures = [pool.submit(work_on, job) for job in work]
            try:
                for future in as_completed(futures):
                    progress.advance(task)
                    try:
                        yield future.result()
                    except BrokenProcessPool as error:
                        raise OSError(
                            "a training process was killed, most likely for memory; use fewer --jobs"
                        ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def work_on(job: Job) -> dict[str, Any]:
    """Train one method on one seed and score it at the end."""
    torch.set_num_threads(1)
    suite = SUITES[job.suite]
    method = suite.contestants[job.method].make()
    began = time.perf_counter()
    stream = job.truth.stream(suite.batch, rows=job.rows, seed=job.seed)
    run = suite.run(method, latents=job.latents, steps=job.steps, seed=job.seed)
    state = start(run, stream)
    last = list(train(run, stream, state))[-1]
    score = recovery(state.dictionary.W_dec.detach(), job.truth.features)
    return {
        "method": job.method,
        "seed": job.seed,
        "frr": {f"{t:g}": share for t, share in score.frr.items()},
        "mean_max_cosine": score.mean_max_cosine,
        "explained_variance": last.explained_variance,
        "l0": last.l0,
        "alive": last.alive,
        "seconds": time.perf_counter() - began,
    }


CAPTION = (
    "FRR: % of true features with cosine at least 0.8 / 0.9 to some latent, mean ± half the range over seeds; "
    "paper: the paper's FRR; EV: explained variance of the rows; L0: mean number of active latents"
)


def _table(suite: Suite, names: list[str], results: list[dict[str, Any]], settings: dict[str, Any]) -> Table:
    title = (
        f"Recovery of {settings['n_features']} true features in {settings['d']} dimensions – {suite.what}\n"
        f"{settings['latents']} latents, {settings['steps']} steps of {settings['batch']} rows, at the end of training"
    )
    table = Table(title=title, title_justify="left", caption=CAPTION, caption_justify="left")
    table.add_column("method", overflow="fold", min_width=12)
    for column in ("FRR 0.8", "FRR 0.9", "paper", "EV", "L0"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in names:
        rows = [r for r in results if r["method"] == name]
        published = suite.contestants[name].published
        table.add_row(
            suite.contestants[name].what,
            spread([100 * r["frr"]["0.8"] for r in rows]),
            spread([100 * r["frr"]["0.9"] for r in rows]),
            f"{published['0.8']:.0f} / {published['0.9']:.0f}" if published else "–",
            spread([r["explained_variance"] for r in rows], 2),
            spread([r["l0"] for r in rows], 0),
        )
    return table
