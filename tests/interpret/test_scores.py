"""Detection and fuzzing: what is known of one token is found, what is random is not, and what a scorer sees is what it should."""

import json
import math

import pytest
import torch

from overtone import Dictionary, TopK, firing
from overtone.data.text_rows import TextRows
from overtone.interpret.detection import (
    Questions,
    ScorePlan,
    TokenText,
    balanced_accuracy,
    explain_latents,
    score_latents,
    score_summary,
    spread_out,
)
from overtone.interpret.examples import Collector, Example, ExamplePlan, LatentExamples
from overtone.interpret.random_dictionary import random_like
from overtone.interpret.scorers import Scorer, Shown, TokenScorer, border, summary
from overtone.metrics.reconstruction import evaluate
from overtone.ops import SparseCodes

WORDS, ROWS, CONTEXT = 60, 8_000, 40
LATENTS = 28
ONE_TOKEN, ONE_BEFORE, NEVER, DENSE, RANDOM = 0, 1, 2, 3, slice(4, LATENTS)


class Numbers:
    """A tokenizer whose token 7 reads " w7"."""

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(f" w{i}" for i in ids)


@pytest.fixture(scope="module")
def questions() -> Questions:
    """Latents that fire on the word 7, after the word 9, never, always, and the others at random places."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(WORDS, (ROWS,), generator=generator)
    context = torch.arange(ROWS) // CONTEXT
    fires = torch.rand(ROWS, LATENTS, generator=generator) < 0.02
    fires[:, ONE_TOKEN] = tokens == 7
    fires[:, ONE_BEFORE] = torch.nn.functional.pad((tokens == 9)[:-1], (1, 0)) & (torch.arange(ROWS) % CONTEXT > 0)
    fires[:, NEVER], fires[:, DENSE] = False, True
    collector = Collector(LATENTS, ExamplePlan(width=16, before=10))
    z = fires * (torch.rand(ROWS, LATENTS, generator=generator) + 0.5)
    collector.add(SparseCodes.from_dense(z), TextRows(torch.zeros(ROWS, 1), tokens, context))
    examples = collector.examples(firing.empty(LATENTS))
    return Questions(examples, TokenText(Numbers()))


def test_a_latent_of_one_token_is_told_exactly_and_one_at_random_is_not(questions: Questions):
    latents = questions.answerable.tolist()
    assert latents == [m for m in range(LATENTS) if m not in (NEVER, DENSE)]
    scorer = TokenScorer()
    explanations = dict(explain_latents(questions, latents, scorer))
    scores = {s.latent: s for s in score_latents(questions, explanations, scorer)}
    assert scores[ONE_TOKEN].detection == scores[ONE_TOKEN].fuzzing == 1
    assert scores[ONE_BEFORE].fuzzing == 1 and scores[ONE_BEFORE].detection > 0.9
    assert next(iter(json.loads(explanations[ONE_TOKEN])["fires on"])) == "w7"
    assert summary(explanations[ONE_BEFORE]).endswith("after w9")
    found = [scores[m] for m in latents if m >= RANDOM.start]
    for name in ("detection", "fuzzing", "shuffled_detection", "shuffled_fuzzing"):
        values = torch.tensor([getattr(s, name) for s in found])
        error = float(values.std()) / len(values) ** 0.5
        assert abs(float(values.mean()) - 0.5) < 3.5 * error + 1e-9, name
    whole = score_summary(list(scores.values()))
    assert whole["latents"] == len(latents) and 0.5 < whole["detection"] < 0.6
    assert whole["detection_quantiles"]["0.95"] >= whole["detection_quantiles"]["0.5"]


def test_what_is_judged_was_not_shown_and_does_not_tell_the_answer(questions: Questions):
    fires, silent = questions.examples.sampled(5), questions.examples.silent(5)
    for judging, other in ((True, False), (False, True)):
        rows = {e.context for e in questions._halves(fires + silent)[judging]}
        assert rows.isdisjoint({e.context for e in questions._halves(fires + silent)[other]})
    question = questions.of(5)
    assert all(not any(window.marks) for window in question.windows)
    assert sum(question.fires) >= 8 and len(question.fires) - sum(question.fires) >= 8
    assert {len(w.tokens) for w in question.windows} == {16}, "length tells nothing"
    strengths = [max(w.marks) for w in question.shown]
    assert strengths[0] == 1 and strengths == sorted(strengths, reverse=True)
    assert abs(sum(question.right) - len(question.right) / 2) <= 0.5
    again = questions.of(5)
    assert again == question, "asked twice, it is the same"


def test_wrong_marks_are_as_many_as_true_ones_and_never_where_it_fires(questions: Questions):
    for example in questions.examples.sampled(6):
        (true, is_right), (wrong, is_wrong) = (questions._marked(example, 6, right=right) for right in (True, False))
        assert is_right and not is_wrong
        assert [m != 0 for m in true.marks] == (example.codes != 0).tolist()
        assert sum(wrong.marks) == sum(true.marks)
        assert not any(a and b for a, b in zip(true.marks, wrong.marks, strict=True))


def test_answers_may_be_taken_up_again_and_do_not_change(questions: Questions):
    scorer, latents = TokenScorer(), questions.chosen(6)
    assert latents == sorted(latents) and questions.chosen(None) == questions.answerable.tolist()
    explanations = dict(explain_latents(questions, latents, scorer))
    whole = list(score_latents(questions, explanations, scorer))
    parts = [s for m in latents for s in score_latents(questions, explanations, scorer, latents=[m])]
    assert parts == whole
    (alone,) = score_latents(questions, {latents[0]: explanations[latents[0]]}, scorer)
    assert alone.detection == whole[0].detection and math.isnan(alone.shuffled_detection)


def test_any_object_with_three_methods_is_a_scorer(questions: Questions):
    class Knowing:
        name = "knowing"

        def explain(self, examples):
            return "w7"

        def detect(self, explanation, examples):
            return [f" {explanation}" in e.tokens for e in examples]

        def fuzz(self, explanation, examples):
            return [all(t == f" {explanation}" for t, m in zip(e.tokens, e.marks, strict=True) if m) for e in examples]

    assert isinstance(Knowing(), Scorer) and isinstance(TokenScorer(), Scorer)
    (score,) = score_latents(questions, dict(explain_latents(questions, [ONE_TOKEN], Knowing())), Knowing())
    assert score.detection == score.fuzzing == 1


def test_balanced_accuracy_is_a_half_for_every_fixed_answer_and_knows_no_base_rate():
    true = [True, True, True, False]
    assert balanced_accuracy([True] * 4, true) == balanced_accuracy([False] * 4, true) == 0.5
    assert balanced_accuracy(true, true) == 1 and balanced_accuracy([not t for t in true], true) == 0
    said = [True, False, True, False]
    assert balanced_accuracy(said, true) == balanced_accuracy([*said, False, False], [*true, False, False])
    assert math.isnan(balanced_accuracy([True], [True]))
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        balanced_accuracy([True], [True, False])


def test_a_border_parts_as_well_as_any(generator: torch.Generator):
    for _ in range(20):
        above = (torch.randint(8, (12,), generator=generator) + 2).tolist()
        below = torch.randint(8, (7,), generator=generator).tolist()

        def gain(at: float, above: list = above, below: list = below) -> float:
            return sum(v > at for v in above) / len(above) + sum(v <= at for v in below) / len(below)

        assert gain(border(above, below)) == max(gain(at - 0.5) for at in range(12))
    assert border([], [1.0]) == border([1.0], [1.0]) == math.inf


def test_marks_are_shown_and_strata_are_spread():
    shown = Shown(("The", " cat", " sat", " down"), (0.0, 0.5, 1.0, 0.0))
    assert shown.text == "The« cat sat» down"
    nothing = torch.zeros(1)
    examples = [Example(row, 0, 0, nothing.int(), nothing) for row in range(8)]
    picked = [[e.row for e in spread_out(examples[:n], 4)] for n in (3, 4, 8)]
    assert picked == [[0, 1, 2], [0, 1, 2, 3], [1, 3, 5, 7]]


def test_tokens_read_as_the_text_does():
    pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')
    from tiny_models import tokenizer

    words = TokenText(tokenizer()).words([5, 6, 5])
    assert "".join(words) == "one two one"


@pytest.mark.parametrize("norm", ["row", "none"])
def test_a_random_dictionary_has_the_same_l0_and_knows_the_mean(norm, rows: torch.Tensor):
    from overtone import Parametrisation

    dictionary = Dictionary(12, 30, TopK(4), Parametrisation(input_norm=norm))
    found = random_like(dictionary, 4.2, rows, seed=3)
    stats = evaluate(found, rows)
    assert found.latents == 30 and stats.l0 <= 4 and stats.l0 > 3.5
    torch.testing.assert_close(found.b_dec, found.normalise(rows)[0].mean(0))
    cosines = (found.W_dec @ dictionary.W_dec.T).detach()
    assert float(cosines.abs().max()) < 1 - 1e-3, "not the other's atoms"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScorePlan(least=50), "least=50 must be at least 1 and at most shown=40 and judged=32"),
        (lambda: ScorePlan(strongest=41), "strongest=41"),
        (lambda: TokenScorer(weight=0), "weight=0"),
        (lambda: TokenScorer(most=0), "most=0"),
        (lambda: TokenScorer().detect("about cats", []), "no explanation of the token scorer"),
        (lambda: TokenScorer().explain([Shown(("a",), (0.0,))]), "fires on 0 of the 1 tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_nothing_to_score_is_no_error():
    collector = Collector(3, ExamplePlan())
    nothing = torch.zeros(9).long()
    collector.add(SparseCodes.from_dense(torch.zeros(9, 3)), TextRows(torch.zeros(9, 1), nothing, nothing))
    found: LatentExamples = collector.examples(firing.empty(3))
    assert Questions(found, TokenText(Numbers())).answerable.tolist() == []
    assert score_summary([]) == {"latents": 0}
