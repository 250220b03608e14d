"""A dictionary behind SAEBench's interface: the same function in its units; checked by its own code where it is installed."""

import pytest
import torch

from overtone import Dictionary, FormatError, JumpReLU, Layout, Parametrisation, ReLU, Selection, TopK
from overtone.formats.saebench import SAEBenchSAE
from overtone.layout import Block

KINDS: list[tuple[Selection, Parametrisation]] = [
    (JumpReLU(), Parametrisation()),
    (TopK(3), Parametrisation(tied=False, input_norm="none", bias="trained")),
    (ReLU(), Parametrisation(tied=False, input_norm="site", scale=False, bias="trained")),
    (TopK(3), Parametrisation(input_norm="rms", centre="none", tied=False)),
    (JumpReLU(), Parametrisation(input_norm="root")),
]


@pytest.fixture(params=KINDS, ids=["gba", "topk", "relu, site", "rms", "roots"])
def dictionary(request: pytest.FixtureRequest, rows: torch.Tensor, generator: torch.Generator) -> Dictionary:
    select, parametrisation = request.param
    found = Dictionary(12, 20, select, parametrisation, seed=2)
    found.measure_sites(rows, rows)
    with torch.no_grad():
        found.b_dec.copy_(0.1 * torch.randn(12, generator=generator))
        found.b_enc.copy_(-0.1 * torch.rand(20, generator=generator))
        if found.scale is not None:
            found.scale.copy_(torch.randn(20, generator=generator))
            found.scale[4] = 0
    return found


def adapted(dictionary: Dictionary) -> SAEBenchSAE:
    return SAEBenchSAE(dictionary, "tiny", "resid.3")


def test_atoms_are_unit_and_the_function_is_the_same(dictionary: Dictionary, rows: torch.Tensor):
    sae, x = adapted(dictionary), rows[:60].view(5, 12, 12)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
    with torch.no_grad():
        f = sae.encode(x)
        assert f.shape == (5, 12, 20)
        torch.testing.assert_close(sae.decode(f), dictionary(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae(rows[:60]), dictionary(rows[:60]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((f != 0).sum(0).sum(0)[5:], (dictionary.encode(x).z != 0).sum(0).sum(0)[5:])


def test_taking_a_latent_out_takes_out_its_part(dictionary: Dictionary, rows: torch.Tensor):
    sae, x = adapted(dictionary), rows[:40]
    codes = dictionary.encode(x)
    latent = int((codes.z != 0).sum(0)[5:].argmax()) + 5
    z = codes.z.detach().clone()
    z[:, latent] = 0
    f = sae.encode(x).detach()
    f[:, latent] = 0
    torch.testing.assert_close(sae.decode(f), dictionary.decode(codes.with_z(z)), rtol=1e-4, atol=1e-5)


def test_codes_scale_with_rows_where_rows_are_scaled(rows: torch.Tensor):
    sae = adapted(Dictionary(12, 20, TopK(3)))
    torch.testing.assert_close(sae.encode(3 * rows), 3 * sae.encode(rows))


def test_settings_and_types_are_what_saebench_reads(dictionary: Dictionary, rows: torch.Tensor):
    sae = adapted(dictionary)
    assert (sae.cfg.d_in, sae.cfg.d_sae, sae.cfg.hook_layer) == (12, 20, 3)
    assert sae.cfg.hook_name == "blocks.3.hook_resid_post" and sae.cfg.dtype == "float32"
    assert sae.cfg.to_dict()["model_name"] == "tiny"
    assert sae.W_enc.shape == (12, 20) and sae.b_enc.shape == (20,) and sae.b_dec.shape == (12,)
    half = sae.to(device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.device == torch.device("cpu")
    assert half(rows[:8].bfloat16()).dtype == torch.bfloat16


def test_what_it_cannot_be_is_refused(rows: torch.Tensor):
    with pytest.raises(FormatError, match="has no number of a block"):
        SAEBenchSAE(Dictionary(12, 20), "tiny", "embed")
    cross = Layout((Block("a", 6), Block("b", 6)))
    with pytest.raises(FormatError, match="autoencoders of one site"):
        SAEBenchSAE(Dictionary(cross, 20), "tiny", "resid.3")
    sae = adapted(Dictionary(12, 20))
    with pytest.raises(ValueError, match=r"codes of rows \(3,\), and the rows encoded last were None"):
        sae.decode(torch.zeros(3, 20))
    sae.encode(rows[:4])
    with pytest.raises(ValueError, match=r"encoded last were \(4,\)"):
        sae.decode(torch.zeros(3, 20))


@pytest.mark.filterwarnings("ignore")  # of a library that is tested with, and not tested
def test_saebench_itself_accepts_it(dictionary: Dictionary, monkeypatch: pytest.MonkeyPatch):
    """Its own checks of a custom SAE, on a model of its own kind with random weights."""
    base = pytest.importorskip("sae_bench.custom_saes.base_sae", reason="needs pip install sae-bench")
    import transformer_lens

    config = transformer_lens.HookedTransformerConfig(
        n_layers=4, d_model=12, n_ctx=64, d_head=6, n_heads=2, d_vocab=50, act_fn="gelu", seed=0
    )
    model = transformer_lens.HookedTransformer(config)
    read = model.run_with_cache  # it has no tokenizer to read text with
    monkeypatch.setattr(
        model, "run_with_cache", lambda _, prepend_bos, **options: read(torch.arange(30)[None], **options)
    )
    monkeypatch.setattr(base.HookedTransformer, "from_pretrained", lambda *_, **__: model)
    sae = adapted(dictionary)
    assert base.BaseSAE.check_decoder_norms(sae)
    base.BaseSAE.test_sae(sae, "tiny")
    custom = base.sae_config.CustomSAEConfig("tiny", 12, 20, 3, "blocks.3.hook_resid_post").to_dict()
    assert custom.keys() <= sae.cfg.to_dict().keys(), "every setting that its own have"
