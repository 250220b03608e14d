"""Dictionaries looked at in the text that their rows come from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.progress import TextColumn

from overtone.cli.common import progress_bar
from overtone.cli.rows import open_store, run_at, source_of
from overtone.data.filling import plan_of
from overtone.data.models import load_tokenizer
from overtone.data.source import FileSource
from overtone.data.store import Store
from overtone.data.text_rows import TextRows, store_rows
from overtone.dictionary import Dictionary
from overtone.interpret.examples import ExamplePlan, LatentExamples, Watch, collect_examples

Split = Literal["held_out", "train"]


class InText(NamedTuple):
    """The text of a run.

    Attributes:
        store: where its rows are.
        site: which rows.
        rows: they, in the order of the text, as often as they are asked for.
        tokenizer: of the model that they were harvested from.
        where: what they are, in words.
    """

    store: Store
    site: str | tuple[str, ...]
    rows: Callable[[], Iterator[TextRows]]
    tokenizer: Any
    where: str


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
    if store is None and (folder is None or isinstance(source, FileSource)):
        raise ValueError(
            f"{run} does not say which text its rows come from; give --store STORE, of activations harvested from a model"
        )
    opened = open_store(folder) if store is None and folder is not None else Store(store or run)
    own = None if source is None or isinstance(source, FileSource) else source.site
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
    return InText(opened, chosen, read, tokenizer, f"{split.replace('_', '-')} rows of {opened.path}")


def examples_of(
    name: str,
    dictionary: Dictionary,
    text: InText,
    plan: ExamplePlan,
    *,
    z_scores: bool = False,
    measure: bool = False,
    watch: Sequence[Watch] = (),
) -> LatentExamples:
    """Examples of every latent, behind a progress bar."""
    with rows_bar(f"Reading the text with {name}") as progress:
        return collect_examples(
            dictionary, text.rows(), plan, z_scores=z_scores, measure=measure, watch=watch, progress=progress
        )


@contextmanager
def rows_bar(label: str) -> Iterator[Callable[[int], None]]:
    """A progress callback that counts rows."""
    with progress_bar(TextColumn("{task.completed:,.0f} rows")) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done: progress.update(task, completed=done)
