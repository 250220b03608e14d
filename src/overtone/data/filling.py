"""Harvest into a store: any number of sites in one pass over a text of any length, in bounded memory, resumable.

The text is cut into contexts, contexts are gathered until they fill a shard, a shard is read through the model and written.
What a shard holds depends on the text and the plan alone, so an interrupted harvest goes on to the same bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overtone.data import shards
from overtone.data.contexts import Context, Cutter, Place, tokenised
from overtone.data.harvest import Progress, Rows, read_sites
from overtone.data.models import DTYPES, LanguageModel, fingerprint
from overtone.data.shards import TORCH_DTYPES, Index, Shard, StoreError
from overtone.data.sites import Site, resolve_site
from overtone.data.store import HELD_OUT, MANIFEST, TRAIN, Manifest, SiteStats, locked, read_manifest
from overtone.data.text import Document, is_held_out, iter_documents
from overtone.parallel import ALONE, Axis
from overtone.version import __version__

SPLITS = (TRAIN, HELD_OUT)


@dataclass(frozen=True)
class HarvestPlan:
    """All that decides what a harvest writes, apart from the model and the text themselves.

    Args:
        model: "minilm", a local folder or a Hugging Face name.
        sites: where to read, in one pass: "resid.3", "mlp_in.3", "mlp_out.3", … (see overtone.data.sites).
        text: what to read: one source or several (see overtone.data.text).
        tokens: stop after so many tokens to train on; None: at the end of the text.
        held_out: share of the documents that go into the split "held_out".
        held_out_tokens: stop filling that split after so many tokens; None: no limit.
        splits: what to keep; the harvest ends when every split with a limit has reached it.
        text_field: the key of the text in JSON, Parquet and Hub data.
        context: tokens per context, special ones counted.
        packed: fill every context with several documents where they are short; else a document begins a context.
        batch: contexts per forward pass.
        drop_first: so many tokens of text at the start of every context give no rows.
        compute_dtype: of the model's matrix products.
        dtype: of the rows on disk.
        outlier_factor: a row is an outlier when its norm is more than this times its shard's median norm.
        drop_outliers: leave out rows that are outliers at any site (they are counted either way).
        shard_mib: memory for the rows of one shard over all sites, in MiB.
        seed: of the order of the rows on disk and of the choice of held-out documents.
        rank, world: of several processes, each reads every world-th document.
    """

    model: str
    sites: tuple[str, ...]
    text: tuple[str, ...]
    tokens: int | None = None
    held_out: float = 0.1
    held_out_tokens: int | None = None
    splits: tuple[str, ...] = SPLITS
    text_field: str | None = None
    context: int = 128
    packed: bool = False
    batch: int = 16
    drop_first: int = 0
    compute_dtype: str = "float32"
    dtype: str = "bfloat16"
    outlier_factor: float = 10.0
    drop_outliers: bool = False
    shard_mib: float = 256
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        for name in ("context", "batch", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.shard_mib > 0:
            raise ValueError(f"shard_mib={self.shard_mib} must be above 0")
        for name in ("tokens", "held_out_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be a share in [0, 1), such as 0.1")
        if not self.outlier_factor > 1:
            raise ValueError(f"outlier_factor={self.outlier_factor} must be above 1")
        for name in ("compute_dtype", "dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(DTYPES)}")
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"sites={list(self.sites)} must name at least one site, and each once")
        if not self.text:
            raise ValueError("text is empty; name at least one text source")

    def documents(self, skip: int = 0) -> Iterator[tuple[int, Document]]:
        """This rank's documents from number `skip` on, numbered over the whole text."""
        numbered = enumerate(iter_documents(self.text, text_field=self.text_field, skip=skip), start=skip)
        return ((n, doc) for n, doc in numbered if n % self.world == self.rank)

    def split(self, doc: int) -> str:
        """The split of a document."""
        return HELD_OUT if is_held_out(doc, self.held_out, self.seed) else TRAIN

    def limit(self, split: str) -> int | None:
        """How many tokens of a split are wanted; None: all there are."""
        return self.tokens if split == TRAIN else self.held_out_tokens


class Group(NamedTuple):
    """The contexts of one shard to be, and where its split goes on after it."""

    split: str
    contexts: list[Context]
    names: dict[int, str]
    end: Place


class _Gathering:
    """Gathers the contexts of one split until they fill a shard."""

    def __init__(self, split: str, cutter: Cutter, begin: Place, shard_rows: int, todo: int | None):
        self.split, self.cutter, self.begin, self.shard_rows, self.todo = split, cutter, begin, shard_rows, todo
        self.contexts: list[Context] = []
        self.names: dict[int, str] = {}
        self.rows = 0

    @property
    def done(self) -> bool:
        """Whether the wanted number of tokens has been taken."""
        return self.todo is not None and self.todo <= 0

    def take(self, contexts: Iterator[Context]) -> Iterator[Group]:
        """Add contexts; yields a group whenever the next context would not fit into the shard."""
        for context in contexts:
            if self.done:
                return
            rows, end = int(context.keep.sum()), context.end
            if self.todo is not None:
                if rows > self.todo:
                    (context, end), rows = context.first(self.todo), self.todo
                self.todo -= rows
            if self.rows + rows > self.shard_rows:
                yield from self.close()
            if rows:
                self.contexts.append(context)
            self.rows, self.begin = self.rows + rows, end

    def close(self) -> Iterator[Group]:
        """The group gathered so far, if it has rows."""
        if self.rows:
            yield Group(self.split, self.contexts, self.names, self.begin)
            self.contexts, self.rows = [], 0
            self.names = {doc: name for doc, name in self.names.items() if doc >= self.begin.doc}


def groups(lm: LanguageModel, plan: HarvestPlan, shard_rows: int, progress: Mapping[str, Any]) -> Iterator[Group]:
    """The shards to be, from where a harvest stands, each of at most `shard_rows` rows (but at least one context)."""
    gathering: dict[str, _Gathering] = {}
    for split in plan.splits if plan.held_out else (TRAIN,):
        cutter = Cutter(lm, plan.context, packed=plan.packed, drop_first=plan.drop_first)
        limit = plan.limit(split)
        todo = None if limit is None else limit - progress.get("tokens", {}).get(split, 0)
        gathering[split] = _Gathering(split, cutter, Place(*progress.get(split, (0, 0))), shard_rows, todo)
    begin = {split: part.begin for split, part in gathering.items()}

    def enough(number: int) -> bool:
        """Whether every split with a limit has reached it by document `number`.

        A split without a limit takes what comes by until then, also where a harvest goes on that was stopped after that.
        """
        limited = [part for part in gathering.values() if part.todo is not None]
        return bool(limited) and all(part.done and number > part.begin.doc for part in limited)

    def unread() -> Iterator[tuple[int, Document]]:
        for number, doc in plan.documents(skip=min(place.doc for place in begin.values())):
            split = plan.split(number)
            if split in gathering and number >= begin[split].doc and not gathering[split].done:
                gathering[split].names[number] = doc.name
                yield number, doc

    for number, ids in tokenised(lm.tokenizer, unread()):
        if enough(number):
            break
        split = plan.split(number)
        start = begin[split].token if number == begin[split].doc else 0
        yield from gathering[split].take(gathering[split].cutter.feed(number, ids, start))
    for part in gathering.values():
        yield from part.take(part.cutter.finish())
        yield from part.close()


def harvest_store(
    lm: LanguageModel,
    plan: HarvestPlan,
    path: str | Path,
    *,
    progress: Progress | None = None,
    holders: Axis = ALONE,
) -> Manifest:
    """Read the plan's text with the model and write the rows of all its sites into a store, from wherever it stands.

    Args:
        lm: from load_model(plan.model).
        plan: what to read and how.
        path: the store; it is created, or gone on with when it was written by the same plan (`tokens` may have grown).
        progress: called with (training tokens so far, plan.tokens) after every forward pass.
        holders: processes that hold the model together: all read, the first one writes.

    Interrupted at any moment and called again, it ends with the same bytes. Memory: one shard (`plan.shard_mib`), the
    model, and the temporaries of one forward pass.

    Raises:
        StoreError: the store there was written by another plan or model.
        ValueError: no token of text; NaN or Inf from the model; an unknown site; values too large for the dtype.
        OSError: the disk is full; the store holds what its manifest lists.
    """
    root = Path(path)
    sites = [resolve_site(lm.model, name) for name in plan.sites]
    shards.check_names(plan.sites)
    width, weights, writes = site_widths(lm, sites, plan, holders), fingerprint(lm.model), holders.rank == 0
    if writes:
        (root / "shards").mkdir(parents=True, exist_ok=True)
    with locked(root) if writes else nullcontext():
        manifest = holders.told(lambda: _open(root, lm, plan, sites, width, weights))
        if manifest.complete:
            return manifest
        row_bytes = sum(manifest.sites.values()) * TORCH_DTYPES[plan.dtype].itemsize
        shard_rows = max(1, int(plan.shard_mib * 2**20 / row_bytes))
        for group in groups(lm, plan, shard_rows, manifest.progress):
            rows = Rows.of(group.contexts)
            tell = _teller(plan, group.split, manifest, progress)
            x, norms = read_group(lm, plan, sites, group, len(rows.context), tell)
            if writes:
                manifest = _write_group(plan, group, rows, x, norms, root, manifest)
                manifest.write(root)
        return holders.told(lambda: _ended(manifest, lm, plan, root))


def _teller(plan: HarvestPlan, split: str, manifest: Manifest, report: Progress | None) -> Callable[[int], None]:
    """Says how many tokens have been read, when told how many of a group of this split."""
    done = manifest.progress.get("tokens", {}).get(split, 0)

    def tell(read: int) -> None:
        if report is not None and split == plan.splits[0]:
            report(done + read, plan.limit(split))

    return tell


def _ended(manifest: Manifest, lm: LanguageModel, plan: HarvestPlan, root: Path) -> Manifest:
    """The manifest of a finished harvest, written."""
    if not manifest.shards and plan.world == 1:
        raise ValueError(f"the text {', '.join(plan.text)} holds no token for model {lm.name!r}; give another text")
    manifest = replace(manifest, complete=True)
    manifest.write(root)
    return manifest


def _open(
    root: Path, lm: LanguageModel, plan: HarvestPlan, sites: list[Site], width: dict[str, int], weights: str
) -> Manifest:
    """The manifest to go on with: of a new store, or of the store there, which must be of the same plan and model."""
    for leftover in (*root.glob(".*.tmp"), *(root / "shards").glob(".*.tmp")):  # of a process that was killed
        leftover.unlink()
    identity = {"fingerprint": weights}
    if not (root / MANIFEST).exists():
        source = {
            "kind": "harvest",
            "plan": _jsonable(plan),
            "model": {**identity, "revision": getattr(lm.model.config, "_commit_hash", None)},
            "modules": {site.name: {"path": site.path, "side": site.side} for site in sites},
            "overtone": __version__,
        }
        manifest = Manifest(plan.dtype, width, plan.seed, source)
        manifest.write(root)
        return manifest
    manifest = read_manifest(root)
    before, wanted = _jsonable(plan_of(manifest, root)), _jsonable(plan)
    limits = ("tokens", "held_out_tokens")
    changed = sorted(k for k in wanted if k not in limits and before[k] != wanted[k])
    if changed:
        raise StoreError(
            f"{root} was harvested with {changed[0]}={before[changed[0]]!r}, not {wanted[changed[0]]!r}; go on with its own "
            "settings (overtone harvest --resume STORE) or choose another place"
        )
    if manifest.source["model"]["fingerprint"] != identity["fingerprint"]:
        raise StoreError(f"{root} was harvested from another model than {lm.name!r} is now: their weights differ")
    for name in limits:
        old, new = before[name], wanted[name]
        if new is not None and (old is None or new < old):
            raise StoreError(
                f"{root} was to hold {name}={old or 'all'}, which cannot become {new}; choose another place"
            )
    if before != wanted and "ranks" in manifest.source:
        raise StoreError(f"{root} was put together from {manifest.source['ranks']} ranks and cannot be made longer")
    if before != wanted:
        manifest = replace(manifest, complete=False, source={**manifest.source, "plan": wanted})
    return manifest


def plan_of(manifest: Manifest, root: Path) -> HarvestPlan:
    """The plan that a store was harvested with; StoreError when it was not harvested."""
    if manifest.source.get("kind") != "harvest":
        raise StoreError(f"{root} was not harvested from a model but {manifest.source.get('kind')}; it cannot go on")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest.source["plan"].items()}
    return HarvestPlan(**values)


def _jsonable(plan: HarvestPlan) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(plan)))


def site_widths(lm: LanguageModel, sites: list[Site], plan: HarvestPlan, holders: Axis = ALONE) -> dict[str, int]:
    """Site → d, from one short text. ValueError: a site of which each of the processes that hold the model has another part."""
    cutter = Cutter(lm, plan.context)
    (ids,) = (ids for _, ids in tokenised(lm.tokenizer, [(0, Document("probe", "How wide is this site?"))]))
    contexts = list(cutter.feed(0, ids))[:1]
    _, found = next(iter(read_sites(lm, sites, contexts, {0: "probe"}, batch_tokens=plan.context)))
    for site, x in zip(sites, found, strict=True):
        size = torch.linalg.vector_norm(x.double())
        if not bool(torch.isclose(holders.gather(size), size, rtol=1e-3).all()):
            raise ValueError(
                f"site {site.name!r} lies where each of {holders.size} processes has a part of the model; choose another, such "
                "as resid.i, attn_in.i, attn_out.i, mlp_in.i or mlp_out.i, or spread the model over devices instead"
            )
    return {site.name: x.shape[1] for site, x in zip(sites, found, strict=True)}


def _write_group(
    plan: HarvestPlan,
    group: Group,
    rows: Rows,
    x: dict[str, Float[Tensor, "rows _"]],
    norms: Mapping[str, Float[Tensor, " rows"]],
    root: Path,
    manifest: Manifest,
) -> Manifest:
    """Write a group's rows (`x` is emptied) as the next shard, and give the manifest that lists it."""
    tokens = manifest.progress.get("tokens", {})
    done = tokens.get(group.split, 0)
    keep, outliers = usable(norms, plan)
    kept = keep.nonzero().flatten()
    progress = {
        **manifest.progress,
        group.split: list(group.end),
        "tokens": {**tokens, group.split: done + len(keep)},
        "zero_rows": manifest.progress.get("zero_rows", 0) + int((torch.stack(list(norms.values())) == 0).any(0).sum()),
    }
    if not len(kept):
        return replace(manifest, progress=progress)
    name = f"{len(manifest.shards):06d}"
    columns = {field: value[kept] for field, value in rows._asdict().items()}
    order = shards.disk_order(len(kept), plan.seed, name, columns["token_ids"])
    documents = columns["doc_ids"].unique().tolist()
    index = Index(**columns, order=order, names={doc: group.names[doc] for doc in documents})
    files, stats = {}, {}
    for site in plan.sites:
        rows_of_site = x.pop(site)
        stats[site] = SiteStats.of(rows_of_site, kept, outliers[site])
        files[site] = shards.write_rows(root, shards.site_file(name, site), rows_of_site, kept[order.long()])
    index_file = shards.write_index(root, f"shards/{name}.index.safetensors", index)
    shard = Shard(group.split, len(kept), index_file, files)
    return replace(manifest.with_shard(shard, stats), progress=progress)


def read_group(
    lm: LanguageModel, plan: HarvestPlan, sites: list[Site], group: Group, rows: int, report: Callable[[int], None]
) -> tuple[dict[str, Float[Tensor, "rows d"]], dict[str, Float[Tensor, " rows"]]]:
    """(site → rows in the order of the text and the store's dtype, site → their norms)."""
    dtype = TORCH_DTYPES[plan.dtype]
    x: dict[str, Tensor] = {}
    norms = {site.name: torch.empty(rows) for site in sites}
    done, tokens = 0, plan.batch * plan.context
    read = read_sites(lm, sites, group.contexts, group.names, batch_tokens=tokens, compute_dtype=plan.compute_dtype)
    for at, found in read:
        for site, values in zip(sites, found, strict=True):
            if site.name not in x:
                x[site.name] = torch.empty(rows, values.shape[1], dtype=dtype)
            x[site.name][at] = stored = values.to(dtype)
            norms[site.name][at] = torch.linalg.vector_norm(stored.float(), dim=1)
            if dtype == torch.float16 and values.abs().max() > torch.finfo(dtype).max:
                raise ValueError(
                    f"site {site.name!r} has values up to {float(values.abs().max()):.3g}, beyond float16's 65504; use "
                    "dtype bfloat16 or float32"
                )
        done += len(at)
        report(done)
    return x, norms


def usable(
    norms: Mapping[str, Float[Tensor, " rows"]], plan: HarvestPlan
) -> tuple[Bool[Tensor, " rows"], dict[str, int]]:
    """(rows to keep, site → number of outliers): rows of all zeros have no direction and are never kept."""
    all_norms = torch.stack(list(norms.values()))
    high = all_norms > plan.outlier_factor * all_norms.median(1, keepdim=True).values
    keep = (all_norms > 0).all(0)
    if plan.drop_outliers:
        keep &= ~high.any(0)
    return keep, dict(zip(norms, high.sum(1).tolist(), strict=True))
