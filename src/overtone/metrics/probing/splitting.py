"""Feature splitting across widths: which latents of a wide dictionary a narrow one's latents have become."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.metrics.matching import Match, best_match
from overtone.metrics.probing.columns import Columns

FEWEST = 10
MOSTLY = 0.5


class Splitting(NamedTuple):
    """The latents of a wide dictionary, each under the latent of a narrow one whose atom is nearest. Those that fire in fewer
    than 10 rows are left out on either side.

    Attributes:
        parent: of each wide latent, the narrow one.
        cosine: of their atoms.
        within: share of the wide latent's rows in which its parent fires too (maths.md eq. P10).
        by_chance: share of all rows in which its parent fires.
        children: of each narrow latent, how many wide ones it is the parent of.
        kept: … of those that fire mostly (more than half of their rows) where it does.
    """

    parent: Int[Tensor, " wide"]
    cosine: Float[Tensor, " wide"]
    within: Float[Tensor, " wide"]
    by_chance: Float[Tensor, " wide"]
    children: Int[Tensor, " narrow"]
    kept: Int[Tensor, " narrow"]

    def summary(self) -> dict[str, float]:
        """Means over latents, and the shares of narrow latents with no, one and several wide ones that fire within them."""
        shares = {"none": self.kept == 0, "one": self.kept == 1, "several": self.kept > 1}
        means = {"children": self.children, "cosine": self.cosine, "within": self.within, "by_chance": self.by_chance}
        found = {name: float(values.double().mean()) for name, values in means.items()}
        return found | {name: float(value.double().mean()) for name, value in shares.items()}


def splitting(
    narrow: tuple[Float[Tensor, "narrow d"], Columns], wide: tuple[Float[Tensor, "wide d"], Columns]
) -> Splitting:
    """Match two dictionaries of the same rows. Invariant to permuting latents; a dictionary with itself has one child each.

    Args:
        narrow: atoms, and contributions to rows, of the dictionary with fewer latents.
        wide: of the one with more, on the same rows.

    Raises:
        ValueError: contributions to other rows; no latent that fires in 10 rows.
    """
    rows = narrow[1].shape[0]
    if wide[1].shape[0] != rows:
        raise ValueError(f"codes of {rows} and {wide[1].shape[0]} rows; both dictionaries must have read the same rows")
    (few, fires_few), (many, fires_many) = (_alive(*side) for side in (narrow, wide))
    match: Match = best_match(many, few, signed=True)
    parents = fires_few.matrix[:, match.nearest.numpy()]
    both = torch.from_numpy(fires_many.matrix.multiply(parents).sum(0)).double()
    ones = torch.ones(rows, 1)
    within = both / fires_many.sums(ones).squeeze(1)
    chance = fires_few.sums(ones).squeeze(1)[match.nearest] / rows
    count = len(few)
    return Splitting(
        match.nearest,
        match.cosine,
        within,
        chance,
        torch.bincount(match.nearest, minlength=count),
        torch.bincount(match.nearest[within > MOSTLY], minlength=count),
    )


def _alive(atoms: Float[Tensor, "latents d"], u: Columns) -> tuple[Float[Tensor, "alive d"], Columns]:
    fires = u.fires()
    alive = (fires.sums(torch.ones(u.shape[0], 1)).squeeze(1) >= FEWEST).nonzero().flatten()
    if not len(alive):
        raise ValueError(f"no latent fires in {FEWEST} of the {u.shape[0]} rows; give more text")
    return atoms[alive], Columns(fires.matrix[:, alive.numpy()])
