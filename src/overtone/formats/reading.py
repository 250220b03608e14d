"""Foreign files, read with suspicion: nothing is executed, nothing is allocated that the file does not hold."""

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone.checkpoint import FLOATS
from overtone.formats.plain import FormatError

MIB = 2**20
LARGEST_CONFIG, LARGEST_HEADER = 16 * MIB, 16 * MIB
# Weights do not compress: what inflates more than this was made to fill memory.
INFLATION = 20
T = TypeVar("T")


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise FormatError(
                f"{path} has {path.stat().st_size:,} bytes; a configuration has at most {LARGEST_CONFIG:,}"
            )
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder is incomplete") from error
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, FormatError) else FormatError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} holds a {type(config).__name__}, not an object with settings")
    return config


def setting(config: Mapping[str, Any], key: str, kind: type[T], where: object, default: T | None = None) -> T:
    """A value of a configuration, of the right type; a null is as good as none where there is a default."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    found: Any = _number(value, kind)
    if type(found) is not kind:  # and not isinstance: a bool is an int
        raise FormatError(f"{where}: {key} is {value!r}, which should be of type {kind.__name__}")
    return found


def _number(value: Any, kind: type) -> Any:
    """JSON does not always tell 3 from 3.0."""
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if header > min(size - 8, LARGEST_HEADER):
            raise FormatError(
                f"{path} claims a header of {header:,} bytes in a file of {size:,}; it is truncated or no safetensors file"
            )
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 – not a mapping
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder is incomplete") from error
    except (SafetensorError, OSError, RuntimeError, AttributeError, TypeError, KeyError) as error:
        raise FormatError(f"{path} is truncated or not a safetensors file ({error})") from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of an .npz file; object arrays, which are pickles, are refused."""
    try:
        limit = INFLATION * path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > limit:
                raise FormatError(f"{path} inflates to more than {INFLATION} times its size; weights do not")
            return {member.filename.removesuffix(".npy"): _array(archive, member, path) for member in members}
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing: the folder is incomplete") from error
    except FormatError:
        raise
    except (*ZIP_ERRORS, SyntaxError, TypeError) as error:
        raise FormatError(f"{path} is truncated or no .npz file of plain arrays ({error})") from error


ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, KeyError, struct.error)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Tensor:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            raise FormatError(f"{path}: array {member.filename!r} is of {dtype}, not of floating-point numbers")
        content = file.read()
    count = int(np.prod(shape, dtype=object))
    if min(shape, default=1) < 0 or len(content) != count * dtype.itemsize:
        raise FormatError(
            f"{path}: array {member.filename!r} of shape {shape} has {len(content):,} bytes; it is damaged"
        )
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(array.astype(dtype.newbyteorder("="), copy=False), order="C"))


def checked(
    tensors: Mapping[str, Tensor],
    where: object,
    shapes: Mapping[str, tuple[str, ...]],
    optional: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors that a format has, of one dtype, and the sizes of its axes.

    Args:
        tensors: what the file holds.
        where: the file, for errors.
        shapes: name → axes; an axis has the same size wherever it is named.
        optional: more of them that may be missing.

    Raises:
        FormatError: missing or foreign tensors, other shapes, other types, NaN or Inf.
    """
    known = {**shapes, **(optional or {})}
    missing, foreign = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - known.keys())
    if missing or foreign:
        lines = [f"{what} {', '.join(map(repr, names[:8]))}" for what, names in _blamed(missing, foreign) if names]
        raise FormatError(f"{where}: {'; '.join(lines)}; expected are {', '.join(known)}")
    sizes: dict[str, int] = {}
    for name, value in tensors.items():
        if value.dtype not in FLOATS:
            raise FormatError(f"{where}: tensor {name!r} is of {value.dtype}, not of floating-point numbers")
        axes = known[name]
        wanted = tuple(sizes.get(axis, size) for axis, size in zip(axes, value.shape, strict=False))
        if len(axes) != value.ndim or tuple(value.shape) != wanted or 0 in value.shape:
            sized = " × ".join(f"{a} = {sizes[a]}" if a in sizes else a for a in axes) or "a single number"
            raise FormatError(f"{where}: tensor {name!r} has shape {tuple(value.shape)}, expected {sized}")
        sizes.update(zip(axes, value.shape, strict=True))
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise FormatError(f"{where}: tensor {name!r} has NaN or Inf; the file is damaged or the training diverged")
    dtype = FLOATS[min(FLOATS.index(value.dtype) for value in tensors.values())]
    widest = torch.float64 if any(value.dtype == torch.float64 for value in tensors.values()) else dtype
    return {name: value.to(widest) for name, value in tensors.items()}, sizes


def _blamed(missing: list[str], foreign: list[str]) -> list[tuple[str, list[str]]]:
    return [("there is no tensor", missing), ("there are foreign tensors", foreign)]
