"""Dictionaries looked at in the text that their rows come from, or on the rows of a known truth."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.progress import TextColumn

from overtone.cli.common import progress_bar
from overtone.cli.rows import EVALUATED, Stored, open_store, run_at, source_of
from overtone.cli.truths import SCORED_ROWS, OnTruth
from overtone.data.filling import plan_of
from overtone.data.models import load_tokenizer
from overtone.data.source import TruthSource
from overtone.data.store import HELD_OUT, Store
from overtone.data.text_rows import TextRows, store_rows
from overtone.dictionary import Dictionary
from overtone.interpret.detection import TokenText
from overtone.interpret.examples import ExamplePlan, LatentExamples, Watch, collect_examples

Split = Literal["held_out", "train"]
Words = Callable[[list[int]], Sequence[str]]


class InText(NamedTuple):
    """The text of a run.

    Attributes:
        store: where its rows are.
        site: which rows.
        rows: they, in the order of the text, as often as they are asked for.
        tokenizer: of the model that they were harvested from.
        where: what they are, in words.
        split: of which part of the store.
        most: how many rows, at most.
    """

    store: Store
    site: str | tuple[str, ...]
    rows: Callable[[], Iterator[TextRows]]
    tokenizer: Any
    where: str
    split: Split
    most: int

    @property
    def key(self) -> tuple[str, ...]:
        """The same for the same rows."""
        return (str(self.store.path.resolve()), self.where)

    @property
    def unit(self) -> str:
        """What is counted."""
        return "tokens"

    @property
    def words(self) -> Words:
        """Of the ids of tokens that follow one another, the text that each adds."""
        return TokenText(self.tokenizer).words

    @property
    def title(self) -> str:
        """What a page about it is called: the model, the site and the text."""
        plan = plan_of(self.store.manifest, self.store.path)
        where = self.site if isinstance(self.site, str) else " + ".join(self.site)
        return f"{_last(plan.model)} {where} on {', '.join(map(_last, plan.text))}"

    @property
    def about(self) -> dict[str, str]:
        """What it is, in words."""
        plan = plan_of(self.store.manifest, self.store.path)
        sites = (self.site,) if isinstance(self.site, str) else self.site
        return {"activations": f"{', '.join(sites)} of {_last(plan.model)}", "text": ", ".join(map(_last, plan.text))}


def _last(name: str) -> str:
    """The last part of a path, for a page that others will read; any other name as it is."""
    return Path(name).name if Path(name).is_absolute() else name


Shown = InText | OnTruth


def shown_in(
    run: Path,
    dictionary: Dictionary,
    *,
    store: Path | None,
    site: tuple[str, ...],
    split: Split,
    rows: int | None,
    parts: tuple[type, ...] = (),
) -> Shown:
    """What to look at a dictionary in: the rows of the truth that it was trained on, or else a text, as `in_text`.

    Args:
        run, dictionary, store, site, split, parts: as in `in_text`.
        rows: at most; None: `EVALUATED` of a text, `SCORED_ROWS` of a truth.
    """
    folder = run_at(run, parts)
    source = source_of(folder) if folder and store is None else None
    if not isinstance(source, TruthSource):
        most = EVALUATED if rows is None else rows
        return in_text(run, dictionary, store=store, site=site, split=split, rows=most, parts=parts)
    if site or split != HELD_OUT:
        raise ValueError(
            f"{run} was trained on suite {source.suite}, whose held-out rows are shown; drop --site and --split"
        )
    return OnTruth(source, SCORED_ROWS if rows is None else rows)


def in_text(
    run: Path,
    dictionary: Dictionary,
    *,
    store: Path | None,
    site: tuple[str, ...],
    split: Split,
    rows: int,
    parts: tuple[type, ...] = (),
) -> InText:
    """The text to look at a dictionary in: of a store, or of the run itself.

    Raises:
        ValueError: rows without a text, of another width, or of a dictionary that is no run.
    """
    folder = run_at(run, parts)
    source = source_of(folder) if folder else None
    if store is None and (folder is None or not isinstance(source, Stored)):
        raise ValueError(
            f"{run} does not say which text its rows come from; give --store STORE, of activations harvested from a model"
        )
    opened = open_store(folder) if store is None and folder is not None else Store(store or run)
    own = source.site if isinstance(source, Stored) else None
    chosen = (site[0] if len(site) == 1 else site) or own or opened.site()
    layout = opened.layout(chosen)
    if layout.d != dictionary.d:
        raise ValueError(
            f"{opened.path} has rows of {layout}, the dictionary {run} reads d={dictionary.d}; give its own with --site"
        )
    if opened.manifest.source.get("kind") != "harvest":
        raise ValueError(f"{opened.path} was not harvested from a model, so the text of its rows is not known")
    tokenizer = load_tokenizer(plan_of(opened.manifest, opened.path).model)
    read = partial(store_rows, opened, chosen, split, limit=rows)
    where = f"{split.replace('_', '-')} rows of {opened.path}"
    return InText(opened, chosen, read, tokenizer, where, split, rows)


def examples_of(
    name: str,
    dictionary: Dictionary,
    text: Shown,
    plan: ExamplePlan,
    *,
    z_scores: bool = False,
    measure: bool = False,
    watch: Sequence[Watch] = (),
) -> LatentExamples:
    """Examples of every latent, behind a progress bar."""
    with rows_bar(f"Reading {'the text' if text.unit == 'tokens' else 'rows'} with {name}") as progress:
        return collect_examples(
            dictionary, text.rows(), plan, z_scores=z_scores, measure=measure, watch=watch, progress=progress
        )


@contextmanager
def rows_bar(label: str) -> Iterator[Callable[[int], None]]:
    """A progress callback that counts rows."""
    with progress_bar(TextColumn("{task.completed:,.0f} rows")) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done: progress.update(task, completed=done)
