"""Frozen and soft-frozen atoms, whatever the method: what a score has to beat."""

import pytest
import torch

from overtone import (
    ArrayStream,
    AtomsNearStart,
    Dictionary,
    Method,
    Run,
    fit,
    frozen_decoder,
    load,
    save,
    soft_frozen_decoder,
    train,
)
from overtone.config import from_json, to_json
from overtone.training import start
from small_methods import SMALL


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(a.detach().double(), b.detach().double(), dim=1)


# Whatever the method, atoms in a cone are free to move in it; a cone without width needs no more than a few.
HELD = [
    *((method, soft_frozen_decoder(method)) for method in SMALL.values()),
    *((SMALL[name], frozen_decoder(SMALL[name])) for name in ("gba", "l1", "matching-pursuit")),
]


@pytest.mark.parametrize(("method", "held"), HELD, ids=[held.name for _, held in HELD])
def test_atoms_of_any_method_can_be_held_while_its_encoder_learns(method: Method, held: Method, rows: torch.Tensor):
    assert from_json(to_json(held)) == held
    stream = ArrayStream(rows, 64)
    run = Run(method=held, latents=20, steps=4, lr=10 * method.lr)
    state = start(run, stream)
    before = {name: weight.detach().clone() for name, weight in state.dictionary.named_parameters()}
    list(train(run, stream, state))
    after = dict(state.dictionary.named_parameters())
    if held.name.endswith("soft-frozen"):
        assert 0.8 - 1e-5 <= float(cosines(before["W_dec"], after["W_dec"]).min()) < 0.9999
    else:
        assert torch.equal(before["W_dec"], after["W_dec"])
    if "W_enc" in after:
        assert not torch.equal(before["W_enc"], after["W_enc"])
    else:
        assert method.name.startswith("matching-pursuit"), "only a pursuit has no encoder"


def test_what_leaves_its_cone_comes_to_the_nearest_direction_in_it():
    dictionary = Dictionary(12, 40)
    rule = AtomsNearStart(0.6)
    state = rule.begin(dictionary, torch.zeros(0, 12))
    begun = dictionary.W_dec.detach().clone()
    moved = begun + torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dictionary.W_dec.copy_(moved)
    codes = dictionary.encode(torch.ones(1, 12))
    rule.after_step(dictionary, state, codes, 1)
    out, inside = cosines(begun, moved) < 0.6, cosines(begun, moved) >= 0.6
    assert out.any() and inside.any()
    assert torch.equal(dictionary.W_dec[inside], moved[inside])
    torch.testing.assert_close(cosines(begun, dictionary.W_dec)[out], torch.full((int(out.sum()),), 0.6).double())
    torch.testing.assert_close(dictionary.W_dec.detach().norm(dim=1), moved.norm(dim=1))
    # Of all directions in the cone none is nearer: the angles to the axis and to the edge add up.
    angle = cosines(begun, moved)[out].arccos() - torch.tensor(0.6).double().arccos()
    torch.testing.assert_close(cosines(moved, dictionary.W_dec)[out].arccos(), angle, atol=1e-5, rtol=1e-5)
    settled = dictionary.W_dec.detach().clone()
    rule.after_step(dictionary, state, codes, 2)
    torch.testing.assert_close(dictionary.W_dec.detach(), settled)


def test_a_held_dictionary_is_saved_like_any_other(rows: torch.Tensor, tmp_path):
    dictionary = fit(rows, soft_frozen_decoder(SMALL["gba"]), latents=20, steps=5, batch=64)
    save(dictionary, tmp_path / "held")
    assert torch.equal(load(tmp_path / "held").W_dec, dictionary.W_dec)


@pytest.mark.parametrize("cosine", [0.0, -0.5, 1.1])
def test_a_cone_is_no_wider_than_a_half_space(cosine: float):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]; 1 freezes"):
        AtomsNearStart(cosine)
