"""Taking latents out and asking probes again: targeted probe perturbation and the removal of spurious correlations.

SAEBench's definitions (arXiv 2411.18895, 2503.09532). A latent is taken out of a row as in (Q8), what no latent explains left
in; probes are linear and read means over tokens, so that the means of contributions are all that is needed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.metrics import probes
from overtone.metrics.probing.columns import Columns
from overtone.metrics.probing.sparse import check_counts, contrasts
from overtone.metrics.probing.tasks import Answered, Question, answered, evenly, fitted, question

COUNTS = (2, 5, 10, 20, 50, 100, 500)
LEAST_GAP = 0.02


class Perturbed(NamedTuple):
    """What the probes of all classes lose when the latents of one are taken out.

    Attributes:
        names: the classes.
        clean: accuracy of every class's probe.
        ablated: number of latents → accuracies without the latents of a row's class, of the probe of a column's class.
    """

    names: list[str]
    clean: Float[Tensor, " classes"]
    ablated: dict[int, Float[Tensor, "classes classes"]]

    def intended(self, n: int) -> float:
        """Mean loss of accuracy of the probes whose latents are taken out."""
        return float((self.clean - self.ablated[n]).diagonal().mean())

    def unintended(self, n: int) -> float:
        """Mean loss of accuracy of the others."""
        lost = self.clean - self.ablated[n]
        return float(lost[~torch.eye(len(lost), dtype=torch.bool)].mean())

    def score(self, n: int) -> float:
        """Intended loss less unintended one (maths.md eq. P4)."""
        return self.intended(n) - self.unintended(n)


def probe_perturbation(
    x: Float[Tensor, "rows d"],
    u: Columns,
    atoms: Float[Tensor, "latents d"],
    asked: Sequence[Question],
    counts: Sequence[int] = COUNTS,
) -> Perturbed:
    """Targeted probe perturbation (maths.md eq. P3–P4). Invariant to permuting latents.

    Args:
        x: means of the model's rows over the tokens of a text.
        u: means of the latents' contributions.
        atoms: unit atoms.
        asked: a question for each class, three at least: with two, the probe of one is the other's.
        counts: how many latents to take out, at most: those whose effect is above 0.
    """
    check_classes(len(asked))
    check_counts("count", counts)
    weights = torch.cat([fitted(x, question) for question in asked], dim=1)
    effects = contrasts(u, asked).clamp(min=0) * _pull(atoms, weights).T
    said, ablated = probes.apply(weights, x), {}
    for n in counts:
        without = (said - _taken_out(u, atoms, weights, _largest(effect, n)) for effect in effects)
        ablated[n] = torch.stack([_accuracies(left, asked) for left in without])
    return Perturbed([question.name for question in asked], _accuracies(said, asked), ablated)


def check_classes(count: int) -> None:
    """Raise ValueError for fewer than three classes: with two, one's probe is the other's."""
    if count < 3:
        raise ValueError(
            f"targeted probe perturbation compares a class's probe with the others': it needs 3 classes, not {count}"
        )


def _pull(
    atoms: Float[Tensor, "latents d"], weights: Float[Tensor, "d_and_1 probes"]
) -> Float[Tensor, "latents probes"]:
    """What one unit of a latent adds to what each probe says."""
    return atoms.double() @ weights[:-1]


def _largest(effect: Float[Tensor, " latents"], n: int) -> Int[Tensor, " _"]:
    """The n latents with the largest effects, those above 0."""
    order = effect.argsort(descending=True, stable=True)[:n]
    return order[effect[order] > 0]


def _taken_out(
    u: Columns, atoms: Float[Tensor, "latents d"], weights: Float[Tensor, "d_and_1 probes"], latents: Int[Tensor, " _"]
) -> Float[Tensor, "rows probes"]:
    """What the latents add to what the probes say."""
    return u.take(latents).double() @ _pull(atoms[latents], weights)


def _accuracies(said: Float[Tensor, "rows questions"], asked: Sequence[Question]) -> Float[Tensor, " questions"]:
    found = [Answered.of(said[q.test, i], q.test_yes).accuracy for i, q in enumerate(asked)]
    return torch.tensor(found, dtype=torch.float64)


class Removed(NamedTuple):
    """A probe that has learnt a wrong cue with the right one, and what it is worth without the wrong cue's latents.

    Attributes:
        biased: accuracy of the probe fitted where both labels agree, on rows where they do not depend on each other.
        oracle: accuracy of a probe fitted on such rows.
        without: number of latents → the biased probe's accuracy when they are taken out.
    """

    biased: float
    oracle: float
    without: dict[int, float]

    def score(self, n: int) -> float:
        """Share of the oracle's advantage that is regained (maths.md eq. P5); NaN where it has none (under 2 points)."""
        gap = self.oracle - self.biased
        return (self.without[n] - self.biased) / gap if gap >= LEAST_GAP else math.nan


def spurious_removal(
    x: Float[Tensor, "rows d"],
    u: Columns,
    atoms: Float[Tensor, "latents d"],
    wanted: Bool[Tensor, " rows"],
    spurious: Bool[Tensor, " rows"],
    test: Bool[Tensor, " rows"],
    *,
    counts: Sequence[int] = COUNTS,
    seed: int = 0,
) -> Removed:
    """Spurious correlation removal (maths.md eq. P5). Invariant to permuting latents.

    Args:
        x, u, atoms: as in `probe_perturbation`.
        wanted: the label that the probe is for.
        spurious: the label that it shall not go by.
        test: which rows to test on; each of the four combinations has to be on either side.
        counts: how many latents to take out, by the size of their effect on a probe of the spurious label.
        seed: of the rows that are left out so that all four combinations are equally frequent.
    """
    check_counts("count", counts)
    even = _even(wanted, spurious, test, seed)
    fair = question("wanted label", wanted, test, among=even, seed=seed)
    cue = question("spurious label", spurious, test, among=even, seed=seed)
    tainted = question("both labels", wanted, test, among=(wanted == spurious), seed=seed)
    weights = fitted(x, tainted)
    effect = contrasts(u, [cue])[0] * _pull(atoms, fitted(x, cue)).squeeze(1)
    said = probes.apply(weights, x)

    def accuracy(without: Float[Tensor, "rows 1"] | None = None) -> float:
        left = said if without is None else said - without
        return Answered.of(left[fair.test, 0], fair.test_yes).accuracy

    lost = {n: accuracy(_taken_out(u, atoms, weights, _largest(effect.abs(), n))) for n in counts}
    return Removed(accuracy(), answered(x, fair, fitted(x, fair)).accuracy, lost)


def _even(
    wanted: Bool[Tensor, " rows"], spurious: Bool[Tensor, " rows"], test: Bool[Tensor, " rows"], seed: int
) -> Bool[Tensor, " rows"]:
    """Rows in which the two labels do not depend on each other: of all four combinations equally many, on either side."""
    kept = torch.zeros_like(test)
    for side, what in ((~test, "fit"), (test, "test")):
        cells = [side & (wanted == first) & (spurious == second) for first in (True, False) for second in (True, False)]
        kept[torch.cat(evenly(cells, f"{what} all combinations of two labels", seed))] = True
    return kept
