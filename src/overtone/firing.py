"""Firing statistics: the sole owner of activation counts, frequencies, peaks and death. O(latents) memory, always."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class FiringStats(NamedTuple):
    """What bias adaptation and the records need to know of some rows; pre-activations are never kept.

    A commutative monoid under `merge` with `empty` as its unit: the statistics of a set of rows do not depend on how
    the rows were batched.
    """

    rows: Int[Tensor, ""]
    fired: Int[Tensor, " latents"]  # rows in which the latent fired
    peak: Float[Tensor, " latents"]  # max(0, largest pre-activation): 0 for a latent that never rose above 0

    @property
    def frequency(self) -> Float[Tensor, " latents"]:
        """Share of the rows in which each latent fired."""
        return self.fired / self.rows.clamp(min=1)

    @property
    def alive(self) -> Bool[Tensor, " latents"]:
        """Latents that fired at least once."""
        return self.fired > 0


def empty(latents: int, device: torch.device | str | None = None) -> FiringStats:
    """Statistics of no rows."""
    return FiringStats(
        torch.zeros((), dtype=torch.int64, device=device),
        torch.zeros(latents, dtype=torch.int64, device=device),
        torch.zeros(latents, device=device),
    )


@torch.no_grad()
def observe(pre: Float[Tensor, "batch latents"], z: Float[Tensor, "batch latents"]) -> FiringStats:
    """Statistics of one batch. A latent fires where its code is non-zero and its pre-activation positive.

    Both are asked for: top-k deselects positive pre-activations, the smooth ReLU has codes without firing.
    """
    return FiringStats(
        torch.tensor(pre.shape[0], device=pre.device),
        ((z != 0) & (pre > 0)).sum(0),
        pre.amax(0).clamp(min=0).float(),
    )


def merge(a: FiringStats, b: FiringStats) -> FiringStats:
    """Statistics of the rows of both."""
    return FiringStats(a.rows + b.rows, a.fired + b.fired, torch.maximum(a.peak, b.peak))
