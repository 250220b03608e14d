"""Atomic writes: a file or folder is there whole, or not at all, whatever moment the process is killed at."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

# What safetensors calls types.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name beside `path` and rename it there; on an error the old file stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Find out that a file cannot be written before there is a result that would be lost; makes its folder.

    Raises:
        OSError: the folder cannot be made or written to, or the path is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the file to write in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}); give another file") from error


def replace_text(path: Path, text: str) -> None:
    """`replace_file` for text."""

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    replace_file(path, write)


def create_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name beside `path` and rename it there; `path` must not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        write(temporary)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        # mkdtemp makes private folders; this one should follow the user's umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; whatever goes wrong with the disk is an OSError that says so."""
    try:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, path, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise OSError(f"cannot write {path.parent}: {error}; free some space, or choose another place") from error


class Whole(NamedTuple):
    """A tensor that is written piece by piece, along its first axis, and so never needs to be in memory.

    Attributes:
        shape: of all of it.
        dtype: its type.
        pieces: its rows, in order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Iterator[Tensor]


def in_file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order that `write_wholes` takes their pieces in: that of safetensors, the widest types first."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def write_wholes(path: Path, tensors: Mapping[str, Whole]) -> None:
    """Write a safetensors file whose tensors come in pieces, one tensor after the other, as `in_file_order` has them."""
    header, end = {}, 0
    for name, whole in tensors.items():
        start, end = end, end + math.prod(whole.shape) * whole.dtype.itemsize
        header[name] = {"dtype": _NAMES[whole.dtype], "shape": list(whole.shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    try:
        with path.open("wb") as file:
            file.write(len(words).to_bytes(8, "little") + words)
            for whole in tensors.values():
                for piece in whole.pieces:
                    file.write(piece.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    except OSError as error:
        raise OSError(f"cannot write {path.parent}: {error}; free some space, or choose another place") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
