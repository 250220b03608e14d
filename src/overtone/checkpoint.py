"""Dictionaries and training states on disk: safetensors plus versioned JSON, atomic, exact. Nothing is ever unpickled."""

import json
import shutil
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone import config
from overtone.background import Background
from overtone.data.stream import Batch, Stream
from overtone.dictionary import Dictionary
from overtone.files import NewFolder, Whole, in_file_order, write_wholes
from overtone.firing import FiringStats
from overtone.layout import Layout
from overtone.parallel import World
from overtone.parametrisation import Parametrisation
from overtone.selection import Selection
from overtone.training import Run, TrainState, begin

FORMAT = 1
WEIGHTS, CONFIG = "dictionary.safetensors", "dictionary.json"
STATE, STATE_CONFIG = "state.safetensors", "state.json"
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
        _write_dictionary(dictionary, dictionary.state_dict(), folder, info or {})
    folder.commit()


def give(dictionary: Dictionary) -> None:
    """What a rank does while the first one `save`s a dictionary: hand it this one's latents, where it has not all."""
    _write_wholes(dictionary, dictionary.state_dict(), None)


def _write_dictionary(
    dictionary: Dictionary, weights: dict[str, Tensor], folder: NewFolder, info: dict[str, Any]
) -> None:
    _write_wholes(dictionary, weights, folder.file(WEIGHTS))
    folder.file(CONFIG).write((json.dumps(describe(dictionary, info), indent=2) + "\n").encode())


def _write_wholes(dictionary: Dictionary, tensors: dict[str, Tensor], file: FileIO | None) -> None:
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


class Writer(Background):
    """Writes checkpoints while training goes on, one at a time, from copies; their memory is kept for the next one."""

    def __init__(self):
        super().__init__("checkpoint")
        self._kept: dict[str, dict[str, Tensor]] = {}

    def copies(self, files: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Of the tensors of some files; the next call overwrites them."""
        self.wait()
        kept = {(file, name): copy for file, copies in self._kept.items() for name, copy in copies.items()}
        self._kept = {
            file: {name: _copied(tensor, kept.get((file, name))) for name, tensor in tensors.items()}
            for file, tensors in files.items()
        }
        return self._kept


def _copied(tensor: Tensor, into: Tensor | None) -> Tensor:
    # Memory that is new to the process takes ten times as long to write to.
    fits = into is not None and (into.shape, into.dtype) == (tensor.shape, tensor.dtype)
    copy = into if into is not None and fits else torch.empty_like(tensor, device="cpu")
    return copy.copy_(tensor.detach())


def save_state(
    run: Run, state: TrainState, stream: Stream, run_folder: Path, *, keep: int = 1, writer: Writer | None = None
) -> None:
    """Checkpoint everything that training carries, then drop all but the `keep` newest.

    Args:
        run: the configuration.
        state: what is written; it may change as soon as this returns.
        stream: whose position belongs to it.
        run_folder: where checkpoints/ are.
        keep: how many checkpoints.
        writer: writes while training goes on. Split latents, which ranks send one after the other and none has room for, go to
            the file at once, and only their way to the disk is left to it. None: all is done on return.
    """
    path = run_folder / "checkpoints" / f"{state.step:09d}"
    if writer is not None:
        writer.wait()
    if path.exists():
        give_state(state)
        return
    description = {
        "format": "overtone-state",
        "version": FORMAT,
        "step": state.step,
        "run": config.to_json(run),
        "stream": stream.state_dict(),
    }
    text = json.dumps(description, indent=2) + "\n"
    dictionary, folder = state.dictionary, NewFolder(path)
    files = {STATE: _all_tensors(state), WEIGHTS: dictionary.state_dict()}
    later = dictionary.world.latents.size == 1
    if writer is not None and later:
        files = writer.copies(files)

    def fill() -> None:
        with folder.filling():
            _write_wholes(dictionary, files[STATE], folder.file(STATE))
            folder.file(STATE_CONFIG).write(text.encode())
            _write_dictionary(dictionary, files[WEIGHTS], folder, {"step": int(path.name)})

    def finish() -> None:
        if later:
            fill()
        folder.commit()
        for old in checkpoints(run_folder)[:-keep]:
            shutil.rmtree(old)
        for leftover in path.parent.glob(".[0-9]*"):  # of a process killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)

    if not later:
        fill()
    if writer is None:
        finish()
    else:
        writer.start(finish)


def give_state(state: TrainState) -> None:
    """What a rank does while the first one saves the state: as `give`."""
    _write_wholes(state.dictionary, _all_tensors(state), None)
    give(state.dictionary)


def load_state(run: Run, stream: Stream, checkpoint: Path, world: World | None = None) -> TrainState:
    """The state at a checkpoint; the stream is put where it was. Training on equals never having stopped, bit for bit.

    A checkpoint is the same whatever the number of ranks that wrote it; `world` may have another, each of
    which reads its latents' part.
    """
    description = _read_state(checkpoint)
    if not _is_of(description["run"], run):
        raise CheckpointError(
            f"{checkpoint} belongs to a run with other settings; resume with the run's own configuration"
        )
    layout = stream.layout
    ones = Batch(torch.ones(2, layout.d), torch.ones(2, layout.d_out))
    state = begin(run, layout, ones, world)  # replaced below
    tensors = read_tensors(checkpoint / STATE, state.dictionary)
    expected = _state_tensors(state) | _optimiser_tensors(run, state.dictionary)
    wrong = sorted(n for n in expected.keys() | tensors.keys() if _shape(expected, n) != _shape(tensors, n))
    if wrong:
        raise CheckpointError(
            f"{checkpoint / STATE}: {wrong[0]} is {_shape(tensors, wrong[0])}, expected {_shape(expected, wrong[0])}; "
            "the state is incomplete or of another run"
        )
    weights = read_tensors(checkpoint / WEIGHTS, state.dictionary)
    load_into(state.dictionary, weights, checkpoint / WEIGHTS)
    for name, parameter in state.dictionary.named_parameters():
        values = _under(tensors, f"optimiser.{name}.")
        if values:
            state.optimiser.state[parameter] = values
    stream.load_state_dict(description["stream"])
    state.rules = [_under(tensors, f"rule.{i}.") for i in range(len(run.method.rules))]
    state.window = FiringStats(**_under(tensors, "window."))
    state.window_loss = tensors["window_loss"].clone()
    state.step = description["step"]
    return state


def _is_of(description: Any, run: Run) -> bool:
    """Whether a described run is this one; settings that were not there yet when it was described have their defaults."""
    try:
        return config.to_json(config.from_json(description, config.classes_in(run))) == config.to_json(run)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def position(checkpoint: Path) -> dict[str, Any]:
    """Where the stream was at a checkpoint."""
    return _read_state(checkpoint)["stream"]


def _read_state(checkpoint: Path) -> dict[str, Any]:
    description = read_json(checkpoint / STATE_CONFIG, "overtone-state")
    if not {"run", "stream", "step"} <= description.keys():
        raise CheckpointError(f"{checkpoint / STATE_CONFIG} is incomplete; go on from an earlier copy, or train again")
    return description


def _state_tensors(state: TrainState) -> dict[str, Tensor]:
    """All tensors of a state but the weights and the optimiser's."""
    tensors: dict[str, Tensor] = {"window_loss": state.window_loss}
    tensors |= {f"window.{k}": v for k, v in state.window._asdict().items()}
    for i, rule in enumerate(state.rules):
        tensors |= {f"rule.{i}.{k}": v for k, v in rule.items()}
    return tensors


def _all_tensors(state: TrainState) -> dict[str, Tensor]:
    """All tensors of a state but the weights."""
    weights = {id(p): name for name, p in state.dictionary.named_parameters()}
    tensors = _state_tensors(state)
    for parameter, values in state.optimiser.state.items():
        tensors |= {f"optimiser.{weights[id(parameter)]}.{k}": v for k, v in values.items() if v is not None}
    return tensors


def _optimiser_tensors(run: Run, dictionary: Dictionary) -> dict[str, Tensor]:
    """What the optimiser keeps after its first step, by the names of a checkpoint: shapes to check one against."""
    if run.method.optimiser == "sgd":
        return {}
    kept = {n: p for n, p in dictionary.named_parameters() if p.requires_grad}
    moments: dict[str, Tensor] = {f"optimiser.{n}.{k}": p for n, p in kept.items() for k in ("exp_avg", "exp_avg_sq")}
    return moments | {f"optimiser.{n}.step": torch.zeros(()) for n in kept}


def _shape(tensors: dict[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "missing"


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    # Rule states such as "rule.1." must not catch "rule.10.": the prefix ends with a dot. Copies: files are mapped.
    return {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}


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
