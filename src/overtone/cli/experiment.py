"""`overtone experiment`: the paper's experiments on synthetic data, measured and drawn."""

import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from rich.table import Table

from overtone.cli.common import console, in_processes, spread, write_json
from overtone.laboratory import EXPERIMENTS, Experiment, Scale
from overtone.report.experiments import Measured
from overtone.report.plots import check_figure, save
from overtone.version import __version__

Name = Literal["resonance", "recursion", "cooccurrence", "width", "balance", "projections", "ablation", "parts"]


KIND = "overtone-experiment"


class Job(NamedTuple):
    """One point of an experiment's grid with one seed; plain values, so that it travels to a worker process."""

    experiment: str
    scale: Scale
    point: int
    seed: int


def experiment(
    name: Annotated[Name, tyro.conf.Positional],
    scale: Scale = "small",
    seeds: int = 3,
    seed: int = 0,
    jobs: int | None = None,
    json: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Repeat an experiment of arXiv 2506.14002 on data whose features are known: a table, every number, a figure.

    Args:
        name: resonance – modified BA over dimensions and target frequencies, with Theorem 6.1's band; recursion – modified BA
            against its recursion of projections; cooccurrence – recovery against co-occurrence of features; width – modified BA
            against its number of latents and 1/h²; balance – recovery against unequal frequencies; projections – latents' cosines
            with all features over steps; ablation – GBA's K, HTF and LTF; parts – GBA without one of its parts.
        scale: small – a few minutes on two cores; paper – finer grids, more latents, longer runs.
        seeds: how many seeds; each has its own features, rows and initial weights.
        seed: the first seed.
        jobs: measurements at a time (default: one per core).
        json: write every point's numbers to this file.
        plot: draw into this file (SVG, PNG or PDF, by its name).
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    if plot is not None:
        check_figure(plot)  # what is wrong with it is found now, not after the measurements
    chosen, began = EXPERIMENTS[name], time.perf_counter()
    points = chosen.points[scale]
    work = [Job(name, scale, i, s) for s in range(seed, seed + seeds) for i in range(len(points))]
    found = dict(in_processes(work_on, work, jobs or os.cpu_count() or 1, "measurements"))
    results = [found[Job(name, scale, i, s)] for i in range(len(points)) for s in range(seed, seed + seeds)]
    console.print(_table(chosen, scale, results))
    console.print(f"{len(work)} measurements in {time.perf_counter() - began:.0f} s")
    description = {"format": KIND, "version": 1, "overtone": __version__, "experiment": name, "scale": scale}
    write_json(json, description | {"results": [r._asdict() for r in results]})
    if plot is not None:
        save(lambda: chosen.draw(results), plot)
        console.print(f"Figure: {plot}")


def work_on(job: Job) -> tuple[Job, Measured]:
    """One measurement, on one thread: too small for several."""
    torch.set_num_threads(1)
    chosen = EXPERIMENTS[job.experiment]
    return job, chosen.measured(chosen.points[job.scale][job.point], job.seed)


def _table(chosen: Experiment, scale: Scale, results: list[Measured]) -> Table:
    """One line per point: what varies, and what was found, mean ± half the range over seeds."""
    varied = chosen.varied(scale)
    same = ", ".join(f"{k} {_plain(v)}" for k, v in results[0].point.items() if k not in varied)
    table = Table(title=f"{chosen.what}\n{same}", title_justify="left")
    for column in varied:
        table.add_column(column.replace("_", " "))
    for column in chosen.told.values():
        table.add_column(column, justify="right", overflow="fold")
    lines: dict[str, list[Measured]] = {}
    for result in results:
        lines.setdefault(repr(result.point), []).append(result)
    for own in lines.values():
        numbers = (spread([r.found[number] for r in own], 3) for number in chosen.told)
        table.add_row(*(_plain(own[0].point[setting]) for setting in varied), *numbers)
    return table


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
