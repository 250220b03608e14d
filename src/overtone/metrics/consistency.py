"""Do independently seeded runs find the same atoms? Always beside what random dictionaries of the same shape have."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.metrics.matching import EXACT_UP_TO, Bounds, best_match, bounded_correlation
from overtone.seeds import generator

AGREE = 0.9
TOP = (0.01, 0.1)
ALL = "all"

Scores = Mapping[str, Float[Tensor, " latents"]]


class Agreement(NamedTuple):
    """How near some latents of one run come to the latents of another, for every ordered pair of runs.

    Attributes:
        mcs: mean of the largest cosines (maths.md eq. Q4).
        share: share of them above 0.9.
    """

    mcs: list[float]
    share: list[float]

    def mean(self) -> tuple[float, float]:
        """Both over the pairs."""
        return sum(self.mcs) / len(self.mcs), sum(self.share) / len(self.share)


class Consistency(NamedTuple):
    """Runs of the same method that differ in their seed, over all pairs.

    Attributes:
        groups: "all" latents, and the top ones by each score: "peak 1%", "z_score 10%", …
        matched: PW-MCC of every pair of runs: mean |cos|, matched one to one (maths.md eq. Q5), or bounds of it.
        each: per run and latent, MCS averaged over the other runs.
        random: "all" of two dictionaries with i.i.d. uniform atoms. It is the expectation of every group alike: the largest
            cosine of a fixed direction with uniform ones has the same law whatever the direction.
        random_matched: their PW-MCC.
    """

    groups: dict[str, Agreement]
    matched: list[Bounds]
    each: list[Float[Tensor, " latents"]]
    random: Agreement
    random_matched: Bounds

    def to_json(self, *, latents: bool = False) -> dict[str, Any]:
        """All of it; the values of single latents where they are asked for."""
        return {
            "groups": {name: group._asdict() for name, group in self.groups.items()},
            "matched": [pair._asdict() for pair in self.matched],
            "random": self.random._asdict(),
            "random_matched": self.random_matched._asdict(),
        } | ({"each": [run.tolist() for run in self.each]} if latents else {})

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Consistency":
        """What `to_json` gave, with the values of single latents."""
        return cls(
            {name: Agreement(**group) for name, group in kept["groups"].items()},
            [Bounds(**pair) for pair in kept["matched"]],
            [torch.tensor(run, dtype=torch.float64) for run in kept["each"]],
            Agreement(**kept["random"]),
            Bounds(**kept["random_matched"]),
        )


@torch.no_grad()
def consistency(
    atoms: Sequence[Float[Tensor, "latents d"]],
    scores: Sequence[Scores] = (),
    *,
    top: Sequence[float] = TOP,
    signed: bool = True,
    exact_up_to: int = EXACT_UP_TO,
) -> Consistency:
    """Consistency of two or more runs. Invariant to permuting and to positively rescaling the atoms of each.

    Args:
        atoms: `W_dec` of every run.
        scores: of every run, the latents' scores by name (peak, frequency, z_score, …), by each of which the top latents of a
            run are looked up among all latents of the others.
        top: shares α of the latents that are the top ones; at least one is taken.
        signed: whether atoms have to point the same way; otherwise |cos| counts, for codes of either sign.
        exact_up_to: as in `bounded_correlation`.

    Raises:
        ValueError: fewer than two runs, of other shapes than one another, or scores of other runs than these.
    """
    shapes = sorted({tuple(run.shape) for run in atoms})
    if len(atoms) < 2 or len(shapes) > 1:
        found = f"{len(atoms)} run{'s' * (len(atoms) != 1)} of shapes {shapes}"
        raise ValueError(f"consistency is that of two or more dictionaries of one shape, not of {found}")
    if scores and len(scores) != len(atoms):
        raise ValueError(f"scores of {len(scores)} runs for the atoms of {len(atoms)}; give those of each, or none")
    latents, d = shapes[0]
    chosen = [_groups(run, latents, top) for run in scores or [{}] * len(atoms)]
    groups = {name: Agreement([], []) for name in chosen[0]}
    each = [torch.zeros(latents, dtype=torch.float64) for _ in atoms]
    for i, one in enumerate(atoms):
        for j, other in enumerate(atoms):
            if i == j:
                continue
            nearest = best_match(one, other, signed=signed).cosine.double().cpu()
            each[i] += nearest / (len(atoms) - 1)
            for name, members in chosen[i].items():
                _add(groups[name], nearest[members])
    matched = [bounded_correlation(a, b, exact_up_to=exact_up_to) for a, b in combinations(atoms, 2)]
    return Consistency(groups, matched, each, *random_baseline(latents, d, signed, exact_up_to))


@cache
def random_baseline(
    latents: int, d: int, signed: bool = True, exact_up_to: int = EXACT_UP_TO
) -> tuple[Agreement, Bounds]:
    """MCS and PW-MCC of two dictionaries whose atoms are i.i.d. uniform on the sphere."""
    one, other = (torch.randn(latents, d, generator=generator(i, "random dictionaries")) for i in range(2))
    agreement = Agreement([], [])
    for a, b in ((one, other), (other, one)):
        _add(agreement, best_match(a, b, signed=signed).cosine.double())
    return agreement, bounded_correlation(one, other, exact_up_to=exact_up_to)


def _groups(scores: Scores, latents: int, top: Sequence[float]) -> dict[str, Tensor]:
    """Name → the latents of each group; of equal scores the first latents."""
    found = {ALL: torch.arange(latents)}
    for name, values in scores.items():
        order = values.argsort(descending=True, stable=True).cpu()
        found |= {f"{name} {share * 100:g}%": order[: max(1, math.ceil(share * latents))] for share in top}
    return found


def _add(agreement: Agreement, nearest: Float[Tensor, " chosen"]) -> None:
    agreement.mcs.append(float(nearest.mean()))
    agreement.share.append(float((nearest > AGREE).double().mean()))
