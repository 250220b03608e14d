"""Training straight from a model: the rows are those of a harvest, each once per pass; resume is exact."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

from overtone.data.filling import HarvestPlan, harvest_store
from overtone.data.live import HarvestStream
from overtone.data.store import TRAIN, Store
from tiny_models import WORDS, tiny

SITES = ("resid.0", "mlp_out.1")


@pytest.fixture(scope="module")
def lm():
    return tiny("llama", initializer_range=0.2)


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> HarvestPlan:
    rng = torch.Generator().manual_seed(0)
    words = torch.randint(len(WORDS), (80, 25), generator=rng)
    path = tmp_path_factory.mktemp("text") / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(WORDS[i] for i in line)}) for line in words))
    return HarvestPlan("tiny", SITES, (str(path),), context=16, dtype="float32", held_out=0.25)


def stream_of(lm, plan, **options) -> HarvestStream:
    return HarvestStream(lm, plan, **{"batch": 40, "buffer_rows": 300, **options})


def test_every_row_of_a_harvest_once_per_pass(lm, plan, tmp_path):
    harvest_store(lm, plan, tmp_path / "s")
    store = Store(tmp_path / "s")
    rows = store.rows(TRAIN)
    assert rows == 60 * 25
    stream = stream_of(lm, plan, batch=50)
    for _ in range(2):
        batches = [stream.next_rows() for _ in range(rows // 50)]
        found = torch.cat([torch.cat([b[s] for s in SITES], 1) for b in batches])
        wanted = torch.cat([store.activations(s).x for s in SITES], 1)
        order = [t.mul(1e3).round().unique(dim=0) for t in (found, wanted)]
        assert torch.allclose(order[0], order[1], atol=2)
        assert not torch.allclose(found[:50], wanted[:50], atol=1e-3)


@pytest.mark.parametrize("before", [0, 3, 7, 8, 37, 38, 60])
def test_resumes_exactly(lm, plan, before):
    stream, resumed = stream_of(lm, plan), stream_of(lm, plan)
    for _ in range(before):
        stream.next_rows()
    state = json.loads(json.dumps(stream.state_dict()))
    resumed.load_state_dict(state)
    for _ in range(10):
        a, b = stream.next_rows(), resumed.next_rows()
        assert all(torch.equal(a[s], b[s]) for s in SITES)


def test_going_back_within_the_buffer_reads_nothing_twice(lm, plan):
    """What a training run does: measure the mixing, read ahead for the start, go back."""
    plain, used = stream_of(lm, plan), stream_of(lm, plan)
    begin = used.state_dict()
    used.mixing()
    used.next_rows()
    used.load_state_dict(begin)
    for _ in range(30):
        a, b = plain.next_rows(), used.next_rows()
        assert all(torch.equal(a[s], b[s]) for s in SITES) and plain.state_dict() == used.state_dict()


def test_a_limit_of_tokens_is_one_pass(lm, plan):
    stream = stream_of(lm, replace(plan, tokens=400), batch=100)
    first = torch.cat([stream.next_rows()["resid.0"] for _ in range(4)])
    second = torch.cat([stream.next_rows()["resid.0"] for _ in range(4)])
    assert torch.allclose(first.sum(0), second.sum(0), atol=1e-3) and not torch.equal(first, second)


def test_mixing_is_measured(lm, plan):
    few, many = (stream_of(lm, plan, buffer_rows=rows).mixing() for rows in (100, 1500))
    assert few.rows <= 100 < many.rows and few.documents < many.documents
    assert few.per_batch < many.per_batch <= 40
    for mixing in (few, many):
        assert mixing.per_batch == pytest.approx(mixing.perfect, rel=0.15)


def test_bad_input(lm, plan):
    with pytest.raises(ValueError, match="batch=301 must be from 1 to buffer_rows=300"):
        stream_of(lm, plan, batch=301)
    with pytest.raises(ValueError, match="must hold at least one context of 16 tokens"):
        stream_of(lm, plan, batch=1, buffer_rows=10)
    saved = stream_of(lm, plan).state_dict()
    with pytest.raises(ValueError, match="buffer_rows=200, the saved position was of buffer_rows=300"):
        stream_of(lm, plan, buffer_rows=200).load_state_dict(saved)
