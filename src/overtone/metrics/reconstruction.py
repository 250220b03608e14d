"""How well and how sparsely a dictionary reconstructs: one streaming pass, exact under any batching."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overtone import firing
from overtone.data.stream import Batch
from overtone.dictionary import Dictionary
from overtone.firing import FiringStats

DENSE_ABOVE = 0.1


class ReconstructionStats(NamedTuple):
    """Sufficient statistics of some rows (float64 sums); a commutative monoid under `merge`."""

    rows: int
    total: Float[Tensor, " d"]  # Σ x
    square: Float[Tensor, ""]  # Σ ‖x‖²
    error: Float[Tensor, ""]  # Σ ‖x − x̂‖²
    firing: FiringStats

    @property
    def explained_variance(self) -> float:
        """1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖² (maths.md eq. 15): 1 for a perfect, 0 for the mean predictor.

        The mean and both sums run over all rows. Invariant to scale and to repeating the data.
        """
        variance = self.square - self.total.square().sum() / self.rows
        if variance <= 1e-12 * self.square:
            return math.nan  # one row, or all rows the same: there is no variance to explain
        return float(1 - self.error / variance)

    @property
    def normalised_mse(self) -> float:
        """Σ‖x − x̂‖² / Σ‖x‖² (maths.md eq. 16): 1 for predicting zero. Invariant to scale and to repeating the data."""
        return float(self.error / self.square)

    @property
    def l0(self) -> float:
        """Mean number of active latents per row."""
        return float(self.firing.fired.sum() / self.firing.rows)

    @property
    def alive(self) -> float:
        """Share of latents that fired on at least one of the rows."""
        return float(self.firing.alive.double().mean())

    @property
    def dense(self) -> float:
        """Share of latents that fire on more than a tenth of the rows."""
        return float((self.firing.frequency > DENSE_ABOVE).double().mean())

    def summary(self) -> dict[str, float | int]:
        """All of it, JSON-able."""
        names = ("rows", "explained_variance", "normalised_mse", "l0", "alive", "dense")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def accumulate(
    dictionary: Dictionary, x: Float[Tensor, "rows d"], target: Float[Tensor, "rows d"] | None = None
) -> ReconstructionStats:
    """Statistics of one batch."""
    codes = dictionary.encode(x)
    wanted = (x if target is None else target).double()
    return ReconstructionStats(
        len(x),
        wanted.sum(0),
        wanted.square().sum(),
        (dictionary.decode(codes).double() - wanted).square().sum(),
        codes.seen,
    )


def merge(a: ReconstructionStats, b: ReconstructionStats) -> ReconstructionStats:
    """Statistics of the rows of both."""
    return ReconstructionStats(
        a.rows + b.rows,
        a.total + b.total,
        a.square + b.square,
        a.error + b.error,
        firing.merge(a.firing, b.firing),
    )


def evaluate(
    dictionary: Dictionary,
    rows: Float[Tensor, "rows d"] | Iterable[Float[Tensor, "batch d"] | Batch],
    *,
    batch: int = 1024,
) -> ReconstructionStats:
    """Statistics of many rows, in bounded memory.

    Args:
        dictionary: the dictionary.
        rows: a matrix, or an iterable of matrices, or of `Batch`es where what is reconstructed is not what is read.
        batch: rows at a time for a matrix.
    """
    batches = rows.split(batch) if isinstance(rows, Tensor) else rows
    result = None
    for x in batches:
        part = accumulate(dictionary, x) if isinstance(x, Tensor) else accumulate(dictionary, x.x, x.target)
        result = part if result is None else merge(result, part)
    if result is None:
        raise ValueError("no rows to evaluate on")
    return result
