"""Training states on disk: all that a step needs of the steps before it, so that going on equals never having stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone import config
from overtone.background import Background
from overtone.checkpoint import (
    FORMAT,
    WEIGHTS,
    CheckpointError,
    checkpoints,
    give,
    load_into,
    read_json,
    read_tensors,
    write_dictionary,
    write_parts,
)
from overtone.data.stream import Batch, Stream
from overtone.dictionary import Dictionary
from overtone.files import NewFolder
from overtone.firing import FiringStats
from overtone.parallel import World
from overtone.training import Run, TrainState, begin

STATE, STATE_CONFIG = "state.safetensors", "state.json"


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
            write_parts(dictionary, files[STATE], folder.file(STATE))
            folder.file(STATE_CONFIG).write(text.encode())
            write_dictionary(dictionary, files[WEIGHTS], folder, {"step": int(path.name)})

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
    write_parts(state.dictionary, _all_tensors(state), None)
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
