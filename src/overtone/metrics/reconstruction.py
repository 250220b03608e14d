"""How well and how sparsely a dictionary reconstructs: one streaming pass, exact under any batching."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overtone import firing
from overtone.data.stream import Batch
from overtone.dictionary import Codes, Dictionary
from overtone.firing import FiringStats
from overtone.layout import Block, columns

DENSE_ABOVE = 0.1


class ReconstructionStats(NamedTuple):
    """Sufficient statistics of some rows (float64 sums); a commutative monoid under `merge`.

    x is what is to be reconstructed. Where that is several sites, each is divided by its scale, so that they count alike.
    """

    rows: int
    total: Float[Tensor, " d"]  # Σ x
    square: Float[Tensor, " sites"]  # Σ ‖x‖² of every site
    error: Float[Tensor, " sites"]  # Σ ‖x − x̂‖² of every site
    firing: FiringStats
    sites: tuple[Block, ...]
    directed: int  # rows x that are not 0
    lengths: Float[Tensor, ""]  # Σ ‖x̂‖ / ‖x‖ over these
    inner: Float[Tensor, ""]  # Σ ⟨x̂, x⟩

    @property
    def explained_variance(self) -> float:
        """1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖² (maths.md eq. 15): 1 for a perfect, 0 for the mean predictor.

        The mean and both sums run over all rows. Invariant to scale and to repeating the data.
        """
        return _explained(self.error.sum(), self.square.sum(), self.total, self.rows)

    @property
    def site_explained_variance(self) -> dict[str, float]:
        """Site → explained variance of its rows alone."""
        totals = self.total.split([block.d for block in self.sites])
        parts = zip(self.sites, self.error, self.square, totals, strict=True)
        return {block.site: _explained(error, square, total, self.rows) for block, error, square, total in parts}

    @property
    def normalised_mse(self) -> float:
        """Σ‖x − x̂‖² / Σ‖x‖² (maths.md eq. 16): 1 for predicting zero. Invariant to scale and to repeating the data."""
        return float(self.error.sum() / self.square.sum())

    @property
    def relative_norm(self) -> float:
        """Mean of ‖x̂‖ / ‖x‖ over the rows that are not 0 (maths.md eq. R4): below 1 where reconstructions are shrunk.

        What SynthSAEBench calls shrinkage (arXiv 2602.14687). Invariant to scale and to repeating the data.
        """
        return float(self.lengths) / self.directed if self.directed else math.nan

    @property
    def projection(self) -> float:
        """Σ⟨x̂, x⟩ / Σ‖x‖² (maths.md eq. R4): the share of the rows that reconstructions keep along them; 1 without shrinkage.

        Unlike the relative norm, what is reconstructed in a wrong direction does not make up for it. Invariances as there.
        """
        return float(self.inner / self.square.sum())

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

    def summary(self) -> dict[str, Any]:
        """All of it, JSON-able; the sites one by one where there are several."""
        names = ("rows", "explained_variance", "normalised_mse", "relative_norm", "projection", "l0", "alive", "dense")
        several = ("site_explained_variance",) if len(self.sites) > 1 else ()
        return {name: getattr(self, name) for name in (*names, *several)}


def _explained(error: Tensor, square: Tensor, total: Tensor, rows: int) -> float:
    variance = square - total.square().sum() / rows
    if variance <= 1e-12 * square:
        return math.nan  # one row, or all rows the same: there is no variance to explain
    return float(1 - error / variance)


@torch.no_grad()
def accumulate(
    dictionary: Dictionary, x: Float[Tensor, "rows d"], target: Float[Tensor, "rows d_out"] | None = None
) -> ReconstructionStats:
    """Statistics of one batch."""
    return observe(dictionary, dictionary.encode(x), x if target is None else target)


@torch.no_grad()
def observe(dictionary: Dictionary, codes: Codes, target: Float[Tensor, "rows d_out"]) -> ReconstructionStats:
    """Statistics of one batch that has been encoded already."""
    wanted, x_hat = target.double(), dictionary.decode(codes).double()
    layout = dictionary.layout
    if len(layout.reconstructs) > 1 and dictionary.write_scale is not None:
        scale = columns(dictionary.write_scale.double(), layout.reconstructs)
        wanted, x_hat = wanted / scale, x_hat / scale

    def squares(rows: Tensor) -> Tensor:
        return torch.stack([part.square().sum() for part in layout.split(rows).values()])

    norms = wanted.norm(dim=1)
    directed = norms > 0
    return ReconstructionStats(
        len(target),
        wanted.sum(0),
        squares(wanted),
        squares(x_hat - wanted),
        codes.seen,
        layout.reconstructs,
        int(directed.sum()),
        (x_hat.norm(dim=1)[directed] / norms[directed]).sum(),
        (x_hat * wanted).sum(),
    )


def merge(a: ReconstructionStats, b: ReconstructionStats) -> ReconstructionStats:
    """Statistics of the rows of both."""
    return ReconstructionStats(
        a.rows + b.rows,
        a.total + b.total,
        a.square + b.square,
        a.error + b.error,
        firing.merge(a.firing, b.firing),
        a.sites,
        a.directed + b.directed,
        a.lengths + b.lengths,
        a.inner + b.inner,
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
