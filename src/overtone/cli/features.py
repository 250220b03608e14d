"""Recovery of features that are known as directions: train a suite's methods on its truth and score them."""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from overtone.baselines import BASELINES
from overtone.cli.asked import Asked
from overtone.cli.common import console, in_processes, trained_on
from overtone.cli.truths import SCORED_ROWS, source_of_truth
from overtone.config import to_json
from overtone.data.synthetic import GroundTruth
from overtone.methods import anchored
from overtone.metrics.truth import score_against
from overtone.recipes import SUITES, Suite
from overtone.report.recovery import Line, Recovery, Score, Values, rate
from overtone.runs import RunFolder, claim_folder
from overtone.training import Run


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
    options: dict[str, Any] = field(default_factory=dict)
    keep: Path | None = None

    @property
    def chosen(self) -> Suite:
        """The suite, its methods at k active latents where one is given."""
        return at(self.suite, self.k)


def at(name: str, k: int | None) -> Suite:
    """A suite, its methods at k active latents where one is given."""
    return SUITES[name] if k is None else SUITES[name].at(k)


def recover_features(name: str, asked: Asked) -> dict[str, Any]:
    """Train every method on every seed's truth; what was found, as it is written to a file."""
    suite = at(name, asked.k)
    truths = {s: suite.truth(seed=s, **asked.options) for s in asked.seeds}
    first = truths[asked.seeds[0]]
    width = suite.latents(first) if asked.latents is None else asked.latents
    length = suite.steps if asked.steps is None else asked.steps
    for method in asked.methods:  # settings that a method cannot have are found now, not after the others have run
        suite.run(suite.contestants[method].make(), latents=width, steps=length, seed=asked.seeds[0])
    most = min(width, len(first.features))
    if not 0 <= asked.anchors <= most:
        raise ValueError(
            f"--anchors {asked.anchors} is not in 0 … {most}, the number of features or of latents; lower it"
        )
    baselines, anchors = (BASELINES if asked.baselines else ()), ((asked.anchors,) if asked.anchors else ())
    tried = [(None, 0), *((baseline, 0) for baseline in baselines), *((None, told) for told in anchors)]
    rest: dict[str, Any] = {"k": asked.k, "options": asked.options, "keep": asked.keep}
    work = [
        Job(name, method, s, truth, asked.rows, width, length, *variant, **rest)
        for method in asked.methods
        for variant in tried
        for s, truth in truths.items()
    ]
    if asked.keep is not None:
        claim_folder(asked.keep, "--runs", resumed=False)
    began = time.perf_counter()
    results = sorted(
        in_processes(work_on, work, asked.jobs, "trainings"),
        key=lambda r: (asked.methods.index(r["method"]), tried.index((r["baseline"], r["anchors"])), r["seed"]),
    )
    used = sum(r["cpu_seconds"] for r in results)
    console.print(f"{len(work)} trainings in {time.perf_counter() - began:.0f} s ({used:.0f} s of processor)")
    shape = dict(zip(("n_features", "d"), first.features.shape, strict=True))
    settings = {"rows": asked.rows, "latents": width, "steps": length, "batch": suite.batch, "k": asked.k}
    published = asdict(suite.published) if suite.published else None
    if asked.keep is not None:
        console.print(f"Run folders: {asked.keep}/…   Look at them: overtone report {asked.keep}/*-{asked.seeds[0]}")
    return {
        "suite": name, "settings": {**asked.options, **shape, **settings}, "published": published, "results": results
    }  # fmt: skip


def work_on(job: Job) -> dict[str, Any]:
    """Train one method, or a variant of it, on one seed and score it at the end, on rows that it was not trained on."""
    torch.set_num_threads(1)
    suite = job.chosen
    method = suite.contestants[job.method].make()
    if job.anchors:
        method = anchored(method, job.truth.features[: job.anchors])
    hold = BASELINES[job.baseline] if job.baseline else None
    began, used = time.perf_counter(), time.process_time()
    run = suite.run(hold(method) if hold else method, latents=job.latents, steps=job.steps, seed=job.seed)
    at_start = job.baseline is not None and hold is None
    dictionary = trained_on(job.truth, run, rows=job.rows, at_start=at_start, keep=_folder(job, run))
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
    taken = {"seconds": seconds, "cpu_seconds": time.process_time() - used}
    return {**which, **score.summary(), "frr_untold": rates, **taken}


def _folder(job: Job, run: Run) -> RunFolder | None:
    """Where the training is kept: those of the methods themselves are, where it was asked for."""
    if job.keep is None or job.baseline or job.anchors:
        return None
    source = source_of_truth(job.suite, job.truth, job.options, seed=job.seed, rows=job.rows)
    path = job.keep / f"{job.method}-{job.seed}"
    path.mkdir()
    return RunFolder.create(path, run, {"source": to_json(source)})


CAPTION = (
    "FRR: % of true features with cosine at least so large to some latent, mean ± half the range over seeds; MCC: mean |cos| "
    "matched one to one; F1: of latents as detectors of the feature nearest to them; max cos: mean of the largest cosine; "
    "unique: features that some latent is nearest to, per latent; EV: explained variance; L0: mean number of active latents; F1, "
    "EV and L0 on rows not trained on"
)
ERRORS = (
    "; flat, hier.: mean squared error of the cosines of siblings, and of children with their parents; abs.: share of children's "
    "rows in which their latent has absorbed the parent's; hedg.: size of the children's part in the parent's atom"
)
IN_HIERARCHIES = {"flat": "flat", "hierarchical": "hier.", "absorption": "abs.", "hedging": "hedg."}


def told_features(document: dict[str, Any]) -> Recovery:
    """What `recover_features` found, for tables and figures."""
    settings, results = document["settings"], document["results"]
    suite = at(document["suite"], settings["k"])
    errors = [
        Score(key, heading, better=-1, drawn=key != "hedging")
        for key, heading in IN_HIERARCHIES.items()
        if key in results[0]
    ]
    reported = {key for values in suite.published.scores.values() for key in values} if suite.published else set()
    optional = (Score("mean_max_cosine", "max cos"), Score("uniqueness", "unique", drawn=False))
    scores = (
        *(rate(f"frr_{t:g}", f"FRR {t:g}") for t in suite.thresholds),
        Score("mcc", "MCC"),
        Score("f1", "F1"),
        *(score for score in optional if score.key in reported),
        *errors,
        Score("explained_variance", "EV", "{:.2f}", better=0, drawn=False),
        Score("l0", "L0", "{:.1f}", better=0, drawn=False),
    )
    rows = "fresh rows" if settings["rows"] is None else f"{settings['rows']:,} rows again and again"
    title = (
        f"Recovery of {settings['n_features']} true features in {settings['d']} dimensions – {suite.what}\n"
        f"{settings['latents']} latents, {settings['steps']} steps of {settings['batch']} rows, {rows}; at the end of training"
    )
    published = suite.published
    lines = [_line(suite, name, results) for name in dict.fromkeys(r["method"] for r in results)]
    if published is None:
        return Recovery(suite.name, title, CAPTION + ERRORS * bool(errors), scores, suite.headline, lines, "")
    lines += [Line("", label, {}, {}, values) for label, values in published.others.items()]
    source = f"{published.source}; measured at: {published.setting}"
    return Recovery(suite.name, title, CAPTION + ERRORS * bool(errors), scores, suite.headline, lines, source)


def _line(suite: Suite, name: str, results: list[dict[str, Any]]) -> Line:
    own = [r for r in results if r["method"] == name]
    variants = {
        f"told {anchors} of them" if anchors else str(baseline): _values(
            [r for r in own if (r["baseline"], r["anchors"]) == (baseline, anchors)]
        )
        for baseline, anchors in dict.fromkeys((r["baseline"], r["anchors"]) for r in own)
        if baseline or anchors
    }
    found = _values([r for r in own if r["baseline"] is None and not r["anchors"]])
    published = suite.published.scores.get(name, {}) if suite.published else {}
    return Line(name, suite.contestants[name].what, found, variants, published)


def _values(results: list[dict[str, Any]]) -> Values:
    """Scores over seeds; recovery rates by their threshold. A score that a file has as null was NaN."""
    flat = [r | {f"frr_{t}": share for t, share in r["frr"].items()} for r in results]
    numbers = [key for key in flat[0] if any(isinstance(r[key], float) for r in flat)]
    return {key: [math.nan if r[key] is None else r[key] for r in flat] for key in numbers}
