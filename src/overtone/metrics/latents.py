"""What single latents respond to: peaks, Z-scores and top-activating rows, in one pass and bounded memory."""

from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone import firing
from overtone.dictionary import Dictionary
from overtone.metrics.reconstruction import AnyRows, in_batches
from overtone.ops import SparseCodes


class TopRows(NamedTuple):
    """The rows on which each latent is most active, strongest first; empty places have value 0 and row −1."""

    values: Float[Tensor, "latents k"]
    rows: Int[Tensor, "latents k"]


class LatentStats(NamedTuple):
    """Per-latent statistics over some rows.

    Attributes:
        z_score: (peak − mean)/std of the pre-activation (maths.md eq. 19).
        peak: largest pre-activation, 0 for a latent that never rose above 0.
        frequency: share of rows with a non-zero code.
        top: top-activating rows.
    """

    z_score: Float[Tensor, " latents"]
    peak: Float[Tensor, " latents"]
    frequency: Float[Tensor, " latents"]
    top: TopRows


class ReadMoments(NamedTuple):
    """Moments of the rows that a dictionary reads, in the units it works in (float64); a commutative monoid under `merge`.

    Pre-activations are linear in these rows, so their means and deviations follow, of all latents and without encoding one.
    """

    rows: int
    mean: Float[Tensor, " d"]
    comoment: Float[Tensor, "d d"]  # Σ (x̃ − mean)(x̃ − mean)ᵀ

    @classmethod
    def of(cls, normalised: Float[Tensor, "rows d"]) -> "ReadMoments":
        """Of one batch that `Dictionary.normalise` has scaled."""
        x = normalised.double()
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: "ReadMoments") -> "ReadMoments":
        """Of the rows of both."""
        rows, apart = self.rows + other.rows, other.mean - self.mean
        between = apart.outer(apart) * (self.rows * other.rows / rows)
        return ReadMoments(rows, self.mean + apart * (other.rows / rows), self.comoment + other.comoment + between)

    def z_score(self, dictionary: Dictionary, peak: Float[Tensor, " latents"]) -> Float[Tensor, " latents"]:
        """(peak − mean)/std of every latent's pre-activation (maths.md eq. 19)."""
        encoder = dictionary.W_enc.double()
        middle = encoder @ (self.mean - dictionary.centre) + dictionary.b_enc
        variance = ((encoder @ (self.comoment / self.rows)) * encoder).sum(1)
        return ((peak - middle) / variance.clamp(min=1e-20).sqrt()).float()


@torch.no_grad()
def z_scores(
    dictionary: Dictionary, rows: AnyRows, peak: Float[Tensor, " latents"], *, batch: int = 1024
) -> Float[Tensor, " latents"]:
    """Z-score of every latent over rows whose peaks are known, without encoding them again.

    Args:
        dictionary: the dictionary.
        rows: as in `evaluate`.
        peak: each latent's largest pre-activation: `FiringStats.peak` of these rows.
        batch: rows at a time for a matrix.
    """
    return reduce(
        ReadMoments.merge, (ReadMoments.of(dictionary.normalise(part.x)[0]) for part in in_batches(rows, batch))
    ).z_score(dictionary, peak)


@torch.no_grad()
def latent_stats(dictionary: Dictionary, x: Float[Tensor, "rows d"], *, k: int = 8, batch: int = 1024) -> LatentStats:
    """Statistics and top-activating rows of every latent.

    Args:
        dictionary: the dictionary.
        x: activations, in the units of the data.
        k: how many top rows to keep per latent.
        batch: rows at a time; memory is O(latents · k + batch · L0).
    """
    if not len(x):
        raise ValueError("no rows to look at")
    m = dictionary.latents
    seen, moments = firing.empty(m), None
    top = TopRows(torch.zeros(m, k), torch.full((m, k), -1))
    for start in range(0, len(x), batch):
        normalised, norm = dictionary.normalise(x[start : start + batch])
        codes = dictionary.encode_normalised(normalised, norm)
        part = ReadMoments.of(normalised)
        moments = part if moments is None else moments.merge(part)
        seen = firing.merge(seen, codes.seen)
        top = _merge_top(top, codes.entries.sparse(), start)
    assert moments is not None  # there is a row
    return LatentStats(moments.z_score(dictionary, seen.peak), seen.peak, seen.frequency, top)


def _merge_top(top: TopRows, codes: SparseCodes, offset: int) -> TopRows:
    """The k largest of what was kept and of a batch whose first row is row `offset`."""
    m, k = top.values.shape
    better = codes.values > top.values[:, -1].index_select(0, codes.latents)
    latents = torch.cat([torch.arange(m).repeat_interleave(k), codes.latents[better]])
    values = torch.cat([top.values.flatten(), codes.values[better]])
    rows = torch.cat([top.rows.flatten(), codes.rows[better] + offset])
    # By latent, and within one by value: the stable sort by latent keeps the order by value. Each has k at least.
    order = values.argsort(descending=True, stable=True)
    order = order[latents[order].argsort(stable=True)]
    starts = torch.searchsorted(latents[order], torch.arange(m))
    kept = order[starts[:, None] + torch.arange(k)]
    return TopRows(values[kept], rows[kept])
