"""How large each latent's codes are: a histogram of all of them, in one pass and without knowing the largest beforehand."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.ops import SparseCodes

BINS = 32


class CodeHistograms:
    """Counts of the sizes of each latent's codes in bins as wide as a power of two.

    Each latent's bins widen by merging pairs whenever a code exceeds the last one, so its largest code ends in the upper half of
    its bins. Edges of narrower bins are edges of wider ones or lie within one: counts do not depend on batches or their order.
    """

    def __init__(self, latents: int):
        self.counts = torch.zeros(latents, BINS, dtype=torch.long)
        self.exponent = torch.full((latents,), -126)  # bins are 2^exponent wide: the narrowest that float32 can hold

    def add(self, codes: SparseCodes) -> None:
        """Count the codes of some rows, those of either sign by their size."""
        latents, size = codes.latents.cpu(), codes.values.detach().float().abs().cpu()
        largest = torch.zeros(len(self.counts)).scatter_reduce_(0, latents, size, "amax")
        # frexp: largest = fraction · 2^power with fraction < 1, so that it is in one of BINS = 2^5 bins of width 2^(power − 5).
        wanted = torch.where(largest > 0, largest.frexp().exponent.long() - (BINS.bit_length() - 1), -126)
        self._widen(torch.maximum(wanted, self.exponent))
        place = (size / self.width[latents]).long()
        self.counts.view(-1).index_add_(0, latents * BINS + place, torch.ones_like(place))

    @property
    def width(self) -> Float[Tensor, " latents"]:
        """How wide each latent's bins are."""
        return torch.ldexp(torch.ones(len(self.exponent)), self.exponent)

    def _widen(self, exponent: Int[Tensor, " latents"]) -> None:
        more = (exponent - self.exponent).clamp(max=BINS.bit_length())
        some = more.nonzero()[:, 0]
        if len(some):
            merged = torch.arange(BINS) >> more[some][:, None]
            self.counts[some] = torch.zeros_like(self.counts[some]).scatter_add_(1, merged, self.counts[some])
            self.exponent = exponent
