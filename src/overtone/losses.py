"""Loss terms: frozen values that map codes to a scalar. A method's loss is their sum. Here are those that reconstruct."""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from overtone import ops
from overtone.data.stream import Batch
from overtone.dictionary import Codes, Dictionary
from overtone.ops import half_square_error
from overtone.seeds import generator
from overtone.spectrum import Spectrum, group_sizes


@runtime_checkable
class LossTerm(Protocol):
    """One summand of the objective, a mean over the rows of the batch.

    Where ranks share a batch, or a process works through it in parts, a term sees some of the rows, and its mean over all is the
    whole term. One that is no mean over rows, but a function of such means, takes them through `dictionary.world.rows.mean`.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """The term, in units of the normalised input; invariant to repeating the batch."""
        ...


@runtime_checkable
class OfBatch(LossTerm, Protocol):
    """A loss term that needs more of a batch than codes and target: the loop hands it the batch first."""

    def of_batch(self, batch: Batch) -> LossTerm:
        """The term on this batch."""
        ...


@dataclass(frozen=True)
class Reconstruction:
    """½ ‖f(x) − x‖², averaged over rows (maths.md eq. 5)."""

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        return half_square_error(dictionary.decode_normalised(codes.entries), target)


@dataclass(frozen=True)
class NormalisedMSE:
    """½ Σ ‖f(x) − x‖² / Σ ‖x‖² over the rows of the batch: half the NMSE (maths.md eq. 16).

    On unit rows this is `Reconstruction`; where targets are not of unit norm it makes the coefficients of other terms comparable
    from site to site. Invariant to the common scale of target and reconstruction.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        rows = dictionary.world.rows
        power = rows.mean(target.square().sum(1).mean())
        error = rows.mean(half_square_error(dictionary.decode_normalised(codes.entries), target))
        return error / power.clamp(min=torch.finfo(power.dtype).tiny)


@dataclass(frozen=True)
class RelativeError:
    """½ ‖f(x) − x‖² / ‖x‖², averaged over rows (maths.md eq. 5b): `Reconstruction` of the rows at unit norm.

    Every row counts alike, whatever its norm and whatever `Parametrisation.input_norm` made of it; a row of zeros does not.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        norm = torch.linalg.vector_norm(target.detach(), dim=1, keepdim=True)
        inverse = torch.where(norm > 0, 1 / norm, 0.0)
        return half_square_error(dictionary.decode_normalised(codes.entries), target, inverse)


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
        return list(_stages(self.spectrum, self.band, latents))

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        explained = dictionary.decode_groups_normalised(codes.entries, self.stages(dictionary.latents))
        return half_square_error(explained, target)


@cache
def _stages(spectrum: Spectrum, band: float, latents: int) -> tuple[int, ...]:
    frequencies = spectrum.frequencies(latents)
    # A hair's tolerance: the dial's spectrum has this very ratio, up to rounding.
    if frequencies[0] <= band * frequencies[-1] * (1 + 1e-6):
        return (latents,)
    return tuple(group_sizes(latents, spectrum.groups))


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
        return _nested(dictionary, codes, target, self.sizes(dictionary.latents))


@dataclass(frozen=True)
class SampledMatryoshka:
    """`Matryoshka` with prefixes drawn anew every step from a truncated Pareto law (maths.md eq. 14b; arXiv 2503.17547).

    Small prefixes are drawn often and large ones seldom, so that no border between two prefixes means anything and every latent's
    place says how general it is. All latents are always the last prefix; a size drawn twice counts once.

    Args:
        prefixes: prefixes per step, the whole dictionary among them.
        exponent: α of the law P(N ≥ n) ∝ n^(−α) between the smallest prefix and all latents; the larger, the smaller
            the prefixes.
        smallest: the smallest prefix, as a share of all latents.
        seed: of the draws.
        draw: which prefixes; `at` makes it the step.
    """

    prefixes: int = 5
    exponent: float = 0.5
    smallest: float = 1 / 64
    seed: int = 0
    draw: int = 0

    def __post_init__(self):
        if self.prefixes < 1:
            raise ValueError(f"prefixes={self.prefixes} must be at least 1")
        if not 0 < self.exponent < math.inf:
            raise ValueError(f"exponent={self.exponent} must be positive and finite")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"smallest={self.smallest} is a share of all latents and must lie in (0, 1]")

    def at(self, step: int, steps: int) -> "SampledMatryoshka":
        """The term at a step: with prefixes of its own."""
        return replace(self, draw=step)

    def sizes(self, latents: int) -> list[int]:
        """How many latents each of this draw's prefixes adds to the one before."""
        least = max(1, round(self.smallest * latents))
        uniform = torch.rand(
            self.prefixes - 1, generator=generator(self.seed, "prefixes", self.draw), dtype=torch.float64
        )
        # The inverse of 1 − (n^−α − (M + 1)^−α) / (n_min^−α − (M + 1)^−α): its floor has the law of the docstring.
        low, high = least**-self.exponent, (latents + 1) ** -self.exponent
        drawn = (low - uniform * (low - high)) ** (-1 / self.exponent)
        ends = {min(max(int(end), least), latents) for end in drawn.tolist()}
        return [b - a for a, b in pairwise([0, *sorted(ends | {latents})])]

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        return _nested(dictionary, codes, target, self.sizes(dictionary.latents))


def _nested(
    dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"], sizes: list[int]
) -> Float[Tensor, ""]:
    """½ ‖x̂_i − x‖² averaged over the prefixes that grow by these sizes."""
    parts = dictionary.decode_parts_normalised(codes.entries, sizes)
    return half_square_error(parts.cumsum(0) + dictionary.b_dec, target)


@dataclass(frozen=True)
class Alignment:
    """−Σ_m φ(y_m) w_mᵀ(x − b_dec), averaged over rows: the reconstruction loss's first order in a_m (maths.md eq. 12).

    In the limit a → 0 latents see the data and not each other; this is the objective of the theory's modified BA.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        pulled = dictionary.world.latents.sum(ops.decode(codes.entries, dictionary.W_dec))
        return -(pulled * (target - dictionary.b_dec)).sum(-1).mean()


def total(
    terms: tuple[LossTerm, ...], dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]
) -> Float[Tensor, ""]:
    """Sum of the terms."""
    return torch.stack([term(dictionary, codes, target) for term in terms]).sum()


def check_coefficient(coefficient: float) -> None:
    """Refuse what cannot weigh a term.

    Raises:
        ValueError: negative, infinite or no number.
    """
    if not 0 <= coefficient < math.inf:
        raise ValueError(f"coefficient={coefficient} must be finite and not negative")


def rows_of(codes: Codes) -> Float[Tensor, "rows d"]:
    """The rows that were encoded, for a term that looks at more of them than their codes.

    Raises:
        ValueError: these codes were not made for training.
    """
    if codes.x is None:
        raise ValueError("these codes do not know their rows; a loss takes the codes of `Dictionary.encode_batch`")
    return codes.x
