"""Loss terms: frozen values that map codes to a scalar. A method's loss is their sum."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.dictionary import Codes, Dictionary
from overtone.spectrum import group_sizes


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
        return half_square(dictionary.decode_normalised(codes.z) - target)


@dataclass(frozen=True)
class RarestFirst:
    """Mean over K stages of ½ ‖x̂_k − x‖², where x̂_k uses the k rarest groups only (maths.md eq. 14).

    Frequent groups are a dense code that can span the whole space; trained on one common residual they explain the data
    and leave the rare latents nothing but junk. Here the rare groups must explain the data before any more frequent group
    is asked. Groups follow `Spectrum.group_of`, most frequent first; one group is `Reconstruction`.

    Args:
        groups: K.
        cascade: stop the gradient between stages, so that a group never sees the residual of more frequent ones.
            Without it a group serves every stage that contains it (Matryoshka prefixes, ordered by rarity).
    """

    groups: int
    cascade: bool = False

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"groups={self.groups} must be at least 1")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        sizes = group_sizes(dictionary.latents, self.groups)
        z = codes.z if dictionary.scale is None else codes.z * dictionary.scale
        parts = zip(reversed(z.split(sizes, dim=-1)), reversed(dictionary.W_dec.split(sizes)), strict=True)
        explained, loss = torch.zeros_like(target), torch.zeros((), device=target.device)
        for z_group, atoms in parts:
            explained = (explained.detach() if self.cascade else explained) + z_group @ atoms
            loss = loss + half_square(explained + dictionary.b_dec - target)
        return loss / self.groups


@dataclass(frozen=True)
class L1:
    """coefficient · Σ_m |z_m| ‖a_m w_m‖, averaged over rows: the decoder norm makes the term blind to rescaling."""

    coefficient: float

    def __post_init__(self):
        if self.coefficient < 0:
            raise ValueError(f"coefficient={self.coefficient} must not be negative")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        return self.coefficient * (codes.z.abs() @ dictionary.effective_atoms.norm(dim=1)).mean()


@dataclass(frozen=True)
class Alignment:
    """−Σ_m φ(y_m) w_mᵀ(x − b_dec), averaged over rows: the reconstruction loss's first order in a_m (maths.md eq. 12).

    In the limit a → 0 latents see the data and not each other; this is the objective of the theory's modified BA.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        return -(codes.z * (codes.pre - dictionary.b_enc)).sum(-1).mean()


def half_square(residual: Float[Tensor, "*rows d"]) -> Float[Tensor, ""]:
    """½ ‖r‖², averaged over every leading axis."""
    return 0.5 * residual.square().sum(-1).mean()


def total(
    terms: tuple[LossTerm, ...], dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]
) -> Float[Tensor, ""]:
    """Sum of the terms."""
    return torch.stack([term(dictionary, codes, target) for term in terms]).sum()
