"""Dictionaries of any format: found, read, written."""

import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from overtone import checkpoint
from overtone.dictionary import Dictionary
from overtone.files import create_folder
from overtone.formats import exact, table
from overtone.formats.card import model_card
from overtone.formats.plain import FormatError, fold, unfold
from overtone.formats.reading import read_config
from overtone.formats.table import FORMATS, Format

OVERTONE = "overtone"
CARD = "README.md"
InputNorm = Literal["row", "rms"]


class Found(NamedTuple):
    """A dictionary from a file, and what goes along with it.

    Attributes:
        dictionary: it.
        format: the format's name.
        info: what the file tells besides: `model`, `site`, and its `config`, which an export to the same format keeps.
    """

    dictionary: Dictionary
    format: str
    info: dict[str, Any]


def load(path: str | Path, *, parts: Iterable[type] = (), input_norm: InputNorm | None = None) -> Dictionary:
    """A trained dictionary of overtone's or of another tool's (docs/formats.md), told by its files.

    Args:
        path: a folder written by `save`, a run folder (its finished dictionary, else its newest checkpoint); a folder or file of
            SAELens, dictionary_learning, sparsify, Gemma Scope or circuit-tracer; or "hub:OWNER/NAME[/FOLDER][@REVISION]", which
            is fetched from the Hugging Face Hub.
        parts: your own selection classes that a dictionary of overtone's uses.
        input_norm: how the rows of another tool's dictionary are scaled before it reads them, where its files do not say: "row"
            to unit norm, "rms" to norm √d. None: as the files say.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: a truncated, foreign or newer file of overtone's.
        FormatError: a file of another tool that is damaged, or that overtone cannot represent.
    """
    return read(path, parts=parts, input_norm=input_norm).dictionary


def read(path: str | Path, *, parts: Iterable[type] = (), input_norm: InputNorm | None = None) -> Found:
    """`load`, with what the files tell besides."""
    if str(path).startswith("hub:"):
        from overtone.formats.hub import fetch

        path = fetch(str(path))
    path = Path(path)
    foreign = None if is_own(path) else table.recognise(path)
    if foreign is not None:
        found = _read(*foreign)
        return found if input_norm is None else found._replace(dictionary=_with_input_norm(found, path, input_norm))
    if input_norm is not None and is_own(path):
        raise FormatError(f"{path} is overtone's own and knows how it scales rows; drop input_norm={input_norm!r}")
    if path.is_file():
        raise FormatError(
            f"{path} is no file of a format that overtone reads ({', '.join(e.weights for e in FORMATS.values())}); other "
            "pickles (.pt, .pth, .pkl) can run code and are never opened"
        )
    if path.is_dir() and not is_own(path):
        inside = [p.name for p in sorted(path.glob("*")) if table.recognise(p)]
        if inside:
            raise FormatError(f"{path} holds several dictionaries: {', '.join(inside)}; give the path of one")
    dictionary = checkpoint.load(path, parts=parts)
    return Found(dictionary, OVERTONE, checkpoint.info(path))


def is_own(path: str | Path) -> bool:
    """Whether a path holds a dictionary or a run of overtone."""
    try:
        return bool(checkpoint.find(Path(path)))
    except FileNotFoundError:
        return False


def _read(entry: Format, weights: Path) -> Found:
    folder = weights.parent
    try:
        config = {} if entry.config is None else read_config(folder / entry.config)
        tensors = entry.read(weights)
        plain, told = entry.unpack(dict(tensors), config, str(weights))
        dictionary = exact.read(entry, tensors, plain, folder) or unfold(plain)
    except FormatError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, AttributeError) as error:
        # Whatever a file made by chance or malice brings about, it is the file's fault and is said to be.
        raise FormatError(f"{weights} is no dictionary of {entry.what} that overtone can read: {error}") from error
    return Found(dictionary, entry.name, told | {"format": entry.name, "config": config})


def _with_input_norm(found: Found, path: Path, input_norm: InputNorm) -> Dictionary:
    """The dictionary for rows that are scaled in another way than its file says."""
    dictionary, says = found.dictionary, found.dictionary.parametrisation.input_norm
    if says not in ("none", input_norm):
        raise FormatError(f"{path} says itself that rows are scaled by {says!r}; drop input_norm={input_norm!r}")
    if not dictionary.layout.plain:
        raise FormatError(f"input_norm={input_norm!r} is for autoencoders; {path} is of {dictionary.layout}")
    dictionary.parametrisation = replace(dictionary.parametrisation, input_norm=input_norm)
    return dictionary


def export(dictionary: Dictionary, path: str | Path, to: str, info: dict[str, Any] | None = None) -> Path:
    """Write a dictionary for another tool, as a folder: its files, a model card, and what makes reading it back exact.

    Codes are those of `fold`: overtone's times one number for all, which the card names.

    Args:
        dictionary: it.
        path: folder to create; an existing one is an error.
        to: a name in `FORMATS`, or "overtone".
        info: what goes along: `model`, `site`, `target`, `context`; `read(…).info` of a foreign file.

    Raises:
        FormatError: what the format cannot hold, by name, and what to do instead.
    """
    path, info = Path(path), info or {}
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; choose another path or remove it")
    if to == OVERTONE:
        checkpoint.save(dictionary, path, info)
        return path
    entry = table.named(to)
    if dictionary.W_dec.device.type != "cpu":
        dictionary = deepcopy(dictionary).cpu()
    tensors, config = entry.pack(fold(dictionary), info)
    # Copies: files hold one tensor twice where a tied dictionary has it once.
    tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise FormatError(
                f"tensor {name!r} would have NaN or Inf in {entry.what}: the dictionary has, or its scales are extreme"
            )

    def write(folder: Path) -> None:
        entry.write(folder / entry.weights, tensors)
        if entry.config is not None:
            (folder / entry.config).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        exact.write(dictionary, entry, tensors, config, folder)
        (folder / CARD).write_text(model_card(dictionary, entry, info), encoding="utf-8")

    create_folder(path, write)
    return path


def names() -> tuple[str, ...]:
    """Everything that `export` writes."""
    return (*FORMATS, OVERTONE)
