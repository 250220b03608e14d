"""sparsify's Trainer.fit, with the defaults of its TrainConfig but for wandb and checkpoints, which are off.

It takes activations from a model's hook point: here a model of one layer, whose output is the next batch.
"""

from typing import Any

import torch
from peers.feed import STEPS, Feed, K, Size, Training
from torch import Tensor, nn

PACKAGE = "sparsify.trainer"

METHODS: dict[str, dict[str, Any]] = {
    "topk": {},
    "topk-adam": {"optimizer": "adam"},
}


class RowModel(nn.Module):
    """A language model to sparsify: a sequence is a batch, and its hidden states are the batch's rows."""

    device = torch.device("cpu")
    dummy_inputs: dict[str, Tensor] = {}  # noqa: RUF012  (looked at once, for the width)

    def __init__(self, feed: Feed, d: int):
        super().__init__()
        self.feed, self.d, self.layer = feed, d, nn.Identity()

    @property
    def base_model(self) -> "RowModel":
        return self

    def forward(self, tokens: Tensor | None = None) -> Tensor:
        return self.layer(torch.zeros(1, 1, self.d) if tokens is None else next(self.feed)[None])


class Sequences(torch.utils.data.Dataset):
    """Token ids as long as a batch; only their number matters."""

    def __init__(self, batch: int):
        self.item = {"input_ids": torch.zeros(batch, dtype=torch.long)}

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.item


def training(method: str, size: Size, feed: Feed) -> Training:
    from sparsify import SparseCoderConfig, TrainConfig
    from sparsify.trainer import Trainer

    config = TrainConfig(
        SparseCoderConfig(num_latents=size.latents, k=K),
        batch_size=1,
        hookpoints=["layer"],
        log_to_wandb=False,
        save_every=STEPS + 1,
        **METHODS[method],
    )
    trainer = Trainer(config, Sequences(size.batch), RowModel(feed, size.d))

    @torch.no_grad()
    def l0(x: Tensor) -> float:
        return int(trainer.saes["layer"].encode(x).top_acts.count_nonzero()) / len(x)

    return Training(trainer.fit, l0)
