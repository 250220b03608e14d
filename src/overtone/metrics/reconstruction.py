"""How well and how sparsely a dictionary reconstructs: one streaming pass, exact under any batching."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone import firing
from overtone.data.stream import Batch
from overtone.dictionary import Codes, Dictionary
from overtone.firing import FiringStats
from overtone.layout import Block, columns
from overtone.metrics import moments
from overtone.metrics.moments import Moments

DENSE_ABOVE = 0.1
DECILES = 10
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Half decades, each named by its lower end.
FREQUENCIES = tuple(10 ** (power / 2) for power in range(-12, 1))


class ReconstructionStats(NamedTuple):
    """Sufficient statistics of some rows (float64); a commutative monoid under `merge`.

    x is what is to be reconstructed. Where that is several sites, each is divided by its scale, so that they count alike.
    Memory is O(latents + d_out · bins of the norm), whatever the number of rows.
    """

    moments: Moments  # of x and x − x̂, by the norm of x
    active: Int[Tensor, " l0s"]  # rows by how many of their codes are not 0, none first
    firing: FiringStats
    sites: tuple[Block, ...]
    directed: int  # rows x that are not 0
    cosines: Float[Tensor, ""]  # Σ cos(x̂, x) over these
    lengths: Float[Tensor, ""]  # Σ ‖x̂‖ / ‖x‖ over these
    inner: Float[Tensor, ""]  # Σ ⟨x̂, x⟩

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.moments.rows

    @property
    def explained_variance(self) -> float:
        """1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖² (maths.md eq. 15): 1 for a perfect, 0 for the mean predictor.

        The mean and both sums run over all rows. Invariant to scale and to repeating the data.
        """
        return float(_explained(*(part.sum(1) for part in self._sums())))

    @property
    def site_explained_variance(self) -> dict[str, float]:
        """Site → explained variance of its rows alone."""
        widths = [block.d for block in self.sites]
        parts = zip(*(part.split(widths, dim=1) for part in self._sums()), strict=True)
        values = (float(_explained(*(part.sum(1) for part in site))) for site in parts)
        return dict(zip((block.site for block in self.sites), values, strict=True))

    @property
    def dimension_explained_variance(self) -> Float[Tensor, " d_out"]:
        """Explained variance of every dimension alone (maths.md eq. Q1); nan where a dimension does not vary."""
        return _explained(*self._sums())[0]

    @property
    def decile_explained_variance(self) -> Float[Tensor, " deciles"]:
        """Explained variance of each tenth of the rows, from the shortest to the longest (maths.md eq. Q2).

        The variance is that around the mean of all rows, so that the mean predictor has 0 in each. Borders fall between rows to
        the width of a bin of `Moments`.
        """
        parts = self.moments.parts(DECILES)
        return _explained(parts.error, parts.variance, parts.up_to.square() * self.rows / DECILES)

    @property
    def normalised_mse(self) -> float:
        """Σ‖x − x̂‖² / Σ‖x‖² (maths.md eq. 16): 1 for predicting zero. Invariant to scale and to repeating the data."""
        error, _, size = self._sums()
        return float(error.sum() / size.sum())

    @property
    def cosine(self) -> float:
        """Mean of cos(x̂, x) over the rows that are not 0 (maths.md eq. Q3); 0 counts for x̂ = 0. Invariances as above."""
        return float(self.cosines) / self.directed if self.directed else math.nan

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
        return float(self.inner / self._sums()[2].sum())

    @property
    def l0(self) -> float:
        """Mean number of active latents per row."""
        return float(self.firing.fired.sum() / self.firing.rows)

    def l0_quantile(self, share: float) -> int:
        """The smallest L0 that at least this share of the rows do not exceed."""
        reached = self.active.cumsum(0).double() / self.active.sum()
        return int((reached >= share - 1e-12).nonzero()[0])

    @property
    def alive(self) -> float:
        """Share of latents that fired on at least one of the rows."""
        return float(self.firing.alive.double().mean())

    @property
    def dense(self) -> float:
        """Share of latents that fire on more than a tenth of the rows."""
        return float((self.firing.frequency > DENSE_ABOVE).double().mean())

    @property
    def frequency_histogram(self) -> dict[str, int]:
        """Latents by how often they fire: never, below 1e-6, and by half decades from there, each named by its lower end."""
        edges = torch.tensor(FREQUENCIES, dtype=torch.float64)
        frequency = self.firing.fired.double() / self.firing.rows
        places = torch.bucketize(frequency[frequency > 0], edges.to(frequency), right=True)
        counts = torch.bincount(places, minlength=len(edges) + 1).tolist()
        names = ("below 1e-06", *(f"{edge:.1e}" for edge in FREQUENCIES))
        return {"never": int((frequency == 0).sum())} | dict(zip(names, counts, strict=True))

    def summary(self) -> dict[str, Any]:
        """The numbers that dictionaries are compared by, JSON-able; the sites one by one where there are several."""
        names = ("rows", "explained_variance", "normalised_mse", "cosine", "relative_norm", "projection", "l0")
        several = ("site_explained_variance",) if len(self.sites) > 1 else ()
        return {name: getattr(self, name) for name in (*names, "alive", "dense", *several)}

    def distributions(self) -> dict[str, Any]:
        """What the numbers of `summary` are means of, JSON-able: by dimension, by decile of the norm, by row and by latent."""
        return {
            "dimension_explained_variance": self.dimension_explained_variance.tolist(),
            "decile_explained_variance": self.decile_explained_variance.tolist(),
            "decile_norm_up_to": self.moments.parts(DECILES).up_to.tolist(),
            "l0_quantiles": {f"{share:g}": self.l0_quantile(share) for share in QUANTILES},
            "l0_histogram": self.active.tolist(),
            "frequency_histogram": self.frequency_histogram,
        }

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Σ (x − x̂)², Σ (x − mean)² and Σ x² of every dimension, (1, d_out) each."""
        all_rows = self.moments.pooled()
        return all_rows.error, all_rows.square, all_rows.square + self.rows * all_rows.mean.square()


def _explained(error: Tensor, variance: Tensor, size: Tensor) -> Tensor:
    """1 − error / variance; nan where there is no variance to explain: one row, or all rows the same."""
    return torch.where(variance > 1e-12 * size, 1 - error / variance, math.nan)


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
    norms, lengths = wanted.norm(dim=1), x_hat.norm(dim=1)
    directed = norms > 0
    error = x_hat.sub_(wanted).square_()
    inner = (norms.square() + lengths.square() - error.sum(1)) / 2
    cosines = inner / (norms * lengths)
    return ReconstructionStats(
        moments.moments(wanted, error),
        torch.bincount(codes.entries.nonzero().l0()),
        codes.seen,
        layout.reconstructs,
        int(directed.sum()),
        cosines[directed & (lengths > 0)].sum(),
        (lengths[directed] / norms[directed]).sum(),
        inner.sum(),
    )


def merge(a: ReconstructionStats, b: ReconstructionStats) -> ReconstructionStats:
    """Statistics of the rows of both."""
    longer, shorter = sorted((a.active, b.active), key=len, reverse=True)
    return ReconstructionStats(
        moments.merge(a.moments, b.moments),
        longer + torch.nn.functional.pad(shorter, (0, len(longer) - len(shorter))),
        firing.merge(a.firing, b.firing),
        a.sites,
        a.directed + b.directed,
        a.cosines + b.cosines,
        a.lengths + b.lengths,
        a.inner + b.inner,
    )


AnyRows = Float[Tensor, "rows d"] | Iterable[Float[Tensor, "_ d"] | Batch]


def in_batches(rows: AnyRows, batch: int) -> Iterator[Batch]:
    """A matrix `batch` rows at a time, or batches as they come; of a matrix, what is read is what is reconstructed."""
    for x in rows.split(batch) if isinstance(rows, Tensor) else rows:
        yield Batch(x, x) if isinstance(x, Tensor) else x


def evaluate(dictionary: Dictionary, rows: AnyRows, *, batch: int = 1024) -> ReconstructionStats:
    """Statistics of many rows, in bounded memory.

    Args:
        dictionary: the dictionary.
        rows: a matrix, or an iterable of matrices, or of `Batch`es where what is reconstructed is not what is read.
        batch: rows at a time for a matrix.
    """
    result = None
    for x, target, *_ in in_batches(rows, batch):
        part = accumulate(dictionary, x, target)
        result = part if result is None else merge(result, part)
    if result is None:
        raise ValueError("no rows to evaluate on")
    return result
