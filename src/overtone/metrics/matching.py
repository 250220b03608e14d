"""Which atom stands for which true feature: best matches either way, and the best one-to-one assignment."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

ROWS_PER_BLOCK = 1024


class Match(NamedTuple):
    """The nearest of some other rows, for each row.

    Attributes:
        cosine: with the nearest one, or its size.
        nearest: which one it is; of equally near ones the first.
    """

    cosine: Float[Tensor, " rows"]
    nearest: Int[Tensor, " rows"]


def best_match(rows: Float[Tensor, "rows d"], others: Float[Tensor, "others d"], *, signed: bool = False) -> Match:
    """The nearest of the others for each row, in O(rows + others) memory. Invariant to (positively) rescaling either side.

    Args:
        rows: rows that want a match.
        others: rows to choose from; one may be chosen any number of times.
        signed: whether directions have to agree; otherwise |cos| counts.
    """
    others = normalize(others, dim=1).T
    parts = []
    for block in normalize(rows, dim=1).split(ROWS_PER_BLOCK):
        cosine = block @ others
        parts.append((cosine if signed else cosine.abs_()).max(1))
    return Match(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


class Matching(NamedTuple):
    """Atoms and true features matched by |cos|, each with the nearest of the other side.

    Attributes:
        of_latents: the feature nearest to each latent's atom.
        of_features: the latent whose atom is nearest to each feature.
    """

    of_latents: Match
    of_features: Match

    @property
    def uniqueness(self) -> float:
        """Number of different features that latents are nearest to, over the number of latents (maths.md eq. R2).

        1: no two latents stand for the same feature. SynthSAEBench's (arXiv 2602.14687).
        """
        return len(self.of_latents.nearest.unique()) / len(self.of_latents.nearest)

    def splitting(self, threshold: float = 0.8) -> float:
        """Latents per feature that has any: those nearest to it, with |cos| ≥ threshold (maths.md eq. R3).

        1: features are not split (the ambiguity that identifiability leaves, arXiv 2506.14002); 0: no latent is so near to any.
        """
        near = self.of_latents.nearest[self.of_latents.cosine >= threshold]
        return len(near) / max(1, len(near.unique()))


def match(atoms: Float[Tensor, "latents d"], truth: Float[Tensor, "features d"]) -> Matching:
    """Nearest features and latents of each other. Permuting either side permutes the matching."""
    return Matching(best_match(atoms, truth), best_match(truth, atoms))


def mean_correlation(atoms: Float[Tensor, "latents d"], truth: Float[Tensor, "features d"]) -> float:
    """MCC: mean |cos| over the one-to-one matching of atoms with features that makes it largest (maths.md eq. R1).

    As in SynthSAEBench (arXiv 2602.14687) and arXiv 2505.20254: of the side that has more, the rest goes unmatched and does not
    count. Takes 12 · latents · features bytes, and time that grows with the cube of the smaller side at worst. Invariant to
    permuting and to rescaling, sign included.
    """
    from scipy.optimize import linear_sum_assignment  # here, since its import takes longer than overtone's

    cosine = (normalize(atoms, dim=1) @ normalize(truth, dim=1).T).abs_()
    chosen = linear_sum_assignment(cosine.cpu().numpy(), maximize=True)
    return float(cosine[tuple(map(torch.as_tensor, chosen))].double().mean())


class Bounds(NamedTuple):
    """Between what a score lies; both alike where it was computed exactly."""

    low: float
    high: float


EXACT_UP_TO = 8192  # atoms a side: 0.8 GB; the time grows with the cube


def bounded_correlation(
    atoms: Float[Tensor, "latents d"], others: Float[Tensor, "others d"], *, exact_up_to: int = EXACT_UP_TO
) -> Bounds:
    """`mean_correlation`, or where more than `exact_up_to` atoms are on both sides, bounds of it (maths.md eq. Q6).

    Below it is the matching that takes the nearest pair of what is left, again and again; above it is what the smaller side has
    where nobody minds sharing. O(latents + others) memory, and the time of some tens of products of the two.
    """
    if min(len(atoms), len(others)) <= exact_up_to:
        exact = mean_correlation(atoms, others)
        return Bounds(exact, exact)
    few, many = sorted((atoms, others), key=len)
    few, many = normalize(few, dim=1), normalize(many, dim=1)
    nearest, back = _nearest_both_ways(few, many)
    high = float(nearest.cosine.double().mean())
    if len(few) == len(many):
        high = min(high, float(back.cosine.double().mean()))
    count, total = len(few), 0.0
    while len(few):
        # Who is nearest to whom he is nearest to stays so until he is taken: all of these can be matched at once.
        mutual = back.nearest[nearest.nearest] == torch.arange(len(few), device=few.device)
        total += float(nearest.cosine[mutual].double().sum())
        free = torch.ones(len(many), dtype=torch.bool, device=many.device)
        free[nearest.nearest[mutual]] = False
        few, many = few[~mutual], many[free]
        if len(few):
            nearest, back = _nearest_both_ways(few, many)
    return Bounds(total / count, high)


def _nearest_both_ways(few: Float[Tensor, "few d"], many: Float[Tensor, "many d"]) -> tuple[Match, Match]:
    """|cos| of unit rows, from the same products either way, so that ties and rounding are the same for both."""
    ahead, back = [], Match(few.new_full((len(many),), -1.0), torch.zeros(len(many), dtype=torch.long))
    for start in range(0, len(few), ROWS_PER_BLOCK):
        cosine = (few[start : start + ROWS_PER_BLOCK] @ many.T).abs_()
        ahead.append(cosine.max(1))
        best, row = cosine.max(0)
        better = best > back.cosine
        back = Match(torch.where(better, best, back.cosine), torch.where(better, row + start, back.nearest))
    return Match(torch.cat([part.values for part in ahead]), torch.cat([part.indices for part in ahead])), back
