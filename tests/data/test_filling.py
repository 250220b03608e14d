"""Harvesting into a store: the rows are those of a plain harvest, whatever the shards and interruptions."""

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

from overtone.data import shards
from overtone.data.contexts import Cutter, tokenised
from overtone.data.exchange import join_ranks
from overtone.data.filling import HarvestPlan, harvest_store, plan_of, site_widths
from overtone.data.harvest import harvest
from overtone.data.sites import resolve_site, submodule
from overtone.data.store import HELD_OUT, TRAIN, Store
from overtone.data.text import Document, iter_documents
from overtone.parallel import Axis
from tiny_models import WORDS, D, tiny

SITES = ("mlp_in.1", "resid.0", "z.1")
COLUMNS = ("token_ids", "position")


@pytest.fixture(scope="module", params=["bert", "llama"])
def lm(request):
    return tiny(request.param, "[CLS] $A [SEP]" if request.param == "bert" else "$A", 0.2)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Sixty documents of 1 to 60 words."""
    folder = tmp_path_factory.mktemp("text")
    rng = torch.Generator().manual_seed(0)
    lines = []
    for _ in range(60):
        length = int(torch.randint(1, 61, (), generator=rng))
        lines.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=rng)))
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder / "docs.jsonl"


def plan_for(text: Path, **options) -> HarvestPlan:
    usual = {"context": 16, "batch": 3, "dtype": "float32", "held_out": 0.2, "shard_mib": 0.02}
    return HarvestPlan("tiny", SITES, (str(text),), **{**usual, **options})


def fill(lm, plan: HarvestPlan, path: Path) -> Store:
    harvest_store(lm, plan, path)
    return Store(path)


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_rows_are_those_of_a_plain_harvest(lm, text, tmp_path):
    plan = plan_for(text)
    store = fill(lm, plan, tmp_path / "s")
    assert len(store.manifest.shards) > 5 and store.verify() == [] and store.manifest.complete
    documents = list(enumerate(iter_documents(str(text))))
    for split in (TRAIN, HELD_OUT):
        mine = [doc for number, doc in documents if plan.split(number) == split]
        for site in SITES:
            plain, found = harvest(lm, site, mine, context=16), store.activations(site, split)
            torch.testing.assert_close(found.x, plain.x, atol=1e-5, rtol=1e-5)
            for name in (*COLUMNS, "doc_ids", "context"):
                assert torch.equal(getattr(found, name).long(), getattr(plain, name).long()), name
            assert found.names == plain.names
        # Sites share one order on disk, so that rows of a batch belong together.
        batches = list(store.batches("mlp_in.1", split, target="resid.0", batch=7))
        found = torch.cat([torch.cat([b.x, b.target], 1) for b in batches])
        wanted = torch.cat([store.activations(site, split).x for site in ("mlp_in.1", "resid.0")], 1)
        assert torch.equal(found.unique(dim=0), wanted.unique(dim=0)) and len(found) == len(wanted)


def test_shards_change_nothing_but_the_files(lm, text, tmp_path):
    few, many = fill(lm, plan_for(text, shard_mib=1), tmp_path / "a"), fill(lm, plan_for(text), tmp_path / "b")
    assert len(few.manifest.shards) == 2 < len(many.manifest.shards)
    for split in (TRAIN, HELD_OUT):
        a, b = few.activations("z.1", split), many.activations("z.1", split)
        torch.testing.assert_close(a.x, b.x, atol=1e-5, rtol=1e-5)
        assert torch.equal(a.token_ids, b.token_ids) and a.names == b.names


def test_the_order_on_disk_is_random(lm, text, tmp_path):
    store = fill(lm, plan_for(text, shard_mib=1), tmp_path / "s")
    shard = store.shards()[0]
    order = shards.read_index(store.path, shard).order
    assert torch.equal(order.sort().values, torch.arange(shard.rows).int())
    ranks = torch.stack([order.double(), torch.arange(shard.rows).double()])
    assert abs(float(torch.corrcoef(ranks)[0, 1])) < 4 / shard.rows**0.5
    other = fill(lm, plan_for(text, shard_mib=1, seed=1), tmp_path / "t")
    assert not torch.equal(shards.read_index(other.path, other.shards()[0]).order[:50], order[:50])


def test_statistics(lm, text, tmp_path):
    store = fill(lm, plan_for(text), tmp_path / "s")
    for split in (TRAIN, HELD_OUT):
        x, stats = store.activations("resid.0", split).x.double(), store.stats("resid.0", split)
        norms = x.norm(dim=1)
        assert stats.rows == len(x)
        assert torch.allclose(torch.tensor(stats.mean).double(), x.mean(0))
        assert stats.covariance_trace == pytest.approx(float(x.var(0, unbiased=False).sum()), rel=1e-9)
        assert (stats.norm_mean, stats.norm_min, stats.norm_max) == pytest.approx(
            (float(norms.mean()), float(norms.min()), float(norms.max()))
        )
        assert stats.norm_median == pytest.approx(float(norms.median()), rel=0.05)


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"tokens": 600}], ids=["plain", "packed", "tokens"])
def test_an_interruption_at_every_write_changes_nothing(lm, text, tmp_path, monkeypatch, options):
    """Stopped at its n-th write again and again, a harvest ends with the bytes of one never stopped."""
    plan = plan_for(text, shard_mib=0.04, **options)
    whole = contents(fill(lm, plan, tmp_path / "whole").path)
    from overtone import files

    real, budget = files.replace_file, 0

    def stopping(path, write):
        nonlocal budget
        budget -= 1
        if budget < 0:
            raise KeyboardInterrupt
        real(path, write)

    for module in ("overtone.files.replace_file", "overtone.data.shards.replace_file"):
        monkeypatch.setattr(module, stopping)
    for step in (6, 11):  # a shard takes five writes
        path, budget, attempts = tmp_path / f"parts-{step}", 1, 0
        while True:
            try:
                store = fill(lm, plan, path)
                break
            except KeyboardInterrupt:
                assert Store(path).verify() == []
                budget, attempts = step, attempts + 1
        assert attempts > 1 and contents(store.path) == whole


def test_a_stop_between_the_last_shards_of_two_splits_loses_nothing(lm, text, tmp_path, monkeypatch):
    plan = plan_for(text, tokens=600, shard_mib=1)
    whole = fill(lm, plan, tmp_path / "whole")
    from overtone.data import filling

    real = filling._write_group

    def only_training(*args):
        if args[1].split == HELD_OUT:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(filling, "_write_group", only_training)
        fill(lm, plan, tmp_path / "parts")
    assert Store(tmp_path / "parts").rows() == 600
    assert contents(fill(lm, plan, tmp_path / "parts").path) == contents(whole.path)
    assert whole.rows(HELD_OUT) > 50


def test_more_tokens_later(lm, text, tmp_path):
    plan = plan_for(text, tokens=150)
    store = fill(lm, plan, tmp_path / "s")
    assert store.rows() == 150
    longer = fill(lm, replace(plan, tokens=400), store.path)
    assert longer.rows() == 400 and longer.verify() == [] and longer.manifest.complete
    first, both = store.activations("resid.0"), longer.activations("resid.0")
    assert torch.equal(both.x[:150], first.x)
    everything = fill(lm, replace(plan, tokens=None), store.path)
    documents = [d for n, d in enumerate(iter_documents(str(text))) if plan.split(n) == TRAIN]
    tokens = [i for _, ids in tokenised(lm.tokenizer, enumerate(documents)) for i in ids]
    assert everything.activations("resid.0").token_ids.tolist() == tokens, "no token is lost or read twice"
    with pytest.raises(shards.StoreError, match="was to hold tokens=all, which cannot become 10"):
        fill(lm, replace(plan, tokens=10), store.path)


def test_packed_contexts_are_full_and_know_their_documents(lm):
    docs = list(enumerate(Document(f"d{i}", " ".join(WORDS[: 1 + i])) for i in range(11)))
    cutter = Cutter(lm, 12, packed=True)
    pieces = [c for n, ids in tokenised(lm.tokenizer, docs) for c in cutter.feed(n, ids)] + list(cutter.finish())
    assert all(len(c.ids) == 12 for c in pieces[:-1])
    kept = [(int(d), int(t)) for c in pieces for d, t in zip(c.docs[c.keep], c.ids[c.keep], strict=True)]
    assert kept == [(n, i) for n, ids in tokenised(lm.tokenizer, docs) for i in ids]
    # From the end of any context, the text goes on with the same contexts.
    for at, piece in enumerate(pieces[:-1]):
        again = Cutter(lm, 12, packed=True)
        rest = []
        for n, ids in tokenised(lm.tokenizer, docs):
            if n >= piece.end.doc:
                rest += again.feed(n, ids, piece.end.token if n == piece.end.doc else 0)
        rest += again.finish()
        assert [c.ids.tolist() for c in rest] == [c.ids.tolist() for c in pieces[at + 1 :]]


def test_first_positions_can_be_dropped(lm, text, tmp_path):
    all_rows = fill(lm, plan_for(text), tmp_path / "a").activations("resid.0")
    fewer = fill(lm, plan_for(text, drop_first=2), tmp_path / "b").activations("resid.0")
    first = int(all_rows.position.min())
    assert int(fewer.position.min()) == first + 2
    assert fewer.rows == int((all_rows.position >= first + 2).sum())


def test_outliers_and_zero_rows(text, tmp_path):
    lm = tiny("llama", initializer_range=0.2)
    with torch.no_grad():
        embedding = submodule(lm.model, "model.embed_tokens").get_parameter("weight")
        ten, nine = (int(lm.tokenizer.convert_tokens_to_ids(w)) for w in ("ten", "nine"))
        embedding[ten] *= 1000
        embedding[nine] = 0
    plan = replace(plan_for(text), sites=("in:model.layers.0", "resid.0"))
    kept, dropped = (fill(lm, replace(plan, drop_outliers=d), tmp_path / str(d)) for d in (False, True))
    a, b = (s.activations("in:model.layers.0") for s in (kept, dropped))
    tens = int((a.token_ids == ten).sum())
    assert tens and nine not in a.token_ids, "a row of zeros has no direction"
    assert kept.stats("in:model.layers.0").outliers == dropped.stats("in:model.layers.0").outliers == tens
    assert ten not in b.token_ids and b.rows == a.rows - tens
    assert torch.equal(b.x, a.x[a.token_ids != ten])
    assert kept.stats("in:model.layers.0").norm_max > 100 * dropped.stats("in:model.layers.0").norm_max
    with torch.no_grad():
        embedding[ten] *= 1000
    with pytest.raises(ValueError, match=r"beyond float16's 65504; use dtype bfloat16 or float32"):
        fill(lm, replace(plan, dtype="float16"), tmp_path / "half")


def test_ranks_read_disjoint_documents_and_cover_the_text(lm, text, tmp_path):
    plan = plan_for(text)
    parts = [fill(lm, replace(plan, rank=r, world=3), tmp_path / str(r)) for r in range(3)]
    merged, one = (
        join_ranks([p.path for p in parts], tmp_path / "all"),
        fill(lm, plan, tmp_path / "one"),
    )
    for split in (TRAIN, HELD_OUT):
        a, b = merged.activations("z.1", split), one.activations("z.1", split)
        assert a.rows == b.rows and set(a.names) == set(b.names)
        rows = {name: a.x[a.doc_ids == i] for i, name in enumerate(a.names)}
        for i, name in enumerate(b.names):
            torch.testing.assert_close(rows[name], b.x[b.doc_ids == i], atol=1e-5, rtol=1e-5)
    before = contents(merged.path)
    fill(lm, plan, merged.path)  # a finished harvest is finished, also one by several ranks
    assert contents(merged.path) == before


def test_going_on_with_something_else_is_refused(lm, text, tmp_path):
    plan = plan_for(text)
    store = fill(lm, plan, tmp_path / "s")
    assert plan_of(store.manifest, store.path) == plan
    before = contents(store.path)
    with pytest.raises(shards.StoreError, match="was harvested with context=16, not 12; go on with its own settings"):
        fill(lm, replace(plan, context=12), store.path)
    other = tiny("bert" if lm.name == "llama" else "llama", "$A")
    with pytest.raises(shards.StoreError, match="was harvested from another model"):
        fill(other, plan, store.path)
    assert contents(store.path) == before


@contextmanager
def file_size_limit(limit: int):
    """Within the `with`, no file can grow beyond so many bytes: to a process, the disk is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_fills_up_in_a_shard(lm, text, tmp_path):
    plan = plan_for(text, shard_mib=0.1)
    whole = contents(fill(lm, plan, tmp_path / "whole").path)
    largest = max(len(data) for name, data in whole.items() if name.endswith("safetensors"))
    with file_size_limit(largest - 1), pytest.raises(OSError, match=r"cannot write .*what the store lists is whole"):
        fill(lm, plan, tmp_path / "s")
    assert Store(tmp_path / "s").verify() == [] and not list((tmp_path / "s").rglob("*.tmp"))
    assert contents(fill(lm, plan, tmp_path / "s").path) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context=0 must be at least 1"),
        ({"context": 500}, "context=500 must be"),
        ({"held_out": 1.0}, r"held_out=1.0 must be a share in \[0, 1\)"),
        ({"dtype": "int8"}, "dtype='int8' is not one of float32, bfloat16, float16"),
        ({"outlier_factor": 1.0}, "outlier_factor=1.0 must be above 1"),
        ({"tokens": 0}, "tokens=0 must be at least 1"),
        ({"shard_mib": 0}, "shard_mib=0 must be above 0"),
        ({"drop_first": 16}, "context=16 must be"),
    ],
)
def test_bad_plans(lm, text, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fill(lm, plan_for(text, **options), tmp_path / "s")


def test_width_of_a_site_that_has_none(lm, text, tmp_path):
    with pytest.raises(ValueError, match=r"layer 9 is out of range|resid.9"):
        fill(lm, replace(plan_for(text), sites=("resid.9",)), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert D == 16


SCRIPT = """
import sys, torch
from overtone.data.filling import HarvestPlan, harvest_store
from tiny_models import tiny
torch.set_num_threads(1)
out, text = sys.argv[1:]
plan = HarvestPlan("tiny", ("resid.0", "mlp_in.2"), (text,), context=32, batch=2, shard_mib=0.05)
harvest_store(tiny("llama"), plan, out, progress=lambda done, total: print(done, flush=True))
"""


def test_killed_harvests_end_with_the_same_bytes(tmp_path):
    """Real processes, real SIGKILLs (the slow test below does twenty)."""
    kill_and_compare(tmp_path, kills=2, documents=1500)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    kill_and_compare(tmp_path, kills=20, documents=6000)


def kill_and_compare(tmp_path: Path, kills: int, documents: int) -> None:
    rng = torch.Generator().manual_seed(0)
    words = torch.randint(len(WORDS), (documents, 40), generator=rng)
    lines = [json.dumps({"text": " ".join(WORDS[i] for i in line)}) for line in words]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines))
    (tmp_path / "job.py").write_text(SCRIPT)

    def process(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, tmp_path / "job.py", tmp_path / name, tmp_path / "docs.jsonl"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    whole = process("whole")
    _, errors = whole.communicate(timeout=280)
    assert whole.returncode == 0, errors
    for kill in range(kills):
        job = process("parts")
        assert job.stdout is not None and job.stdout.readline(), "harvesting, not importing, is what gets killed"
        time.sleep(float(torch.rand((), generator=rng)) * 0.5)
        assert job.poll() is None, f"kill {kill} has to hit a running process"
        job.kill()
        job.communicate()
        store = Store(tmp_path / "parts")
        assert store.verify() == [] and not store.manifest.complete
    last = process("parts")
    _, errors = last.communicate(timeout=280)
    assert last.returncode == 0, errors
    assert len(Store(tmp_path / "whole").manifest.shards) > 10
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_site_of_which_every_process_has_a_part_is_refused(lm, text):
    """Of the heads' outputs, for one, where processes hold the model together."""

    class Two(Axis):
        def gather(self, local: torch.Tensor) -> torch.Tensor:
            return torch.stack([local, 2 * local])

    sites = [resolve_site(lm.model, "z.1")]
    with pytest.raises(ValueError, match=r"site 'z.1' lies where each of 2 processes has a part of the model"):
        site_widths(lm, sites, plan_for(text), Two(0, 2))
