"""Losses token by token, ablated latents, and the logit lens: against the definitions, one at a time."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')
pytest.importorskip("tokenizers", reason='needs pip install "overtone[lm]"')

from overtone import Dictionary, Parametrisation, ReLU, TopK
from overtone.data.contexts import contexts_of
from overtone.data.harvest import Rows, harvest
from overtone.data.models import load_model
from overtone.data.passages import Passage
from overtone.data.sites import resolve_site, submodule
from overtone.data.text import load_documents
from overtone.metrics.ablation import latent_effects
from overtone.metrics.downstream import loss_recovered, token_losses
from overtone.metrics.lens import logit_lens
from tiny_models import PARTS, D, documents, tiny

SITE = "resid.1"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def llama():
    return tiny("llama", "[CLS] $A", 0.2)


@pytest.fixture(scope="module")
def docs():
    return documents()


def noisy(x: torch.Tensor) -> torch.Tensor:
    return x + 0.3 * x.roll(1, dims=1)


def test_kl_is_0_for_the_identity_1_share_less_for_ablations_and_that_of_a_passage(llama, docs):
    mean = harvest(llama, SITE, docs).x.mean(0)
    swaps = {"identity": lambda x: x, "mean": lambda x: mean.expand_as(x), "zero": torch.zeros_like, "noisy": noisy}
    found = loss_recovered(llama, SITE, docs, swaps, mean, context=12, batch=2)
    assert found["identity"].kl == 0 and found["identity"].kl_recovered_mean == 1
    assert found["mean"].kl_recovered_mean == 0 and found["zero"].kl_recovered_zero == 0
    assert 0 < found["noisy"].kl < found["noisy"].kl_zero
    contexts = [c for c in contexts_of(llama, docs, context=12) if c.keep.any()]
    passage = Passage(llama, [resolve_site(llama.model, SITE)], contexts)
    expected = float(passage.divergence({SITE: noisy(passage.rows()[SITE])}))
    assert found["noisy"].kl == pytest.approx(expected, rel=1e-4)


def test_tokens_add_up_to_the_whole_in_the_order_of_the_text(llama, docs):
    whole = loss_recovered(llama, SITE, docs, {"x": noisy}, torch.zeros(D), context=12)["x"]
    for batch in (1, 16):
        tokens = token_losses(llama, SITE, docs, noisy, context=12, batch=batch)
        assert float(tokens.ce.nanmean()) == pytest.approx(whole.ce, rel=1e-6)
        assert float(tokens.ce_clean.nanmean()) == pytest.approx(whole.ce_clean, rel=1e-6)
        assert float(tokens.kl.mean()) == pytest.approx(whole.kl, rel=1e-5)
        text = Rows.of([c for c in contexts_of(llama, docs, context=12) if c.keep.any()])
        assert torch.equal(tokens.token_ids, text.token_ids) and torch.equal(tokens.docs, text.doc_ids)
        assert torch.equal(tokens.position, text.position)
    by_place = tokens.by(tokens.position)
    assert sum(count for count, _, _ in by_place.values()) == len(tokens.kl)
    assert sum(count * kl for count, _, kl in by_place.values()) / len(tokens.kl) == pytest.approx(whole.kl, rel=1e-5)


@pytest.mark.parametrize(
    "parametrisation", [Parametrisation(), Parametrisation(tied=False, input_norm="site", bias="trained")]
)
def test_each_latent_is_ablated_as_if_it_were_the_only_one(llama, docs, parametrisation: Parametrisation):
    dictionary = Dictionary(D, 12, TopK(3), parametrisation, seed=3)
    x, never = harvest(llama, SITE, docs, context=12).x, 11
    dictionary.measure_sites(x, x)
    with torch.no_grad():
        dictionary.b_enc[never] = -100.0
    latents = [5, 0, 7, never]
    found = latent_effects(llama, SITE, docs, dictionary, latents, context=12, batch=3)
    z = dictionary.encode(x).z
    assert found.firings.tolist() == [int((z[:, m] != 0).sum()) for m in latents]
    assert found.kl[3] == found.ce[3] == found.kl_per_firing[3] == 0, "one that never fires changes nothing"
    for i, latent in enumerate(latents):

        def without(rows: torch.Tensor, latent: int = latent) -> torch.Tensor:
            codes = dictionary.encode(rows)
            kept = codes.z.clone()
            kept[:, latent] = 0
            return rows - dictionary.decode(codes) + dictionary.decode(codes.with_z(kept))

        alone = loss_recovered(llama, SITE, docs, {"x": without}, torch.zeros(D), context=12)["x"]
        assert float(found.kl[i]) == pytest.approx(alone.kl, rel=1e-3, abs=2e-7)
        assert float(found.ce[i]) == pytest.approx(alone.ce - alone.ce_clean, rel=1e-2, abs=1e-6)
    again = latent_effects(llama, SITE, docs, dictionary, latents[::-1], context=12, batch=16)
    torch.testing.assert_close(again.kl.flip(0), found.kl, rtol=1e-3, atol=2e-7)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox"])
def test_the_lens_is_the_direct_path_to_the_logits(kind: str, generator: torch.Generator):
    """Behind the last block only norm and unembedding are left: what they do to a step, with the norm's divisor held."""
    lm = tiny(kind, initializer_range=0.2)
    final = PARTS[kind].final_norm
    assert final is not None
    norm = submodule(lm.model, final)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(D, generator=generator) + 0.5)
    atoms = torch.randn(300, D, generator=generator)
    found = logit_lens(lm, atoms, k=4)
    centred = atoms - atoms.mean(1, keepdim=True) if kind != "llama" else atoms
    logits = (centred * norm.weight.detach()) @ lm.model.get_output_embeddings().weight.detach().T
    logits = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(found.gains, logits.topk(4).values, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.losses, logits.topk(4, largest=False).values, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits.gather(1, found.promoted), found.gains, rtol=1e-3, atol=1e-3)
    flipped = logit_lens(lm, -2 * atoms, k=4)
    torch.testing.assert_close(flipped.gains, -2 * found.losses)
    promoted, suppressed = found.words(lm.tokenizer, 0)
    assert len(promoted) == len(suppressed) == 4


def test_what_cannot_be_looked_at_is_refused(llama, docs):
    dictionary = Dictionary(D, 12, ReLU())
    for latents, message in (([12], "some of 0 … 11"), ([], "some of 0 … 11"), ([3, 3], "names one twice")):
        with pytest.raises(ValueError, match=message):
            latent_effects(llama, SITE, docs, dictionary, latents)
    bert = tiny("bert", "[CLS] $A [SEP]")
    with pytest.raises(ValueError, match="predicts no next token"):
        logit_lens(bert, torch.eye(D))
    with pytest.raises(ValueError, match="predicts no next token"):
        latent_effects(bert, SITE, docs, dictionary, [0])
    with pytest.raises(ValueError, match="atoms have width 8"):
        logit_lens(llama, torch.eye(8))
    with pytest.raises(ValueError, match="k=17 must be 1 to 16"):
        logit_lens(llama, torch.eye(D), k=17)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_stories_model_promotes_what_its_last_layer_says():
    """The lens of the last layer's own rows agrees with the model: the token it predicts is the one most promoted."""
    lm = load_model(SHARED / "stories260k")
    docs = load_documents(SHARED / "text" / "tinystories" / "tinystories_1000.json", limit_chars=2_000)
    last = f"resid.{lm.model.config.num_hidden_layers - 1}"
    contexts = [c for c in contexts_of(lm, docs, context=128) if c.keep.any()]
    passage = Passage(lm, [resolve_site(lm.model, last)], contexts)
    rows, keep = passage.rows()[last], passage.part.keep
    assert torch.equal(logit_lens(lm, rows, k=1).promoted[:, 0], passage.logits({})[keep].argmax(1))
