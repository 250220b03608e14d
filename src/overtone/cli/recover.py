"""`overtone recover`: which method finds the true features of data with a known answer?"""

import inspect
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from overtone.cli.asked import ALL_SUITES, Asked, chosen_methods, option, truth_settings
from overtone.cli.common import write_json
from overtone.cli.recover_all import Scale, figure_of, recover_all
from overtone.cli.suites import draw, measured, tell
from overtone.data.laws import CoefficientLaw, DirectionLaw, FrequencyLaw
from overtone.organism_suites import SCALES, OrganismSuite
from overtone.report.plots import check_figure

SuiteName = Literal[
    "all",
    "imbalanced",
    "linear-bench",
    "linear-bench-small",
    "sanity-check",
    "sanity-check-skewed",
    "sanity-check-small",
    "sanity-check-skewed-small",
    "hierarchy",
    "synth",
    "synth-4k",
    "synth-16k",
    "markov",
    "markov-small",
    "regression",
    "regression-small",
]


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
    runs: Path | None = None,
    json: Path | None = None,
    plot: Path | None = None,
    scale: Scale = "small",
    out: Path | None = None,
    resume: bool = False,
) -> None:
    """Train dictionaries on synthetic data whose features are known, and count how many each method finds.

    Prints the feature recovery rate (FRR): the share of true features that some latent points to with cosine ≥ 0.8 or 0.9, at the
    end of training (linear-bench: ≥ 0.8 or 0.95, either way). No method sees the truth, but what --anchors tells it.

    Args:
        suite: all – one suite after the other, with a summary; imbalanced – half of the rows mix 3 features, half 20
            (arXiv 2506.14002); linear-bench – features of bounded coherence, each in 1 % of the rows (arXiv 2512.05534), and
            linear-bench-small, 400 in 307 dimensions; sanity-check – 32 features per dimension (arXiv 2602.14111), equally
            frequent or, sanity-check-skewed, of log-uniform frequencies, and both -small, 800 in 50 dimensions;
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
        runs: (where features are directions) keep every method's training in a run folder below this new folder, METHOD-SEED, to
            look at with `overtone report`.
        json: write the results to this file; of all suites, as each is done.
        plot: draw the scores into this file (SVG, PNG or PDF, by its name); of all suites, the summary.
        scale: (all) small – sizes that take minutes; full – those that papers have, hours.
        out: (all) folder for a figure of every suite, one of all, results.json and recovery.md.
        resume: (all) go on with what the file of results has, --out's or that of --json, of the same scale and seeds.
    """
    given = dict(locals())
    for name in ("rows", "jobs", "k", "seeds"):
        if given[name] is not None and given[name] < 1:
            raise ValueError(f"{name}={given[name]} must be at least 1")
    _check_belongs(given)
    plans = {name: _plan(name, given) for name in (SCALES[scale] if suite == "all" else (suite,))}
    for path in (plot, out and figure_of(out, suite)):
        if path is not None:
            check_figure(path)  # what is wrong with it is found now, not after the trainings
    if suite == "all":
        recover_all(plans, scale, json, plot, out, resume)
        return
    document = measured(suite, plans[suite])
    write_json(json, document)
    recovery = tell(document)
    if plot is not None:
        draw(recovery, plot)


# What `recover all` has of the options of a single suite, and what it alone has.
SHARED = ("suite", "seeds", "seed", "models", "baselines", "jobs", "json", "plot")
OF_ALL = ("scale", "out", "resume")
OF_TRUTHS = (
    "n_features", "d", "sparsities", "law", "frequencies", "zipf_exponent", "frequency_ratio", "co_occurrence", "directions",
    "least", "noise", "coherence", "l0", "cosine", "layer", "models",
)  # fmt: skip


def _check_belongs(given: dict[str, Any]) -> None:
    """An error where an option of one suite is given for all of them, or the other way round."""
    defaults = {name: p.default for name, p in inspect.signature(recover).parameters.items()}
    changed = [name for name, value in given.items() if name != "suite" and value != defaults[name]]
    if given["suite"] == "all" and (foreign := [name for name in changed if name not in SHARED + OF_ALL]):
        raise ValueError(
            f"{option(foreign[0])} is not an option of recover all, whose suites have their own; "
            f"give it to one of them: overtone recover SUITE {option(foreign[0])} …"
        )
    if given["suite"] != "all" and (foreign := [name for name in changed if name in OF_ALL]):
        raise ValueError(f"{option(foreign[0])} is an option of recover all, not of suite {given['suite']}")


def _plan(name: str, given: dict[str, Any]) -> Asked:
    """What is asked of one suite; what it cannot be asked is an error."""
    suite, k, anchors, rows = ALL_SUITES[name], given["k"], given["anchors"], given["rows"]
    organism = isinstance(suite, OrganismSuite)
    if organism and k is not None:
        raise ValueError(f"--k {k} is not an option of suite {name}; its methods have a k each")
    if organism and anchors:
        raise ValueError(f"--anchors {anchors} needs directions that are known; suite {name} has none")
    if not organism and k is not None:
        suite = suite.at(k)
    if organism and given["runs"]:
        raise ValueError(f"--runs keeps dictionaries beside directions that are known; suite {name} has none")
    methods = chosen_methods(suite, given["methods"])
    if given["fresh"] and rows is not None:
        raise ValueError(f"--fresh draws new rows for every step, --rows {rows} fixes them; give one of the two")
    truth = {key: given[key] for key in OF_TRUTHS} | {"sparsities": given["sparsities"] or None}
    if given["suite"] == "all" and not organism:
        del truth["models"]
    return Asked(
        methods=methods,
        options=truth_settings(suite, truth),
        seeds=range(given["seed"], given["seed"] + given["seeds"]),
        rows=None if given["fresh"] else suite.rows if rows is None else rows,
        latents=given["latents"],
        steps=given["steps"],
        baselines=given["baselines"],
        anchors=anchors,
        k=k,
        jobs=given["jobs"] or os.cpu_count() or 1,
        keep=given["runs"],
    )
