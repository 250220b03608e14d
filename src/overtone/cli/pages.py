"""Dictionaries with their text, and what a page shows of them: for `overtone report` and `overtone view`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from overtone import checkpoint, formats
from overtone.cli.beside import Seen, with_counterparts
from overtone.cli.common import console, finite_again, names_of
from overtone.cli.evaluate import LARGEST_RESULTS, check_options, checksum, measure
from overtone.cli.in_text import InText, Shown, Split, examples_of, shown_in
from overtone.cli.rows import Stored, model_of, run_at, source_of
from overtone.cli.score import KIND as SCORES
from overtone.cli.truths import OnTruth
from overtone.dictionary import Dictionary
from overtone.interpret.alongside import Passages
from overtone.interpret.examples import ExamplePlan, LatentExamples
from overtone.interpret.histograms import CodeHistograms
from overtone.interpret.neighbours import FiredTogether, by_direction
from overtone.metrics.lens import logit_lens
from overtone.report.page import LatentsView, PageText, RunView, page_text
from overtone.runs import RunFolder
from overtone.selection import AbsTopK
from overtone.users_code import parts_named

PLAN = ExamplePlan(top=10, sample=12, pool=1)
COUNTED_TOGETHER = 50_000  # rows on which is counted which latents fire together
PROMOTED = 8
PASSAGES, PASSAGE = 20, 64  # pieces of text with all codes, and tokens of each


class Subject(NamedTuple):
    """A dictionary to show, and the text to show it in.

    Attributes:
        name: how the page calls it.
        dictionary: it.
        text: its text, or the rows of its truth.
        folder: of the run that trained it; None: another tool's.
        metrics: what was measured of it; None: to be measured while its text is read.
    """

    name: str
    dictionary: Dictionary
    text: Shown
    folder: RunFolder | None
    metrics: Mapping[str, Any] | None


def subjects_of(
    runs: Sequence[Path],
    *,
    store: Path | None,
    site: tuple[str, ...],
    target: str | None,
    split: Split,
    rows: int | None,
    seed: int,
    input_norm: formats.InputNorm | None,
    parts: tuple[str, ...],
) -> list[Subject]:
    """Dictionaries with what to show them in; arguments as in `overtone report`."""
    check_options(runs, 1 if rows is None else rows, None, False)
    own = parts_named(parts)
    subjects = []
    for run, name in zip(runs, names_of(runs), strict=True):
        dictionary = formats.load(run, parts=own, input_norm=input_norm)
        text = shown_in(run, dictionary, store=store, site=site, split=split, rows=rows, parts=tuple(own))
        folder = run_at(run, own)
        source = source_of(folder) if folder else None
        wanted = target or (source.target if isinstance(source, Stored) else None)
        metrics = _onto_another(name, dictionary, text, wanted, seed) if isinstance(text, InText) else None
        subjects.append(Subject(name, dictionary, text, folder, metrics))
    return subjects


def _onto_another(
    name: str, dictionary: Dictionary, text: InText, target: str | None, seed: int
) -> Mapping[str, Any] | None:
    """Metrics of a dictionary that reconstructs another site than it reads, which takes a pass of its own; else None."""
    layout = text.store.layout(text.site, target)
    if layout.onto_itself and dictionary.layout.onto_itself:
        return None
    batches = text.store.batches(text.site, text.split, target=target, limit=text.most, seed=seed)
    return measure(name, dictionary, batches, text.where, layout)["metrics"]


def run_views(
    subjects: Sequence[Subject],
    *,
    scores: Path | None = None,
    lens: bool = False,
    seed: int = 0,
) -> list[RunView]:
    """Gather what a page shows; arguments as in `overtone report`."""
    scored = _scores(scores)
    seen = [_seen(s, seed, scored.get(checksum(s.dictionary), {}), lens) for s in subjects]
    found = with_counterparts(seen)
    texts = _texts(subjects, found)
    return [
        RunView(
            s.name,
            checksum(s.dictionary),
            _about(s, one.metrics),
            one.metrics,
            s.folder.records() if s.folder else [],
            _targets(s),
            view,
            texts[s.text.key],
        )
        for s, one, view in zip(subjects, seen, found, strict=True)
    ]


def _seen(subject: Subject, seed: int, scored: Mapping[str, Any], lens: bool) -> Seen:
    """One pass over the text, and what follows from the weights."""
    dictionary = subject.dictionary
    # Rows of a truth have no neighbours.
    plan = replace(PLAN, seed=seed) if isinstance(subject.text, InText) else replace(PLAN, seed=seed, width=1, before=0)
    sizes = CodeHistograms(dictionary.latents)
    together = FiredTogether(dictionary.latents, min(1.0, COUNTED_TOGETHER / subject.text.most), seed)
    passages = Passages(PASSAGES, PASSAGE, seed)
    watch = (
        lambda codes, _: sizes.add(codes),
        lambda codes, text: together.add(codes, text.first),
        passages.add,
    )
    seen: LatentExamples = examples_of(
        subject.name, dictionary, subject.text, plan, z_scores=True, measure=subject.metrics is None, watch=watch
    )
    assert seen.z_score is not None
    detection = None
    if scored:
        detection = torch.full((dictionary.latents,), torch.nan)
        for latent, values in scored["scores"].items():
            detection[int(latent)] = finite_again(values)["detection"]
    signed = not isinstance(dictionary.select, AbsTopK)
    view = LatentsView(
        seen.seen.frequency.float(),
        seen.seen.peak.float(),
        seen.z_score,
        seen.top,
        seen.sample,
        sizes.counts,
        sizes.width,
        by_direction(dictionary.W_dec.detach().float(), signed=signed),
        together.neighbours(),
        lens=_lens(subject) if lens else None,
        labels={int(latent): words for latent, words in scored.get("explanations", {}).items()},
        detection=detection,
        passages=passages.passages(),
    )
    metrics = subject.metrics
    if metrics is None:
        assert seen.reconstruction is not None
        metrics = seen.reconstruction.summary()
    if isinstance(subject.text, OnTruth):
        truth, found = subject.text.view(dictionary)
        view, metrics = view._replace(truth=truth), {**metrics, **found}
    return Seen(subject.name, dictionary, subject.text, view, together, metrics)


def _lens(subject: Subject) -> list[tuple[list[str], list[str]]] | None:
    """What latents promote and suppress; None, and why, where a model's text is shown and that cannot be said."""
    if not isinstance(subject.text, InText):
        return None
    try:
        lm, _ = model_of(subject.text.store)
        promoted = logit_lens(lm, subject.dictionary.effective_atoms, k=PROMOTED)
    except (ValueError, OSError, ImportError) as error:
        console.print(f"{subject.name} without promoted tokens: {error}", markup=False, soft_wrap=True)
        return None
    return [promoted.words(lm.tokenizer, m) for m in range(subject.dictionary.latents)]


def _scores(path: Path | None) -> dict[str, dict[str, Any]]:
    """Checksum of the weights → explanations and scores of `overtone score`."""
    if path is None:
        return {}
    results = checkpoint.read_json(path, SCORES, largest=LARGEST_RESULTS)["runs"]
    return {result["weights"]: result for result in results if "scores" in result}


def _texts(subjects: Sequence[Subject], views: Sequence[LatentsView]) -> dict[tuple[str, ...], PageText]:
    """Every text once, with what any of its dictionaries shows of it."""
    windows: dict[tuple[str, ...], list[Any]] = {}
    for subject, view in zip(subjects, views, strict=True):
        shown = [view.strongest, view.sampled, *(passage.window() for passage in view.passages)]
        windows.setdefault(subject.text.key, []).extend(shown)
    texts = {subject.text.key: subject.text for subject in subjects}
    return {key: page_text(parts, texts[key].words, texts[key].unit) for key, parts in windows.items()}


def _targets(subject: Subject) -> Tensor | None:
    spectrum = subject.folder.run.method.spectrum if subject.folder else None
    return None if spectrum is None else spectrum.targets(subject.dictionary.latents)


def title_of(subject: Subject) -> str:
    """What a page of it is called unless the user says so."""
    return subject.text.title


def _about(subject: Subject, metrics: Mapping[str, Any]) -> dict[str, str]:
    """What was trained on what, in words."""
    dictionary, text = subject.dictionary, subject.text
    about = {"dictionary": f"{dictionary.latents:,} latents, {dictionary.layout}"}
    if subject.folder:
        run = subject.folder.run
        about = {"method": run.method.name} | about
        about["training"] = f"{run.steps:,} steps of {run.batch:,} {text.unit}, seed {run.seed}"
    about |= text.about
    about["examples and numbers from"] = f"{metrics['rows']:,} {text.where.split(' of ')[0]}"
    return about
