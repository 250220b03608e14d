"""Which sites a crosscoder's latents belong to: how an atom's norm is shared out among them."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.dictionary import Dictionary


class SiteNorms(NamedTuple):
    """Decoder norms by site.

    Attributes:
        sites: the sites' names.
        norms: ‖a_m w_m‖ at every site, in units of the site's typical norm, so that sites compare.
    """

    sites: tuple[str, ...]
    norms: Float[Tensor, "latents sites"]

    @property
    def share(self) -> Float[Tensor, "latents sites"]:
        """ρ_ms, each latent's relative norm: its norm at a site over the sum of its norms (maths.md eq. S5); rows sum to 1.

        With two sites, 1 is a latent of this site alone, ½ one of both alike, 0 one of the other. Invariant to rescaling atoms;
        a latent without any norm counts as nowhere (all 0).
        """
        total = self.norms.sum(1, keepdim=True)
        return torch.where(total > 0, self.norms / total, 0.0)

    def exclusive(self, site: str, *, above: float = 0.8) -> Int[Tensor, " found"]:
        """Latents with more than this share of their norm at one site, the strongest share first."""
        if site not in self.sites:
            raise ValueError(f"no site {site!r}; the dictionary reconstructs {', '.join(self.sites)}")
        share = self.share[:, self.sites.index(site)]
        order = share.argsort(descending=True, stable=True)
        return order[share[order] > above]

    def shared(self, *, at_least: float = 0.6) -> Int[Tensor, " found"]:
        """Latents with at least this part of an equal share at every site (of two: 0.3 at each), the most even first."""
        least = self.share.amin(1) * len(self.sites)
        order = least.argsort(descending=True, stable=True)
        return order[least[order] >= at_least]


@torch.no_grad()
def site_norms(dictionary: Dictionary) -> SiteNorms:
    """Decoder norms of every latent at every site that the dictionary reconstructs."""
    return SiteNorms(tuple(block.site for block in dictionary.layout.reconstructs), dictionary.site_norms.clone())
