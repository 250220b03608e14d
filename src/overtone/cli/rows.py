"""A run's rows: read from a store (harvested into the run folder where there was none), or from the user's file."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from overtone.cli.common import console, token_progress
from overtone.config import from_json, to_json
from overtone.data.filling import Plan, harvest_store, plan_of, site_widths
from overtone.data.models import LanguageModel, load_model
from overtone.data.shuffle import StoreStream
from overtone.data.sites import resolve_site
from overtone.data.source import FileSource, StoreSource
from overtone.data.store import HELD_OUT, TRAIN, Manifest, Store
from overtone.data.stream import ArrayStream, Batch, Stream
from overtone.data.text import Document
from overtone.runs import RunFolder, claim_folder
from overtone.training import Run

Source = StoreSource | FileSource
ACTIVATIONS = "activations"  # the store in a run's folder
EVALUATED = 200_000  # held-out rows of a store that are measured on, unless said otherwise


class Rows(NamedTuple):
    """What a run reads: an endless stream to train on, and rows never trained on."""

    stream: Stream
    held_out: Callable[[], Iterable[Tensor | Batch]]


def new_run(path: Path, source: Source | Plan, make_run: Callable[[int], Run]) -> tuple[RunFolder, Rows]:
    """Claim a folder, write the configuration, get the rows; `make_run` is told the rows' width d.

    Everything that can be wrong is found before the folder is made: an error leaves nothing behind.
    """
    if isinstance(source, Plan):
        lm = load_model(source.model)
        run = make_run(check_plan(lm, source)[source.sites[0]])
        claim_folder(path)
        data = {"source": to_json(StoreSource(ACTIVATIONS, source.sites[0])), "harvest": to_json(source)}
        folder = RunFolder.create(path, run, data)
        harvest_with_held_out(path / ACTIVATIONS, source, lm)
        return folder, rows_of(folder)
    if isinstance(source, StoreSource):
        store = source.open(path)
        d = store.sites[store.site(source.site)]
        store.shards(TRAIN)
    else:
        d = source.split().train.shape[1]
    run = make_run(d)
    claim_folder(path)
    folder = RunFolder.create(path, run, {"source": to_json(source)})
    return folder, rows_of(folder)


def check_plan(lm: LanguageModel, plan: Plan) -> dict[str, int]:
    """Site → d; raises what is wrong with the plan's sites and text, before anything is written."""
    widths = site_widths(lm, [resolve_site(lm.model, name) for name in plan.sites], plan)
    if next(plan.documents(), None) is None:
        raise ValueError(f"the text {', '.join(plan.text)} holds no document; give another")
    return widths


def harvest_into(path: Path, plan: Plan, lm: LanguageModel) -> Store:
    """Harvest behind a progress bar, and say what came out."""
    with token_progress(f"Reading {', '.join(plan.text)} with {plan.model}") as progress:
        harvest_store(lm, plan, path, progress=progress)
    store = Store(path)
    held = store.rows(HELD_OUT)
    widths = ", ".join(f"{site} (d = {d})" for site, d in store.sites.items())
    console.print(
        f"Read {store.rows(TRAIN):,} tokens of {', '.join(plan.text)} at {widths} of {plan.model} (+ {held:,} held out)"
    )
    _warn_of_outliers(store.manifest, plan)
    return store


def _warn_of_outliers(manifest: Manifest, plan: Plan) -> None:
    for site, stats in manifest.statistics.get(TRAIN, {}).items():
        if stats.outliers:
            done = "left out" if plan.drop_outliers else "kept; --drop-outliers leaves them out"
            console.print(
                f"{site}: {stats.outliers:,} of {stats.rows:,} rows have a norm above {plan.outlier_factor:g} × the median, "
                f"up to {stats.norm_max / stats.norm_median:.0f} × ({done})"
            )


def harvest_with_held_out(path: Path, plan: Plan, lm: LanguageModel) -> Store:
    """Harvest a store that has rows to measure on."""
    store = harvest_into(path, plan, lm)
    if not store.rows(HELD_OUT):
        raise ValueError(
            f"no document of {', '.join(plan.text)} was held out to measure on: there are too few for a share of "
            f"{plan.held_out:g}. Give more text. The activations are in {path}"
        )
    return store


def source_of(folder: RunFolder) -> Source:
    """Where a run's rows come from."""
    return from_json(folder.data["source"], extra=(StoreSource, FileSource))


def rows_of(folder: RunFolder) -> Rows:
    """The rows of an existing run; a harvest that was interrupted goes on."""
    source, run = source_of(folder), folder.run
    if isinstance(source, FileSource):
        split = source.split()
        stream = ArrayStream(split.train, run.batch, seed=run.seed, source=source.path)
        return Rows(stream, lambda: split.held_out.split(1024))
    if "harvest" in folder.data:
        plan = from_json(folder.data["harvest"], extra=(Plan,))
        if not _is_complete(folder.path / source.path):
            harvest_with_held_out(folder.path / source.path, plan, load_model(plan.model))
    store = open_store(folder)
    options: dict[str, Any] = {"site": source.site, "target": source.target, "memory_mib": source.memory_mib}
    return Rows(
        StoreStream(store, run.batch, seed=run.seed, **options),
        lambda: store.batches(source.site, HELD_OUT, target=source.target, limit=EVALUATED),
    )


def _is_complete(path: Path) -> bool:
    try:
        return Store(path).manifest.complete
    except FileNotFoundError:
        return False


def open_store(folder: RunFolder) -> Store:
    """The store that a run reads. FileNotFoundError when it was removed."""
    source = source_of(folder)
    if not isinstance(source, StoreSource):
        raise ValueError(f"{folder.path} was trained on a file of activations, {source.path}, and not on a store")
    try:
        return source.open(folder.path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. The activations of {folder.path} were moved or removed; measure on other rows with --activations FILE"
        ) from error


def model_of(store: Store) -> tuple[LanguageModel, Plan]:
    """The model that a store was harvested from, and how."""
    plan = plan_of(store.manifest, store.path)
    return load_model(plan.model), plan


def held_out_documents(store: Store, plan: Plan, count: int) -> list[Document]:
    """The first documents of the text that gave held-out rows.

    By name and not by splitting again: text that has changed since must not put training documents here.
    """
    names = store.names(HELD_OUT)
    chosen = (doc for number, doc in plan.documents() if plan.split(number) == HELD_OUT and doc.name in names)
    documents = list(islice(chosen, count))
    if not documents:
        raise ValueError(f"{', '.join(plan.text)} no longer has the documents that were held out; restore the text")
    return documents
