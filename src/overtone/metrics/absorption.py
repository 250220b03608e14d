"""Absorption and hedging: what latents do to a hierarchy of features that is known."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from overtone.dictionary import Codes, Dictionary
from overtone.metrics.matching import Matching
from overtone.ops import SparseCodes

ABSORBS_FROM = 0.4  # share of the parent that the child's latent has to bring along, SAEBench's for a probe's direction


class Family(NamedTuple):
    """Children and parents, and how much of one is in the atom of the other's latent. Per child.

    A feature's latent is the one whose atom is nearest to it (`Matching`). The coefficients of an atom are those of its
    projection on the span of a parent and all its children, so that correlated siblings are told apart.

    Attributes:
        child, parent: features.
        carried: coefficient of the parent in what one unit of the child's latent decodes to, in the units of the data.
        hedge: coefficient of the child in the unit atom of the parent's latent.
    """

    child: Int[Tensor, " children"]
    parent: Int[Tensor, " children"]
    carried: Float[Tensor, " children"]
    hedge: Float[Tensor, " children"]


@torch.no_grad()
def family(
    dictionary: Dictionary, truth: Float[Tensor, "features d"], parent_of: Int[Tensor, " features"], matching: Matching
) -> Family:
    """The pairs of a hierarchy, with the coefficients.

    Args:
        dictionary: the dictionary.
        truth: true features.
        parent_of: index of every feature's parent; −1: none.
        matching: of the dictionary's atoms with the features.
    """
    effective, latent_of = dictionary.data_atoms, matching.of_features.nearest
    child, carried, hedge = [], [], []
    for parent in parent_of[parent_of >= 0].unique():
        children = (parent_of == parent).nonzero().squeeze(1)
        features = truth[torch.cat([parent[None], children])].double()
        solve = torch.linalg.pinv(normalize(features, dim=1)).to(truth.dtype)
        child.append(children)
        carried.append(effective[latent_of[children]] @ solve[:, 0] / features[0].norm().to(truth.dtype))
        hedge.append(normalize(effective[latent_of[parent]], dim=0) @ solve[:, 1:])
    if not child:
        raise ValueError("no feature has a parent: there is no hierarchy to score")
    children = torch.cat(child)
    return Family(children, parent_of[children], torch.cat(carried), torch.cat(hedge))


@torch.no_grad()
def count_absorbed(
    relations: Family, codes: Codes, h: SparseCodes, matching: Matching, *, share: float = ABSORBS_FROM
) -> Int[Tensor, " features"]:
    """Rows of one batch in which each child has absorbed its parent (maths.md eq. R6); 0 for features without a parent.

    Those in which both occur, the parent's latent is silent, and the child's decodes to at least `share` of the parent.
    Invariant to scaling the data; additive over rows.
    """
    entries, h = codes.entries.sparse(), h.nonzero()
    of_child = torch.full((h.latents_total,), -1).to(relations.child)
    of_child[relations.child] = torch.arange(len(relations.child)).to(of_child)
    pair = of_child[h.latents]
    rows, pair = h.rows[pair >= 0], pair[pair >= 0]
    child, parent = relations.child[pair], relations.parent[pair]
    silent = entries.look_up(rows, matching.of_features.nearest[parent]) == 0
    norm = codes.norm.reshape(-1)[rows]
    brought = entries.look_up(rows, matching.of_features.nearest[child]) * norm * relations.carried[pair]
    wanted = h.look_up(rows, parent)
    absorbed = silent & (wanted > 0) & (brought >= share * wanted)
    return torch.bincount(child[absorbed], minlength=h.latents_total)


class HierarchyScores(NamedTuple):
    """Absorption and hedging of every child, and their means. 0: none.

    Attributes:
        child: the features.
        absorption: share of the child's rows in which it has absorbed its parent (maths.md eq. R6); NaN where it never occurred.
        hedging: size of its coefficient in the unit atom of its parent's latent (maths.md eq. R7).
    """

    child: Int[Tensor, " children"]
    absorption: Float[Tensor, " children"]
    hedging: Float[Tensor, " children"]

    @property
    def mean_absorption(self) -> float:
        """Over the children that occurred."""
        known = self.absorption[self.absorption.isfinite()]
        return float(known.mean()) if len(known) else math.nan

    @property
    def mean_hedging(self) -> float:
        """Over the children."""
        return float(self.hedging.mean())


def hierarchy_scores(
    relations: Family, absorbed: Int[Tensor, " features"], occurred: Int[Tensor, " features"]
) -> HierarchyScores:
    """The scores, from the counts of all rows."""
    rate = absorbed[relations.child].double() / occurred[relations.child]
    return HierarchyScores(relations.child, rate, relations.hedge.abs())
