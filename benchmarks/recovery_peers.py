"""The peers' own trainers on a ground truth of `overtone recover`: their loops and losses, our scores.

    .venv-bench/bin/python benchmarks/recovery_peers.py synth --k 4 --seeds 3 [--lr 3e-4 1e-3 3e-3] [--json PATH]

Needs `make bench-env`. Every library is fed the rows that ours are trained on, in their order and as many, and saves its
dictionary; overtone loads and scores it as it does its own. Learning rates: None is the library's own. JumpReLU and L1 have a
penalty instead of a k: --penalty, None the library's own. What a library prints is kept off the table.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import tyro
from common import show
from peers.feed import MATRYOSHKA, Size
from peers.no_images import tolerate_torchvision
from peers.saelens_step import architecture
from torch import Tensor
from torch.multiprocessing import get_context

import overtone as ot
from overtone.cli.common import spread, write_json
from overtone.cli.features import SCORED_ROWS
from overtone.recipes import SUITES

SHOWN = {
    "frr_0.8": "FRR 0.8",
    "frr_0.9": "FRR 0.9",
    "mcc": "MCC",
    "f1": "F1",
    "uniqueness": "unique",
    "absorption": "abs.",
    "explained_variance": "EV",
    "l0": "L0",
}


@dataclass(frozen=True)
class Job:
    """One training by one library; plain values."""

    suite: str
    library: str
    method: str
    k: int
    seed: int
    lr: float | None
    penalty: float | None
    steps: int


class Rows:
    """So many fresh batches, as tensors."""

    def __init__(self, stream: ot.FreshStream, steps: int):
        self.stream, self.left = stream, steps

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        # Some loops ask for one batch more than they train on.
        if self.left < -1:
            raise StopIteration
        self.left -= 1
        return next(self.stream).x


def saelens(job: Job, size: Size, rows: Rows, folder: Path) -> None:
    """SAETrainer.fit with the defaults of its configurations but for the learning rate, falling over the last fifth as ours."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    widths = [round(share * size.latents) for share in accumulate(MATRYOSHKA)]
    penalty = (
        {} if job.penalty is None else {"l0_coefficient" if job.method == "jumprelu" else "l1_coefficient": job.penalty}
    )
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "topk": ("topk", {"k": job.k}),
        "batch-topk": ("batchtopk", {"k": job.k}),
        "matryoshka": ("matryoshka_batchtopk", {"k": job.k, "matryoshka_widths": widths}),
        "jumprelu": ("jumprelu", penalty),
        "l1": ("standard", penalty),
    }
    name, own = settings[job.method]
    config = architecture(name, **own)(size)
    torch.manual_seed(job.seed)
    sae = TrainingSAE.get_sae_class_for_architecture(name)(config)
    lr = SAETrainerConfig.lr if job.lr is None else job.lr
    length = {"total_training_samples": job.steps * size.batch, "train_batch_size_samples": size.batch}
    trainer = SAETrainer(SAETrainerConfig(**length, lr=lr, lr_end=lr / 10, lr_decay_steps=job.steps // 5), sae, rows)
    trainer.fit().save_inference_model(folder)


def dictionary_learning(job: Job, size: Size, rows: Rows, folder: Path) -> None:
    """trainSAE with its trainers' defaults but for the learning rate."""
    from importlib import import_module

    from dictionary_learning.training import trainSAE
    from peers.dictionary_learning_step import METHODS, MODULES

    module, name, _ = METHODS[job.method]
    kind = getattr(import_module(f"{MODULES}.{module}"), name)
    own: dict[str, dict[str, Any]] = {
        "matryoshka": {"k": job.k, "group_fractions": list(MATRYOSHKA)},
        "jumprelu": {"target_l0": job.k},
        "l1": {} if job.penalty is None else {"l1_penalty": job.penalty},
    }
    config = {"trainer": kind, "steps": job.steps, "activation_dim": size.d, "dict_size": size.latents, "layer": 0,
              "lm_name": "rows", "device": "cpu", "seed": job.seed, **own.get(job.method, {"k": job.k})}  # fmt: skip
    if job.lr is not None:
        config["lr"] = job.lr
    trainSAE(rows, [config], job.steps, device="cpu", save_dir=str(folder.parent))
    (folder.parent / "trainer_0").rename(folder)


LIBRARIES: dict[str, Callable[[Job, Size, Rows, Path], None]] = {
    "sae-lens": saelens,
    "dictionary-learning": dictionary_learning,
}


def work_on(job: Job) -> dict[str, Any]:
    """Train and score; on one thread, as `overtone recover` does."""
    torch.set_num_threads(1)
    tolerate_torchvision()
    suite = SUITES[job.suite]
    truth = suite.truth(seed=job.seed)
    size = Size(truth.width, suite.latents(truth), suite.batch)
    rows = Rows(truth.stream(suite.batch, seed=job.seed), job.steps)
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nowhere:
        folder, began = Path(place) / "found", time.perf_counter()
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            LIBRARIES[job.library](job, size, rows, folder)
        seconds = time.perf_counter() - began
        dictionary = ot.load(folder)
    score = ot.score_against(
        dictionary,
        truth.features,
        truth.held_out(SCORED_ROWS, seed=job.seed),
        parent_of=getattr(truth, "parent_of", None),
    ).summary()
    return {**vars(job), **score, **{f"frr_{t}": share for t, share in score["frr"].items()}, "seconds": seconds}


@dataclass(frozen=True)
class Options:
    """What to train.

    Args:
        suite: of `overtone recover`, with fresh rows.
        k: active latents that are asked for; several are tried one after the other.
        methods: which.
        libraries: whose.
        lr: learning rates; None: the library's own.
        penalty: of JumpReLU (SAELens) and L1; None: the library's own.
        seeds: how many.
        seed: the first.
        steps: of a training; None: the suite's.
        jobs: trainings at a time.
        json: write all numbers to this file.
    """

    suite: tyro.conf.Positional[str]
    k: tuple[int, ...]
    methods: tuple[str, ...] = ("batch-topk", "matryoshka")
    libraries: tuple[str, ...] = tuple(LIBRARIES)
    lr: tuple[float | None, ...] = (None, 1e-3, 3e-3)
    penalty: tuple[float | None, ...] = (None,)
    seeds: int = 3
    seed: int = 0
    steps: int | None = None
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    json: Path | None = None


def main(options: Options) -> None:
    steps = SUITES[options.suite].steps if options.steps is None else options.steps
    kinds = [
        (library, method, k, lr, penalty)
        for library in options.libraries
        for method in options.methods
        for k in options.k
        for lr in options.lr
        for penalty in (options.penalty if method in ("jumprelu", "l1") else (None,))
    ]
    jobs = [
        Job(options.suite, library, method, k, seed, lr, penalty, steps)
        for library, method, k, lr, penalty in kinds
        for seed in range(options.seed, options.seed + options.seeds)
    ]
    with get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        found = pool.map(work_on, jobs, chunksize=1)
    lines = []
    for kind in kinds:
        own = [f for f in found if (f["library"], f["method"], f["k"], f["lr"], f["penalty"]) == kind]
        asked = [str(value) if value is not None else "own" for value in kind]
        lines.append([*asked, *(spread([f.get(key, float("nan")) for f in own], 3) for key in SHOWN)])
    show(
        f"{options.suite}, {steps} steps, {options.seeds} seeds",
        ("library", "method", "k", "lr", "penalty", *SHOWN.values()),
        lines,
    )
    write_json(
        options.json, {"format": "overtone-recovery-of-peers", "version": 1, "results": json.loads(json.dumps(found))}
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
