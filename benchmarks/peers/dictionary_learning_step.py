"""dictionary_learning's trainSAE, with its trainers' defaults; no wandb and no checkpoints, its defaults too."""

from typing import Any

import torch
from peers.feed import MATRYOSHKA, STEPS, Feed, K, Size, Training
from torch import Tensor

PACKAGE = "dictionary_learning.training"
MODULES = "dictionary_learning.trainers"

METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "topk": ("top_k", "TopKTrainer", {"k": K}),
    "batch-topk": ("batch_top_k", "BatchTopKTrainer", {"k": K}),
    "jumprelu": ("jumprelu", "JumpReluTrainer", {"target_l0": K}),
    "matryoshka": (
        "matryoshka_batch_top_k",
        "MatryoshkaBatchTopKTrainer",
        {"k": K, "group_fractions": list(MATRYOSHKA)},
    ),
    "l1": ("standard", "StandardTrainer", {}),
}


def training(method: str, size: Size, feed: Feed) -> Training:
    from importlib import import_module

    from dictionary_learning.training import trainSAE

    module, name, settings = METHODS[method]
    trainers = []

    def trainer(**options: Any) -> Any:  # trainSAE makes the trainer itself and keeps it to itself
        trainers.append(getattr(import_module(f"{MODULES}.{module}"), name)(**options))
        return trainers[-1]

    config = {
        "trainer": trainer,
        "steps": STEPS,
        "activation_dim": size.d,
        "dict_size": size.latents,
        "layer": 0,
        "lm_name": "rows",
        "device": "cpu",
        **settings,
    }

    @torch.no_grad()
    def l0(x: Tensor) -> float:  # as in its log_stats
        return int(trainers[0].loss(x, step=0, logging=True).f.count_nonzero()) / len(x)

    return Training(lambda: trainSAE(feed, [config], STEPS, device="cpu"), l0)
