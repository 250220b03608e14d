"""Seeded damage to the files of a dictionary: their bytes, their tensors, their settings, and the headers that describe both."""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Spoil = Callable[[Path, Random], None]

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3.5,
        2**31,
        2**40,
        2**63,
        -(2**63),
        10**30,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "relu", "../../etc/passwd", "os.system", "\x00", "é" * 300, [], {}, [[]], [0], [-1, 5], [2**40], ["a"]),
    *({"type": "TopK", "k": 3}, {"type": "Method"}, {"type": []}, {"a": {"b": {"c": 1}}}),
)
DTYPES = (
    *(torch.int64, torch.int32, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0, -1.0)


def flipped(path: Path, random: Random) -> None:
    """Some bytes are others: most near the ends, where headers and indices are."""
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 4)):
        near = min(len(content), random.choice((16, 400, 900, len(content))))
        place = random.randrange(near)
        content[place if random.random() < 0.5 else len(content) - 1 - place] = random.randrange(256)
    path.write_bytes(content)


def cut(path: Path, random: Random) -> None:
    """It ends early, or begins late."""
    content = path.read_bytes()
    at = random.randrange(len(content))
    path.write_bytes(content[:at] if random.random() < 0.8 else content[at:])


def swollen(path: Path, random: Random) -> None:
    """Something is put in, or all of it is there twice."""
    content = path.read_bytes()
    at = random.randrange(len(content) + 1)
    path.write_bytes(content[:at] + random.choice((content, random.randbytes(9), b"\0" * 4096)) + content[at:])


def settings(path: Path, random: Random) -> None:
    """Settings removed, replaced, added."""
    config = json.loads(path.read_text())
    places = list(_places(config))
    for holder, key in random.sample(places, min(len(places), random.choice((1, 1, 1, 2, 5)))):
        change = random.random()
        if change < 0.2:
            holder.pop(key)
        elif change < 0.3 and isinstance(holder, dict):
            holder[random.choice(("type", "k", "x"))] = deepcopy(random.choice(VALUES))
        elif change < 0.4:
            holder[key] = deepcopy(random.choice([h[k] for h, k in places]))
        else:
            holder[key] = deepcopy(random.choice(VALUES))
        places = list(_places(config))
    text = json.dumps(config, default=str)
    if random.random() < 0.05:
        text = random.choice(
            ("[" * 10**5, '{"a":' * 10**5, '{"k": ' + "9" * 5000 + "}", "null", "[]", '"x"', "\ufeff{}")
        )
    path.write_text(text)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(what holds a value, its key) for every value of a tree."""
    pairs = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    for key, value in pairs:
        yield tree, key
        yield from _places(value)


def spoilt_tensors(tensors: dict[str, Tensor], random: Random) -> dict[str, Tensor]:
    """Tensors lost, renamed, swapped, of another shape, type or value."""
    tensors = dict(tensors)
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(sorted(tensors))
        value = tensors.pop(name)
        change = random.randrange(9)
        if change == 0 and tensors:
            continue
        if change == 1:
            tensors["x" + name] = value
        elif change == 2 and tensors:
            other = random.choice(sorted(tensors))
            tensors[name], tensors[other] = tensors[other], value
        elif change == 3:
            shapes = (value.T if value.ndim == 2 else value[None], value.flatten(), value[:0] if value.ndim else value)
            tensors[name] = random.choice((*shapes, value.flatten()[:1], value.flatten()[0], value[None, None]))
        elif change in (4, 5):
            tensors[name] = value.to(random.choice(DTYPES))
        elif change in (6, 7) and value.numel() and value.is_floating_point():
            tensors[name] = value.clone()
            tensors[name].view(-1)[random.randrange(value.numel())] = random.choice(NUMBERS)
        else:
            tensors |= {name: value, random.choice(("b_dec", "scale", "threshold", "centre", "W_skip")): value}
    return tensors


def safetensors(path: Path, random: Random) -> None:
    """Other tensors, or the header of the same ones."""
    with safe_open(path, framework="pt") as file:
        tensors, note = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if note and random.random() < 0.5:
        note = {key: _spoilt_text(text, random) for key, text in note.items()}
    if tensors and (random.random() < 0.7 or not note):
        tensors = {name: value.contiguous().clone() for name, value in spoilt_tensors(tensors, random).items()}
    save_file(tensors, path, note)
    if random.random() < 0.4:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = _spoilt_text(content[8 : 8 + length].decode(), random).encode()
        stated = random.choice((len(header), len(header), len(header), 0, 2**62, len(header) + 1))
        path.write_bytes(struct.pack("<Q", stated) + header + content[8 + length :])


def _spoilt_text(text: str, random: Random) -> str:
    tree = json.loads(text)
    places = list(_places(tree))
    if not places:
        return "[]"
    holder, key = random.choice(places)
    holder[key] = deepcopy(random.choice((*VALUES, "F8", "I64", "BOOL", [2**40], [0, 2**42], [8, 4], [24, 12])))
    return json.dumps(tree)


def arrays(path: Path, random: Random) -> None:
    """Members of an .npz file whose headers are others, checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(sorted(members))
    if random.random() < 0.5:
        tensors = {n.removesuffix(".npy"): torch.from_numpy(np.load(io.BytesIO(c))) for n, c in members.items()}
        known = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
        spoilt = {n: v.float() if v.dtype in known else v for n, v in spoilt_tensors(tensors, random).items()}
        plain: dict[str, Any] = {n: v.numpy() for n, v in spoilt.items()}
        np.savez(path, **plain)
        return
    shape = random.choice(((2**38,), (24, 12), (-1, 3), (), (0,), (2**20, 2**20), (1,) * 40))
    descr = random.choice(("<f4", ">f4", "<f2", "<i8", "|O", "<U4", "<M8[ns]", "|V8", "<f8", "<c8", "|b1"))
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": random.random() < 0.3, "shape": shape}
    )
    header = bytearray(buffer.getvalue())
    if random.random() < 0.3:
        header[random.randrange(len(header))] = random.randrange(256)
    members[name] = bytes(header) + members[name][128:]
    _zipped(path, members, random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def program(path: Path, random: Random) -> None:
    """The pickle of a state dict with other instructions, and storages of other sizes, checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = (
        next(n for n in members if n.endswith("data.pkl")) if random.random() < 0.8 else random.choice(sorted(members))
    )
    content = bytearray(members[name])
    for _ in range(random.choice((1, 1, 2, 4))):
        place, change = random.randrange(len(content)), random.random()
        if change < 0.7:
            content[place] = random.choice((random.randrange(256), *b"cRbtusq2(."))
        elif change < 0.85:
            del content[place : place + random.randint(1, 12)]
        else:
            content[place:place] = random.choice((b"cos\nsystem\n", b"\x8c\x01x", b"K\x03", b"2", random.randbytes(3)))
        if not content:
            break
    members[name] = bytes(content)
    _zipped(path, members, random.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)))


def state_dict(path: Path, random: Random) -> None:
    """Other tensors in a file of torch.save."""
    torch.save(spoilt_tensors(torch.load(path, weights_only=True), random), path)


def _zipped(path: Path, members: dict[str, bytes], method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


BYTES: tuple[Spoil, ...] = (flipped, cut, swollen)
KNOWN: dict[str, tuple[Spoil, ...]] = {
    ".json": (settings, settings, settings),
    ".safetensors": (safetensors, safetensors, safetensors),
    ".npz": (arrays, arrays, arrays),
    ".pt": (program, program, state_dict),
}


def spoil(folder: Path, random: Random) -> str:
    """Damage one file of a folder; says which, and how."""
    file = random.choice(sorted(path for path in folder.iterdir() if path.suffix in KNOWN))
    how = random.choice((*BYTES, *KNOWN[file.suffix]))
    how(file, random)
    return f"{how.__name__} {file.name}"
