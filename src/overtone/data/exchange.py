"""Rows into and out of stores: .npy, .safetensors and Parquet; several stores into one."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone.data import shards
from overtone.data.shards import TORCH_DTYPES, FileEntry, Index, Shard, StoreError, read_index
from overtone.data.store import HELD_OUT, TRAIN, Manifest, SiteStats, Store
from overtone.data.stream import check_rows
from overtone.files import create_folder, replace_file

Rows = Float[Tensor, "_ _"]  # (rows, d); chunks differ in their number of rows
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # another file system, or one without hard links
IMPORTED = (".npy", ".safetensors", ".parquet")


def import_rows(
    chunks: Iterable[Rows],
    path: str | Path,
    *,
    site: str,
    origin: str,
    dtype: str = "bfloat16",
    shard_mib: float = 256,
    held_out: float = 0.1,
    seed: int = 0,
) -> Store:
    """Write rows that came from elsewhere into a new store.

    Args:
        chunks: matrices (rows, d) in their order; read one after the other, so they may be more than memory holds.
        path: the store to create.
        site: what to call the rows.
        origin: where they come from, for errors and for the record.
        dtype: of the rows on disk.
        shard_mib: memory for the rows of one shard, in MiB.
        held_out: share of the rows, at the end of every shard, that go into the split "held_out". The end and not a random
            choice, because neighbouring rows of a text resemble each other.
        seed: of the order of the rows on disk.

    Raises:
        FileExistsError: something is at `path`.
        ValueError: NaN, Inf or an all-zero row (named); rows of different widths.
    """
    path = Path(path)
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out={held_out} must be a share in [0, 1), such as 0.1")
    if dtype not in TORCH_DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(TORCH_DTYPES)}")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; choose another place or remove it")
    shards.check_names([site])

    def fill(root: Path) -> None:
        (root / "shards").mkdir()
        manifest: Manifest | None = None
        for x in _refilled(chunks, origin, dtype, shard_mib):
            if manifest is None:
                manifest = Manifest(dtype, {site: x.shape[1]}, seed, {"kind": "import", "origin": origin})
            cut = len(x) - (max(1, round(len(x) * held_out)) if held_out else 0)
            for split, part in ((TRAIN, x[:cut]), (HELD_OUT, x[cut:])):
                if len(part):
                    manifest = _add(root, manifest, split, site, part)
        if manifest is None:
            raise ValueError(f"{origin} holds no rows")
        replace(manifest, complete=True).write(root)

    create_folder(path, fill)
    return Store(path)


def _add(root: Path, manifest: Manifest, split: str, site: str, x: Tensor) -> Manifest:
    name = f"{len(manifest.shards):06d}"
    order = shards.disk_order(len(x), manifest.seed, name, x[:64])
    file = shards.write_rows(root, shards.site_file(name, site), x, order)
    index = shards.write_index(root, f"shards/{name}.index.safetensors", Index(order))
    stats = {site: SiteStats.of(x, torch.arange(len(x)))}
    return manifest.with_shard(Shard(split, len(x), index, {site: file}), stats)


def _refilled(chunks: Iterable[Rows], origin: str, dtype: str, shard_mib: float) -> Iterator[Tensor]:
    """The chunks cut anew into shards; checked."""
    waiting: list[Tensor] = []
    rows = done = 0
    size, d = 1, None
    for chunk in chunks:
        if d is None:
            d = chunk.shape[1]
            size = max(2, int(shard_mib * 2**20 / max(1, d * TORCH_DTYPES[dtype].itemsize)))
        if chunk.shape[1] != d:
            raise ValueError(f"{origin}: rows have width {chunk.shape[1]} from row {done} on, and {d} before")
        for part in chunk.split(size):
            check_rows(part, f"{origin}, rows from {done} on")
            done += len(part)
            stored = part.to(TORCH_DTYPES[dtype])
            if not stored.isfinite().all():
                raise ValueError(f"{origin} has values beyond the range of {dtype}; choose float32 or bfloat16")
            while len(stored):
                piece, stored = stored[: size - rows], stored[size - rows :]
                waiting.append(piece)
                rows += len(piece)
                if rows == size:
                    yield torch.cat(waiting)
                    waiting, rows = [], 0
    if rows:
        yield torch.cat(waiting)


def read_chunks(path: Path, *, tensor: str | None = None, chunk: int = 65_536) -> Iterator[Rows]:
    """Matrices of up to `chunk` rows from .npy (memory-mapped), .safetensors or Parquet (a column of lists of numbers).

    Pickled files are refused, never opened. Raises FileNotFoundError and ValueError, with what there is instead.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of activations at {path}")
    if path.suffix == ".npy":
        return _npy_chunks(path, chunk)
    if path.suffix == ".safetensors":
        return _safetensors_chunks(path, tensor, chunk)
    if path.suffix == ".parquet":
        return _parquet_chunks(path, tensor, chunk)
    raise ValueError(
        f"{path}: activations are read from {', '.join(IMPORTED)}, not {path.suffix or 'a file without ending'}; pickled "
        "files (.pt, .pth, .pkl) can run code and are never opened – save the tensor as .safetensors"
    )


def _npy_chunks(path: Path, chunk: int) -> Iterator[Rows]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a plain .npy array ({error})") from error
    if array.dtype.kind not in "fiu" or array.ndim != 2:
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}, not a matrix (rows, d) of numbers")
    for start in range(0, len(array), chunk):
        yield torch.from_numpy(np.array(array[start : start + chunk], dtype=np.float32))


def _safetensors_chunks(path: Path, tensor: str | None, chunk: int) -> Iterator[Rows]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            name = tensor or ("x" if "x" in names else names[0] if len(names) == 1 else None)
            if name not in names:
                raise ValueError(f"{path} holds the tensors {', '.join(names)}; say which one with --tensor")
            part = file.get_slice(name)
            if len(part.get_shape()) != 2:
                raise ValueError(f"{path}: tensor {name!r} has shape {part.get_shape()}; give a matrix (rows, d)")
            for start in range(0, part.get_shape()[0], chunk):
                yield part[start : start + chunk].float()
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from error


def _parquet_chunks(path: Path, column: str | None, chunk: int) -> Iterator[Rows]:
    parquet = _parquet()
    import pyarrow as pa

    try:
        file = parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is truncated or no Parquet file ({error})") from error
    lists = [f.name for f in file.schema_arrow if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
    name = column or ("x" if "x" in lists else lists[0] if len(lists) == 1 else None)
    if name not in lists:
        raise ValueError(
            f"{path} has the columns {', '.join(file.schema_arrow.names)}; of these {', '.join(lists) or 'none'} hold lists of "
            "numbers. Say which one with --tensor"
        )
    for batch in file.iter_batches(batch_size=chunk, columns=[name]):
        values = batch.column(0)
        if values.null_count or values.flatten().null_count:
            raise ValueError(f"{path}: column {name!r} has empty cells (nulls); drop these rows")
        if not pa.types.is_fixed_size_list(values.type):
            lengths = set(np.diff(values.offsets.to_numpy()).tolist())
            if len(lengths) > 1:
                raise ValueError(f"{path}: the lists of column {name!r} have different lengths, {sorted(lengths)[:5]}")
        flat = values.flatten().to_numpy(zero_copy_only=False)
        yield torch.from_numpy(np.array(flat, dtype=np.float32)).reshape(len(values), -1)


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError('Parquet files need the package pyarrow: pip install "overtone[lm]"') from error
    return parquet


def export_rows(store: Store, path: str | Path, *, site: str | None = None, split: str = TRAIN) -> int:
    """Write a split's rows to one .npy, .safetensors or .parquet file, in the order of the text; shard by shard.

    .npy and .parquet hold float32 (numpy and Arrow know no bfloat16), .safetensors the store's dtype; Parquet has the
    tokens beside the rows. Returns the number of rows.
    """
    path, name = Path(path), store.site(site)
    writers = {".npy": _write_npy, ".safetensors": _write_safetensors, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ValueError(
            f"{path}: rows are exported to {', '.join(writers)}, not {path.suffix or 'a file without ending'}"
        )
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: writers[path.suffix](store, file, name, split))
    return store.rows(split)


def _natural(store: Store, shard: Shard, site: str) -> Tensor:
    """A shard's rows in the order they came in."""
    x = store.read(shard, site)
    natural = torch.empty_like(x)
    natural[read_index(store.path, shard).order.long()] = x
    return natural


def _write_npy(store: Store, path: Path, site: str, split: str) -> None:
    with path.open("wb") as file:
        shape = (store.rows(split), store.sites[site])
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for shard in store.shards(split):
            file.write(shards.bytes_of(_natural(store, shard, site).float()))


def _write_safetensors(store: Store, path: Path, site: str, split: str) -> None:
    pieces = (_natural(store, shard, site) for shard in store.shards(split))
    layout = {"x": (store.dtype, (store.rows(split), store.sites[site]))}
    shards.write_safetensors(path, layout, {}, pieces)


def _write_parquet(store: Store, path: Path, site: str, split: str) -> None:
    parquet = _parquet()
    import pyarrow as pa

    writer = None
    for shard in store.shards(split):
        x = _natural(store, shard, site).float()
        columns = {"x": pa.FixedSizeListArray.from_arrays(pa.array(x.flatten().numpy()), x.shape[1])}
        index = read_index(store.path, shard)
        if index.doc_ids is not None:
            names = pa.array([index.names[int(doc)] for doc in index.doc_ids])
            columns |= {n: pa.array(getattr(index, n).numpy()) for n in ("token_ids", "doc_ids", "position")}
            columns["document"] = names.dictionary_encode()
        table = pa.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=16_384)
    if writer is not None:
        writer.close()


def merge_stores(paths: Sequence[str | Path], out: str | Path) -> Store:
    """Several stores of the same sites as one; their order on disk stays, since the stream merges shards into one shuffle.

    Args:
        paths: the stores.
        out: the store to create. On the same file system it shares the shards' bytes with the old ones (hard links), which
            may be removed.

    Documents are counted on from store to store.

    Raises:
        StoreError: other sites, widths or dtype, an unfinished store, or rows that two of them share. Nothing is changed then.
    """
    sources = [Store(path).manifest.source for path in paths]
    return _join(paths, Path(out), {"kind": "merge", "of": sources}, renumber=True)


def join_ranks(paths: Sequence[str | Path], out: str | Path) -> Store:
    """The parts that the ranks of one harvest wrote, whose documents are numbered together, as one store."""
    plans = [Store(path).manifest.source["plan"] for path in paths]
    limits = [plan["tokens"] for plan in plans]
    whole = {**plans[0], "rank": 0, "world": 1, "tokens": None if None in limits else sum(limits)}
    source = {**Store(paths[0]).manifest.source, "plan": whole, "ranks": len(plans)}
    return _join(paths, Path(out), source, renumber=False)


def _join(paths: Sequence[str | Path], out: Path, source: dict[str, Any], *, renumber: bool) -> Store:
    stores = [Store(path) for path in paths]
    if len(stores) < 1:
        raise ValueError("there are no stores to merge; name at least one")
    if out.exists():
        raise FileExistsError(f"{out} exists and is not overwritten; choose another place or remove it")
    for store in stores:
        _check_fits(stores[0], store)
    _check_distinct(stores)

    def fill(root: Path) -> None:
        (root / "shards").mkdir()
        first = stores[0].manifest
        merged = Manifest(first.dtype, first.sites, first.seed, source, complete=True)
        documents = 0
        for store in stores:
            merged = replace(merged, statistics=_with_statistics(merged, store.manifest))
            for shard in store.manifest.shards:
                linked = _linked(store, shard, root, f"{len(merged.shards):06d}", documents)
                merged = replace(merged, shards=(*merged.shards, linked))
            if renumber:
                documents = 1 + max(max(read_index(root, shard).names, default=-1) for shard in merged.shards)
        merged.write(root)

    create_folder(out, fill)
    return Store(out)


def _check_fits(first: Store, other: Store) -> None:
    for what in ("sites", "dtype"):
        a, b = getattr(first.manifest, what), getattr(other.manifest, what)
        if a != b:
            raise StoreError(f"{first.path} has {what} {a}, {other.path} has {b}; only equal ones can be merged")
    if not other.manifest.complete:
        raise StoreError(f"{other.path} is not finished; finish it first: overtone harvest --resume {other.path}")


def _check_distinct(stores: Sequence[Store]) -> None:
    """Refuse rows that would be counted twice: shards with the same content."""
    holder: dict[tuple[str, ...], Store] = {}
    for store in stores:
        for shard in store.manifest.shards:
            content = tuple(shard.sites[site].sha256 for site in sorted(shard.sites))
            other = holder.setdefault(content, store)
            if other is not store:
                raise StoreError(f"{other.path} and {store.path} hold the same rows; merge each of them once")


def _with_statistics(merged: Manifest, other: Manifest) -> dict[str, dict[str, SiteStats]]:
    found = dict(merged.statistics)
    for split, stats in other.statistics.items():
        old = found.get(split)
        found[split] = stats if old is None else {site: old[site].merged(stats[site]) for site in stats}
    return found


def _linked(store: Store, shard: Shard, root: Path, name: str, documents: int) -> Shard:
    """The shard's files in another store, under another number."""

    def link(entry: FileEntry) -> FileEntry:
        path = f"shards/{name}.{Path(entry.path).name.split('.', 1)[1]}"
        try:
            os.link(store.path / entry.path, root / path)
        except FileNotFoundError as error:
            raise StoreError(f"{store.path / entry.path} is missing; the store is damaged") from error
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copyfile(store.path / entry.path, root / path)
        return replace(entry, path=path)

    sites = {site: link(entry) for site, entry in shard.sites.items()}
    return replace(shard, sites=sites, index=link(shard.index), documents=shard.documents + documents)
