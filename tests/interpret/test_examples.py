"""Examples of latents: against a brute-force pass, whatever the batches and their order, in memory fixed from the start."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from overtone import Dictionary, TopK
from overtone.data.activations import Activations
from overtone.data.text_rows import TextRows, activations_rows
from overtone.interpret.examples import Collector, Example, ExamplePlan, LatentExamples, collect_examples
from overtone.metrics.reconstruction import evaluate
from overtone.ops import SparseCodes

LATENTS, PLAN = 7, ExamplePlan(top=3, sample=5, width=6, before=4, pool=8)


@pytest.fixture
def text(generator: torch.Generator) -> TextRows:
    """Contexts of 1 to 40 tokens, among them some shorter and some just longer than a window."""
    lengths = [1, 6, 7, 40, 3, 23, *torch.randint(1, 30, (25,), generator=generator).tolist()]
    context = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return TextRows(torch.zeros(len(context), 1), torch.randint(50, (len(context),), generator=generator), context)


@pytest.fixture
def z(text: TextRows, generator: torch.Generator) -> torch.Tensor:
    """Codes with many ties; latent 0 never fires, latent 1 almost always."""
    rates = torch.tensor([0, 0.9, 0.3, 0.1, 0.1, 0.02, 0.3])
    fires = torch.rand(len(text.x), LATENTS, generator=generator) < rates
    return fires * torch.randint(1, 6, fires.shape, generator=generator).float()


def collected(
    z: torch.Tensor, text: TextRows, parts: Sequence[torch.Tensor], plan: ExamplePlan = PLAN
) -> LatentExamples:
    """Examples from batches that are the contexts numbered in each of the parts."""
    from overtone import firing

    collector = Collector(LATENTS, plan)
    for part in parts:
        for rows in runs(torch.isin(text.context, part).nonzero()[:, 0]):
            piece = TextRows(text.x[rows], text.token_ids[rows], text.context[rows], int(rows[0]))
            collector.add(SparseCodes.from_dense(z[rows]), piece)
    return collector.examples(firing.empty(LATENTS))


def runs(rows: torch.Tensor) -> list[torch.Tensor]:
    cuts = (rows.diff() > 1).nonzero()[:, 0] + 1
    return [r for r in rows.tensor_split(cuts.tolist()) if len(r)]


def brute_force(z: torch.Tensor, text: TextRows) -> list[list[tuple[float, int]]]:
    """Of each latent, (strength, row) of its strongest row in every stretch in which it fires, in float64."""
    stretches = []
    for number in text.context.unique().tolist():
        rows = (text.context == number).nonzero()[:, 0].tolist()
        stretches += [rows[i : i + PLAN.width] for i in range(0, len(rows), PLAN.width)]
    found: list[list[tuple[float, int]]] = []
    for m in range(LATENTS):
        peaks = [max((float(z[r, m].double()), -r) for r in rows) for rows in stretches]
        found.append([(value, -r) for value, r in peaks if value > 0])
    return found


def check_window(example: Example, z: torch.Tensor, text: TextRows, m: int | None) -> None:
    rows = (text.context == text.context[example.row]).nonzero()[:, 0].tolist()
    assert example.context == rows[0]
    length = min(PLAN.width, len(rows))
    start = max(rows[0], min(example.row - PLAN.before, rows[-1] + 1 - PLAN.width))
    assert (example.start, len(example.token_ids)) == (start, length), "as wide as the context allows"
    assert torch.equal(example.token_ids.long(), text.token_ids[start : start + length])
    if m is not None:
        assert torch.equal(example.codes, z[start : start + length, m])


def test_examples_are_those_of_a_brute_force_pass(z: torch.Tensor, text: TextRows):
    found, expected = collected(z, text, [torch.arange(100)]), brute_force(z, text)
    for m in range(LATENTS):
        best = sorted(expected[m], key=lambda peak: (-peak[0], peak[1]))[: PLAN.top]
        assert [(float(e.codes[e.row - e.start]), e.row) for e in found.strongest(m)] == best
        sample = [(float(e.codes[e.row - e.start]), e.row) for e in found.sampled(m)]
        assert set(sample) <= set(expected[m]) and len(sample) == min(PLAN.sample, len(expected[m]))
        assert sample == sorted(sample, key=lambda peak: (-peak[0], peak[1])), "strongest first"
        assert int(found.stretches[m]) == len(expected[m])
        for example in [*found.strongest(m), *found.sampled(m)]:
            check_window(example, z, text, m)
        silent = found.silent(m)
        assert len({e.row for e in silent}) == len(silent)
        for example in silent:
            check_window(example, z, text, None)
            assert not z[example.start : example.start + len(example.token_ids), m].any()
    assert not found.strongest(0) and len(found.silent(0)) == PLAN.pool


def test_nothing_depends_on_batches_or_on_their_order(z: torch.Tensor, text: TextRows, generator: torch.Generator):
    whole = collected(z, text, [torch.arange(100)])
    shuffled = torch.randperm(31, generator=generator)
    for parts in (torch.arange(31).split(1), torch.arange(31).flip(0).split(4), shuffled.split(3)):
        again = collected(z, text, parts)
        for one, other in zip(
            (*whole.top, *whole.sample, *whole.pool), (*again.top, *again.sample, *again.pool), strict=True
        ):
            assert torch.equal(one, other)
        assert torch.equal(whole.active, again.active) and torch.equal(whole.stretches, again.stretches)


def test_permuting_latents_permutes_what_is_strongest(z: torch.Tensor, text: TextRows, generator: torch.Generator):
    order = torch.randperm(LATENTS, generator=generator)
    one, other = (collected(codes, text, [torch.arange(100)]) for codes in (z, z[:, order]))
    for before, after in zip(one.top, other.top, strict=True):
        assert torch.equal(before[order], after)


def test_samples_are_uniform(generator: torch.Generator):
    """Each of 40 stretches is drawn 8/40 of the time: a χ² over many latents that fire everywhere."""
    latents, plan = 500, ExamplePlan(top=1, sample=8, width=2, before=0, pool=1)
    rows = TextRows(torch.zeros(80, 1), torch.zeros(80, dtype=torch.long), torch.arange(80) // 20)
    collector = Collector(latents, plan)
    collector.add(SparseCodes.from_dense(torch.rand(80, latents, generator=generator) + 0.1), rows)
    drawn = torch.bincount(collector.sample.windows.row.flatten() // 2, minlength=40).double()
    expected = latents * 8 / 40
    chi2 = ((drawn - expected) ** 2 / (expected * (1 - 8 / 40))).sum()
    assert drawn.sum() == latents * 8 and 15 < chi2 < 70, "39 degrees of freedom: 0.05 % to 99.8 %"


def test_memory_is_there_from_the_start(z: torch.Tensor, text: TextRows):
    plan = ExamplePlan(top=3, sample=5, width=6, before=4, pool=8)
    collector = Collector(LATENTS, plan)

    def held() -> list[tuple[int, int]]:
        slots = [collector.top, collector.sample, collector.pool]
        tensors = [t for s in slots for t in (s.keys, s.least, *s.windows)] + [collector.active, collector.stretches]
        return [(t.data_ptr(), t.numel() * t.element_size()) for t in tensors]

    before = held()
    for repeat in range(3):
        collector.add(SparseCodes.from_dense(z), text._replace(first=repeat * len(z)))
    assert held() == before


def test_a_dictionary_is_read_as_its_codes_say(rows: torch.Tensor, generator: torch.Generator):
    dictionary = Dictionary(12, 20, TopK(3))
    tokens, context = torch.randint(9, (len(rows),), generator=generator), torch.arange(len(rows)) // 17
    doc = torch.zeros(len(rows), dtype=torch.int32)
    activations = Activations(rows, tokens, doc, torch.arange(len(rows)), context, ("d",), {})
    done: list[int] = []
    text = activations_rows(activations, 50)
    found = collect_examples(dictionary, text, PLAN, z_scores=True, measure=True, progress=done.append)
    assert found.reconstruction is not None
    assert found.reconstruction.summary() == pytest.approx(evaluate(dictionary, rows).summary(), rel=1e-5)
    assert done[-1] == len(rows) and all(b - a <= 50 for a, b in pairwise([0, *done])) and len(done) > 10
    z = dictionary.encode(rows).z
    assert torch.equal(found.seen.fired, (z > 0).sum(0))
    text = TextRows(rows, tokens, context)
    for m in range(20):
        for example in found.sampled(m):
            rows_of = slice(example.start, example.start + len(example.token_ids))
            torch.testing.assert_close(example.codes, z[rows_of, m].detach(), atol=1e-6, rtol=1e-5)
            check_window(example, z, text, None)
    y = dictionary.pre_activations(rows)
    torch.testing.assert_close(
        found.z_score, (found.seen.peak - y.mean(0)) / y.std(0, correction=0), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="no rows to look for examples in"):
        collect_examples(dictionary, [], PLAN)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"top": 0}, "top=0 must be at least 1"), ({"before": 32}, "before=32 must be 0 to 31"), ({"pool": 0}, "pool=0")],
)
def test_impossible_plans_are_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ExamplePlan(**wrong)
