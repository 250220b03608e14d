"""Rows, atoms and biases that are hard on whoever looks for active entries by cheaper products."""

import torch
from torch import Tensor

B, D, M = 200, 96, 640
KINDS = ["random", "aligned", "unequal"]


def problem(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, atoms and biases that leave few entries above 0."""
    g = torch.Generator().manual_seed(seed)
    x, W = torch.randn(B, D, generator=g), torch.randn(M, D, generator=g)
    if kind == "aligned":  # products far above what random vectors have, where rounding errors add up
        x, W = x.sign() * (1 + x.abs() / 256), W * 0.01 + x[torch.arange(M) % B].sign() * (1 + 1 / 512)
    if kind == "unequal":
        x, W = (t * (0.3 * torch.randn(len(t), 1, generator=g)).exp() for t in (x, W))
    else:
        x, W = (torch.nn.functional.normalize(t, dim=1) for t in (x, W))
    pre = x.double() @ W.double().T
    # Every latent's threshold lies between two of its own products, a hair from one of them.
    b = -(pre.sort(dim=0, descending=True).values[3] * (1 + 1e-6)).float()
    return x, W, b
