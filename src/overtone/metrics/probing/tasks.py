"""Labels as questions with two answers: rows to fit a probe on, and others to test it on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.metrics import known, probes
from overtone.seeds import generator

FEWEST = 5


class Question(NamedTuple):
    """Whether a row is of a class: as many rows for yes as for no, so that guessing has an accuracy of ½.

    Attributes:
        name: of the class.
        fit, test: rows.
        fit_yes, test_yes: the answers.
    """

    name: str
    fit: Int[Tensor, " fit"]
    fit_yes: Bool[Tensor, " fit"]
    test: Int[Tensor, " test"]
    test_yes: Bool[Tensor, " test"]

    def contrast(self, rows: int) -> Float[Tensor, " rows"]:
        """Weights whose sum over the rows is the mean of those to fit with yes, less the mean of those with no."""
        weights = torch.zeros(rows, dtype=torch.float64)
        weights[self.fit[self.fit_yes]] = 1 / int(self.fit_yes.sum())
        weights[self.fit[~self.fit_yes]] = -1 / int((~self.fit_yes).sum())
        return weights


class Answered(NamedTuple):
    """How well a probe answers, on rows that it was not fitted on.

    Attributes:
        accuracy: share of right answers.
        auroc: area under the curve (maths.md eq. O8).
    """

    accuracy: float
    auroc: float

    @classmethod
    def of(cls, said: Float[Tensor, " rows"], yes: Bool[Tensor, " rows"]) -> "Answered":
        """Of what a probe says, yes above 0."""
        area = known.auroc(said.double()[:, None], yes[:, None])
        return cls(float(((said > 0) == yes).double().mean()), float(area))


def held_out(groups: Sequence[str], share: float, seed: int) -> Bool[Tensor, " rows"]:
    """Which rows to test on: `share` of every group, drawn by the seed.

    Raises:
        ValueError: a share that leaves nothing to one side, or a group of fewer than 5 rows on one.
    """
    if not 0 < share < 1:
        raise ValueError(f"test={share} must be a share between 0 and 1, such as 0.3")
    chosen = torch.zeros(len(groups), dtype=torch.bool)
    for name in sorted(set(groups)):
        places = torch.tensor([place for place, group in enumerate(groups) if group == name])
        count = round(share * len(places))
        if min(count, len(places) - count) < FEWEST:
            raise ValueError(
                f"{name!r} has {len(places)} texts, {count} of them to test on; {FEWEST} are needed on each side: give more "
                "texts, another share, or leave the class out"
            )
        chosen[places[torch.randperm(len(places), generator=generator(seed, f"held out of {name}"))[:count]]] = True
    return chosen


def one_against_rest(labels: Sequence[str], test: Bool[Tensor, " rows"], *, seed: int = 0) -> list[Question]:
    """A question for each class, with as many of the others, drawn by the seed; of two classes one question is enough."""
    names = sorted(set(labels))
    found = []
    for name in names[1:] if len(names) == 2 else names:
        is_it = torch.tensor([label == name for label in labels])
        found.append(question(name, is_it, test, seed=seed))
    return found


def question(
    name: str, yes: Bool[Tensor, " rows"], test: Bool[Tensor, " rows"], *, among: Tensor | None = None, seed: int = 0
) -> Question:
    """As many rows of either answer as there can be, on both sides.

    Args:
        name: of the class.
        yes: the answers.
        test: which rows to test on.
        among: which rows to use; None: all.
        seed: of which are left out.
    """
    among = torch.ones_like(yes) if among is None else among
    sides = []
    for side, what in ((~test, "fit"), (test, "test")):
        drawn = evenly([side & among & answer for answer in (yes, ~yes)], f"{what} {name}", seed)
        sides += [torch.cat(drawn), torch.arange(2 * len(drawn[0])) < len(drawn[0])]
    return Question(name, *sides)


def evenly(groups: Sequence[Bool[Tensor, " rows"]], what: str, seed: int) -> list[Int[Tensor, " count"]]:
    """As many rows of each group as the smallest has, drawn by the seed.

    Raises:
        ValueError: an empty group.
    """
    places = [group.nonzero().flatten() for group in groups]
    count = min(map(len, places))
    if not count:
        raise ValueError(
            f"{what}: one of {len(groups)} groups that have to be equally frequent has no text; give more texts"
        )
    return [at[torch.randperm(len(at), generator=generator(seed, what, i))[:count]] for i, at in enumerate(places)]


def fitted(x: Float[Tensor, "rows k"], asked: Question) -> Float[Tensor, "k_and_1 1"]:
    """A logistic regression for a question; its penalty is the one that scikit-learn has by default (maths.md eq. P2)."""
    return probes.logistic(x[asked.fit], asked.fit_yes[:, None], l2=1 / (2 * len(asked.fit)))


def answered(x: Float[Tensor, "rows k"], asked: Question, weights: Float[Tensor, "k_and_1 1"]) -> Answered:
    """How well the probe does on the rows to test on."""
    return Answered.of(probes.apply(weights, x[asked.test]).squeeze(1), asked.test_yes)
