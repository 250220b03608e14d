"""Latents as detectors of features: how often each fires, its feature occurs, and both. Never latents × features numbers."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.metrics.matching import Matching
from overtone.ops import SparseCodes


class Detection(NamedTuple):
    """Detectors and what they should detect, counted over rows; every ratio is 0 where it would be 0/0, as in SynthSAEBench.

    Attributes:
        hits: rows in which the detector fires and its feature occurs.
        fired: rows in which it fires.
        occurred: rows in which its feature occurs.
    """

    hits: Int[Tensor, " detectors"]
    fired: Int[Tensor, " detectors"]
    occurred: Int[Tensor, " detectors"]

    @property
    def precision(self) -> Float[Tensor, " detectors"]:
        """Share of the rows it fires in that have the feature (maths.md eq. R5)."""
        return self.hits.double() / self.fired.clamp(min=1)

    @property
    def recall(self) -> Float[Tensor, " detectors"]:
        """Share of the feature's rows that it fires in (maths.md eq. R5)."""
        return self.hits.double() / self.occurred.clamp(min=1)

    @property
    def f1(self) -> Float[Tensor, " detectors"]:
        """Harmonic mean of precision and recall (maths.md eq. R5)."""
        return 2 * self.hits.double() / (self.fired + self.occurred).clamp(min=1)


class FiringCounts(NamedTuple):
    """What is counted of rows and their codes: O(latents + features), a commutative monoid under `merge`."""

    fired: Int[Tensor, " latents"]  # rows in which the latent fires
    occurred: Int[Tensor, " features"]  # rows in which the feature occurs
    latent_hits: Int[Tensor, " latents"]  # rows in which the latent fires and its nearest feature occurs
    feature_hits: Int[Tensor, " features"]  # rows in which the feature occurs and its nearest latent fires

    def latents(self, matching: Matching) -> Detection:
        """Each latent as the detector of the feature nearest to its atom."""
        return Detection(self.latent_hits, self.fired, self.occurred[matching.of_latents.nearest])

    def features(self, matching: Matching) -> Detection:
        """For each feature, the latent nearest to it as its detector."""
        return Detection(self.feature_hits, self.fired[matching.of_features.nearest], self.occurred)


def count(codes: SparseCodes, h: SparseCodes, matching: Matching) -> FiringCounts:
    """Counts of one batch. A latent fires where its code is not 0, a feature occurs where its coefficient is not 0.

    Args:
        codes: of the rows, B × latents.
        h: coefficients of the true features in the same rows, B × features.
        matching: who stands for whom.
    """
    codes, h = codes.nonzero(), h.nonzero()
    occurs = h.look_up(codes.rows, matching.of_latents.nearest[codes.latents]) != 0
    fires = codes.look_up(h.rows, matching.of_features.nearest[h.latents]) != 0
    return FiringCounts(
        torch.bincount(codes.latents, minlength=codes.latents_total),
        torch.bincount(h.latents, minlength=h.latents_total),
        torch.bincount(codes.latents[occurs], minlength=codes.latents_total),
        torch.bincount(h.latents[fires], minlength=h.latents_total),
    )


def merge(a: FiringCounts, b: FiringCounts) -> FiringCounts:
    """Counts of the rows of both."""
    return FiringCounts(*(one + other for one, other in zip(a, b, strict=True)))
