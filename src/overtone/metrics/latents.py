"""What single latents respond to: peaks, Z-scores and top-activating rows, in one pass and bounded memory."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone import firing
from overtone.dictionary import Dictionary
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
    m, d = dictionary.latents, dictionary.d
    total, square = torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    seen = firing.empty(m)
    top = TopRows(torch.zeros(m, k), torch.full((m, k), -1))
    for start in range(0, len(x), batch):
        normalised, norm = dictionary.normalise(x[start : start + batch])
        codes = dictionary.encode_normalised(normalised, norm)
        total += normalised.double().sum(0)
        square += normalised.T.double() @ normalised.double()
        seen = firing.merge(seen, codes.seen)
        top = _merge_top(top, codes.entries.sparse(), start)
    # Pre-activations are linear in the rows, so their means and variances follow from those of the rows.
    mean = total / len(x)
    covariance = square / len(x) - mean.outer(mean)
    atoms = dictionary.W_enc.double()
    middle = atoms @ (mean - dictionary.centre) + dictionary.b_enc
    std = ((atoms @ covariance) * atoms).sum(1).clamp(min=1e-20).sqrt()
    return LatentStats(((seen.peak - middle) / std).float(), seen.peak, seen.frequency, top)


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
