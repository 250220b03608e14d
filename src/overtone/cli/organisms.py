"""`overtone recover markov`, `regression`: do latents stand for what is known of a small transformer's rows?"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from overtone.baselines import BASELINES
from overtone.cli.asked import Asked
from overtone.cli.common import console, finite_again, in_processes, spread, trained_on
from overtone.data.sequences import Known
from overtone.metrics.known import Halves, KnownScores, score_chance, score_known, score_probes
from overtone.metrics.reconstruction import evaluate
from overtone.organism_suites import ORGANISMS, OrganismSuite
from overtone.organisms.organism import Organism, joined
from overtone.report.recovery import Line, Recovery, Score, Values
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


def recover_organism(name: str, asked: Asked) -> dict[str, Any]:
    """Train the organism of every seed, then the dictionaries; print what the organism has learnt, return what latents stand for.

    `random`, a dictionary at its start, is shown whether baselines are asked for or not.
    """
    suite, seeds = ORGANISMS[name], asked.seeds
    width, length = asked.latents or suite.length.latents, asked.steps or suite.length.steps
    for (
        method
    ) in asked.methods:  # settings that a method cannot have are found now, not after an organism has been trained
        suite.run(suite.contestants[method].make(), latents=width, steps=length, seed=seeds[0])
    began = time.perf_counter()
    bare = [OrganismJob(name, seed, asked.options, asked.rows, width, length) for seed in seeds]
    learnt = sorted(in_processes(teach, bare, asked.jobs, "transformers"), key=lambda r: r["seed"])
    console.print(_evidence_table(suite, learnt))
    tried = [None, *(BASELINES if asked.baselines else ("random",))]
    work = [
        OrganismJob(name, seed, asked.options, asked.rows, width, length, method, baseline)
        for method in (*BARE, *asked.methods)
        for baseline in (tried if method not in BARE else [None])
        for seed in seeds
    ]
    order = [job.method for job in work]
    results = sorted(
        in_processes(examine, work, asked.jobs, "dictionaries"),
        key=lambda r: (order.index(r["method"]), tried.index(r["baseline"]), r["seed"]),
    )
    seconds, used = time.perf_counter() - began, sum(r["cpu_seconds"] for r in (*learnt, *results))
    console.print(
        f"{len(learnt)} transformers and {len(work)} dictionaries in {seconds:.0f} s ({used:.0f} s of processor)"
    )
    settings = {"rows": asked.rows, "latents": width, "steps": length, "batch": suite.length.batch}
    settings |= {key: value for key, value in asked.options.items() if key != "models"}
    return {"suite": name, "settings": settings, "organisms": learnt, "results": results}


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
    began, used = time.perf_counter(), time.process_time()
    found = _examined(job)
    return found | {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}


def _examined(job: OrganismJob) -> dict[str, Any]:
    suite, organism = ORGANISMS[job.suite], job.organism
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


def told_organism(document: dict[str, Any]) -> Recovery:
    """What `recover_organism` found, for tables and figures."""
    suite, settings, results = ORGANISMS[document["suite"]], document["settings"], document["results"]
    title = (
        f"What is known of the rows of {suite.what}, block {settings['layer']}, and which latents stand for it\n"
        f"{settings['latents']} latents, {settings['steps']} steps of {settings['batch']} rows"
    )
    columns = [(kind, score) for kind, scores in results[0]["known"].items() for score in scores if score != "features"]
    scores = (
        *(Score(f"{kind} {s}", f"{kind} {SCORES[s]}", "{:.2f}", drawn=s != "auroc") for kind, s in columns),
        Score("explained_variance", "EV", "{:.2f}", better=0, drawn=False),
        Score("l0", "L0", "{:.1f}", better=0, drawn=False),
    )
    lines = [_line(suite, name, results) for name in dict.fromkeys(r["method"] for r in results)]
    return Recovery(suite.name, title, CAPTION, scores, suite.headline, lines, "")


def _line(suite: OrganismSuite, name: str, results: list[dict[str, Any]]) -> Line:
    own = [r for r in results if r["method"] == name]
    variants = {
        baseline: _values([r for r in own if r["baseline"] == baseline], "known")
        for baseline in dict.fromkeys(r["baseline"] for r in own)
        if baseline
    }
    trained = [r for r in own if r["baseline"] is None]
    if "chance" in own[0]:
        variants["chance"] = _values(trained, "chance")
    bare = BARE.get(name)
    label = bare or suite.contestants[name].what
    return Line("" if bare else name, label, _values(trained, "known"), variants, {})


def _values(results: list[dict[str, Any]], of: str) -> Values:
    """Scores over seeds by kind and score; of a dictionary itself, also how well it reconstructs."""
    known = [finite_again(r[of]) for r in results]
    kinds = {f"{kind} {score}": [k[kind][score] for k in known] for kind in known[0] for score in known[0][kind]}
    if of == "known":
        kinds |= {key: [r[key] for r in results] for key in ("explained_variance", "l0") if key in results[0]}
    return kinds
