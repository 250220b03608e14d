"""Centred moments of rows, and their errors, by the size of the row: merged exactly, whatever the batches were."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PER_OCTAVE = 16
ZERO = -(2**16)  # the bin of rows that are all zeros, below that of every number


class Moments(NamedTuple):
    """Counts, means, centred squares and errors of rows in bins (float64); a commutative monoid under `merge`.

    Every octave of the norm has 16 marks, and a bin the norms that are nearest to one: it is 3 to 6 % wide, and scaling by 2
    moves every row 16 bins on. Only bins that have rows are kept: at most 4,500 in float32, usually a few dozen.

    Attributes:
        bins: number of each bin, ascending.
        counts: rows of each.
        mean: their mean.
        square: Σ (x − mean)² of every dimension.
        error: Σ (x − x̂)² of every dimension.
    """

    bins: Int[Tensor, " bins"]
    counts: Int[Tensor, " bins"]
    mean: Float[Tensor, "bins d"]
    square: Float[Tensor, "bins d"]
    error: Float[Tensor, "bins d"]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    def pooled(self) -> "Moments":
        """All rows as one bin."""
        return _combine(torch.zeros_like(self.bins), *self[1:])

    def parts(self, number: int) -> "Parts":
        """The rows from the shortest to the longest, in so many equal parts; what is left of a bin at a border is shared out.

        Exact where no bin reaches over a border; there, its rows count for both parts in proportion.
        """
        ends = self.counts.cumsum(0).double()
        borders = torch.linspace(0, self.rows, number + 1, dtype=torch.float64, device=self.counts.device)
        starts = ends - self.counts
        overlap = torch.minimum(ends, borders[1:, None]) - torch.maximum(starts, borders[:-1, None])
        share = overlap.clamp(min=0) / self.counts
        everything = self.pooled()
        variance = (self.square + self.counts[:, None] * (self.mean - everything.mean).square()).sum(1)
        last = torch.searchsorted(ends, borders[1:]).clamp(max=len(ends) - 1)
        return Parts(share @ self.error.sum(1), share @ variance, _upper_edge(self.bins[last]))


class Parts(NamedTuple):
    """Rows in parts of equal size, by norm.

    Attributes:
        error: Σ ‖x − x̂‖² of each part.
        variance: Σ ‖x − mean‖² of each part, around the mean of all rows.
        up_to: the norm at which each part ends, to the width of a bin.
    """

    error: Float[Tensor, " parts"]
    variance: Float[Tensor, " parts"]
    up_to: Float[Tensor, " parts"]


def moments(x: Float[Tensor, "rows d"], error: Float[Tensor, "rows d"]) -> Moments:
    """Of rows (float64) and their squared errors (x − x̂)²."""
    norm = torch.linalg.vector_norm(x, dim=1)
    # Not the logarithm: doubling a row has to move it by whole bins, to the bit.
    mantissa, exponent = torch.frexp(norm)
    # To the nearest mark and not down to it: rows of norm 1, to the last bit or two, belong together.
    bins = exponent.long() * PER_OCTAVE + ((2 * mantissa - 1) * PER_OCTAVE + 0.5).long()
    bins = torch.where(norm > 0, bins, ZERO)
    found, at, counts = bins.unique(return_inverse=True, return_counts=True)
    mean = _summed(x, at, len(found)) / counts[:, None]
    spread = mean.index_select(0, at).sub_(x).square_()  # in place: a pass over new memory costs several over old
    return Moments(found, counts, mean, _summed(spread, at, len(found)), _summed(error, at, len(found)))


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of both."""
    return _combine(*(torch.cat(pair) for pair in zip(a, b, strict=True)))


def _combine(
    bins: Int[Tensor, " parts"],
    counts: Int[Tensor, " parts"],
    mean: Float[Tensor, "parts d"],
    square: Float[Tensor, "parts d"],
    error: Float[Tensor, "parts d"],
) -> Moments:
    """Parts of the same bin become one (Chan et al. 1983): no difference of large numbers is ever taken."""
    found, at = bins.unique(return_inverse=True)
    rows, weight = _summed(counts, at, len(found)), counts.double()[:, None]
    middle = _summed(weight * mean, at, len(found)) / rows[:, None]
    spread = square + weight * (mean - middle[at]).square()
    return Moments(found, rows, middle, _summed(spread, at, len(found)), _summed(error, at, len(found)))


def _summed(parts: Tensor, at: Int[Tensor, " parts"], bins: int) -> Tensor:
    """Parts added up by their bin."""
    return parts.new_zeros(bins, *parts.shape[1:]).index_add_(0, at, parts)


def _upper_edge(bins: Int[Tensor, " bins"]) -> Float[Tensor, " bins"]:
    exponent, part = bins // PER_OCTAVE, bins % PER_OCTAVE
    edge = torch.ldexp((1 + (part + 0.5) / PER_OCTAVE).double() / 2, exponent)
    return torch.where(bins == ZERO, 0.0, edge)
