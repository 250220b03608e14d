"""The activation store: rows harvested once, in shards, with a manifest that lists what is whole (docs/store.md).

Every shard's rows lie on disk in a uniformly random order; `overtone.data.shuffle` merges the shards into a global shuffle.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from overtone.data.activations import Activations
from overtone.data.shards import (
    TORCH_DTYPES,
    FileEntry,
    Shard,
    StoreError,
    check_file,
    data_start,
    read_index,
)
from overtone.data.stream import Batch
from overtone.files import replace_text
from overtone.layout import Block, Layout
from overtone.seeds import generator

FORMAT, VERSION, MANIFEST = "overtone-store", 1, "manifest.json"
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class SiteStats:
    """Statistics of the rows of one site; they merge exactly (the norm's median: as the mean of the shards' medians).

    Attributes:
        rows: number of rows.
        mean: their mean, d numbers.
        covariance_trace: Σ‖x − mean‖² / rows, the total variance.
        norm_mean, norm_min, norm_max, norm_median: of the rows' Euclidean norms.
        outliers: rows whose norm was more than the harvest's factor times the median norm, dropped ones included.
    """

    rows: int
    mean: tuple[float, ...]
    covariance_trace: float
    norm_mean: float
    norm_min: float
    norm_max: float
    norm_median: float
    outliers: int = 0

    @staticmethod
    def of(x: Float[Tensor, "all d"], rows: Int[Tensor, " rows"], outliers: int = 0) -> "SiteStats":
        """Statistics of the rows numbered `rows`, in float64, a few rows at a time."""
        first = x[rows[0]].double()  # near enough to the mean for sums of squares to lose nothing
        total, square = torch.zeros_like(first), 0.0
        norms = torch.empty(len(rows), dtype=torch.float64)
        for start, part in zip(range(0, len(rows), 4096), rows.split(4096), strict=True):
            values = x[part].double()
            norms[start : start + len(part)] = torch.linalg.vector_norm(values, dim=1)
            values -= first
            total += values.sum(0)
            square += float(torch.linalg.vector_norm(values)) ** 2
        offset = total / len(rows)
        variance = max(0.0, square / len(rows) - float(offset.square().sum()))
        mean, low, middle, high = first + offset, float(norms.min()), float(norms.median()), float(norms.max())
        return SiteStats(len(rows), tuple(mean.tolist()), variance, float(norms.mean()), low, high, middle, outliers)

    def merged(self, other: "SiteStats") -> "SiteStats":
        """Statistics of the rows of both."""
        rows = self.rows + other.rows
        share = other.rows / rows
        delta = [b - a for a, b in zip(self.mean, other.mean, strict=True)]
        between = share * (1 - share) * math.fsum(x * x for x in delta)

        def mix(a: float, b: float) -> float:
            return a + share * (b - a)

        return SiteStats(
            rows,
            tuple(a + share * x for a, x in zip(self.mean, delta, strict=True)),
            mix(self.covariance_trace, other.covariance_trace) + between,
            mix(self.norm_mean, other.norm_mean),
            min(self.norm_min, other.norm_min),
            max(self.norm_max, other.norm_max),
            mix(self.norm_median, other.norm_median),
            self.outliers + other.outliers,
        )


@dataclass(frozen=True)
class Manifest:
    """What a store holds; everything it lists is whole.

    Attributes:
        dtype: of the rows on disk: float32, bfloat16 or float16.
        sites: site → d.
        seed: of the order of the rows on disk.
        source: where the rows come from and how they were read.
        shards: in the order they were written.
        statistics: split → site → statistics.
        complete: whether the harvest has come to its end.
        progress: where an interrupted harvest goes on.
    """

    dtype: str
    sites: dict[str, int]
    seed: int
    source: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    statistics: dict[str, dict[str, SiteStats]] = field(default_factory=dict)
    complete: bool = False
    progress: dict[str, Any] = field(default_factory=dict)

    def with_shard(self, shard: Shard, stats: dict[str, SiteStats]) -> "Manifest":
        """The manifest with one more shard."""
        old = self.statistics.get(shard.split)
        new = stats if old is None else {site: old[site].merged(stats[site]) for site in stats}
        return replace(self, shards=(*self.shards, shard), statistics={**self.statistics, shard.split: new})

    def write(self, root: Path) -> None:
        """Write it into the store, atomically."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        replace_text(root / MANIFEST, json.dumps(data, indent=1) + "\n")


def read_manifest(root: Path) -> Manifest:
    """A store's manifest. FileNotFoundError: no store there. StoreError: damaged, foreign or from a newer version."""
    path = root / MANIFEST
    if not path.is_file():
        near = sorted(p.parent.name for p in root.parent.glob(f"*/{MANIFEST}")) if root.parent.is_dir() else []
        raise FileNotFoundError(
            f"no activation store at {root} (it has no {MANIFEST}); stores beside it: {', '.join(near) or 'none'}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise StoreError(f"{path} is not the manifest of an overtone store")
        if (version := data.pop("version")) != VERSION:
            raise StoreError(f"{path} has version {version}; this overtone reads version {VERSION}: update overtone")
        data["shards"] = tuple(_shard(shard) for shard in data["shards"])
        data["statistics"] = {
            split: {site: SiteStats(**{**s, "mean": tuple(s["mean"])}) for site, s in sites.items()}
            for split, sites in data["statistics"].items()
        }
        manifest = Manifest(**data)
        if manifest.dtype not in TORCH_DTYPES or any(s.sites.keys() != manifest.sites.keys() for s in manifest.shards):
            raise ValueError("its shards or its dtype do not fit the sites it lists")
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged: {error}; restore it from a copy, or harvest again") from error
    return manifest


def _shard(data: dict[str, Any]) -> Shard:
    def entry(file: dict[str, Any]) -> FileEntry:
        path = PurePosixPath(file["path"])
        if path.is_absolute() or ".." in path.parts:
            raise StoreError(f"the manifest lists {file['path']!r}, which lies outside the store")
        return FileEntry(**file)

    files = {site: entry(file) for site, file in data["sites"].items()}
    return Shard(**{**data, "index": entry(data["index"]), "sites": files})


class Store:
    """An activation store on disk, opened for reading.

    Raises FileNotFoundError where there is none, StoreError where it is damaged, foreign or newer than this version.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)

    def __repr__(self) -> str:
        rows = {split: self.rows(split) for split in self.manifest.statistics}
        return f"Store({str(self.path)!r}, sites={self.sites}, rows={rows}, dtype={self.manifest.dtype})"

    @property
    def sites(self) -> dict[str, int]:
        """Site → d."""
        return self.manifest.sites

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows on disk."""
        return TORCH_DTYPES[self.manifest.dtype]

    def site(self, name: str | None = None) -> str:
        """`name` if the store has that site; the only site for None. ValueError names the sites there are."""
        known = ", ".join(self.sites)
        if name is None and len(self.sites) > 1:
            raise ValueError(f"{self.path} holds {len(self.sites)} sites; choose one of {known}")
        if name is not None and name not in self.sites:
            raise ValueError(f"{self.path} has no site {name!r}; it has {known}")
        return name or next(iter(self.sites))

    def layout(self, site: str | Sequence[str] | None = None, target: str | None = None) -> Layout:
        """What a dictionary of these sites reads and reconstructs.

        Args:
            site: what is read; several side by side for a crosscoder; None: the only site.
            target: the site to reconstruct; None, or `site` itself: what is read.
        """
        names = [self.site(name) for name in ([site] if site is None or isinstance(site, str) else site)]
        reads = tuple(Block(name, self.sites[name]) for name in names)
        if target is None or [self.site(target)] == names:
            return Layout(reads)
        return Layout(reads, (Block(target, self.sites[target]),))

    def shards(self, split: str = TRAIN) -> tuple[Shard, ...]:
        """The shards of a split; ValueError when it has none."""
        found = tuple(s for s in self.manifest.shards if s.split == split and s.rows)
        if not found:
            if not self.manifest.complete:
                raise ValueError(f"{self.path} is unfinished; finish it first: overtone harvest --resume {self.path}")
            have = ", ".join(sorted({s.split for s in self.manifest.shards})) or "no rows at all"
            raise ValueError(
                f"{self.path} has no rows in the split {split!r} (it has {have}); make it with another share of held-out rows"
            )
        return found

    def rows(self, split: str = TRAIN) -> int:
        """Number of rows of a split."""
        return sum(s.rows for s in self.manifest.shards if s.split == split)

    def stats(self, site: str | None = None, split: str = TRAIN) -> SiteStats:
        """Statistics of a site's rows."""
        self.shards(split)
        return self.manifest.statistics[split][self.site(site)]

    def mean(self, site: str | None = None, split: str = TRAIN) -> Float[Tensor, " d"]:
        """Mean of a site's rows."""
        return torch.tensor(self.stats(site, split).mean)

    def data_start(self, shard: Shard, site: str) -> int:
        """Byte at which a site's rows begin in its file; StoreError when the file is not what the manifest says."""
        return data_start(self.path / shard.sites[site].path, shard.rows, self.sites[site], self.dtype)

    def read(self, shard: Shard, site: str) -> Float[Tensor, "rows d"]:
        """All rows of a shard, in the order on disk."""
        self.data_start(shard, site)
        with safe_open(self.path / shard.sites[site].path, framework="pt") as file:
            return file.get_tensor("x")

    def batches(
        self,
        site: str | Sequence[str] | None = None,
        split: str = TRAIN,
        *,
        target: str | None = None,
        batch: int = 1024,
        limit: int | None = None,
        seed: int = 0,
    ) -> Iterator[Batch]:
        """Every row once, float32, shard by shard in the order on disk: for metrics, which do not depend on order.

        Args:
            site: what is read; several are laid side by side.
            split: "train" or "held_out".
            target: the site to reconstruct; None: `site` itself.
            batch: rows at a time.
            limit: about so many rows at most, taken from every shard in proportion: a random sample, as the order is.
            seed: of the sample.
        """
        layout, shards = self.layout(site, target), self.shards(split)
        sites = {block.site for block in (*layout.reads, *layout.reconstructs)}
        share = 1.0 if limit is None else min(1.0, limit / self.rows(split))
        rng = generator(seed, "sample of a store")
        for shard in shards:
            rows = math.ceil(shard.rows * share)
            start = int(torch.randint(shard.rows - rows + 1, (), generator=rng))
            read = {name: self.read(shard, name)[start : start + rows] for name in sites}
            for first in range(0, rows, batch):
                yield Batch.of(layout, {name: x[first : first + batch].float() for name, x in read.items()})

    def activations(self, site: str | None = None, split: str = TRAIN) -> Activations:
        """All rows of a split in memory, float32, in the order of the text, with their tokens.

        Raises StoreError for rows that were imported without a text.
        """
        name, shards = self.site(site), self.shards(split)
        x, columns, names, contexts = [], [], {}, 0
        for shard in shards:
            index = read_index(self.path, shard)
            if index.token_ids is None or index.doc_ids is None or index.position is None or index.context is None:
                raise StoreError(f"{self.path}: these rows were imported without a text, so they have no tokens")
            natural = torch.empty(shard.rows, self.sites[name])
            natural[index.order.long()] = self.read(shard, name).float()
            x.append(natural)
            columns.append((index.token_ids, index.doc_ids, index.position, index.context + contexts))
            names |= index.names
            contexts += int(index.context[-1]) + 1
        tokens, docs, position, context = (torch.cat(column) for column in zip(*columns, strict=True))
        known, docs = torch.unique(docs, return_inverse=True)  # the split's documents, numbered from 0
        source = self.manifest.source | {"site": name, "tokens": len(tokens)}
        titles = tuple(names[int(number)] for number in known)
        return Activations(torch.cat(x), tokens, docs.int(), position, context, titles, source)

    def names(self, split: str = TRAIN) -> set[str]:
        """Names of the documents that a split's rows come from."""
        return {name for shard in self.shards(split) for name in read_index(self.path, shard).names.values()}

    def verify(self) -> list[str]:
        """What is wrong with the store, file by file; empty when every file has the SHA-256 that the manifest lists."""
        files = [f for s in self.manifest.shards for f in (s.index, *s.sites.values())]
        return [problem for file in files if (problem := check_file(self.path, file)) is not None]


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Within the `with`, this process alone writes to the store. BlockingIOError: another one does."""
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BlockingIOError(f"another process is writing to {root}; wait for it, or choose another place") from error
    finally:
        os.close(folder)
