"""A run on disk: its folder, its records, its checkpoints; started, killed, resumed."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overtone import checkpoint, config, resumption
from overtone.data.stream import ArrayStream, Stream
from overtone.dictionary import Dictionary
from overtone.files import replace_text
from overtone.layout import Block, Layout, side_by_side
from overtone.method import Method
from overtone.methods import gba, gba_universal
from overtone.parallel import World
from overtone.sites import transcoder
from overtone.training import Record, Run, TrainState, start, steps, train
from overtone.version import __version__

Rows = Float[Tensor, "_ _"] | Float[np.ndarray, "_ _"]
CONFIG, RECORDS, DICTIONARY = "config.json", "records.jsonl", "dictionary"


class RunFolder:
    """`config.json`, `records.jsonl`, `checkpoints/`, and `dictionary/` once the run is finished."""

    def __init__(self, path: Path, run: Run, data: dict[str, Any]):
        self.path, self.run, self.data = path, run, data
        self.writer = resumption.Writer()

    @classmethod
    def create(cls, path: str | Path, run: Run, data: dict[str, Any] | None = None) -> "RunFolder":
        """Write the configuration of a new run into a folder got with `claim_folder`."""
        path = Path(path)
        if (path / CONFIG).exists():
            raise FileExistsError(
                f"{path} already holds a run; go on with it (--resume {path}) or choose another folder"
            )
        folder = cls(path, run, data or {})
        description = {
            "format": "overtone-run",
            "version": checkpoint.FORMAT,
            "overtone": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "run": config.to_json(run),
            "data": folder.data,
        }
        replace_text(path / CONFIG, json.dumps(description, indent=2) + "\n")
        return folder

    @classmethod
    def open(cls, path: str | Path, parts: Iterable[type] = ()) -> "RunFolder":
        """An existing run folder. `parts`: classes of your own that its method is made of."""
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"no run folder at {path}; give the folder that a training run was started in")
        if not (path / CONFIG).exists():
            raise FileNotFoundError(
                f"{path} has no {CONFIG}: it is not a run, or was stopped before its activations were read; start again with "
                "another --out"
            )
        description = checkpoint.read_json(path / CONFIG, "overtone-run")
        try:
            run = config.from_json(description["run"], extra=(Run, *parts))
            if not isinstance(run, Run) or not isinstance(description["data"], dict):
                raise TypeError("it holds no run and its data")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise checkpoint.CheckpointError(f"{path / CONFIG} does not describe a run: {error}") from error
        return cls(path, run, description["data"])

    @property
    def finished(self) -> bool:
        """Whether the trained dictionary is there."""
        return (self.path / DICTIONARY).is_dir()

    def dictionary(self) -> Dictionary:
        """The trained dictionary, or the newest checkpoint's."""
        return checkpoint.load(self.path, parts=config.classes_in(self.run))

    def seen_by(self, world: World) -> "RunFolder":
        """The folder as a rank has it: the first one writes, the others look on."""
        return self if world.first else WatchedFolder(self.path, self.run, self.data)

    def resume(self, stream: Stream, world: World | None = None) -> TrainState | None:
        """The newest checkpoint's state, with records after it dropped; None where nothing was checkpointed yet."""
        newest = checkpoint.checkpoints(self.path)
        state = resumption.load_state(self.run, stream, newest[-1], world) if newest else None
        self._drop_records(state.step if state else 0)
        return state

    def _drop_records(self, after: int) -> None:
        kept = [r for r in self.records() if r["step"] <= after]
        replace_text(self.path / RECORDS, "".join(json.dumps(r) + "\n" for r in kept))

    def records(self) -> list[dict[str, Any]]:
        """All whole records; a line cut short by a kill is not one."""
        file = self.path / RECORDS
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        try:
            return [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise checkpoint.CheckpointError(
                f"{file} has a line that is no record ({error}); remove that line"
            ) from error

    def append(self, record: Record) -> None:
        """Add one record."""
        with (self.path / RECORDS).open("a") as file:
            file.write(json.dumps(record._asdict()) + "\n")

    def keep(self, state: TrainState, stream: Stream) -> None:
        """Write a checkpoint, in the background: `writer` has to be waited for at last."""
        resumption.save_state(self.run, state, stream, self.path, writer=self.writer)

    def finish(self, dictionary: Dictionary) -> None:
        """Write the trained dictionary."""
        self.writer.wait()
        checkpoint.save(dictionary, self.path / DICTIONARY, {"run": self.run, "data": self.data})


class WatchedFolder(RunFolder):
    """A run folder that another rank writes, and this one only reads."""

    def _drop_records(self, after: int) -> None:
        pass

    def append(self, record: Record) -> None:
        """The other rank adds it."""

    def keep(self, state: TrainState, stream: Stream) -> None:
        """The other rank writes it, with this one's latents."""
        resumption.give_state(state)

    def finish(self, dictionary: Dictionary) -> None:
        """The other rank writes it, with this one's latents."""
        checkpoint.give(dictionary)


def claim_folder(path: Path, option: str = "--out", *, resumed: bool = True) -> None:
    """Make a new, writable folder or say why not.

    Args:
        path: of the folder.
        option: that it was given by.
        resumed: whether the command goes on with a folder of its own.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        remedy = f", remove it, or go on with --resume {path}" if resumed else " or remove it"
        raise FileExistsError(f"{path} exists and is not overwritten; choose another {option}{remedy}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.write_bytes(b"overtone")
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to {path}: {error.strerror or error}; free some space or choose another {option}"
        ) from error


def execute(folder: RunFolder, stream: Stream, world: World | None = None) -> Iterator[Record]:
    """Train a run folder to its end from wherever it stands, yielding the records that it also writes.

    Killed at any moment and executed again, it ends with the same weights, bit for bit (on a CPU, at the same number of
    threads, and of ranks). A finished run yields nothing. The ranks of `world` all read the folder; the first one writes it.
    """
    return (record for _, record in execute_together([(folder, stream)], world))


def execute_together(
    members: Sequence[tuple[RunFolder, Stream]], world: World | None = None
) -> Iterator[tuple[int, Record]]:
    """Train several run folders in lockstep, so that they can share the reading of their rows (`SharedRows`).

    Every stream must give the same rows at the same position and stand at its beginning. Yields (number of the member,
    record). Killed at any moment and executed again, every member ends with the weights of one never stopped; they depend
    on its own stream alone, and not on the other members.
    """
    world = world or World()
    members = [(folder.seen_by(world), stream) for folder, stream in members]
    left = [i for i, (folder, _) in enumerate(members) if not folder.finished]
    if not left:
        return
    begin = [stream.state_dict() for _, stream in members]
    states: dict[int, TrainState] = {}
    for i in left:
        folder, stream = members[i]
        stream.load_state_dict(begin[i])  # where streams share their rows, another member has moved it
        states[i] = folder.resume(stream, world) or start(folder.run, stream, world)
    # A kill may have come between two members' checkpoints: those ahead wait until the others have caught up.
    first = min(left, key=lambda i: states[i].step)
    newest = checkpoint.checkpoints(members[first][0].path)
    for i in left:
        members[i][1].load_state_dict(resumption.position(newest[-1]) if newest else begin[i])
    world.wait()  # before the first one writes, all have read
    going = {i: _steps(*members[i], states[i]) for i in left}
    with ExitStack() as at_last:
        for i in left:
            at_last.callback(members[i][0].writer.wait)
        for number in count(states[first].step):
            for i in list(going):
                folder, stream = members[i]
                if states[i].step > number:
                    next(stream)
                    continue
                try:
                    record = next(going[i])
                except StopIteration:
                    folder.finish(states[i].dictionary)
                    del going[i]
                    continue
                if record is not None:
                    folder.append(record)
                    yield i, record
            if not going:
                return


def _steps(folder: RunFolder, stream: Stream, state: TrainState) -> Iterator[Record | None]:
    for record in steps(folder.run, stream, state, checkpoint=lambda s: folder.keep(s, stream)):
        folder.writer.check()
        yield record


def fit(
    x: Rows | Mapping[str, Rows],
    method: Method | None = None,
    *,
    latents: int,
    target: Rows | None = None,
    steps: int = 3000,
    batch: int = 512,
    seed: int = 0,
    on_record: Callable[[Record], None] | None = None,
) -> Dictionary:
    """Train a dictionary on activations in memory.

    Args:
        x: activations, (rows, d), a tensor or a numpy array; finite, no all-zero row. Several sites by name, row i of the same
            token at each, give a crosscoder, which takes them side by side in this order.
        method: what to train; None: `gba_universal()`, which is told nothing; of several sites `gba()`, of a target
            `transcoder(gba())`.
        latents: number of atoms.
        target: rows to reconstruct instead, (rows, d_out): a transcoder, for which `method` is `transcoder(…)` of one.
        steps: optimiser steps of `batch` rows each.
        batch: rows per step.
        seed: seed of weights and of the order of rows.
        on_record: called with every record.

    Returns:
        The trained dictionary.
    """
    layout = None
    if isinstance(x, Mapping):
        sites = {site: _on_cpu(rows) for site, rows in x.items()}
        layout = Layout(tuple(Block(site, rows.shape[-1]) for site, rows in sites.items()))
        if target is not None:
            raise ValueError(
                f"target together with several sites ({layout}): give one site and its target, or no target"
            )
        counts = {site: len(rows) for site, rows in sites.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"sites have different numbers of rows ({counts}); row i must be of the same token at each"
            )
        rows = side_by_side(layout.reads, sites)
    else:
        rows = _on_cpu(x)
    wanted = None if target is None else _on_cpu(target)
    if method is None:
        method = transcoder(gba()) if wanted is not None else gba() if layout else gba_universal()
    run = Run(method=method, latents=latents, steps=steps, batch=batch, seed=seed)
    stream = ArrayStream(rows, batch, seed=seed, target=wanted, layout=layout)
    with torch.enable_grad():
        state = start(run, stream)
        for record in train(run, stream, state):
            if on_record:
                on_record(record)
    return state.dictionary


def _on_cpu(x: Rows) -> Tensor:
    rows = torch.as_tensor(x)
    if rows.device.type != "cpu":
        raise ValueError(f"activations are on {rows.device}; training runs on the CPU so far, pass x.cpu()")
    return rows


def timestamp() -> str:
    """A name for a run: UTC date and time."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime())
