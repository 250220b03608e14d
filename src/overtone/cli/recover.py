"""`overtone recover`: which method finds the true features of data with a known answer?"""

import inspect
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.table import Table

from overtone.baselines import BASELINES
from overtone.cli.common import console, in_processes, spread, trained_on, write_json
from overtone.cli.organisms import recover_organism
from overtone.data.laws import CoefficientLaw, DirectionLaw, FrequencyLaw
from overtone.data.synthetic import GroundTruth
from overtone.methods import anchored
from overtone.metrics.truth import score_against
from overtone.organism_suites import ORGANISMS, OrganismSuite
from overtone.recipes import SUITES, Suite

SCORED_ROWS = 20_000
SuiteName = Literal[
    "imbalanced",
    "linear-bench",
    "sanity-check",
    "sanity-check-skewed",
    "sanity-check-small",
    "hierarchy",
    "synth",
    "synth-4k",
    "synth-16k",
    "markov",
    "markov-small",
    "regression",
    "regression-small",
]


@dataclass(frozen=True)
class Job:
    """One method, or a variant of it, on one seed's ground truth; plain values, so that it travels to a worker process."""

    suite: str
    method: str
    seed: int
    truth: GroundTruth
    rows: int | None
    latents: int
    steps: int
    baseline: str | None = None
    anchors: int = 0
    k: int | None = None

    @property
    def chosen(self) -> Suite:
        """The suite, its methods at k active latents where one is given."""
        return SUITES[self.suite] if self.k is None else SUITES[self.suite].at(self.k)


def recover(
    suite: Annotated[SuiteName, tyro.conf.Positional],
    methods: tuple[str, ...] = (),
    seeds: int = 1,
    seed: int = 0,
    n_features: int | None = None,
    d: int | None = None,
    sparsities: tuple[int, ...] = (),
    rows: int | None = None,
    fresh: bool = False,
    law: CoefficientLaw | None = None,
    frequencies: FrequencyLaw | None = None,
    zipf_exponent: float | None = None,
    frequency_ratio: float | None = None,
    co_occurrence: float | None = None,
    directions: DirectionLaw | None = None,
    least: float | None = None,
    noise: float | None = None,
    coherence: float | None = None,
    l0: float | None = None,
    cosine: float | None = None,
    layer: int | None = None,
    models: Path | None = None,
    latents: int | None = None,
    steps: int | None = None,
    baselines: bool = False,
    anchors: int = 0,
    k: int | None = None,
    jobs: int | None = None,
    json: Path | None = None,
) -> None:
    """Train dictionaries on synthetic data whose features are known, and count how many each method finds.

    Prints the feature recovery rate (FRR): the share of true features that some latent points to with cosine ≥ 0.8 or 0.9, at the
    end of training (linear-bench: ≥ 0.8 or 0.95, either way). No method sees the truth, but what --anchors tells it.

    Args:
        suite: imbalanced – half of the rows mix 3 features, half 20 (arXiv 2506.14002); linear-bench – features of bounded
            coherence, each in 1 % of the rows (arXiv 2512.05534); sanity-check – 32 features per dimension (arXiv 2602.14111),
            equally frequent or, sanity-check-skewed, of log-uniform frequencies, and sanity-check-small, 800 in 50 dimensions;
            hierarchy – children that occur with their parents only (arXiv 2506.03093); synth – SynthSAEBench (arXiv 2602.14687)
            with 1024 features instead of 16384 and, synth-4k and synth-16k, with 4096 and all of them; markov, regression – a
            small transformer trained on Markov chains or on regression in context, of whose rows much is known but no
            directions (docs/organisms.md), and -small, smaller still.
        methods: which to train; a wrong name lists those of the suite.
        seeds: how many seeds; each has its own features, rows and initial weights.
        seed: the first seed.
        n_features: number of true features n (not of hierarchy).
        d: dimension of the rows.
        sparsities: (imbalanced) how many features a row mixes; each number equally often.
        rows: number of rows that training goes through again and again (default: the suite's).
        fresh: draw new rows for every step instead.
        law: (imbalanced) distribution of the coefficients.
        frequencies: (imbalanced) all features equally often, falling geometrically, or Zipf.
        zipf_exponent: (imbalanced) exponent of the Zipf law.
        frequency_ratio: (imbalanced) of the most frequent feature to the least, of the geometric law.
        co_occurrence: (imbalanced) share of a feature's rows in which its companion occurs, too; every feature has one.
        directions: (imbalanced) law of the features' directions.
        least: (imbalanced, linear-bench) smallest coefficient.
        noise: (imbalanced) standard deviation of Gaussian noise added to every coordinate; (regression) of y.
        coherence: (linear-bench) largest inner product of two features.
        l0: (sanity-check) mean number of features of a row.
        cosine: (hierarchy) cosine of siblings; (imbalanced) of neighbours, where directions are correlated.
        layer: (markov, regression) block of the transformer, counted from 0, whose output the rows are.
        models: (markov, regression) folder of trained transformers (default: overtone/organisms in $XDG_CACHE_HOME or ~/.cache).
        latents: dictionary width (default: the suite's).
        steps: training steps.
        baselines: show each method beside three that learn no features: its dictionary at its random start, and trained with
            atoms frozen there or kept within a cosine of 0.8 (arXiv 2602.14111).
        anchors: show each method also as it does when told so many of the true features, which anchor its first latents
            (arXiv 2512.05534).
        k: (not imbalanced) number of active latents that methods are compared at (default: the suite's).
        jobs: trainings at a time (default: one per core).
        json: write the results to this file.
    """
    chosen: Suite | OrganismSuite = {**SUITES, **ORGANISMS}[suite]
    for name, value in (("rows", rows), ("jobs", jobs), ("k", k)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if k is not None:
        if isinstance(chosen, OrganismSuite):
            raise ValueError(f"--k {k} is not an option of suite {suite}; its methods have a k each")
        chosen = chosen.at(k)
    names = _checked(chosen, methods)
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")
    if fresh and rows is not None:
        raise ValueError(f"--fresh draws new rows for every step, --rows {rows} fixes them; give one of the two")
    rows = None if fresh else chosen.rows if rows is None else rows
    options = truth_settings(
        chosen,
        {
            "n_features": n_features,
            "d": d,
            "sparsities": sparsities or None,
            "law": law,
            "frequencies": frequencies,
            "zipf_exponent": zipf_exponent,
            "frequency_ratio": frequency_ratio,
            "co_occurrence": co_occurrence,
            "directions": directions,
            "least": least,
            "noise": noise,
            "coherence": coherence,
            "l0": l0,
            "cosine": cosine,
            "layer": layer,
            "models": models,
        },
    )
    if isinstance(chosen, OrganismSuite):
        if anchors:
            raise ValueError(f"--anchors {anchors} needs directions that are known; suite {suite} has none")
        first_seeds = range(seed, seed + seeds)
        recover_organism(chosen, names, options, first_seeds, rows, latents, steps, baselines, jobs, json)
        return
    truths = {s: chosen.truth(seed=s, **options) for s in range(seed, seed + seeds)}
    width = chosen.latents(truths[seed]) if latents is None else latents
    length = chosen.steps if steps is None else steps
    for name in names:  # settings that a method cannot have are found now, not after the others have run
        chosen.run(chosen.contestants[name].make(), latents=width, steps=length, seed=seed)
    most = min(width, len(truths[seed].features))
    if not 0 <= anchors <= most:
        raise ValueError(f"--anchors {anchors} is not in 0 … {most}, the number of features or of latents; lower it")
    sizes = (rows, width, length)
    tried = [(None, 0), *((name, 0) for name in BASELINES if baselines), *((None, n) for n in (anchors,) if n)]
    work = [
        Job(chosen.name, n, s, truth, *sizes, *variant, k=k)
        for n in names
        for variant in tried
        for s, truth in truths.items()
    ]
    began = time.perf_counter()
    results = sorted(
        in_processes(work_on, work, jobs or os.cpu_count() or 1, "trainings"),
        key=lambda r: (names.index(r["method"]), tried.index((r["baseline"], r["anchors"])), r["seed"]),
    )
    shape = dict(zip(("n_features", "d"), truths[seed].features.shape, strict=True))
    settings = {**options, **shape, "rows": rows, "latents": width, "steps": length, "batch": chosen.batch, "k": k}
    console.print(_table(chosen, results, settings))
    console.print(f"{len(work)} trainings in {time.perf_counter() - began:.0f} s")
    write_json(json, {"suite": chosen.name, "settings": settings, "results": results})


def truth_settings(suite: Suite | OrganismSuite, given: dict[str, Any]) -> dict[str, Any]:
    """The truth's settings, its defaults where none was given (None); one that it does not have is an error."""
    own = {name: p.default for name, p in inspect.signature(suite.truth).parameters.items() if name in given}
    given = {name: value for name, value in given.items() if value is not None}
    foreign = [name for name in given if name not in own]
    if foreign:
        raise ValueError(
            f"--{foreign[0].replace('_', '-')} is not an option of suite {suite.name}; it has "
            f"{', '.join('--' + name.replace('_', '-') for name in own)}"
        )
    return own | given


def _checked(suite: Suite | OrganismSuite, methods: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(methods or suite.default_methods))
    unknown = [name for name in names if name not in suite.contestants]
    if unknown:
        raise ValueError(
            f"--methods {unknown[0]} is unknown in suite {suite.name}; known: {', '.join(suite.contestants)}"
        )
    return names


def work_on(job: Job) -> dict[str, Any]:
    """Train one method, or a variant of it, on one seed and score it at the end, on rows that it was not trained on."""
    torch.set_num_threads(1)
    suite = job.chosen
    method = suite.contestants[job.method].make()
    if job.anchors:
        method = anchored(method, job.truth.features[: job.anchors])
    hold = BASELINES[job.baseline] if job.baseline else None
    began = time.perf_counter()
    run = suite.run(hold(method) if hold else method, latents=job.latents, steps=job.steps, seed=job.seed)
    dictionary = trained_on(job.truth, run, rows=job.rows, at_start=job.baseline is not None and hold is None)
    seconds = time.perf_counter() - began
    score = score_against(
        dictionary,
        job.truth.features,
        job.truth.held_out(SCORED_ROWS, seed=job.seed),
        parent_of=getattr(job.truth, "parent_of", None),
        thresholds=suite.thresholds,
        signed=suite.signed,
    )
    untold = score.recovery.max_cosine[job.anchors :]
    which = {"method": job.method, "baseline": job.baseline, "anchors": job.anchors, "seed": job.seed}
    rates = {f"{t:g}": float((untold >= t).double().mean()) for t in suite.thresholds} if len(untold) else None
    return {**which, **score.summary(), "frr_untold": rates, "seconds": seconds}


CAPTION = (
    "FRR: % of true features with cosine at least so large to some latent, mean ± half the range over seeds; max cos: mean of "
    "the largest cosine; MCC: mean |cos| matched one to one; F1: of latents as detectors of the feature nearest to them; paper: "
    "the paper's FRR; EV: explained variance; L0: mean number of active latents; F1, EV and L0 on rows not trained on"
)
ERRORS = (
    "; flat, hier.: mean squared error of the cosines of siblings, and of children with their parents; abs.: share of children's "
    "rows in which their latent has absorbed the parent's; hedg.: size of the children's part in the parent's atom"
)
IN_HIERARCHIES = {"flat": "flat", "hier.": "hierarchical", "abs.": "absorption", "hedg.": "hedging"}


def _table(suite: Suite, results: list[dict[str, Any]], settings: dict[str, Any]) -> Table:
    """One line per method, its variants under it."""
    title = (
        f"Recovery of {settings['n_features']} true features in {settings['d']} dimensions – {suite.what}\n"
        f"{settings['latents']} latents, {settings['steps']} steps of {settings['batch']} rows, at the end of training"
    )
    errors = {column: name for column, name in IN_HIERARCHIES.items() if name in results[0]}
    table = Table(title=title, title_justify="left", caption=CAPTION + ERRORS * bool(errors), caption_justify="left")
    table.add_column("method", overflow="fold", min_width=12)
    rates = [f"{t:g}" for t in suite.thresholds]
    for column in (*(f"FRR {t}" for t in rates), "max cos", "MCC", "F1", *errors, "paper", "EV", "L0"):
        table.add_column(column, justify="right", overflow="fold")
    for which in dict.fromkeys((r["method"], r["baseline"], r["anchors"]) for r in results):
        rows = [r for r in results if (r["method"], r["baseline"], r["anchors"]) == which]
        name, baseline, anchors = which
        variant = f"– told {anchors} of them" if anchors else f"– {baseline}" if baseline else None
        published = None if variant else suite.contestants[name].published
        table.add_row(
            variant or suite.contestants[name].what,
            *(spread([100 * r["frr"][t] for r in rows]) for t in rates),
            *(spread([r[score] for r in rows], 3) for score in ("mean_max_cosine", "mcc", "f1", *errors.values())),
            " / ".join(f"{value:.0f}" for value in published.values()) if published else "–",
            spread([r["explained_variance"] for r in rows], 2),
            spread([r["l0"] for r in rows], 0),
        )
    return table
