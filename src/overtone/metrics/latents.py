"""What single latents respond to: peaks, Z-scores and top-activating rows, in one pass and bounded memory."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone import firing
from overtone.dictionary import Dictionary


class TopRows(NamedTuple):
    """The rows on which each latent is most active, strongest first; empty places have value 0 and row −1."""

    values: Float[Tensor, "latents k"]
    rows: Int[Tensor, "latents k"]


class LatentStats(NamedTuple):
    """Per-latent statistics over some rows.

    Attributes:
        z_score: (max − mean)/std of the pre-activation (maths.md eq. 19).
        peak: largest pre-activation.
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
        batch: rows at a time; memory is O(latents · (batch + k)).
    """
    if not len(x):
        raise ValueError("no rows to look at")
    m = dictionary.latents
    total, square = torch.zeros(m, dtype=torch.float64), torch.zeros(m, dtype=torch.float64)
    seen, peak = firing.empty(m), torch.full((m,), -torch.inf)
    top = TopRows(torch.zeros(m, k), torch.full((m, k), -1))
    for start in range(0, len(x), batch):
        codes = dictionary.encode(x[start : start + batch])
        total += codes.pre.double().sum(0)
        square += codes.pre.double().square().sum(0)
        seen = firing.merge(seen, firing.observe(codes.pre, codes.z))
        peak = torch.maximum(peak, codes.pre.amax(0))
        top = _merge_top(top, codes.z, start)
    mean = total / len(x)
    std = (square / len(x) - mean.square()).clamp(min=1e-20).sqrt()
    return LatentStats(((peak - mean) / std).float(), peak, seen.frequency, top)


def _merge_top(top: TopRows, z: Float[Tensor, "batch latents"], offset: int) -> TopRows:
    k = top.values.shape[1]
    best = z.T.topk(min(k, len(z)), dim=1)
    rows = torch.where(best.values > 0, best.indices + offset, -1)
    values, rows = torch.cat([top.values, best.values], 1), torch.cat([top.rows, rows], 1)
    kept = values.topk(k, dim=1)
    return TopRows(kept.values, rows.gather(1, kept.indices))
