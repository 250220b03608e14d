"""Shards: the files of an activation store. A shard is a stretch of text; its rows lie on disk in a random order.

`NAME.index.safetensors` says where every row comes from, `NAME.SITE.safetensors` holds the rows of one site. Both are plain
safetensors; they are written piece by piece, so that a shard is never in memory twice.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone.files import replace_file
from overtone.seeds import generator

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CODES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.int64: "I64",
}
INDEX = "index"
PIECE = 8 * 2**20  # bytes copied, hashed and written at a time
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class StoreError(ValueError):
    """A store, or a file in it, that is not what it should be."""


@dataclass(frozen=True)
class FileEntry:
    """A file as the manifest lists it: path within the store, size in bytes, SHA-256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One shard as the manifest lists it.

    Attributes:
        split: "train" or "held_out".
        rows: rows in it, the same for every site.
        index: the index file.
        sites: site → the file with its rows.
        documents: number added to the index's document numbers (not 0 only after a merge).
    """

    split: str
    rows: int
    index: FileEntry
    sites: dict[str, FileEntry]
    documents: int = 0


class Index(NamedTuple):
    """Where the rows of a shard come from, in the order of the text (the natural order).

    Attributes:
        order: row j on disk is row order[j] of the natural order.
        token_ids: the token at each row; this and the next three are None for rows that came without a text.
        doc_ids: the row's document, counted over the whole text.
        position: the token's position in its context, special tokens counted.
        context: the number of the context within the shard.
        names: document number → name.
    """

    order: Int[Tensor, " rows"]
    token_ids: Int[Tensor, " rows"] | None = None
    doc_ids: Int[Tensor, " rows"] | None = None
    position: Int[Tensor, " rows"] | None = None
    context: Int[Tensor, " rows"] | None = None
    names: Mapping[int, str] = MappingProxyType({})


def disk_order(rows: int, seed: int, name: str, content: Tensor) -> Int[Tensor, " rows"]:
    """The random order of a shard's rows on disk: uniform, and independent between shards.

    `content`: what sets the shard apart from the shard of the same number in another store, with which it may be merged.
    """
    digest = hashlib.sha256(bytes_of(content.contiguous())).hexdigest()
    return torch.randperm(rows, generator=generator(seed, f"order of shard {name} {digest}")).int()


def site_file(name: str, site: str) -> str:
    """Path of a site's rows within the store. Characters that some file system forbids become "_"."""
    return f"shards/{name}.{re.sub(r'[^A-Za-z0-9._-]', '_', site)}.safetensors"


def check_names(sites: Sequence[str]) -> None:
    """Raise unless every site's rows get a file of their own."""
    names = [site_file("", site) for site in (INDEX, *sites)]
    for site, name in zip(sites, names[1:], strict=True):
        if names.count(name) > 1:
            raise ValueError(f"site {site!r} would share the file {name} with another; name it otherwise")


def write_rows(root: Path, path: str, x: Float[Tensor, "all d"], rows: Int[Tensor, " rows"]) -> FileEntry:
    """Write x[rows] as the tensor "x", atomically. OSError: the disk is full or read-only."""
    step = max(1, PIECE // max(1, x.shape[1] * x.element_size()))
    pieces = (x[part.long()] for part in rows.split(step))
    return _write_listed(root, path, {"x": (x.dtype, (len(rows), x.shape[1]))}, {}, pieces)


def write_index(root: Path, path: str, index: Index) -> FileEntry:
    """Write a shard's index, atomically."""
    tensors = {name: value for name, value in index._asdict().items() if isinstance(value, Tensor)}
    layout = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    names = json.dumps({str(number): name for number, name in index.names.items()})
    return _write_listed(root, path, layout, {"names": names}, iter(tensors.values()))


def read_index(root: Path, shard: Shard) -> Index:
    """A shard's index, its document numbers made those of the whole store."""
    path = root / shard.index.path
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            names = json.loads((file.metadata() or {})["names"])
        index = Index(**tensors, names={int(k) + shard.documents: v for k, v in names.items()})
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing; overtone store verify {root} says what else is") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); overtone store verify {root} says what else is") from error
    return index if index.doc_ids is None else index._replace(doc_ids=index.doc_ids + shard.documents)


def _write_listed(root: Path, path: str, layout: Layout, meta: dict[str, str], pieces: Iterator[Tensor]) -> FileEntry:
    """Write a file of a store, atomically, and say how the manifest lists it."""
    listed: list[FileEntry] = []

    def write(temporary: Path) -> None:
        size, digest = write_safetensors(temporary, layout, meta, pieces)
        listed.append(FileEntry(path, size, digest))

    try:
        replace_file(root / path, write)
    except OSError as error:
        raise OSError(
            f"cannot write {root / path}: {error.strerror or error}; what the store lists is whole. Free some space and go on "
            "with the same command and --resume"
        ) from error
    return listed[0]


def write_safetensors(path: Path, layout: Layout, meta: dict[str, str], pieces: Iterable[Tensor]) -> tuple[int, str]:
    """Write a safetensors file from pieces in the order of `layout`, never holding more than one of them.

    Args:
        path: the file.
        layout: tensor name → (dtype, shape).
        meta: the file's metadata.
        pieces: the tensors' rows, one tensor after the other.

    Returns:
        (bytes, SHA-256 in hexadecimal).
    """
    header: dict[str, Any] = {"__metadata__": meta} if meta else {}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data start at a multiple of 8 bytes
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def put(data: Any) -> None:
            digest.update(data)
            file.write(data)

        put(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            put(bytes_of(piece.contiguous()))
    return 8 + len(text) + offset, digest.hexdigest()


def bytes_of(x: Tensor) -> memoryview:
    """The bytes of a contiguous tensor in place: to write them, or to read into them."""
    return x.view(torch.uint8).numpy().data.cast("B")


def data_start(path: Path, rows: int, d: int, dtype: torch.dtype) -> int:
    """Byte at which the rows of a site's file begin; StoreError when the file is not what the manifest says."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 2**20:
                raise ValueError("its header is too long")
            entry = json.loads(file.read(length))["x"]
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing; the store is damaged") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged or no shard ({error})") from error
    start, wanted = 8 + length, [_CODES[dtype], [rows, d], [0, rows * d * dtype.itemsize]]
    if [entry.get(k) for k in ("dtype", "shape", "data_offsets")] != wanted or size != start + wanted[2][1]:
        raise StoreError(f"{path} does not hold the {rows} × {d} rows of {wanted[0]} that the manifest lists")
    return start


def check_file(root: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file, or None: it is there, of the right size, and its SHA-256 is the one listed."""
    path = root / entry.path
    if not path.is_file():
        return f"{entry.path} is missing"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"{entry.path} has {size} bytes, not {entry.bytes}"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == entry.sha256 else f"{entry.path} is damaged: its SHA-256 is {found}, not {entry.sha256}"
