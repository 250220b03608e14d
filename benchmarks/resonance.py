"""Modified BA predicted by its recursion of projections and run, over target frequencies and widths of rows.

    .venv/bin/python benchmarks/resonance.py --out docs/resonance.svg

One core, about half a minute. The recursion (maths.md eq. T12–T15) starts at atoms of its own; it shares with the runs the
law of the data and nothing else.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import overtone as ot
from overtone.cli.common import write_json
from overtone.data.synthetic import SparseMixture
from overtone.report.plots import BLUE, GREEN, GREY, ORANGE, STYLE, pyplot
from overtone.theory.dynamics import ModifiedBA, follow, mixture, random_projections
from overtone.theory.resonance import Setting
from overtone.training import start, train

COLOURS = (ORANGE, BLUE, GREEN)


@dataclass(frozen=True)
class Options:
    """The experiment.

    Args:
        n_features: n.
        sparsity: s.
        widths: d of the rows, one panel each.
        frequencies: target frequencies p.
        shown: those whose course is drawn, at the largest d.
        latents: M.
        steps: steps, of the recursion and of the runs.
        batch: rows per step of a run.
        rows: rows of the recursion's mixture.
        seeds: truths, each with starts of its own.
        threshold: τ.
        out: figure to draw.
        json: file for the numbers.
    """

    n_features: int = 100
    sparsity: int = 3
    widths: tuple[int, ...] = (8, 32)
    frequencies: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    shown: tuple[float, ...] = (0.003, 0.03, 0.1)
    latents: int = 150
    steps: int = 30
    batch: int = 1024
    rows: int = 2048
    seeds: int = 3
    threshold: float = 0.9
    out: Path | None = None
    json: Path | None = None


def one(options: Options, d: int, frequency: float, seed: int) -> dict[str, Any]:
    """FRR at every step, predicted and run."""
    truth = SparseMixture(n_features=options.n_features, d=d, sparsities=(options.sparsity,), seed=seed)
    begin = random_projections(truth, options.latents, seed=1000 + seed)
    path = follow(begin, mixture(truth, options.rows, seed=seed), ModifiedBA(frequency), options.steps)
    run = ot.Run(
        ot.modified_ba(frequency), options.latents, options.steps, options.batch, decay=0.0, seed=seed, log_every=1
    )
    stream = truth.stream(options.batch, seed=seed)
    state = start(run, stream)
    rate = [ot.recovery(state.dictionary.W_dec.detach(), truth.features, (options.threshold,)).frr[options.threshold]]
    for _ in train(run, stream, state):
        found = ot.recovery(state.dictionary.W_dec.detach(), truth.features, (options.threshold,))
        rate.append(found.frr[options.threshold])
    predicted = path.recovered(options.threshold)
    return {"d": d, "frequency": frequency, "seed": seed, "predicted": predicted, "run": rate}


def draw(options: Options, results: list[dict[str, Any]]) -> None:
    """One panel with the course of some frequencies, and one per d with where they end."""
    assert options.out is not None
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 1 + len(options.widths), figsize=(10, 3.2), sharey=True)
        widest = max(options.widths)
        for p, colour in zip(options.shown, COLOURS, strict=False):
            chosen = [r for r in results if r["d"] == widest and r["frequency"] == p]
            panels[0].plot(_mean(chosen, "predicted"), color=colour, label=f"p = {p:g}")
            panels[0].plot(_mean(chosen, "run"), "o", color=colour, markersize=2.5)
        panels[0].set(xlabel="step", ylabel=f"features recovered, cosine ≥ {options.threshold:g}", ylim=(-0.03, 1.03))
        panels[0].set_title(f"d = {widest}: line predicted, points run")
        panels[0].legend(frameon=False)
        for axes, d in zip(panels[1:], options.widths, strict=True):
            _panel(axes, options, d, [r for r in results if r["d"] == d])
        figure.savefig(options.out, metadata={"Date": None})
        plt.close(figure)


def _panel(axes: Any, options: Options, d: int, results: list[dict[str, Any]]) -> None:
    setting = Setting(options.n_features, d, options.sparsity)
    band = setting.band()
    if not band.empty:
        axes.axvspan(band.low, band.high, color=GREY, alpha=0.18, linewidth=0, label="Theorem 6.1, constants 1")
    axes.axvline(setting.occurrence, color=GREY, linewidth=1, linestyle=":", label="f = s/n")
    for name, colour, look in (("predicted", BLUE, "-"), ("run", ORANGE, "o")):
        ends = np.array([[r[name][-1] for r in results if r["frequency"] == p] for p in options.frequencies])
        middle = ends.mean(1)
        reach = np.abs([middle - ends.min(1), ends.max(1) - middle])
        axes.errorbar(options.frequencies, middle, reach, fmt=look, color=colour, markersize=4, capsize=2, label=name)
    axes.axhline(
        np.mean([r["run"][0] for r in results]), color="black", linewidth=0.8, linestyle="--", label="at the start"
    )
    axes.set(xscale="log", xlabel="target frequency p")
    axes.set_title(f"d = {d} ({'heavy' if setting.heavy else 'light'}), after {options.steps} steps")
    if d == options.widths[0]:
        axes.legend(frameon=False, fontsize=7.5)


def _mean(results: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.mean([r[name] for r in results], axis=0)


def main(options: Options) -> None:
    """Run everything, print where it ends, draw."""
    torch.set_num_threads(1)
    results = []
    for d in options.widths:
        for p in options.frequencies:
            here = [one(options, d, p, seed) for seed in range(options.seeds)]
            results += here
            ends = {name: [f"{100 * r[name][-1]:.0f}" for r in here] for name in ("predicted", "run")}
            print(f"d={d} p={p:g}: predicted {' '.join(ends['predicted'])}, run {' '.join(ends['run'])}", flush=True)
    gap = np.abs([r["predicted"][-1] - r["run"][-1] for r in results])
    print(f"|predicted − run| at the end: mean {gap.mean():.3f}, largest {gap.max():.3f}")
    if options.out is not None:
        draw(options, results)
    written = {"options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}}
    write_json(options.json, written | {"results": results})


if __name__ == "__main__":
    main(tyro.cli(Options))
