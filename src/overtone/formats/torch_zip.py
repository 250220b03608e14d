"""`torch.save`d state dicts, read without unpickling.

Such a file is a zip of raw storages and of one pickle that says which tensor lies where. A pickle is a program, and running a
foreign one is how files take over machines; PyTorch's restricted unpickler (`weights_only=True`) has had holes. Here the program
is read as data: a state dict takes some twenty instructions, which are followed symbolically. Nothing is imported, nothing is
called, and any other instruction or name ends the reading.
"""

import pickletools
import zipfile
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from overtone.formats.plain import FormatError
from overtone.formats.reading import MIB, ZIP_ERRORS

LARGEST_PROGRAM = 4 * MIB
SHARED = 4  # tied weights lie in one storage; a few do
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
}
ORDERED, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
GLOBALS = {*STORAGES, ORDERED, TENSOR, PARAMETER}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS_AND_TEXT = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT")


class _Global(NamedTuple):
    name: str


class _Stored(NamedTuple):
    """A tensor as the program describes it: a window on a storage."""

    dtype: torch.dtype
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote.

    Raises:
        FormatError: anything else in a pickle, which is refused and never run; damage.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder is incomplete") from error
    except zipfile.BadZipFile as error:
        raise FormatError(
            f"{path} is truncated, or a bare pickle of an old PyTorch, which is refused since pickles can run code; where you "
            "trust it: torch.save(torch.load(path, weights_only=True), path)"
        ) from error
    except FormatError:
        raise
    except (*ZIP_ERRORS, IndexError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path} is damaged or no state dict ({error})") from error


def _read(archive: zipfile.ZipFile, path: Path) -> dict[str, Tensor]:
    members = {member.filename: member for member in archive.infolist()}
    programs = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1 or members[programs[0]].file_size > LARGEST_PROGRAM:
        raise FormatError(f"{path} is no file of torch.save: it has {len(programs)} data.pkl, or a huge one")
    if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members.values()):
        raise FormatError(f"{path} is compressed, which torch.save never does; it is refused")
    root = programs[0].removesuffix("/data.pkl")
    if archive.read(members[f"{root}/byteorder"]) != b"little" if f"{root}/byteorder" in members else False:
        raise FormatError(f"{path} was written by a big-endian machine; save it again on a common one")
    state = _follow(archive.read(programs[0]), path)
    if not isinstance(state, dict) or not state or not all(isinstance(v, _Stored) for v in state.values()):
        raise FormatError(f"{path} holds no plain state dict of tensors; save model.state_dict() alone")
    if sum(members[f"{root}/data/{stored.key}"].file_size for stored in state.values()) > SHARED * path.stat().st_size:
        raise FormatError(f"{path} has tensors that share their bytes beyond all reason; it was made to fill memory")
    return {name: _tensor(archive, f"{root}/data/{stored.key}", stored, path) for name, stored in state.items()}


def _tensor(archive: zipfile.ZipFile, member: str, stored: _Stored, path: Path) -> Tensor:
    size, last = (
        prod(stored.shape),
        stored.offset + sum((n - 1) * s for n, s in zip(stored.shape, stored.strides, strict=True)),
    )
    content = archive.read(member)
    held = len(content) // stored.dtype.itemsize
    # Strides of 0 would let a few bytes pose as a matrix of any size.
    if min((stored.offset, *stored.shape, *stored.strides)) < 0 or size > held or (size and last >= held):
        raise FormatError(
            f"{path}: a tensor of shape {stored.shape} does not fit its {len(content):,} bytes; it is damaged"
        )
    flat = torch.frombuffer(bytearray(content), dtype=stored.dtype) if held else torch.empty(0, dtype=stored.dtype)
    return flat.as_strided(stored.shape, stored.strides, stored.offset).clone(memory_format=torch.contiguous_format)


def _follow(program: bytes, path: Path) -> Any:
    """What the program would leave, with tensors as descriptions."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in NUMBERS_AND_TEXT:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]  # pyright: ignore[reportArgumentType]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])  # pyright: ignore[reportArgumentType]
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = 0 if name == "EMPTY_TUPLE" else int(name[-1])
            items = tuple(stack[len(stack) - count :])
            del stack[len(stack) - count :]
            stack.append(items)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "GLOBAL":
            if argument not in GLOBALS:
                raise FormatError(
                    f"{path} asks for {argument!r}, which no state dict needs; it is refused and was not run"
                )
            stack.append(_Global(str(argument)))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), path))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_rebuilt(stack.pop(), arguments, path))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], key, value, path)
        elif name == "SETITEMS":
            items = since_mark()
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set(stack[-1], key, value, path)
        elif name == "BUILD":
            stack.pop()  # the versions of the modules, which a state dict carries
        else:
            raise FormatError(
                f"{path} has the instruction {name}, which no state dict needs; it is refused and was not run"
            )
    raise FormatError(f"{path} ends within its data.pkl; it is truncated")


def _set(state: Any, key: Any, value: Any, path: Path) -> None:
    # Only text: the hash of a tuple of tuples of tuples, shared at every level, takes forever.
    if not isinstance(state, dict) or not isinstance(key, str):
        raise FormatError(f"{path} has a name that is a {type(key).__name__} and not a text; it is no state dict")
    state[key] = value


def _storage(described: Any, path: Path) -> tuple[torch.dtype, str]:
    kind, storage, key, *_ = described
    if (
        kind != "storage"
        or not isinstance(storage, _Global)
        or storage.name not in STORAGES
        or not isinstance(key, str)
    ):
        raise FormatError(f"{path} refers to something else than a storage of numbers; it is refused")
    return STORAGES[storage.name], key


def _rebuilt(what: Any, arguments: Any, path: Path) -> Any:
    if what == _Global(ORDERED) and arguments == ():
        return {}
    if what == _Global(PARAMETER) and isinstance(arguments[0], _Stored):
        return arguments[0]
    if what == _Global(TENSOR):
        (dtype, key), offset, shape, strides, *_ = arguments
        numbers = (offset, *shape, *strides)
        if isinstance(dtype, torch.dtype) and all(type(n) is int for n in numbers) and len(shape) == len(strides):
            return _Stored(dtype, key, offset, shape, strides)
    raise FormatError(f"{path} builds something else than tensors; it is refused and was not run")
