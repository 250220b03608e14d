"""Files as their tools write them, made here by the formats' own rules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from overtone import BatchTopK, FormatError, LatentThreshold, TopK, export, load
from overtone.formats import read
from overtone.formats.table import FORMATS

D, M = 6, 10


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(20, D, generator=generator)


def weights(*names: str) -> dict[str, torch.Tensor]:
    shapes = {"W_enc": (D, M), "W_dec": (M, D), "b_enc": (M,), "b_dec": (D,), "threshold": (M,), "topk_threshold": ()}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shapes[name], generator=generator) * 0.3 for name in names}


def saelens(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": M} | config))
    return folder


FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")


def test_saelens_of_old(tmp_path: Path, x: torch.Tensor):
    """Before 6.0: flat settings, the activation by name, a factor per latent that is 1."""
    t = weights(*FOUR)
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_point": "blocks.3.hook_mlp_out"}
    old |= {"model_name": "gpt2-small", "normalize_activations": False, "prepend_bos": True}
    found = read(saelens(tmp_path / "old", t | {"scaling_factor": torch.ones(M)}, **old))
    assert found.dictionary.select == TopK(3)
    assert {k: found.info[k] for k in ("model", "site")} == {"model": "gpt2-small", "site": "blocks.3.hook_mlp_out"}
    y = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    kept = y * (y >= y.topk(3, dim=1).values[:, -1:])
    torch.testing.assert_close(found.dictionary(x), kept @ t["W_dec"] + t["b_dec"])


def test_saelens_batchtopk_while_it_trains(tmp_path: Path, x: torch.Tensor):
    t = weights(*FOUR, "topk_threshold")
    t["topk_threshold"] = torch.tensor(0.2)
    folder = saelens(tmp_path / "b", t, architecture="batchtopk", k=3.0, rescale_acts_by_decoder_norm=True)
    dictionary = load(folder)
    assert dictionary.select == BatchTopK(3)
    norms = t["W_dec"].norm(dim=1)
    y = (((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms).relu()
    kept = y * (y > 0.2)
    torch.testing.assert_close(dictionary.encode(x).z, kept)
    torch.testing.assert_close(dictionary(x), kept @ (t["W_dec"] / norms[:, None]) + t["b_dec"])


def test_thresholds_of_any_sign(tmp_path: Path, x: torch.Tensor):
    t = weights(*FOUR, "threshold")
    dictionary = load(saelens(tmp_path / "j", t, architecture="jumprelu", apply_b_dec_to_input=False))
    assert dictionary.select == LatentThreshold()
    y = x @ t["W_enc"] + t["b_enc"]
    torch.testing.assert_close(dictionary.encode(x).z, y.relu() * (y > t["threshold"]))


def test_half_precision_stays(tmp_path: Path, x: torch.Tensor):
    t = {name: value.bfloat16() for name, value in weights(*FOUR).items()}
    dictionary = load(saelens(tmp_path / "h", t, architecture="standard", dtype="bfloat16"))
    assert dictionary.W_dec.dtype == torch.bfloat16 and dictionary(x).dtype == torch.bfloat16
    with pytest.raises(FormatError, match="numpy does not know"):
        export(dictionary, tmp_path / "g", "gemma_scope_1")
    export(dictionary, tmp_path / "again", "saelens")
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["dtype"] == "bfloat16"


def test_a_pursuit_whose_b_dec_is_not_used(tmp_path: Path, x: torch.Tensor):
    t = weights("W_dec", "b_dec")
    settings = {"architecture": "matching_pursuit", "max_iterations": 4, "residual_threshold": 0.1}
    dictionary = load(saelens(tmp_path / "m", t, **settings, apply_b_dec_to_input=False))
    assert not dictionary.b_dec.any() and dictionary.select.stop_on_repeat


def test_dictionary_learning_keeps_what_overtone_has_no_use_for(tmp_path: Path):
    """Nested groups, learnt thresholds of TopK, and settings of a training go out as they came in."""
    t = weights(*FOUR) | {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.25)}
    cases = {"MatryoshkaBatchTopKSAE": t | {"group_sizes": torch.tensor([4, 6])}}
    linear = {"encoder.weight": t["W_enc"].T, "encoder.bias": t["b_enc"], "decoder.weight": t["W_dec"].T}
    cases["AutoEncoderTopK"] = linear | {name: t[name] for name in ("b_dec", "k", "threshold")}
    for name, tensors in cases.items():
        trainer = {
            "dict_class": name,
            "activation_dim": D,
            "dict_size": M,
            "k": 3,
            "layer": 7,
            "lm_name": "org/tiny",
        }
        (tmp_path / name).mkdir()
        torch.save({n: v.contiguous() for n, v in tensors.items()}, tmp_path / name / "ae.pt")
        (tmp_path / name / "config.json").write_text(
            json.dumps({"trainer": trainer | {"lr": 1e-4}, "buffer": {"ctx_len": 128}})
        )
        found = read(tmp_path / name)
        assert found.info["model"] == "org/tiny"
        again = export(found.dictionary, tmp_path / f"{name}-again", "dictionary_learning", found.info)
        first, second = (FORMATS["dictionary_learning"].read(f / "ae.pt") for f in (tmp_path / name, again))
        assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
        config = json.loads((again / "config.json").read_text())
        assert config["trainer"] | {"submodule_name": None} == trainer | {"lr": 1e-4, "submodule_name": None}
        assert config["buffer"] == {"ctx_len": 128}


def test_the_way_to_a_single_file(tmp_path: Path):
    folder = saelens(tmp_path / "s", weights(*FOUR))
    assert load(folder / "sae_weights.safetensors").latents == M
    tensors = weights(*FOUR)
    save_file(tensors | {"W_enc": tensors["W_enc"].T.contiguous()}, tmp_path / "layer_7.safetensors")
    assert not load(tmp_path / "layer_7.safetensors").layout.onto_itself
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="no file of a format that overtone reads"):
        load(tmp_path / "other.safetensors")
