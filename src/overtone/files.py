"""Atomic writes: a file or folder is there whole, or not at all, whatever moment the process is killed at."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
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


class NewFolder:
    """A folder that is filled under a temporary name beside `path`, which must not exist, and renamed there by `commit`.

    What is written may first be in memory of the system. `commit` sees to it that it is on the disk, and closes the files, for
    which network file systems take as long; it may do so in another thread.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp makes private folders; this one should follow the user's umask like any other. The mask is that of all threads,
        # so it is asked here and not where others run.
        self._mode = os.umask(0)
        os.umask(self._mode)
        self.path, self.temporary = path, Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        self._files: list[FileIO] = []

    def file(self, name: str) -> FileIO:
        """A new file in it, to be written and left open."""
        file = (self.temporary / name).open("wb", buffering=0)
        self._files.append(file)
        return file

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within, whatever goes wrong leaves nothing behind."""
        try:
            yield
        except BaseException:
            for file in self._files:
                file.close()
            shutil.rmtree(self.temporary, ignore_errors=True)
            raise

    def commit(self) -> None:
        """Put it on the disk, whole, and in its place."""
        with self.filling():
            for file in self._files:
                file.close()
            for written in self.temporary.iterdir():
                _sync(written)
            _sync(self.temporary)
            self.temporary.chmod(0o777 & ~self._mode)
            self.temporary.rename(self.path)
        _sync(self.path.parent)


def create_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name beside `path` and rename it there; `path` must not exist."""
    folder = NewFolder(path)
    with folder.filling():
        write(folder.temporary)
    folder.commit()


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


def write_wholes(file: FileIO, tensors: Mapping[str, Whole]) -> None:
    """Write a safetensors file whose tensors come in pieces, one tensor after the other, as `in_file_order` has them."""
    header, end = {}, 0
    for name, whole in tensors.items():
        start, end = end, end + math.prod(whole.shape) * whole.dtype.itemsize
        header[name] = {"dtype": _NAMES[whole.dtype], "shape": list(whole.shape), "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % 8)
    try:
        _write(file, len(words).to_bytes(8, "little") + words)
        for whole in tensors.values():
            for piece in whole.pieces:
                _write(file, piece.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    except OSError as error:
        where = Path(file.name).parent
        raise OSError(f"cannot write {where}: {error}; free some space, or choose another place") from error


def _write(file: FileIO, data: bytes | memoryview) -> None:
    """All of it: an unbuffered file may take less at a time."""
    left = memoryview(data)
    while len(left):
        left = left[file.write(left) :]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
