"""Two dictionaries on the same text: codes of one where the other fires, and passages that are the same for both."""

import pytest
import torch

from overtone.data.text_rows import TextRows
from overtone.interpret.alongside import Alongside, Passages, part_of
from overtone.interpret.examples import Collector, ExamplePlan
from overtone.interpret.neighbours import FiredTogether
from overtone.ops import SparseCodes

PLAN = ExamplePlan(top=3, sample=4, width=10, before=6, pool=1)
ROWS, LATENTS, CONTEXT = 330, 12, 33


def text(first: int = 0, last: int = ROWS) -> TextRows:
    ids = torch.arange(ROWS) * 7 % 101
    return TextRows(torch.zeros(last - first, 1), ids[first:last], torch.arange(first, last) // CONTEXT, first)


def codes(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    z = torch.rand(ROWS, LATENTS, generator=rng) * (torch.rand(ROWS, LATENTS, generator=rng) < 0.15)
    z[:, 0] = 0
    return z


@pytest.mark.parametrize("batch", [CONTEXT, 4 * CONTEXT, ROWS])
def test_codes_of_another_in_a_latents_windows(batch: int):
    z, other = codes(1), codes(2)
    collector = Collector(LATENTS, PLAN)
    collector.add(SparseCodes.from_dense(z), text())
    windows = collector.top.ordered()[0]
    partner = torch.arange(LATENTS).flip(0)
    partner[4] = -1
    watch = Alongside(windows, partner)
    for first in range(0, ROWS, batch):
        last = min(first + batch, ROWS)
        watch.add(SparseCodes.from_dense(other[first:last]), text(first, last))
    found = 0
    for m in range(LATENTS):
        for slot in range(PLAN.top):
            length, start = int((windows.token_ids[m, slot] >= 0).sum()), int(windows.start[m, slot])
            wanted = torch.zeros(PLAN.width)
            if windows.row[m, slot] >= 0 and partner[m] >= 0:
                wanted[:length] = other[start : start + length, partner[m]]
            assert torch.equal(watch.codes[m, slot], wanted)
            found += int((wanted != 0).sum())
    assert found > 20


@pytest.mark.parametrize("batch", [CONTEXT, 3 * CONTEXT])
def test_passages_are_the_same_for_all_dictionaries_and_batches(batch: int):
    kept = []
    for seed, step in ((1, batch), (2, ROWS)):
        passages = Passages(count=5, width=20, seed=3)
        for first in range(0, ROWS, step):
            last = min(first + step, ROWS)
            passages.add(SparseCodes.from_dense(codes(seed)[first:last]), text(first, last))
        kept.append(passages.passages())
    assert [p.row for p in kept[0]] == [p.row for p in kept[1]] and len(kept[0]) == 5
    for seed, some in zip((1, 2), kept, strict=True):
        for passage in some:
            rows = slice(passage.row, passage.row + len(passage.token_ids))
            assert torch.equal(passage.codes.dense(), codes(seed)[rows])
            assert torch.equal(passage.token_ids, text().token_ids[rows])
            assert passage.context == passage.row // CONTEXT * CONTEXT and len(passage.token_ids) in (20, 13)


def test_a_part_of_codes_is_that_of_its_rows():
    z = codes(1)
    assert torch.equal(part_of(SparseCodes.from_dense(z), 5, 17).dense(), z[5:17])


def test_alike_by_firing_is_the_correlation_of_firing():
    a, b = codes(1), codes(2)
    b[:, 5] = a[:, 3] * 2  # the same places, other sizes
    counted = []
    for z in (a, b):
        together = FiredTogether(LATENTS)
        together.add(SparseCodes.from_dense(z), 0)
        counted.append(together)
    partner = torch.arange(LATENTS)
    alike = counted[0].alike(counted[1], partner)
    phi = torch.corrcoef(torch.cat([(a != 0).T, (b != 0).T]).double())[:LATENTS, LATENTS:].nan_to_num()
    torch.testing.assert_close(alike.phi.double(), phi.amax(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alike.of_partner.double(), phi.diagonal(), atol=1e-5, rtol=1e-5)
    assert alike.latent[3] == 5 and alike.phi[3] == pytest.approx(1, abs=1e-5)


def test_firing_on_other_rows_is_not_compared():
    a, b = FiredTogether(LATENTS), FiredTogether(LATENTS)
    a.add(SparseCodes.from_dense(codes(1)), 0)
    b.add(SparseCodes.from_dense(codes(1)[:100]), 0)
    with pytest.raises(ValueError, match="330 rows of one dictionary and 100 of the other"):
        a.alike(b, torch.arange(LATENTS))
