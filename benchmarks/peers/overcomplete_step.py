"""overcomplete's train_sae, with its defaults (monitoring 1) and the optimiser, learning rate and loss of its README.

JumpReLU and L1 take the library's mse_l1. BatchTopK's top_k counts latents of a whole batch.
"""

from typing import Any

import torch
from peers.feed import Feed, K, Size, Training
from torch import Tensor

PACKAGE = "overcomplete.sae"


def mse(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    """The README's criterion."""
    return (x - x_hat).square().mean()


METHODS: dict[str, tuple[str, str | None, dict[str, int]]] = {  # model, loss (None: mse), options
    "topk": ("TopKSAE", None, {}),
    "topk-silent": ("TopKSAE", None, {"monitoring": 0}),
    "batch-topk": ("BatchTopKSAE", None, {}),
    "jumprelu": ("JumpSAE", "mse_l1", {}),
    "l1": ("SAE", "mse_l1", {}),
}


def training(method: str, size: Size, feed: Feed) -> Training:
    from overcomplete import sae

    name, loss, options = METHODS[method]
    sparsity: dict[str, Any] = {"TopKSAE": {"top_k": K}, "BatchTopKSAE": {"top_k": K * size.batch}}.get(name, {})
    model = getattr(sae, name)(size.d, nb_concepts=size.latents, **sparsity)
    criterion = getattr(sae, loss) if loss else mse
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)

    @torch.no_grad()
    def l0(x: Tensor) -> float:
        return int(model.encode(x)[1].count_nonzero()) / len(x)

    return Training(lambda: sae.train_sae(model, feed, criterion, optimiser, **options), l0)
