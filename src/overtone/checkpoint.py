"""Dictionaries on disk: safetensors plus versioned JSON, atomic, exact. Nothing is ever unpickled."""

import json
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone import config
from overtone.dictionary import Dictionary
from overtone.files import NewFolder, Whole, in_file_order, write_wholes
from overtone.layout import Layout
from overtone.parametrisation import Parametrisation
from overtone.selection import Selection

FORMAT = 1
WEIGHTS, CONFIG = "dictionary.safetensors", "dictionary.json"
LARGEST_DESCRIPTION = 16 * 2**20  # bytes; descriptions have a few thousand
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # what weights may be
# What a description of other things than it should be makes of the code that reads it.
MISREAD = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, RecursionError)


# What rules and windows keep of every latent.
_OF_LATENTS = ("fired", "peak", "targets", "start", "resampled")


class CheckpointError(ValueError):
    """A file that is not, or no longer, what it should be."""


def save(dictionary: Dictionary, path: str | Path, info: dict[str, Any] | None = None) -> None:
    """Write a dictionary as a folder of `dictionary.safetensors` and `dictionary.json`.

    Args:
        dictionary: the dictionary.
        path: folder to create; an existing one is an error, nothing is overwritten.
        info: anything JSON-able to keep beside it (training run, model, site).
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten; choose another path or remove it")
    folder = NewFolder(path)
    with folder.filling():
        write_dictionary(dictionary, dictionary.state_dict(), folder, info or {})
    folder.commit()


def give(dictionary: Dictionary) -> None:
    """What a rank does while the first one `save`s a dictionary: hand it this one's latents, where it has not all."""
    write_parts(dictionary, dictionary.state_dict(), None)


def write_dictionary(
    dictionary: Dictionary, weights: dict[str, Tensor], folder: NewFolder, info: dict[str, Any]
) -> None:
    """Into a folder that is being made: a dictionary with these weights, its own or a copy of them."""
    write_parts(dictionary, weights, folder.file(WEIGHTS))
    folder.file(CONFIG).write((json.dumps(describe(dictionary, info), indent=2) + "\n").encode())


def write_parts(dictionary: Dictionary, tensors: dict[str, Tensor], file: FileIO | None) -> None:
    """Write tensors of which each rank has its latents' part, holding one part of another rank at a time; None: give them."""
    ranks, sizes = dictionary.world.latents, dictionary.world.latents.parts(dictionary.latents)
    if (file is None) if ranks.size == 1 else dictionary.world.rows.rank > 0:
        return
    wholes = {}
    for name in in_file_order(tensors):
        local = tensors[name]
        if ranks.size > 1 and _is_of_latents(name, dictionary):
            wholes[name] = Whole((dictionary.latents, *local.shape[1:]), local.dtype, ranks.to_first(local, sizes))
        else:
            wholes[name] = Whole(tuple(local.shape), local.dtype, iter([local]))
    if file is not None:
        write_wholes(file, wholes)
        return
    for whole in wholes.values():
        for _ in whole.pieces:
            pass


def _is_of_latents(name: str, dictionary: Dictionary) -> bool:
    """Whether a tensor of a checkpoint, or a weight, has a row per latent."""
    kind, _, rest = name.partition(".")
    if kind == "optimiser":
        weight, _, key = rest.partition(".")
        return weight in dictionary.of_latents and key != "step"
    if kind in ("rule", "window"):
        return rest.rpartition(".")[2] in _OF_LATENTS
    return name in dictionary.of_latents


def describe(dictionary: Dictionary, info: dict[str, Any]) -> dict[str, Any]:
    """Everything about a dictionary but its weights, JSON-able."""
    return {
        "format": "overtone-dictionary",
        "version": FORMAT,
        "layout": config.to_json(dictionary.layout),
        "latents": dictionary.latents,
        "select": config.to_json(dictionary.select),
        "parametrisation": config.to_json(dictionary.parametrisation),
        "info": config.to_json(info),
    }


def build(description: dict[str, Any], parts: Iterable[type] = ()) -> Dictionary:
    """A dictionary as described, its weights those before training."""
    select, parametrisation = (config.from_json(description[k], parts) for k in ("select", "parametrisation"))
    if not isinstance(parametrisation, Parametrisation):
        raise TypeError("parametrisation is not a Parametrisation")
    if not isinstance(select, Selection):
        raise TypeError(f"select is {select!r}, which selects nothing")
    return Dictionary(layout_of(description), description["latents"], select, parametrisation)


def layout_of(description: dict[str, Any]) -> Layout:
    """The sites of a described dictionary."""
    # Dictionaries of one site were once described by its width alone.
    layout = config.from_json(description["layout"]) if "layout" in description else Layout.of(description["d"])
    if not isinstance(layout, Layout):
        raise TypeError("layout is not a Layout")
    return layout


def load(path: str | Path, *, parts: Iterable[type] = ()) -> Dictionary:
    """A trained dictionary.

    Args:
        path: a folder written by `save`, or a run folder (its finished dictionary, else its newest checkpoint).
        parts: your own selection classes that the dictionary uses.

    Raises:
        FileNotFoundError: nothing there.
        CheckpointError: a truncated, foreign or newer file.
    """
    folder = find(Path(path))
    description = read_json(folder / CONFIG, "overtone-dictionary")
    tensors = read_tensors(folder / WEIGHTS)
    try:
        # Before memory is taken for what a description only claims.
        _check_shapes(_matrices(description), tensors, folder / WEIGHTS)
        dictionary = build(description, parts)
    except CheckpointError:
        raise
    except MISREAD as error:
        raise CheckpointError(f"{folder / CONFIG} does not describe a dictionary: {error}") from error
    if tensors["W_dec"].dtype in FLOATS:
        dictionary.to(tensors["W_dec"].dtype)
    load_into(dictionary, tensors, folder / WEIGHTS)
    return dictionary


def info(path: str | Path) -> dict[str, Any]:
    """What was kept beside a dictionary: `save`'s info."""
    kept = read_json(find(Path(path)) / CONFIG, "overtone-dictionary").get("info")
    return kept if isinstance(kept, dict) else {}


def load_into(dictionary: Dictionary, tensors: dict[str, Tensor], source: Path) -> None:
    """Put tensors into a dictionary; names, shapes and values are checked first."""
    expected = dictionary.state_dict()
    _check_shapes({name: tuple(value.shape) for name, value in expected.items()}, tensors, source, alone=True)
    for name, value in tensors.items():
        allowed = FLOATS if expected[name].is_floating_point() else (expected[name].dtype,)
        if value.dtype not in allowed:
            raise CheckpointError(f"{source}: tensor {name} is of {value.dtype}, and should be of {allowed[0]}")
        if not value.isfinite().all():
            raise CheckpointError(
                f"{source}: tensor {name} has NaN or Inf; the file is damaged or the training diverged"
            )
    dictionary.load_state_dict(tensors)


def _matrices(description: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The shapes of a described dictionary's largest weights: the others are no larger than a side of these."""
    layout, latents = layout_of(description), description["latents"]
    parametrisation = config.from_json(description["parametrisation"])
    shapes = {"W_dec": (latents, layout.d_out)}
    if not (parametrisation.tied and layout.onto_itself):
        shapes["W_enc"] = (latents, layout.d)
    return shapes | ({"W_skip": (layout.d_out, layout.d)} if parametrisation.skip else {})


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: Path, *, alone: bool = False
) -> None:
    """Raise where tensors are missing, or of other shapes, or (`alone`) more than are expected."""
    found = {name: tuple(value.shape) for name, value in tensors.items() if alone or name in expected}
    if expected != found:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        lines = ", ".join(f"{n}: expected {expected.get(n)}, found {found.get(n)}" for n in wrong)
        raise CheckpointError(f"{source} does not fit its description ({lines}); it belongs to another dictionary")


def find(path: Path) -> Path:
    """The folder that holds a dictionary: `path`, its `dictionary/`, or its newest checkpoint."""
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*") if p.is_dir()) if path.parent.is_dir() else []
        raise FileNotFoundError(f"no dictionary or run at {path}; folders beside it: {', '.join(near) or 'none'}")
    for folder in (path, path / "dictionary", *reversed(checkpoints(path))):
        if (folder / CONFIG).is_file():
            return folder
    raise FileNotFoundError(
        f"{path} holds no {CONFIG}: neither a dictionary nor a run of overtone; give the folder that `overtone train` wrote"
    )


def checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run_folder / "checkpoints").glob("[0-9]*") if p.is_dir())


def read_json(path: Path, kind: str, *, largest: int = LARGEST_DESCRIPTION) -> dict[str, Any]:
    """A JSON description of the wanted kind, of a version this overtone reads and of no more than `largest` bytes."""
    try:
        if (size := path.stat().st_size) > largest:
            raise CheckpointError(
                f"{path} has {size:,} bytes, and may have {largest:,}; it was not written by overtone"
            )
        description = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the folder is incomplete") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, and of numbers of 5,000 digits
        raise CheckpointError(f"{path} is not valid JSON ({error}); it is truncated or not overtone's") from error
    if not isinstance(description, dict) or description.get("format") != kind:
        found = description.get("format") if isinstance(description, dict) else type(description).__name__
        raise CheckpointError(f"{path} is of format {found!r}, not {kind!r}; it was not written by overtone")
    version = description.get("version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise CheckpointError(
            f"{path} has version {version!r}, this overtone reads 1 to {FORMAT}; update overtone (pip install -U overtone)"
        )
    return description


def read_note(path: Path) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_tensors(path: Path, dictionary: Dictionary | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file; for a dictionary that has some of the latents, these latents' part."""
    split = dictionary is not None and dictionary.world.latents.size > 1
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if dictionary is None or not split:
                return {name: file.get_tensor(name) for name in names}
            of_own = {name for name in names if _is_of_latents(name, dictionary)}
            return {n: file.get_slice(n)[dictionary.own] if n in of_own else file.get_tensor(n) for n in names}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the folder is incomplete") from error
    except (SafetensorError, *MISREAD) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); restore it or train again"
        ) from error
