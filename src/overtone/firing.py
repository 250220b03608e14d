"""Firing statistics: the sole owner of activation counts, frequencies, peaks and death. O(latents) memory, always."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.ops import Encoded
from overtone.parallel import Axis


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


def observe(encoded: Encoded) -> FiringStats:
    """Statistics of one batch, which the pass that encoded it has counted already."""
    rows = torch.tensor(encoded.codes.rows_total, device=encoded.fired.device)
    return FiringStats(rows, encoded.fired, encoded.peak.float())


@torch.no_grad()
def of_all(stats: FiringStats, ranks: Axis) -> FiringStats:
    """Statistics of the rows of all ranks: exactly those of one process that has all rows."""
    if ranks.size == 1:
        return stats
    counts = ranks.sum(torch.cat([stats.rows[None], stats.fired]))
    return FiringStats(counts[0], counts[1:], ranks.max(stats.peak))


def merge(a: FiringStats, b: FiringStats) -> FiringStats:
    """Statistics of the rows of both."""
    return FiringStats(a.rows + b.rows, a.fired + b.fired, torch.maximum(a.peak, b.peak))
