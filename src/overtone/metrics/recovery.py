"""Were the true features found? Scores of a dictionary's atoms against a known ground truth."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from overtone.metrics.matching import best_match


class Recovery(NamedTuple):
    """Scores of atoms against true features.

    Attributes:
        frr: feature recovery rate by threshold τ: share of true features with max_m cos(w_m, v_i) ≥ τ (maths.md eq. 17).
        mean_max_cosine: mean over true features of that maximum.
        max_cosine: the maximum of every true feature.
    """

    frr: dict[float, float]
    mean_max_cosine: float
    max_cosine: Float[Tensor, " features"]


def recovery(
    atoms: Float[Tensor, "latents d"],
    truth: Float[Tensor, "features d"],
    thresholds: Sequence[float] = (0.8, 0.9),
    *,
    signed: bool = True,
) -> Recovery:
    """Best cosine of every true feature with an atom. Invariant to permuting and to positively rescaling either side.

    Args:
        atoms: of a dictionary.
        truth: true features.
        thresholds: τ of the recovery rates.
        signed: whether an atom has to point the feature's way; otherwise |cos| counts, as in arXiv 2512.05534 (maths.md eq. 33).
    """
    best = best_match(truth, atoms, signed=signed).cosine
    return Recovery({t: float((best >= t).double().mean()) for t in thresholds}, float(best.mean()), best)


class HierarchyErrors(NamedTuple):
    """How well the geometry of a hierarchy is recovered (maths.md eq. 34): 0 where it is.

    Attributes:
        flat: mean squared error of the cosines of siblings.
        hierarchical: mean squared error of the cosines of children with their parents.
    """

    flat: float
    hierarchical: float


def hierarchy_errors(
    atoms: Float[Tensor, "latents d"], truth: Float[Tensor, "features d"], parent_of: Int[Tensor, " features"]
) -> HierarchyErrors:
    """Cosines between the atoms that stand for true features, against those of the features.

    A feature's atom is the one of largest cosine. A child's atom that has absorbed its parent is not orthogonal to the parent's;
    atoms of correlated siblings that were pushed apart lost their cosine. Invariant to permuting and positively rescaling atoms.

    Args:
        atoms: of a dictionary.
        truth: true features.
        parent_of: index of every feature's parent; −1: none.
    """
    truth, atoms = normalize(truth, dim=1), normalize(atoms, dim=1)
    chosen = atoms[best_match(truth, atoms, signed=True).nearest]
    error = (chosen @ chosen.T - truth @ truth.T).square()
    child = (parent_of >= 0).nonzero().squeeze(1)
    siblings = (parent_of[child][:, None] == parent_of[child]).fill_diagonal_(False)
    return HierarchyErrors(float(error[child][:, child][siblings].mean()), float(error[child, parent_of[child]].mean()))
