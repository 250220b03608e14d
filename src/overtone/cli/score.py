"""`overtone score`: how well words tell where latents fire, by detection and fuzzing."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import TextColumn
from rich.table import Table

from overtone import formats
from overtone.cli.common import console, finite_again, progress_bar, resumable, write_json
from overtone.cli.evaluate import check_options, checksum, finished
from overtone.cli.in_text import InText, Split, examples_of, in_text
from overtone.cli.rows import EVALUATED
from overtone.data.models import load_model
from overtone.dictionary import Dictionary
from overtone.interpret.chat_scorer import ChatScorer
from overtone.interpret.detection import (
    SCORES,
    LatentScore,
    Questions,
    ScorePlan,
    TokenText,
    explain_latents,
    score_latents,
    score_summary,
)
from overtone.interpret.examples import ExamplePlan
from overtone.interpret.local_scorer import LocalScorer
from overtone.interpret.random_dictionary import random_like
from overtone.interpret.scorers import Scorer, TokenScorer
from overtone.report.tables import cell
from overtone.users_code import parts_named
from overtone.version import __version__

KIND = "overtone-scores"
SAVED_EVERY = 2.0  # seconds


def score(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    scorer: str = "tokens",
    scorer_model: str = "",
    latents: int = 200,
    shuffled: bool = True,
    baseline: bool = True,
    store: Path | None = None,
    site: tuple[str, ...] = (),
    split: Split = "held_out",
    rows: int = EVALUATED,
    seed: int = 0,
    input_norm: formats.InputNorm | None = None,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
    resume: bool = False,
) -> None:
    """Score how well words tell where latents fire: detection and fuzzing (arXiv 2410.13928).

    A scorer reads texts in which a latent fires and says in words on what; then, from the words alone, in which of other texts it
    fires (detection), and whether marked tokens are those on which it does (fuzzing). Both are balanced accuracies: a half is
    chance. Beside them stand the scores with another latent's words, and those of a dictionary of random atoms with the same L0.

    With --json, explanations and scores are written as they come. Stopped, the same command with --resume goes on.

    Args:
        runs: run folders, or dictionaries of overtone's or another tool's (then give --store).
        scorer: tokens (no model, no cost: the tokens that a latent fires on and after), hf:PATH (a local or Hugging Face language
            model), or openai:URL (any OpenAI-compatible endpoint, such as openai:https://api.openai.com/v1; the key is read from
            OPENAI_API_KEY).
        scorer_model: the model's name at that endpoint.
        latents: how many latents, drawn at random from those with examples enough; 0: all of them.
        shuffled: also judge every latent by the words for another one.
        baseline: also score a dictionary of random atoms.
        store: a store whose text to use instead of the run's own.
        site: which site of that store, or which several of a crosscoder (default: the run's own).
        split: held_out, or train where that has too little text.
        rows: how many rows to look for examples in, at most.
        seed: of the choice of latents, of examples, and of the random atoms.
        input_norm: how rows are scaled before another tool's dictionary reads them, where its files do not say (row: to norm 1;
            rms: to norm √d).
        parts: your own Python files or modules that the methods' parts are defined in.
        json: write the results to this file.
        resume: take from --json what was done with the same settings before.
    """
    check_options(runs, rows, json, resume)
    if latents < 0:
        raise ValueError(f"latents={latents} must be at least 0; 0 scores all of them")
    judge, own = scorer_named(scorer, scorer_model), parts_named(parts)
    settings: dict[str, Any] = {"scorer": judge.name, "latents": latents, "shuffled": shuffled, "baseline": baseline}
    settings |= {"store": None if store is None else str(store.resolve()), "site": list(site), "split": split}
    settings |= {"rows": rows, "seed": seed, "input_norm": input_norm}
    done = finished(json, KIND, settings) if resume and json is not None else {}
    results: list[dict[str, Any]] = []
    save = _saver(json, settings, results)
    with resumable(f"overtone score … --json {json or 'FILE'} --resume"):
        try:
            for run in runs:
                dictionary = formats.load(run, parts=own, input_norm=input_norm)
                weights = checksum(dictionary)
                result = done.get((str(run), weights), {"run": str(run), "weights": weights})
                results.append(result)
                text = in_text(run, dictionary, store=store, site=site, split=split, rows=rows, parts=tuple(own))
                work = Work(judge, text, latents or None, shuffled, seed, lambda: save(False))
                work.fill(run.name, dictionary, result)
                if baseline:
                    _fill_baseline(work, dictionary, result, results)
        finally:
            save(True)
    console.print(_table(runs, results, judge.name))
    if json is not None:
        console.print(f"Results as JSON: {json}")


class Work:
    """What is done for every dictionary of a run, into a result that knows how far it has come."""

    def __init__(
        self, scorer: Scorer, text: InText, latents: int | None, shuffled: bool, seed: int, save: Callable[[], None]
    ):
        self.scorer, self.text, self.latents = scorer, text, latents
        self.shuffled, self.seed, self.save = shuffled, seed, save

    def fill(self, name: str, dictionary: Dictionary, result: dict[str, Any]) -> None:
        """Explain and score what the result does not hold yet."""
        if "summary" in result:
            return
        examples = examples_of(name, dictionary, self.text, ExamplePlan(seed=self.seed))
        questions = Questions(examples, TokenText(self.text.tokenizer), ScorePlan(seed=self.seed))
        chosen = questions.chosen(self.latents, self.seed)
        rows = int(examples.seen.rows)
        result |= {"rows": rows, "where": self.text.where, "l0": float(examples.seen.fired.sum()) / rows}
        result |= {"answerable": len(questions.answerable) / dictionary.latents}
        words, scores = result.setdefault("explanations", {}), result.setdefault("scores", {})
        with progress_bar(TextColumn("{task.completed:.0f} of {task.total:.0f} latents")) as progress:
            task = progress.add_task(f"Explaining {name}", total=len(chosen), completed=len(words))
            for latent, explanation in explain_latents(questions, _missing(chosen, words), self.scorer):
                words[str(latent)] = explanation
                progress.advance(task)
                self.save()
            task = progress.add_task(f"Scoring {name}", total=len(chosen), completed=len(scores))
            explained = {latent: words[str(latent)] for latent in chosen}
            todo = _missing(chosen, scores)
            for found in score_latents(questions, explained, self.scorer, latents=todo, shuffled=self.shuffled):
                scores[str(found.latent)] = {key: getattr(found, key) for key in SCORES}
                progress.advance(task)
                self.save()
        whole = [LatentScore(latent, **finite_again(scores[str(latent)])) for latent in chosen]
        result["frequencies"] = {str(latent): float(examples.seen.frequency[latent]) for latent in chosen}
        result["summary"] = score_summary(whole)


def scorer_named(scorer: str, model: str) -> Scorer:
    """The scorer that the options name."""
    kind, _, place = scorer.partition(":")
    if model and kind != "openai":
        raise ValueError(f"--scorer-model {model} is for --scorer openai:URL; drop it")
    if scorer == "tokens":
        return TokenScorer()
    if kind == "hf" and place:
        return LocalScorer(load_model(place))
    if kind == "openai" and place:
        return ChatScorer(place, model)
    raise ValueError(f"--scorer {scorer} is none of tokens, hf:PATH and openai:URL")


def _missing(chosen: Sequence[int], done: dict[str, Any]) -> list[int]:
    return [latent for latent in chosen if str(latent) not in done]


def _fill_baseline(work: Work, dictionary: Dictionary, result: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Score random atoms; dictionaries of one shape share them."""
    k = min(max(1, round(result["l0"])), dictionary.latents)
    of = f"{dictionary.latents} latents, L0 {k}, {dictionary.layout.reads}, {dictionary.parametrisation.input_norm}, "
    of += work.text.where
    known = (r["random"] for r in results if r.get("random", {}).get("of") == of)
    random = result["random"] = next(known, {"of": of})
    if "summary" not in random:
        first = next(work.text.rows()).x
        work.fill(f"random atoms, L0 {k}", random_like(dictionary, k, first, seed=work.seed), random)


def _saver(json: Path | None, settings: dict[str, Any], results: list[dict[str, Any]]) -> Callable[[bool], None]:
    """Writes the results so far: at most every few seconds, or at once where it is the last time."""
    last = time.monotonic()

    def save(at_once: bool) -> None:
        nonlocal last
        if json is not None and results and (at_once or time.monotonic() - last > SAVED_EVERY):
            description = {"format": KIND, "version": 1, "overtone": __version__, "settings": settings}
            write_json(json, description | {"runs": results}, quiet=True)
            last = time.monotonic()

    return save


def _table(runs: Sequence[Path], results: Sequence[dict[str, Any]], scorer: str) -> Table:
    """Mean balanced accuracies, the middle half of the latents in brackets, and the random atoms below."""
    table = Table(title=f"Balanced accuracy, scorer {scorer} (a half is chance)", title_justify="left")
    for label in ("", "latents", "L0", "detection", "fuzzing", "others' words: detection", "fuzzing"):
        table.add_column(label, justify="right" if label else "left", no_wrap=not label)
    shown = [(run.name, result) for run, result in zip(runs, results, strict=True)]
    baselines: dict[str, Any] = {r["random"]["of"]: r["random"] for r in results if "random" in r}
    shown += [(f"random atoms, L0 {random['l0']:.0f}", random) for random in baselines.values()]
    for name, result in shown:
        summary = finite_again(result["summary"])
        table.add_row(
            name, f"{summary['latents']:,}", f"{result['l0']:.1f}", *(_spread(summary, key) for key in SCORES)
        )
    return table


def _spread(summary: dict[str, Any], key: str) -> str:
    value, quantiles = summary.get(key), summary.get(f"{key}_quantiles")
    if value is None or quantiles is None or math.isnan(value):
        return "–"
    return f"{cell(value, '{:.3f}')} ({quantiles['0.25']:.2f}–{quantiles['0.75']:.2f})"
