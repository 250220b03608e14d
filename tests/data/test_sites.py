import pytest
import torch

transformers = pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

from overtone.data.sites import Site, blocks_path, capture, resolve_site, splice, submodule  # noqa: E402

V, D, L = 64, 16, 3
KINDS = ("llama", "gpt2", "neox", "bert")


def tiny(kind: str) -> torch.nn.Module:
    t = transformers
    own = {"vocab_size": V, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    usual = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": L, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            model = t.LlamaForCausalLM(t.LlamaConfig(**own, **usual, num_key_value_heads=1))
        elif kind == "gpt2":
            model = t.GPT2LMHeadModel(t.GPT2Config(**own, n_embd=D, n_layer=L, n_head=2, n_positions=64))
        elif kind == "neox":
            model = t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**own, **usual))
        else:
            model = t.BertModel(t.BertConfig(**own, **usual, max_position_embeddings=64))
    return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return tiny(kind)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, V, (2, 9), generator=torch.Generator().manual_seed(0))


BLOCKS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "neox": "gpt_neox.layers",
    "bert": "encoder.layer",
}
MLP = {"llama": "mlp", "gpt2": "mlp", "neox": "mlp.dense_4h_to_h", "bert": "output.dense"}
ATTENTION = {"llama": "self_attn", "gpt2": "attn", "neox": "attention", "bert": "attention.output.dense"}
NORM = {"llama": "model.norm", "gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}


@torch.no_grad()
def read(model, site, ids, stop=True):
    with capture(model, resolve_site(model, site), stop=stop) as got:
        model(input_ids=ids)
    return got.take()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids)[0]


def test_sites_are_found(kind, model):
    assert blocks_path(model) == BLOCKS[kind]
    block = f"{BLOCKS[kind]}.1"
    assert resolve_site(model, "resid.1") == Site("resid.1", block, 1)
    assert resolve_site(model, "mlp_out.1") == Site("mlp_out.1", f"{block}.{MLP[kind]}", 1)
    assert resolve_site(model, "attn_out.1") == Site("attn_out.1", f"{block}.{ATTENTION[kind]}", 1)
    assert resolve_site(model, f"{block}.{MLP[kind]}").layer == 1


@torch.no_grad()
def test_residual_sites_equal_hidden_states(kind, model, ids):
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(L):
        x = read(model, f"resid.{layer}", ids)
        if layer == L - 1 and kind in NORM:  # the last hidden state is the normalised one
            assert not torch.equal(x, states[L])
            x = submodule(model, NORM[kind])(x)
        assert torch.equal(x, states[layer + 1])


@torch.no_grad()
def test_mlp_and_attention_outputs_add_up_to_the_residual(kind, model, ids):
    mlp, attention = read(model, "mlp_out.1", ids), read(model, "attn_out.1", ids)
    before, after = read(model, "resid.0", ids), read(model, "resid.1", ids)
    if kind == "bert":  # post-norm: the norm comes after each sum
        middle = submodule(model, "encoder.layer.1.attention.output.LayerNorm")(before + attention)
        total = submodule(model, "encoder.layer.1.output.LayerNorm")(middle + mlp)
    else:
        total = before + attention + mlp
    assert torch.allclose(total, after, atol=1e-5)


@pytest.mark.parametrize("site", ["resid.0", "resid.2", "mlp_out.1", "attn_out.1"])
def test_identity_splice_is_bit_identical(model, ids, site):
    clean = logits(model, ids)
    with splice(model, resolve_site(model, site), lambda x: x):
        assert torch.equal(logits(model, ids), clean)
    with splice(model, resolve_site(model, site), torch.zeros_like):
        assert not torch.allclose(logits(model, ids), clean)
    assert torch.equal(logits(model, ids), clean)  # the hook is gone


def test_stop_skips_the_layers_behind(kind, model, ids):
    calls = []
    hooks = [
        submodule(model, f"{BLOCKS[kind]}.{i}").register_forward_pre_hook(lambda *_, i=i: calls.append(i))
        for i in range(L)
    ]
    stopped = read(model, "resid.1", ids, stop=True)
    assert calls == [0, 1]
    assert torch.equal(stopped, read(model, "resid.1", ids, stop=False)) and calls == [0, 1, 0, 1, 2]
    for hook in hooks:
        hook.remove()


def test_hooks_are_removed_when_the_body_fails(model, ids):
    site = resolve_site(model, "resid.0")
    before = list(submodule(model, site.path)._forward_hooks)
    for manager in (capture(model, site, stop=True), splice(model, site, torch.zeros_like)):
        with pytest.raises(KeyError), manager:
            raise KeyError
        assert list(submodule(model, site.path)._forward_hooks) == before


def test_splice_refuses_a_wrong_shape(model, ids):
    site = resolve_site(model, "resid.1")
    refused = pytest.raises(ValueError, match=r"'resid.1' has shape \(2, 9, 15\), not \(2, 9, 16\)")
    with refused, splice(model, site, lambda x: x[..., 1:]):
        logits(model, ids)


def test_layer_out_of_range_names_the_limit(model):
    for name in ("resid.3", "mlp_out.99", "attn_out.-1"):
        with pytest.raises(ValueError, match="out of range; the model has layers 0 to 2"):
            resolve_site(model, name)


def test_unknown_sites_offer_near_matches(kind, model):
    with pytest.raises(ValueError, match=r"unknown site 'reside.1': did you mean resid.1"):
        resolve_site(model, "reside.1")
    with pytest.raises(ValueError, match=rf"did you mean .*{BLOCKS[kind]}"):
        resolve_site(model, BLOCKS[kind][:-1] + "z")
    with pytest.raises(ValueError, match=r"no module 'a\.b'"):
        submodule(model, "a.b")


def test_a_site_never_reached_is_named(model):
    with capture(model, resolve_site(model, "resid.1"), stop=False) as got:
        pass
    with pytest.raises(ValueError, match=r"never called site 'resid\.1'"):
        got.take()


def test_models_without_one_list_of_blocks_are_refused():
    layers = [torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)]) for _ in range(2)]
    model = torch.nn.Module()
    with pytest.raises(ValueError, match="has no list of blocks"):
        blocks_path(model)
    model.encoder, model.decoder = layers
    with pytest.raises(ValueError, match=r"several lists of 2 blocks \(encoder, decoder\)"):
        blocks_path(model)
    assert resolve_site(model, "encoder.1") == Site("encoder.1", "encoder.1", None)
    del model.decoder
    with pytest.raises(ValueError, match=r"no mlp module known in encoder\.0"):
        resolve_site(model, "mlp_out.0")
