"""No library: the least that a step with exact selection must do, one matrix product of the batch with all atoms.

Through oneDNN in every environment, into memory that is there already.
"""

import torch
from peers.feed import Feed, Size, Training

PACKAGE = "torch"

METHODS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def training(method: str, size: Size, feed: Feed) -> Training:
    dtype = METHODS[method]
    atoms = torch.randn(size.latents, size.d, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty(size.batch, size.latents, dtype=dtype)

    @torch.no_grad()
    def run() -> None:
        for x in feed:
            torch.set_float32_matmul_precision("medium")
            torch.mm(x.to(dtype), atoms.T, out=out)

    return Training(run, None)
