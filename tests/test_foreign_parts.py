"""What overtone has for dictionaries of other tools: uncentred, rows of norm √d, thresholds as they are, pursuits that stop."""

import pytest
import torch

from overtone import BatchTopK, Dictionary, LatentThreshold, MatchingPursuit, Parametrisation, ReLU, ops
from overtone.ops import reference
from sample_dictionaries import SMALL, made, with_


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(40, SMALL.d, generator=generator)


def test_uncentred_dictionaries_add_b_dec_and_subtract_nothing(x: torch.Tensor):
    dictionary = made(SMALL, ReLU(), with_(centre="none"))
    torch.testing.assert_close(dictionary.encode(x).z, (x @ dictionary.W_enc.T + dictionary.b_enc).relu())
    codes, moved = dictionary.encode(x), dictionary(x)
    with torch.no_grad():
        dictionary.b_dec.add_(1)
    assert torch.equal(dictionary.encode(x).z, codes.z)
    torch.testing.assert_close(dictionary(x), moved + 1)
    assert dictionary.b_dec.requires_grad and not dictionary.centre.requires_grad


def test_rows_of_norm_root_d(x: torch.Tensor):
    dictionary = made(SMALL, ReLU(), with_(input_norm="rms"))
    rows, norm = dictionary.normalise(x)
    torch.testing.assert_close(rows.square().mean(1), torch.ones(len(x)))
    torch.testing.assert_close(rows * norm, x)
    torch.testing.assert_close(dictionary(3 * x), 3 * dictionary(x), rtol=1e-5, atol=1e-5)
    assert not dictionary(torch.zeros(1, SMALL.d)).any()


def test_thresholds_as_they_are(x: torch.Tensor):
    dictionary = made(SMALL, LatentThreshold())
    thresholds = dictionary.get_parameter("thresholds")
    with torch.no_grad():
        thresholds[:6] = torch.tensor([-1.0, 0.0, -0.2, 0.1, 5.0, 0.3])
    y = dictionary.pre_activations(x)
    torch.testing.assert_close(dictionary.encode(x).z, y.relu() * (y > thresholds))
    assert not thresholds.requires_grad


def test_an_unlearnt_threshold_lets_through_what_is_positive(x: torch.Tensor):
    dictionary = made(SMALL, BatchTopK(3))
    with torch.no_grad():
        dictionary.get_parameter("threshold").fill_(-1)
    torch.testing.assert_close(dictionary.encode(x).z, dictionary.pre_activations(x).relu())


def test_a_pursuit_that_stops_when_it_picks_an_atom_again(x: torch.Tensor):
    dictionary = Dictionary(
        SMALL.d, SMALL.latents, MatchingPursuit(12, stop_on_repeat=True), Parametrisation(scale=False)
    )
    W, zero = dictionary.W_dec.detach(), torch.zeros(SMALL.latents)
    fast, slow = (
        module.encode_pursuit(x, W, 12, residual=1e-3, stop_on_repeat=True).codes.dense() for module in (ops, reference)
    )
    torch.testing.assert_close(fast, slow)
    for row, z in zip(x, fast, strict=True):
        left, code, picked = row.clone(), zero.clone(), set()
        for _ in range(12):
            best = int((W @ left).argmax())
            value = float(W[best] @ left)
            if value <= 0 or left.norm() < 1e-3:
                break
            code[best] += value
            left -= value * W[best]
            if best in picked:
                break
            picked.add(best)
        torch.testing.assert_close(z, code, rtol=1e-4, atol=1e-5)
    free = ops.encode_pursuit(x, W, 12, residual=1e-3).codes.dense()
    assert (free != fast).any(), "some row picks an atom again"


def test_which_norms_are_a_rows_own():
    own = {name: with_(input_norm=name).per_row for name in ("row", "rms", "root", "site", "none")}
    assert own == {"row": True, "rms": True, "root": True, "site": False, "none": False}
