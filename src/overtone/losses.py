"""Loss terms: frozen values that map codes to a scalar. A method's loss is their sum."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from overtone import ops
from overtone.dictionary import Codes, Dictionary
from overtone.ops import half_square_error
from overtone.spectrum import Spectrum, group_sizes


@runtime_checkable
class LossTerm(Protocol):
    """One summand of the objective, a mean over the rows of the batch."""

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """The term, in units of the normalised input; invariant to repeating the batch."""
        ...


@dataclass(frozen=True)
class Reconstruction:
    """½ ‖f(x) − x‖², averaged over rows (maths.md eq. 5)."""

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        return half_square_error(dictionary.decode_normalised(codes.entries), target)


@dataclass(frozen=True)
class RarestFirst:
    """½ ‖x̂_k − x‖² averaged over k, where x̂_k uses the k rarest groups of latents only (maths.md eq. 14).

    Frequent groups are a dense code that can span the whole space; trained on one common residual they explain the data
    and leave the rare latents nothing but junk. Here rare latents must explain the data before more frequent ones are
    asked. The gradient stops between stages: a latent never sees the residual of more frequent ones.

    Args:
        spectrum: the target frequencies that define the groups; one stage per group, the rarest first.
        band: a spectrum whose highest and lowest targets lie within this factor is one stage, which is `Reconstruction`:
            none of its groups is dense against another, and stages would only cost explained variance.
    """

    spectrum: Spectrum
    band: float = 4.0

    def __post_init__(self):
        if self.band < 1:
            raise ValueError(f"band={self.band} is a ratio of frequencies and must be at least 1")

    def stages(self, latents: int) -> list[int]:
        """Sizes of the stages in the order of latents, the most frequent first."""
        frequencies = self.spectrum.frequencies(latents)
        # A hair's tolerance: the dial's spectrum has this very ratio, up to rounding.
        if frequencies[0] <= self.band * frequencies[-1] * (1 + 1e-6):
            return [latents]
        return group_sizes(latents, self.spectrum.groups)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        explained = dictionary.decode_groups_normalised(codes.entries, self.stages(dictionary.latents))
        return half_square_error(explained, target)


@dataclass(frozen=True)
class Matryoshka:
    """½ ‖x̂_i − x‖² averaged over nested prefixes of the latents, x̂_i using the first n_i (Bussmann et al., arXiv 2503.17547).

    Gradients flow to every latent of a prefix: the first ones have to explain the data alone and with all others, and so
    learn what is general. (`RarestFirst` counts from the other end and stops gradients between stages.)

    Args:
        prefixes: sizes of the prefixes as shares of all latents, ascending; the last one is 1.
    """

    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

    def __post_init__(self):
        shares = self.prefixes
        if not shares or shares[-1] != 1 or shares[0] <= 0 or any(a >= b for a, b in pairwise(shares)):
            raise ValueError(f"prefixes={shares} must be ascending shares of all latents, above 0 and up to 1")

    def sizes(self, latents: int) -> list[int]:
        """How many latents each prefix adds to the one before."""
        ends = [0, *(round(share * latents) for share in self.prefixes)]
        sizes = [b - a for a, b in pairwise(ends)]
        if min(sizes) < 1:
            raise ValueError(
                f"prefixes={self.prefixes} of latents={latents} are not all different; widen the dictionary"
            )
        return sizes

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        parts = dictionary.decode_parts_normalised(codes.entries, self.sizes(dictionary.latents))
        return half_square_error(parts.cumsum(0) + dictionary.b_dec, target)


@dataclass(frozen=True)
class L1:
    """coefficient · Σ_m |z_m| ‖a_m w_m‖, averaged over rows: the decoder norm makes the term blind to rescaling.

    Over several sites the decoder norm is the sum of the sites' (maths.md eq. S4).
    """

    coefficient: float

    def __post_init__(self):
        if not 0 <= self.coefficient < math.inf:
            raise ValueError(f"coefficient={self.coefficient} must be finite and not negative")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        norms = dictionary.site_norms.sum(1)
        return self.coefficient * codes.entries.scaled(norms).values.abs().sum() / codes.entries.rows_total


@dataclass(frozen=True)
class Alignment:
    """−Σ_m φ(y_m) w_mᵀ(x − b_dec), averaged over rows: the reconstruction loss's first order in a_m (maths.md eq. 12).

    In the limit a → 0 latents see the data and not each other; this is the objective of the theory's modified BA.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        pulled = ops.decode(codes.entries, dictionary.W_dec)
        return -(pulled * (target - dictionary.b_dec)).sum(-1).mean()


def total(
    terms: tuple[LossTerm, ...], dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]
) -> Float[Tensor, ""]:
    """Sum of the terms."""
    return torch.stack([term(dictionary, codes, target) for term in terms]).sum()
