"""Detection and fuzzing: how well words about a latent tell where it fires (arXiv 2410.13928), beside what chance gives.

Half of the text's contexts is for explaining, the other half for judging, for all latents and dictionaries alike.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from overtone.data.activations import added, decode
from overtone.interpret.examples import Example, LatentExamples
from overtone.interpret.sampling import fixed_uniform
from overtone.interpret.scorers import Scorer, Shown
from overtone.seeds import generator

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SCORES = ("detection", "fuzzing", "shuffled_detection", "shuffled_fuzzing")


@dataclass(frozen=True)
class ScorePlan:
    """How latents are shown and judged.

    Args:
        strongest: strongest examples that are shown for an explanation, beside sampled ones.
        shown: examples that are shown, and windows without firing: so many of each at most.
        judged: examples that are judged, and windows without firing: so many of each at most.
        least: examples and windows that have to be there for each; latents with fewer get no score.
        seed: of the halves, and of the wrong marks.
    """

    strongest: int = 8
    shown: int = 40
    judged: int = 32
    least: int = 8
    seed: int = 0

    def __post_init__(self):
        if not 1 <= self.least <= min(self.shown, self.judged):
            raise ValueError(
                f"least={self.least} must be at least 1 and at most shown={self.shown} and judged={self.judged}"
            )
        if not 0 <= self.strongest <= self.shown:
            raise ValueError(f"strongest={self.strongest} must be 0 to shown={self.shown}")


class Question(NamedTuple):
    """What a scorer is shown of a latent, and what is right.

    Attributes:
        shown: examples to explain, strongest first, then windows without firing.
        windows: windows without marks.
        fires: whether the latent fires in each.
        marked: windows in which it fires, half with true marks and half with as many wrong ones.
        right: which is which.
    """

    shown: list[Shown]
    windows: list[Shown]
    fires: list[bool]
    marked: list[Shown]
    right: list[bool]


class LatentScore(NamedTuple):
    """Balanced accuracies of a latent's explanation, and of another latent's in its place: a half is chance.

    nan where there is no other latent, or nothing to mark wrongly.
    """

    latent: int
    detection: float
    fuzzing: float
    shuffled_detection: float
    shuffled_fuzzing: float


class TokenText:
    """The text of tokens, each as it reads after the one before it."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}

    def words(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The text of each token."""
        ids = list(ids)
        return tuple(self._word(*ids[max(0, i - 1) : i + 1]) for i in range(len(ids)))

    def _word(self, *ids: int) -> str:
        if ids not in self._known:
            text = decode(self.tokenizer, list(ids))
            self._known[ids] = added(decode(self.tokenizer, [ids[0]]), text) if len(ids) > 1 else text
        return self._known[ids]


class Questions:
    """The questions about the latents of a dictionary.

    Args:
        examples: from `collect_examples`.
        text: of the tokens.
        plan: how they are asked.
    """

    def __init__(self, examples: LatentExamples, text: TokenText, plan: ScorePlan | None = None):
        self.examples, self.text, self.plan = examples, text, plan or ScorePlan()

    @cached_property
    def answerable(self) -> Int[Tensor, " latents"]:
        """The latents with examples enough, and with windows enough without them, in both halves."""
        sample, pool = self.examples.sample, self.examples.pool
        enough = torch.ones(len(sample.row), dtype=torch.bool)
        for judging in (True, False):
            fires = (self._for_judging(sample.context) == judging) & (sample.row >= 0)
            silent = ((self._for_judging(pool.context[0]) == judging) & (pool.row[0] >= 0))[
                :, None
            ] & ~self.examples.active
            enough &= (fires.sum(1) >= self.plan.least) & (silent.sum(0) >= self.plan.least)
        return enough.nonzero()[:, 0]

    def chosen(self, latents: int | None, seed: int = 0) -> list[int]:
        """So many of the answerable latents at random, in their order; None: all."""
        found = self.answerable
        if latents is not None:
            found = found[torch.randperm(len(found), generator=generator(seed, "latents to score"))[:latents]]
        return found.sort().values.tolist()

    def of(self, latent: int) -> Question:
        """The question about an answerable latent."""
        plan = self.plan
        strongest, sampled = map(self._halves, (self.examples.strongest(latent), self.examples.sampled(latent)))
        pool = self._for_judging(self.examples.pool.context[0])
        first = strongest[False][: plan.strongest]
        others = [e for e in sampled[False] if e.row not in {f.row for f in first}]
        active = sorted([*first, *spread_out(others, plan.shown - len(first))], key=lambda e: -_strength(e))
        peak = _strength(active[0])
        shown = [self._shown(e, (e.codes.abs() / peak).tolist()) for e in active]
        shown += [self._blank(e) for e in self.examples.silent(latent, plan.shown, ~pool)]
        fires, quiet = spread_out(sampled[True], plan.judged), self.examples.silent(latent, plan.judged, pool)
        marked = [self._marked(e, latent, right=i % 2 == 0) for i, e in enumerate(fires)]
        return Question(
            shown,
            [self._blank(e) for e in (*fires, *quiet)],
            [True] * len(fires) + [False] * len(quiet),
            [window for window, _ in marked],
            [right for _, right in marked],
        )

    def _for_judging(self, context: Int[Tensor, "*some"]) -> Bool[Tensor, "*some"]:
        flat = context.flatten()
        return (fixed_uniform(self.plan.seed, torch.full_like(flat, -2), flat) < 0.5).view_as(context)

    def _halves(self, examples: Sequence[Example]) -> dict[bool, list[Example]]:
        """Whether for judging → the examples."""
        which = self._for_judging(torch.tensor([e.context for e in examples], dtype=torch.long)).tolist()
        return {
            half: [e for e, is_half in zip(examples, which, strict=True) if is_half == half] for half in (True, False)
        }

    def _shown(self, example: Example, marks: Sequence[float]) -> Shown:
        return Shown(self.text.words(example.token_ids.tolist()), tuple(marks))

    def _blank(self, example: Example) -> Shown:
        return self._shown(example, [0.0] * len(example.token_ids))

    def _marked(self, example: Example, latent: int, *, right: bool) -> tuple[Shown, bool]:
        """With true marks or as many wrong ones, which stand where the latent does not fire; true ones where it always does."""
        fires = example.codes != 0
        silent = (~fires).nonzero()[:, 0]
        if right or not len(silent):
            return self._shown(example, fires.float().tolist()), True
        rng = generator(self.plan.seed, f"wrong marks of latent {latent}", example.row)
        wrong = silent[torch.randperm(len(silent), generator=rng)[: int(fires.sum())]]
        return self._shown(example, torch.zeros(len(fires)).index_fill_(0, wrong, 1.0).tolist()), False


def _strength(example: Example) -> float:
    return float(example.codes.abs().max())


def spread_out(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many, evenly spread over their order: one from each stratum of strength where they stand by it."""
    if len(examples) <= most:
        return list(examples)
    return [examples[int((i + 0.5) * len(examples) / most)] for i in range(most)]


def balanced_accuracy(said: Sequence[bool], true: Sequence[bool]) -> float:
    """Mean of the shares of what is and of what is not that are said to be so (maths.md eq. I2); nan where one is missing.

    A half for every answer that does not look at the question. Invariant to repeating either kind.
    """
    if len(said) != len(true):
        raise ValueError(f"{len(said)} answers to {len(true)} questions; a scorer gives one for each window")
    shares = [[s == t for s, t in zip(said, true, strict=True) if t == kind] for kind in (True, False)]
    return statistics.fmean(sum(s) / len(s) for s in shares) if all(shares) else float("nan")


def explain_latents(questions: Questions, latents: Sequence[int], scorer: Scorer) -> Iterator[tuple[int, str]]:
    """(latent, explanation), one after the other."""
    for latent in latents:
        yield latent, scorer.explain(questions.of(latent).shown)


def score_latents(
    questions: Questions,
    explanations: Mapping[int, str],
    scorer: Scorer,
    *,
    latents: Sequence[int] | None = None,
    shuffled: bool = True,
) -> Iterator[LatentScore]:
    """How well each explanation does, one latent after the other.

    Args:
        questions: about the latents.
        explanations: latent → explanation.
        scorer: what judges.
        latents: which to judge now; None: all that are explained.
        shuffled: also judge each latent by the explanation of another.
    """
    others = _others(list(explanations), questions.plan.seed)
    for latent in explanations if latents is None else latents:
        question = questions.of(latent)
        found = [_judged(scorer, explanations[latent], question)]
        other = others[latent]
        found += [
            _judged(scorer, explanations[other], question) if shuffled and other != latent else (float("nan"),) * 2
        ]
        yield LatentScore(latent, *found[0], *found[1])


def _judged(scorer: Scorer, explanation: str, question: Question) -> tuple[float, float]:
    detected = balanced_accuracy(scorer.detect(explanation, question.windows), question.fires)
    return detected, balanced_accuracy(scorer.fuzz(explanation, question.marked), question.right)


def _others(latents: Sequence[int], seed: int) -> dict[int, int]:
    """For each latent another one; each is so for one."""
    drawn = torch.randperm(len(latents), generator=generator(seed, "shuffled explanations")).tolist()
    return {latents[a]: latents[b] for a, b in zip(drawn, drawn[1:] + drawn[:1], strict=True)}


def score_summary(scores: Sequence[LatentScore]) -> dict[str, Any]:
    """Means and quantiles over latents, JSON-able."""
    result: dict[str, Any] = {"latents": len(scores)}
    for name in SCORES:
        values = torch.tensor([getattr(s, name) for s in scores], dtype=torch.float64)
        values = values[~values.isnan()]
        if len(values):
            shares = torch.tensor(QUANTILES, dtype=torch.float64)
            quantiles = zip(QUANTILES, values.quantile(shares).tolist(), strict=True)
            result[name] = float(values.mean())
            result[f"{name}_quantiles"] = {f"{share:g}": value for share, value in quantiles}
    return result
