"""A run's rows: read from a store (harvested into the run folder where there was none) or a file, or drawn from a truth."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from overtone import formats
from overtone.cli.common import console, token_progress
from overtone.cli.truths import SCORED_ROWS, truth_of
from overtone.config import from_json, to_json
from overtone.data.filling import HarvestPlan, harvest_store, plan_of, site_widths
from overtone.data.live import HarvestStream
from overtone.data.models import LanguageModel, load_model
from overtone.data.shuffle import StoreStream
from overtone.data.sites import resolve_site
from overtone.data.source import FileSource, LiveSource, StoreSource, TruthSource
from overtone.data.store import HELD_OUT, TRAIN, Manifest, Store
from overtone.data.stream import ArrayStream, Batch, SharedRows, Stream
from overtone.data.text import Document
from overtone.parallel import ALONE, Axis
from overtone.runs import CONFIG, RunFolder, claim_folder
from overtone.training import Run

Stored = StoreSource | LiveSource
Source = Stored | FileSource | TruthSource
ACTIVATIONS = "activations"  # the store in a run's folder
EVALUATED = 200_000  # held-out rows of a store that are measured on, unless said otherwise
LIVE_EVALUATED = 20_000  # held-out rows that are kept where the rows to train on are not


class Member(NamedTuple):
    """One of the runs that share their rows: its folder's name below the others' ("" for a run alone)."""

    name: str
    run: Run
    site: str | tuple[str, ...]
    target: str | None


class Wanted(NamedTuple):
    """Rows as the options describe them: `read` says where they come from, the rest how they are used."""

    read: HarvestPlan | FileSource | Path
    sites: tuple[str, ...]
    target: str | None = None
    memory_mib: int = 512
    buffer_rows: int | None = None

    def source(self, member: Member) -> Source:
        """Where a member's rows come from, seen from its folder."""
        if isinstance(self.read, FileSource):
            return self.read
        if isinstance(self.read, Path):
            return StoreSource(str(self.read.resolve()), member.site, member.target, self.memory_mib)
        path = f"../{ACTIVATIONS}" if member.name else ACTIVATIONS
        if self.buffer_rows is not None:
            return LiveSource(path, member.site, member.target, self.buffer_rows)
        return StoreSource(path, member.site, member.target, self.memory_mib)


class Rows(NamedTuple):
    """What a run reads: an endless stream to train on, and rows never trained on."""

    stream: Stream
    held_out: Callable[[], Iterable[Tensor | Batch]]


def new_runs(
    path: Path,
    wanted: Wanted,
    members_of: Callable[[dict[str, int]], Sequence[Member]],
    load: Callable[[str], LanguageModel] = load_model,
) -> tuple[list[RunFolder], list[Rows]]:
    """Claim a folder, write the configurations, get the rows; `members_of` is told site → d, `load` gives the model."""
    folders, lm = new_folders(path, wanted, members_of, load)
    return folders, rows_of(folders, lm, load)


def new_folders(
    path: Path,
    wanted: Wanted,
    members_of: Callable[[dict[str, int]], Sequence[Member]],
    load: Callable[[str], LanguageModel] = load_model,
) -> tuple[list[RunFolder], LanguageModel | None]:
    """Claim a folder and write the configurations; also the model that the rows will be read from, if one.

    Everything that can be wrong is found before the folder is made: an error leaves nothing behind.
    """
    lm = None
    if isinstance(wanted.read, HarvestPlan):
        lm = load(wanted.read.model)
        widths = check_plan(lm, wanted.read)
    elif isinstance(wanted.read, Path):
        store = Store(wanted.read)
        widths = store.sites
        for split in (TRAIN, HELD_OUT):
            store.shards(split)
    else:
        widths = {"": wanted.read.split().train.shape[1]}
    members = members_of(widths)
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is asked for twice; give every method, width and L0 once")
    claim_folder(path)
    folders = []
    for member in members:
        data = {"source": to_json(wanted.source(member)), "order": members[0].run.seed}
        if isinstance(wanted.read, HarvestPlan):
            data["harvest"] = to_json(wanted.read)
        (path / member.name).mkdir(exist_ok=True)
        folders.append(RunFolder.create(path / member.name, member.run, data))
    return folders, lm


def holds_runs(path: Path) -> bool:
    """Whether a run was started in a folder, or several below it."""
    return (path / CONFIG).exists() or any(path.glob(f"*/{CONFIG}"))


def existing_runs(path: Path, parts: Iterable[type] = ()) -> list[RunFolder]:
    """The run in a folder, or the runs below it that share their rows. `parts`: the user's own, as in `RunFolder.open`."""
    below = sorted(p.parent for p in path.glob("*/config.json")) if not (path / "config.json").exists() else []
    return [RunFolder.open(folder, parts) for folder in below or [path]]


def check_plan(lm: LanguageModel, plan: HarvestPlan, holders: Axis = ALONE) -> dict[str, int]:
    """Site → d; raises what is wrong with the plan's sites and text, before anything is written.

    `holders`: processes that hold the model together; all of them ask.
    """
    widths = site_widths(lm, [resolve_site(lm.model, name) for name in plan.sites], plan, holders)
    if next(plan.documents(), None) is None:
        raise ValueError(f"the text {', '.join(plan.text)} holds no document; give another")
    return widths


def harvest_into(
    path: Path, plan: HarvestPlan, lm: LanguageModel, *, quiet: bool = False, holders: Axis = ALONE
) -> Store:
    """Harvest behind a progress bar, and say what came out. `holders`: as in `harvest_store`."""
    if quiet:
        harvest_store(lm, plan, path, holders=holders)
        return Store(path)
    with token_progress(f"Reading {', '.join(plan.text)} with {plan.model}") as progress:
        harvest_store(lm, plan, path, progress=progress, holders=holders)
    store = Store(path)
    held = store.rows(HELD_OUT)
    widths = ", ".join(f"{site} (d = {d})" for site, d in store.sites.items())
    text, rows = ", ".join(plan.text), store.rows(TRAIN)
    if rows:
        console.print(f"Read {rows:,} tokens of {text} at {widths} of {plan.model} (+ {held:,} held out)")
    else:
        console.print(f"Kept {held:,} held-out tokens of {text} at {widths} to measure on")
    _warn_of_outliers(store.manifest, plan)
    return store


def _warn_of_outliers(manifest: Manifest, plan: HarvestPlan) -> None:
    for site, stats in manifest.statistics.get(TRAIN, {}).items():
        if stats.outliers:
            done = "left out" if plan.drop_outliers else "kept; --drop-outliers leaves them out"
            console.print(
                f"{site}: {stats.outliers:,} of {stats.rows:,} rows have a norm above {plan.outlier_factor:g} × the median, "
                f"up to {stats.norm_max / stats.norm_median:.0f} × ({done})"
            )


def harvest_with_held_out(path: Path, plan: HarvestPlan, lm: LanguageModel) -> Store:
    """Harvest a store that has rows to measure on."""
    store = harvest_into(path, plan, lm)
    if not store.rows(HELD_OUT):
        raise ValueError(
            f"no document of {', '.join(plan.text)} was held out to measure on: there are too few for a share of "
            f"{plan.held_out:g}. Give more text. The activations are in {path}"
        )
    return store


def run_at(path: Path, parts: Sequence[type] = ()) -> RunFolder | None:
    """The run folder at a path; None where there is only a dictionary, or another tool's (whose config.json is another)."""
    return RunFolder.open(path, parts) if (path / CONFIG).exists() and formats.is_own(path) else None


def source_of(folder: RunFolder) -> Source:
    """Where a run's rows come from."""
    return from_json(folder.data["source"], extra=(StoreSource, LiveSource, FileSource, TruthSource))


def rows_of(
    folders: Sequence[RunFolder],
    lm: LanguageModel | None = None,
    load: Callable[[str], LanguageModel] = load_model,
) -> list[Rows]:
    """The rows of existing runs, read once for all of them; a harvest that was interrupted goes on.

    `lm`: the model that they are read from, where it is there already; else `load` gives it where it is needed.
    """
    run, source = folders[0].run, source_of(folders[0])
    order = folders[0].data.get("order", run.seed)  # runs that share their rows may have weights of different seeds
    if isinstance(source, FileSource):
        split = source.split()
        kept_apart = split.held_out.split(1024)
        return [
            Rows(ArrayStream(split.train, run.batch, seed=order, source=source.path), lambda: kept_apart)
            for _ in folders
        ]
    if isinstance(source, TruthSource):
        _, truth = truth_of(source)
        held = partial(truth.held_out, SCORED_ROWS, seed=source.seed)
        streams = (truth.stream(run.batch, rows=source.rows, seed=source.seed) for _ in folders)
        return [Rows(stream, lambda: (part.x for part in held())) for stream in streams]
    sources = [s for s in map(source_of, folders) if isinstance(s, Stored)]
    plan = from_json(folders[0].data["harvest"], extra=(HarvestPlan,)) if "harvest" in folders[0].data else None
    place = folders[0].path / source.path
    kept = (
        replace(plan, splits=(HELD_OUT,), held_out_tokens=LIVE_EVALUATED)
        if plan and isinstance(source, LiveSource)
        else plan
    )
    if kept is not None and not _is_complete(place):
        lm = lm or load(kept.model)
        harvest_with_held_out(place, kept, lm)
    store = open_store(folders[0])
    layouts = [store.layout(s.site, s.target) for s in sources]
    sites = tuple(dict.fromkeys(b.site for layout in layouts for b in (*layout.reads, *layout.reconstructs)))
    if isinstance(source, StoreSource):
        rows = StoreStream(store, run.batch, sites=sites, seed=order, memory_mib=source.memory_mib)
    else:
        assert plan is not None
        rows = HarvestStream(lm or load(plan.model), plan, run.batch, buffer_rows=source.buffer_rows, seed=order)
        _tell_mixing(rows)
    shared = SharedRows(rows)

    def held_out(site: str | tuple[str, ...], target: str | None) -> Iterable[Batch]:
        return store.batches(site, HELD_OUT, target=target, limit=EVALUATED)

    return [
        Rows(shared.reader(layout), partial(held_out, s.site, s.target))
        for s, layout in zip(sources, layouts, strict=True)
    ]


def _tell_mixing(stream: HarvestStream) -> None:
    mixing = stream.mixing()
    console.print(
        f"Shuffle buffer of {mixing.rows:,} rows of {mixing.documents:,} documents: a batch of {stream.batch} has rows of "
        f"{mixing.per_batch:.0f} documents ({mixing.perfect:.0f} in a perfect shuffle of the buffer's text). A larger "
        "--buffer-rows mixes more; a store (overtone harvest) mixes everything"
    )


def _is_complete(path: Path) -> bool:
    try:
        return Store(path).manifest.complete
    except FileNotFoundError:
        return False


def open_store(folder: RunFolder) -> Store:
    """The store that a run reads. FileNotFoundError when it was removed."""
    source = source_of(folder)
    if not isinstance(source, Stored):
        what = f"a file of activations, {source.path}" if isinstance(source, FileSource) else f"suite {source.suite}"
        raise ValueError(f"{folder.path} was trained on {what}, and not on a store")
    try:
        return Store(folder.path / source.path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. The activations of {folder.path} were moved or removed; put them back, or evaluate on other rows "
            "with --activations FILE"
        ) from error


def model_of(store: Store) -> tuple[LanguageModel, HarvestPlan]:
    """The model that a store was harvested from, and how."""
    if store.manifest.source.get("kind") != "harvest":
        raise ValueError(
            f"--downstream needs the model, and {store.path} was not harvested from one. Drop --downstream"
        )
    plan = plan_of(store.manifest, store.path)
    return load_model(plan.model), plan


def held_out_documents(store: Store, plan: HarvestPlan, count: int) -> list[Document]:
    """The first documents of the text that gave held-out rows.

    By name and not by splitting again: text that has changed since must not put training documents here.
    """
    names = store.names(HELD_OUT)
    chosen = (doc for number, doc in plan.documents() if plan.split(number) == HELD_OUT and doc.name in names)
    documents = list(islice(chosen, count))
    if not documents:
        raise ValueError(f"{', '.join(plan.text)} no longer has the documents that were held out; restore the text")
    return documents
