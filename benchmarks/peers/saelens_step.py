"""SAELens' SAETrainer.fit, with the defaults of its configurations; wandb off, as in SAETrainerConfig.

SAETrainerConfig wants an lr_end although its constant schedule has no use for it: the tenth that SAELens' runners set.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from peers.feed import MATRYOSHKA, STEPS, Feed, K, Size, Training
from torch import Tensor

PACKAGE = "sae_lens"


def architecture(name: str, **settings: Any) -> Callable[[Size], Any]:
    """Its training configuration of an architecture."""

    def make(size: Size) -> Any:
        from sae_lens.registry import get_sae_training_class

        return get_sae_training_class(name)[1](d_in=size.d, d_sae=size.latents, **settings)

    return make


def matryoshka(size: Size) -> Any:
    widths = [round(share * size.latents) for share in accumulate(MATRYOSHKA)]
    return architecture("matryoshka_batchtopk", k=K, matryoshka_widths=widths)(size)


METHODS: dict[str, Callable[[Size], Any]] = {
    "topk": architecture("topk", k=K),
    "topk-sparse": architecture("topk", k=K, use_sparse_activations=True),
    # Of the sparse activations' product with the decoder norms torch has no gradient on the CPU: without them it runs.
    "topk-sparse-unscaled": architecture("topk", k=K, use_sparse_activations=True, rescale_acts_by_decoder_norm=False),
    "batch-topk": architecture("batchtopk", k=K),
    "jumprelu": architecture("jumprelu"),
    "matryoshka": matryoshka,
    "l1": architecture("standard"),
}


def training(method: str, size: Size, feed: Feed) -> Training:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    settings = METHODS[method](size)
    sae = TrainingSAE.get_sae_class_for_architecture(settings.architecture())(settings)
    config = SAETrainerConfig(STEPS * size.batch, train_batch_size_samples=size.batch, lr_end=SAETrainerConfig.lr / 10)

    @torch.no_grad()
    def l0(x: Tensor) -> float:
        return int(sae.encode(x).to_dense().count_nonzero()) / len(x)

    return Training(SAETrainer(config, sae, feed).fit, l0)
