"""`overtone recover markov`, `regression`: do latents stand for what is known of a small transformer's rows?"""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from overtone.baselines import BASELINES
from overtone.cli.common import console, in_processes, spread, trained_on, write_json
from overtone.data.sequences import Known
from overtone.metrics.known import Halves, KnownScores, score_chance, score_known, score_probes
from overtone.metrics.reconstruction import evaluate
from overtone.organism_suites import ORGANISMS, OrganismSuite
from overtone.organisms.organism import Organism, joined
from overtone.seeds import generator

# What is scored beside the methods, of each seed's rows as they are.
BARE = {"probe": "linear probe of the rows (ceiling)", "coordinates": "coordinates of the rows, ±"}


@dataclass(frozen=True)
class OrganismJob:
    """One method, or a baseline of it, or a score of the bare rows, on one seed's organism; it travels to a worker."""

    suite: str
    seed: int
    options: dict[str, Any]
    rows: int | None
    latents: int
    steps: int
    method: str = ""
    baseline: str | None = None

    @property
    def organism(self) -> Organism:
        """Trained, or read from the folder of trained models."""
        return ORGANISMS[self.suite].truth(seed=self.seed, **self.options)


def recover_organism(
    suite: OrganismSuite,
    methods: Sequence[str],
    options: dict[str, Any],
    seeds: Sequence[int],
    rows: int | None,
    latents: int | None,
    steps: int | None,
    baselines: bool,
    jobs: int | None,
    json: Path | None,
) -> None:
    """Train the organism of every seed, then the dictionaries; print what the organism has learnt and what latents stand for.

    Args:
        suite: the suite.
        methods: names of its contestants.
        options: of the organism.
        seeds: one organism each.
        rows: that dictionaries are trained on; None: fresh ones for every step.
        latents: width of the dictionaries; None: the suite's.
        steps: of a dictionary's training; None: the suite's.
        baselines: whether methods are shown with atoms frozen or nearly so, too.
        jobs: processes; None: one per core.
        json: file for the results.
    """
    width, length = latents or suite.length.latents, steps or suite.length.steps
    for name in methods:  # settings that a method cannot have are found now, not after an organism has been trained
        suite.run(suite.contestants[name].make(), latents=width, steps=length, seed=seeds[0])
    began = time.perf_counter()
    processes = jobs or os.cpu_count() or 1
    bare = [OrganismJob(suite.name, seed, options, rows, width, length) for seed in seeds]
    learnt = sorted(in_processes(teach, bare, processes, "transformers"), key=lambda r: r["seed"])
    console.print(_evidence_table(suite, learnt))
    tried = [None, *(BASELINES if baselines else ("random",))]
    work = [
        OrganismJob(suite.name, seed, options, rows, width, length, name, baseline)
        for name in (*BARE, *methods)
        for baseline in (tried if name not in BARE else [None])
        for seed in seeds
    ]
    order = [job.method for job in work]
    results = sorted(
        in_processes(examine, work, processes, "dictionaries"),
        key=lambda r: (order.index(r["method"]), tried.index(r["baseline"]), r["seed"]),
    )
    settings = {"rows": rows, "latents": width, "steps": length, "batch": suite.length.batch, "layer": options["layer"]}
    console.print(_table(suite, results, settings))
    console.print(f"{len(learnt)} transformers and {len(work)} dictionaries in {time.perf_counter() - began:.0f} s")
    settings |= {name: value for name, value in options.items() if name != "models"}
    write_json(json, {"suite": suite.name, "settings": settings, "organisms": learnt, "results": results})


def teach(job: OrganismJob) -> dict[str, Any]:
    """Train one seed's organism, where it is not kept yet, and measure what it has learnt."""
    torch.set_num_threads(1)
    began = time.process_time()
    organism = job.organism
    seconds = time.process_time() - began
    lag = organism.lag_heads(seed=job.seed)
    return {
        "seed": job.seed,
        "evidence": organism.evidence(seed=job.seed),
        "attention_to_previous": lag.tolist(),
        "cpu_seconds": seconds,
    }


def examine(job: OrganismJob) -> dict[str, Any]:
    """Score one method's dictionary, or the bare rows, against what is known of rows that it was not trained on."""
    torch.set_num_threads(1)
    suite, organism, began = ORGANISMS[job.suite], job.organism, time.perf_counter()
    rows = [joined(list(organism.held_out(suite.scored, seed=2 * job.seed + half))) for half in (0, 1)]
    x, known = Halves(rows[0].x, rows[1].x), (rows[0].known, rows[1].known)
    which = {"method": job.method, "baseline": job.baseline, "seed": job.seed}
    if job.method == "probe":
        return which | {"known": score_probes(x, known).summary()}
    if job.method == "coordinates":
        mean = x.choose.mean(0)
        both = Halves(*(torch.cat([half - mean, mean - half], dim=1).relu() for half in x))
        return which | _scores(both, known, job.seed)
    run = suite.run(suite.contestants[job.method].make(), latents=job.latents, steps=job.steps, seed=job.seed)
    hold = BASELINES[job.baseline] if job.baseline else None
    if hold:
        run = suite.run(hold(run.method), latents=job.latents, steps=job.steps, seed=job.seed)
    at_start = job.baseline is not None and hold is None
    dictionary = trained_on(organism, run, rows=job.rows, at_start=at_start)
    measured = evaluate(dictionary, x.score)
    with torch.no_grad():
        codes = Halves(*(dictionary.encode(half).z for half in x))
    return (
        which
        | _scores(codes, known, job.seed)
        | {"explained_variance": measured.explained_variance, "l0": measured.l0, "alive": measured.alive}
        | {"seconds": time.perf_counter() - began}
    )


def _scores(codes: Halves, known: tuple[Known, Known], seed: int) -> dict[str, Any]:
    chance: KnownScores = score_chance(codes, known, generator(seed, "labels of other rows"))
    return {"known": score_known(codes, known).summary(), "chance": chance.summary()}


def _evidence_table(suite: OrganismSuite, learnt: list[dict[str, Any]]) -> Table:
    """One line per predictor: what the organism has learnt, beside those of which it is known what they know."""
    first = learnt[0]["evidence"]
    heads = [max(max(layer) for layer in one["attention_to_previous"]) for one in learnt]
    table = Table(
        title=f"What the organism has learnt – {suite.what}",
        title_justify="left",
        caption=f"on fresh sequences; one head gives {spread(heads, 2)} of its attention to the position just before",
        caption_justify="left",
    )
    table.add_column("predictor", overflow="fold", min_width=16)
    for measure in next(iter(first.values())):
        table.add_column(measure, justify="right")
    for name, measures in first.items():
        values = ([one["evidence"][name][measure] for one in learnt] for measure in measures)
        table.add_row(name, *(spread(value, 3) for value in values))
    return table


CAPTION = (
    "F1: of the latent that is the best detector of a feature, by firing; AUROC: likewise, by its code; |r|: correlation of a "
    "quantity with the latent that goes with it most; all means over the features of a kind, latents chosen on some rows and "
    "scored on others, of sequences not trained on; random: the dictionary at its start; chance: labels of other rows; "
    "mean ± half the range over seeds"
)
SCORES = {"f1": "F1", "auroc": "AUROC", "correlation": "|r|"}


def _table(suite: OrganismSuite, results: list[dict[str, Any]], settings: dict[str, Any]) -> Table:
    """One line per method, its baselines under it."""
    title = (
        f"What is known of the rows of {suite.what}, block {settings['layer']}, and which latents stand for it\n"
        f"{settings['latents']} latents, {settings['steps']} steps of {settings['batch']} rows"
    )
    table = Table(title=title, title_justify="left", caption=CAPTION, caption_justify="left")
    table.add_column("method", overflow="fold", min_width=12)
    columns = [(kind, score) for kind, scores in results[0]["known"].items() for score in scores if score != "features"]
    for kind, score in columns:
        table.add_column(f"{kind} {SCORES[score]}", justify="right", overflow="fold")
    for column in ("EV", "L0"):
        table.add_column(column, justify="right", overflow="fold")
    for name, baseline in dict.fromkeys((r["method"], r["baseline"]) for r in results):
        rows = [r for r in results if (r["method"], r["baseline"]) == (name, baseline)]
        what = BARE.get(name) or suite.contestants[name].what
        for label, of in ((f"– {baseline}" if baseline else what, "known"), ("– chance", "chance")):
            if of in rows[0] and (of == "known" or baseline is None):
                table.add_row(label, *_cells(rows, of, columns))
    return table


def _cells(rows: list[dict[str, Any]], of: str, columns: Iterable[tuple[str, str]]) -> list[str]:
    cells = [spread([r[of][kind][score] for r in rows], 2) for kind, score in columns]
    for key, digits in (("explained_variance", 2), ("l0", 1)):
        cells.append(spread([r[key] for r in rows], digits) if of == "known" and key in rows[0] else "–")
    return cells
