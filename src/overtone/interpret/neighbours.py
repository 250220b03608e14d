"""Which latents are near each other: by the direction of their atoms, and by firing on the same rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import normalize

from overtone.interpret.sampling import fixed_uniform
from overtone.ops import SparseCodes

AT_ONCE = 512  # latents


class Neighbours(NamedTuple):
    """The nearest latents of each, nearest first.

    Attributes:
        latent: which.
        nearness: how near, 1 for the same.
    """

    latent: Int[Tensor, "latents k"]
    nearness: Float[Tensor, "latents k"]


def by_direction(atoms: Float[Tensor, "latents d"], k: int = 5, *, signed: bool = True) -> Neighbours:
    """The other latents with the largest cosines, in O(latents) memory. Invariant to positively rescaling any atom.

    Args:
        atoms: `W_dec`.
        k: how many; fewer where there are no others.
        signed: whether atoms have to point the same way; otherwise |cos| counts, for codes of either sign.
    """
    unit = normalize(atoms, dim=1)
    parts = []
    for first in range(0, len(unit), AT_ONCE):
        cosine = unit[first : first + AT_ONCE] @ unit.T
        parts.append(_others(cosine if signed else cosine.abs_(), first, k))
    return _together(parts)


class Alike(NamedTuple):
    """The latent of another dictionary that fires most as each of one's own does.

    Attributes:
        latent: which.
        phi: the correlation of their firing.
        of_partner: the same for the latent that was asked about.
    """

    latent: Int[Tensor, " latents"]
    phi: Float[Tensor, " latents"]
    of_partner: Float[Tensor, " latents"]


class FiredTogether:
    """Counts, over a fixed sample of the rows, which latents fire on the same ones.

    Memory is the sample's entries: 4 bytes each.

    Args:
        latents: M.
        share: of the rows that are sampled, by their number in the text.
        seed: of the sample.
    """

    def __init__(self, latents: int, share: float = 1.0, seed: int = 0):
        if not 0 < share <= 1:
            raise ValueError(f"share={share} of the rows must be above 0 and at most 1")
        self.latents, self.share, self.seed = latents, share, seed
        self._active: list[np.ndarray] = []
        self._l0: list[np.ndarray] = []

    def add(self, codes: SparseCodes, first: int) -> None:
        """Codes of rows that stand one after the other in the text, from row `first`."""
        row = torch.arange(codes.rows_total)
        taken = fixed_uniform(self.seed, torch.zeros_like(row), row + first) < self.share
        l0 = codes.l0().cpu()
        self._active.append(codes.latents.cpu()[taken.repeat_interleave(l0)].int().numpy())
        self._l0.append(l0[taken].numpy())

    def neighbours(self, k: int = 5) -> Neighbours:
        """The other latents whose firing correlates most with each latent's: φ, the correlation of two yes-or-no variables.

        1: they fire on the same rows; 0 where they are independent, and for latents that never fire or always do.
        """
        mine = self._counted()
        return _together([_others(phi, part.start, k) for part, phi in _correlations(mine, mine)])

    def alike(self, other: "FiredTogether", partner: Int[Tensor, " latents"]) -> Alike:
        """Which latent of another dictionary fires most as each of this one's does.

        Args:
            other: counted on the same rows: of the same text, share and seed.
            partner: a latent of the other for each of this one's, whose φ is wanted, too.

        Raises:
            ValueError: counted on other rows.
        """
        mine, theirs = self._counted(), other._counted()
        if self.seed != other.seed or self.share != other.share or mine.rows != theirs.rows:
            raise ValueError(
                f"firing was counted on {mine.rows} rows of one dictionary and {theirs.rows} of the other; "
                "count both on the same text, share and seed"
            )
        found = [
            (*phi.max(dim=1), phi.gather(1, partner[part, None])[:, 0]) for part, phi in _correlations(mine, theirs)
        ]
        phi, latent, of_partner = (torch.cat(column) for column in zip(*found, strict=True))
        return Alike(latent, phi, of_partner)

    def _counted(self) -> "_Counted":
        l0 = np.concatenate(self._l0) if self._l0 else np.zeros(0, dtype=np.int64)
        active = np.concatenate(self._active) if self._active else np.zeros(0, dtype=np.int32)
        starts = np.concatenate([[0], l0.cumsum()])
        fires = csr_matrix((np.ones(len(active), dtype=np.float32), active, starts), shape=(len(l0), self.latents))
        rate = torch.from_numpy(np.asarray(fires.sum(0), dtype=np.float32).ravel()) / max(1, len(l0))
        return _Counted(fires, rate, len(l0))


class _Counted(NamedTuple):
    """Which latents fire on which of the sampled rows, and on what share of them."""

    fires: csr_matrix
    rate: Float[Tensor, " latents"]
    rows: int

    @property
    def spread(self) -> Float[Tensor, " latents"]:
        return (self.rate * (1 - self.rate)).sqrt()


def _correlations(a: _Counted, b: _Counted) -> Iterator[tuple[slice, Float[Tensor, "some latents"]]]:
    """φ of some latents of a with all of b, a few at a time: both have to be of the same rows."""
    by_latent, rows = a.fires.T.tocsr(), max(1, a.rows)
    for first in range(0, len(a.rate), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        both = torch.from_numpy((by_latent[part] @ b.fires).toarray()) / rows
        deviation = both - a.rate[part, None] * b.rate
        scale = a.spread[part, None] * b.spread
        yield part, torch.where(scale > 0, deviation / scale.clamp(min=1e-12), 0)


def _others(nearness: Float[Tensor, "some latents"], first: int, k: int) -> Neighbours:
    """The k largest of each row but for its own place, `first` onwards."""
    mine = torch.arange(len(nearness))
    nearness[mine, first + mine] = -torch.inf
    best = nearness.topk(min(k, nearness.shape[1] - 1), dim=1)
    return Neighbours(best.indices, best.values)


def _together(parts: list[Neighbours]) -> Neighbours:
    return Neighbours(*(torch.cat(column) for column in zip(*parts, strict=True)))
