"""Were the true features found? Scores of a dictionary's atoms against a known ground truth."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Recovery(NamedTuple):
    """Scores of atoms against true features.

    Attributes:
        frr: feature recovery rate by threshold τ: share of true features with max_m cos(w_m, v_i) ≥ τ (maths.md eq. 17).
        mean_max_cosine: mean over true features of that maximum.
        max_cosine: the maximum of every true feature.
    """

    frr: dict[float, float]
    mean_max_cosine: float
    max_cosine: Float[Tensor, " features"]


def recovery(
    atoms: Float[Tensor, "latents d"],
    truth: Float[Tensor, "features d"],
    thresholds: Sequence[float] = (0.8, 0.9),
) -> Recovery:
    """Best cosine of every true feature with an atom. Invariant to permuting and to positively rescaling either side."""
    cosine = torch.nn.functional.normalize(truth, dim=1) @ torch.nn.functional.normalize(atoms, dim=1).T
    best = cosine.amax(1)
    return Recovery({t: float((best >= t).double().mean()) for t in thresholds}, float(best.mean()), best)
