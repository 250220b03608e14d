"""Training a small decoder on sequences of a known law; once, where there is a folder to keep it in."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone.data.sequences import SequenceLaw, at_least
from overtone.files import replace_file, write_tensors
from overtone.organisms.transformer import Decoder, Shape
from overtone.seeds import generator

FORMAT = 1


@dataclass(frozen=True)
class Lessons:
    """How a decoder is trained: Adam on fresh sequences at every step.

    Args:
        steps: optimiser steps.
        batch: sequences per step.
        lr: largest learning rate; it rises over the first twentieth of the steps and falls to 0 as a cosine.
        seed: seed of the initial weights and of the sequences.
    """

    steps: int = 1000
    batch: int = 64
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self):
        at_least(self, steps=1, batch=1)
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be above 0")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0 … steps − 1."""
        done = torch.tensor(step / self.steps)
        return self.lr * min(1.0, float(20 * (done + 1 / self.steps))) * float((1 + torch.cos(torch.pi * done)) / 2)


def untrained(law: SequenceLaw[Any], shape: Shape, *, seed: int = 0) -> Decoder:
    """A decoder that fits a law, at its random start."""
    return Decoder(shape, channels=law.channels, outputs=law.outputs, positions=law.positions, seed=seed)


def taught(law: SequenceLaw[Any], shape: Shape, lessons: Lessons) -> Decoder:
    """A decoder trained on a law. The same weights, bit for bit, whenever it runs on one thread."""
    model = untrained(law, shape, seed=lessons.seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=lessons.lr, betas=(0.9, 0.98))
    for step in range(lessons.steps):
        drawn = law.draw(lessons.batch, generator(lessons.seed, "lessons", step))
        loss = law.loss(model(law.inputs(drawn)), drawn)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = lessons.lr_at(step)
        optimiser.step()
    return model.requires_grad_(False).eval()


def taught_once(law: SequenceLaw[Any], shape: Shape, lessons: Lessons, folder: Path) -> Decoder:
    """As `taught`, or read from `folder`, where it is written when it has been trained."""
    settings = [FORMAT, type(law).__name__, asdict(law), asdict(shape), asdict(lessons)]  # pyright: ignore[reportArgumentType]
    described = json.dumps(settings, sort_keys=True)
    name = f"{type(law).__name__}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.safetensors"
    file = folder / name
    if file.exists():
        model = untrained(law, shape)
        model.load_state_dict(_read(file, described))
        return model.requires_grad_(False).eval()
    model = taught(law, shape, lessons)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda path: write_tensors(path, model.state_dict(), {"organism": described}))
    return model


def _read(file: Path, described: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as kept:
            if (kept.metadata() or {}).get("organism") == described:
                return {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 – no mapping
    except SafetensorError as error:
        raise OSError(f"{file} is damaged ({error}); remove it, and it is trained again") from error
    raise ValueError(f"{file} holds another model than its name says; remove it, and it is trained again")
