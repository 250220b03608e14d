"""`overtone store`: look at, check, merge, import and export activation stores."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from overtone.cli.common import console, write_json
from overtone.data.exchange import export_rows, import_rows, merge_stores, read_chunks
from overtone.data.store import TRAIN, Store

Positional = tyro.conf.Positional


def info(store: Annotated[Path, Positional], json: Path | None = None) -> None:
    """What a store holds: sites, rows, where they come from, and their statistics.

    Args:
        store: the store.
        json: write the description to this file.
    """
    opened = Store(store)
    console.print(store_table(opened))
    write_json(json, describe(opened))


def verify(store: Annotated[Path, Positional], json: Path | None = None) -> None:
    """Read every file of a store and compare it with the checksum that the manifest lists.

    Args:
        store: the store.
        json: write the result to this file.
    """
    opened = Store(store)
    problems = opened.verify()
    write_json(json, {"store": str(store), "problems": problems})
    if problems:
        raise ValueError(f"{store} is damaged: {'; '.join(problems)}")
    console.print(f"{store}: {len(opened.manifest.shards)} shards, every file as the manifest lists it")


def merge(stores: Annotated[tuple[Path, ...], Positional], out: Path) -> None:
    """Put several stores of the same sites together; training shuffles over all of them.

    Args:
        stores: the stores.
        out: the store to create.
    """
    console.print(store_table(merge_stores(stores, out)))


def load(
    file: Annotated[Path, Positional],
    out: Path,
    site: str = "x",
    tensor: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    shard_mib: float = 256,
    held_out: float = 0.1,
    seed: int = 0,
) -> None:
    """Make a store of activations in a file (.npy, .safetensors or .parquet), which may be larger than memory.

    Args:
        file: the file.
        out: the store to create.
        site: what to call the rows.
        tensor: which tensor of a safetensors file, or column of a Parquet file.
        dtype: of the rows on disk.
        shard_mib: memory for the rows of one shard, in MiB.
        held_out: share of the rows, at the end of every shard, kept apart for evaluation.
        seed: of the order of the rows on disk.
    """
    chunks = read_chunks(file, tensor=tensor)
    options: dict[str, Any] = {"dtype": dtype, "shard_mib": shard_mib, "held_out": held_out, "seed": seed}
    console.print(store_table(import_rows(chunks, out, site=site, origin=str(file), **options)))


def export(store: Annotated[Path, Positional], out: Path, site: str | None = None, split: str = TRAIN) -> None:
    """Write the rows of a store to one file, in the order of the text.

    Args:
        store: the store.
        out: the file to create: .npy (float32), .safetensors, or .parquet (float32, with tokens and documents).
        site: which site.
        split: train or held_out.
    """
    rows = export_rows(Store(store), out, site=site, split=split)
    console.print(f"{rows:,} rows written to {out}")


def store() -> None:
    """Look at, check, merge, import and export activation stores (overtone store --help)."""


VERBS = {"info": info, "verify": verify, "merge": merge, "import": load, "export": export}


def describe(store: Store) -> dict[str, Any]:
    """A store in JSON: everything but the list of its files."""
    manifest = store.manifest
    statistics = {
        split: {site: {k: v for k, v in vars(s).items() if k != "mean"} for site, s in sites.items()}
        for split, sites in manifest.statistics.items()
    }
    return {
        "path": str(store.path),
        "complete": manifest.complete,
        "dtype": manifest.dtype,
        "sites": manifest.sites,
        "rows": {split: store.rows(split) for split in manifest.statistics},
        "shards": len(manifest.shards),
        "bytes": _bytes(store),
        "statistics": statistics,
        "source": manifest.source,
    }


def store_table(store: Store) -> Table:
    """What a store holds, for people."""
    manifest = store.manifest
    state = "" if manifest.complete else ", unfinished (overtone harvest --resume)"
    title = f"{store.path}: {len(manifest.shards)} shards of {manifest.dtype}, {_bytes(store) / 2**20:,.1f} MiB{state}"
    table = Table(
        title=escape(title), title_justify="left", caption=escape(_origin(manifest.source)), caption_justify="left"
    )
    for name in ("site", "d", "split", "rows", "median norm", "max", "outliers", "variance"):
        table.add_column(name, justify="left" if name in ("site", "split") else "right")
    for site, d in store.sites.items():
        for split, sites in manifest.statistics.items():
            s = sites[site]
            norms = (f"{s.norm_median:.4g}", f"{s.norm_max:.4g}")
            cells = (str(d), split, f"{s.rows:,}", *norms, f"{s.outliers:,}", f"{s.covariance_trace:.4g}")
            table.add_row(escape(site), *cells)
    return table


def _bytes(store: Store) -> int:
    return sum(f.bytes for s in store.manifest.shards for f in (s.index, *s.sites.values()))


def _origin(source: dict[str, Any]) -> str:
    if source.get("kind") == "harvest":
        plan = source["plan"]
        return f"{plan['model']} reading {', '.join(plan['text'])}"
    if source.get("kind") == "merge":
        return "merge of " + "; ".join(map(_origin, source["of"]))
    return f"imported from {source['origin']}" if source.get("kind") == "import" else f"{source.get('kind')}"
