"""The loss through the model: its gradient, its zero, what training on it does; streams of whole contexts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

import overtone as ot
from overtone.data.context_stream import ContextStream
from overtone.data.models import LanguageModel
from overtone.data.sites import submodule
from overtone.losses import total
from overtone.runs import claim_folder
from tiny_models import WORDS, D, tiny

SITE, TARGET = "resid.1", "mlp_out.2"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny("gpt2", initializer_range=0.4)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ot.HarvestPlan:
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 40, (60,), generator=rng).tolist()
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=rng)) for n in lengths]
    path = tmp_path_factory.mktemp("text") / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return ot.HarvestPlan("tiny", (SITE, TARGET), (str(path),), context=16, dtype="float32", held_out=0.1)


def stream_of(lm: LanguageModel, plan: ot.HarvestPlan, **options) -> ContextStream:
    return ContextStream(lm, plan, **{"batch": 50, "buffer_rows": 300, "site": SITE, **options})


def slow_logits(lm: LanguageModel, ids: torch.Tensor, rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(what block 1 puts out, the logits) of one text without padding, block by block, with other rows after block 1."""
    body = submodule(lm.model, "transformer")
    x = body.wte(ids[None]) + body.wpe(torch.arange(len(ids)))[None]
    own = x
    for number, block in enumerate(body.h):
        out = block(x)
        x = out if isinstance(out, torch.Tensor) else out[0]
        if number == 1:
            own, x = x, x if rows is None else rows[None]
    return own[0], lm.model.lm_head(body.ln_f(x))[0]


def slow_loss(dictionary: ot.Dictionary, lm: LanguageModel, batch: ot.Batch, active: torch.Tensor, measure: str):
    """TopK's reconstructions and what they cost, from the definitions, text by text."""
    part, w = batch.passage.part, dict(dictionary.named_parameters())
    norm = batch.x.double().norm(dim=1, keepdim=True)
    y = (batch.x.double() / norm - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
    x_hat = (torch.where(active, y, 0.0) @ w["W_dec"] + w["b_dec"]) * norm
    lost, done = [], 0
    for ids, mask, keep in zip(part.ids, part.mask.bool(), part.keep, strict=True):
        ids, keep = ids[mask], keep[mask]
        own, clean = slow_logits(lm, ids, None)
        rows = own.clone()
        rows[keep] = x_hat[done : done + int(keep.sum())]
        done += int(keep.sum())
        q = slow_logits(lm, ids, rows)[1].softmax(-1)
        p = clean.softmax(-1)
        if measure == "kl":
            lost += [(p[t] * (p[t].log() - q[t].log())).sum() for t in keep.nonzero().flatten().tolist()]
        else:
            lost += [-q[t - 1, ids[t]].log() for t in keep.nonzero().flatten().tolist() if t > 0]
    assert done == len(x_hat)
    return torch.stack(lost).mean()


@pytest.mark.parametrize("measure", ["kl", "ce"])
def test_value_and_every_gradient_in_float64(plan: ot.HarvestPlan, measure: str):
    """Against the model run block by block, one text at a time, without padding; contexts cut by the batch's end included."""
    lm = tiny("gpt2", initializer_range=0.4)
    stream = stream_of(lm, plan)
    next(stream)
    batch = next(stream)
    assert batch.passage is not None and not bool(batch.passage.part.mask.all())
    lm.model.double()
    dictionary = ot.Dictionary(stream.layout, 24, ot.TopK(4), ot.topk(4).parametrisation, seed=1).double()
    with torch.no_grad():
        dictionary.b_dec.copy_(torch.linspace(-0.1, 0.1, D))
        dictionary.b_enc.copy_(torch.linspace(-0.1, 0.1, 24))
    codes = dictionary.encode_batch(*dictionary.normalise(batch.x))
    loss = total((ot.EndToEnd(0.5, measure).of_batch(batch),), dictionary, codes, batch.x.double())
    loss.backward()
    assert all(weight.grad is None and weight.requires_grad for weight in lm.model.parameters())
    fast = {name: p.grad for name, p in dictionary.named_parameters()}
    dictionary.zero_grad()
    expected = 0.5 * slow_loss(dictionary, lm, batch, codes.z.detach() != 0, measure)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    for name, grad in fast.items():
        slowly = dictionary.get_parameter(name).grad
        assert grad is not None and slowly is not None and slowly.abs().max() > 1e-6, name
        torch.testing.assert_close(grad, slowly, rtol=1e-5, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def perfect(layout: ot.Layout) -> ot.Dictionary:
    """max(x, 0) − max(−x, 0): nothing is lost, to the bit."""
    plain = ot.Parametrisation(tied=False, scale=False, bias="trained", input_norm="none")
    dictionary = ot.Dictionary(layout, 2 * D, ot.ReLU(), plain)
    with torch.no_grad():
        for weight in (dictionary.W_enc, dictionary.W_dec):
            weight.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
    return dictionary


def test_nothing_is_lost_by_a_perfect_dictionary(lm: LanguageModel, plan: ot.HarvestPlan):
    stream = stream_of(lm, plan)
    batch, dictionary = next(stream), perfect(stream.layout)
    loss = ot.EndToEnd().of_batch(batch)(dictionary, dictionary.encode(batch.x), batch.x)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert dictionary.W_dec.grad is not None and dictionary.W_dec.grad.abs().max() < 1e-6, "it is a minimum"
    assert batch.passage is not None
    own = float(batch.passage.cross_entropy({}))
    spliced = ot.EndToEnd(measure="ce").of_batch(batch)(dictionary, dictionary.encode(batch.x), batch.x)
    assert float(spliced.detach()) == pytest.approx(own, abs=1e-6)
    silent = {SITE: torch.zeros_like(batch.x)}
    assert batch.passage.divergence(silent) > 0.01


@pytest.mark.parametrize("kind", ["autoencoder", "transcoder", "crosscoder"])
def test_training_lowers_what_is_lost(lm: LanguageModel, plan: ot.HarvestPlan, kind: str):
    """On text never trained on; whichever sites are reconstructed are those that are replaced."""
    sites = {"transcoder": {"target": TARGET}, "crosscoder": {"site": (SITE, TARGET)}}.get(kind, {})
    stream = stream_of(lm, plan, batch=200, **sites)
    base = ot.topk(4) if kind != "transcoder" else ot.transcoder(ot.topk(4))
    run = ot.Run(replace(base, losses=(ot.EndToEnd(),)), latents=32, steps=40, batch=200, lr=0.02)
    held_out = stream_of(lm, replace(plan, held_out=0.0), batch=200, **sites, seed=5)
    state, unseen = ot.start(run, stream), next(held_out)
    assert unseen.passage is not None

    def lost() -> float:
        with torch.no_grad():
            rows = state.dictionary.layout.split(state.dictionary(unseen.x))
            assert set(rows) == {"autoencoder": {SITE}, "transcoder": {TARGET}}.get(kind, {SITE, TARGET})
            return float(unseen.passage.divergence(rows))

    before = lost()
    losses = [record.loss for record in ot.train(replace(run, log_every=20), stream, state)]
    assert losses[-1] < losses[0] and lost() < 0.7 * before


def test_every_row_once_per_pass_and_all_in_their_text(lm: LanguageModel, plan: ot.HarvestPlan, tmp_path: Path):
    ot.harvest_store(lm, plan, tmp_path / "s")
    wanted = ot.Store(tmp_path / "s").activations(SITE, split="train")
    rows = len(wanted.x)
    stream = stream_of(lm, plan, batch=rows // 7)
    batches = [next(stream) for _ in range(7 + rows % 7)]
    found = torch.cat([b.x for b in batches])[:rows]
    tokens = torch.cat([b.passage.part.ids[b.passage.part.keep] for b in batches if b.passage])[:rows]
    assert all(len(b.x) == rows // 7 for b in batches)
    for a, b in ((found, wanted.x), (tokens[:, None].float(), wanted.token_ids[:, None].float())):
        torch.testing.assert_close(a.sort(0).values, b.sort(0).values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("before", [0, 4, 5, 23])
def test_the_stream_resumes_exactly(lm: LanguageModel, plan: ot.HarvestPlan, before: int):
    stream, resumed = stream_of(lm, plan), stream_of(lm, plan)
    for _ in range(before):
        next(stream)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    for _ in range(3):
        a, b = next(stream), next(resumed)
        assert a.passage is not None and b.passage is not None
        assert torch.equal(a.x, b.x) and torch.equal(a.passage.part.keep, b.passage.part.keep)


def test_an_abandoned_run_resumes_bit_for_bit(lm: LanguageModel, plan: ot.HarvestPlan, tmp_path: Path):
    method = ot.end_to_end(ot.gba(l0=4, groups=3), coefficient=0.1)
    run = ot.Run(method, latents=24, steps=12, batch=150, log_every=3, checkpoint_every=5)
    for name in ("whole", "parts"):
        claim_folder(tmp_path / name)
        records = ot.execute(ot.RunFolder.create(tmp_path / name, run), stream_of(lm, plan, batch=150))
        for count, _ in enumerate(records, 1):
            if name == "parts" and count == 3:
                break
    list(ot.execute(ot.RunFolder.open(tmp_path / "parts"), stream_of(lm, plan, batch=150)))
    whole, parts = (ot.load(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_what_cannot_be_is_refused(lm: LanguageModel, plan: ot.HarvestPlan, rows: torch.Tensor):
    with pytest.raises(ValueError, match="these rows do not know their text; train on a ContextStream"):
        ot.fit(rows, ot.end_to_end(ot.topk(3)), latents=16, steps=1)
    with pytest.raises(ValueError, match=r"call EndToEnd\(…\)\.of_batch\(batch\) first"):
        dictionary = ot.Dictionary(12, 16)
        ot.EndToEnd()(dictionary, dictionary.encode(rows), rows)
    with pytest.raises(ValueError, match="predicts no next token; use a causal model"):
        stream_of(tiny("bert"), plan)
    with pytest.raises(ValueError, match=r"site=None, .* the plan reads resid\.1, mlp_out\.2; name one"):
        stream_of(lm, plan, site=None)
    batch = next(stream_of(lm, plan))
    assert batch.passage is not None
    with pytest.raises(ValueError, match=r"site '' was not read, only 'resid\.1'"):
        batch.passage.divergence({"": batch.x})
    with pytest.raises(ValueError, match=r"'dictionary' at site 'resid\.1' holds NaN"):
        batch.passage.divergence({SITE: batch.x * torch.nan})


def test_the_page_on_methods(plan: ot.HarvestPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What docs/methods.md shows is run, on another model and text."""
    lm = tiny("gpt2", initializer_range=0.4)
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    (shown,) = (b for b in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "ContextStream" in b)
    monkeypatch.setattr(ot, "load_model", lambda name: lm)
    small = {
        '("stdlib-docs",)': repr(plan.text),
        "context=128": "context=16",
        "resid.6": SITE,
        "batch=1024": "batch=64",
    }
    for long, short in (small | {"latents=6144": "latents=32", "steps=3000": "steps=3", "topk(32)": "topk(3)"}).items():
        assert long in shown, long
        shown = shown.replace(long, short)
    namespace: dict = {"ot": ot}
    exec(compile(shown, "methods.md", "exec"), namespace)
    assert namespace["record"].step == 3
