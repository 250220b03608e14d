from typing import Any

import pytest
import torch

from overtone import (
    L1,
    Dictionary,
    Matryoshka,
    Parametrisation,
    RarestFirst,
    Reconstruction,
    RelativeError,
    SampledMatryoshka,
    Spectrum,
)
from overtone.dictionary import Codes


@pytest.fixture
def dictionary(generator: torch.Generator) -> Dictionary:
    dictionary = Dictionary(6, 12)
    with torch.no_grad():
        dictionary.scale.copy_(torch.rand(12, generator=generator))
        dictionary.b_dec.copy_(torch.randn(6, generator=generator))
    return dictionary


def codes_of(dictionary: Dictionary, x: torch.Tensor) -> tuple[Codes, torch.Tensor]:
    normalised, norm = dictionary.normalise(x)
    return dictionary.encode_normalised(normalised, norm), normalised


def test_reconstruction_is_half_the_squared_error(dictionary: Dictionary, generator: torch.Generator):
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    expected = 0.5 * ((dictionary.decode_normalised(codes.entries) - target) ** 2).sum(1).mean()
    torch.testing.assert_close(Reconstruction()(dictionary, codes, target), expected)


@pytest.mark.parametrize("norm", ["row", "root", "site", "none"])
def test_the_relative_error_is_that_of_the_rows_as_they_are(norm: Any, generator: torch.Generator):
    """Whatever they are divided by on the way; with its gradient, and without rows that are zero."""
    rows = torch.randn(30, 6, generator=generator) * torch.rand(30, 1, generator=generator) * 9
    dictionary = Dictionary(6, 12, parametrisation=Parametrisation(input_norm=norm))
    dictionary.measure_sites(rows, rows)
    error = (dictionary(rows) - rows).norm(dim=1) / rows.norm(dim=1)
    loss = RelativeError()(dictionary, *codes_of(dictionary, rows))
    torch.testing.assert_close(loss, 0.5 * error.square().mean())
    loss.backward()
    with_zeros = torch.cat([rows, torch.zeros(10, 6)])
    more = RelativeError()(dictionary, *codes_of(dictionary, with_zeros))
    torch.testing.assert_close(more, loss * 30 / 40)
    first = dictionary.W_dec.grad.clone()
    more.backward()
    torch.testing.assert_close(dictionary.W_dec.grad, first * (1 + 30 / 40))


WIDE = Spectrum(groups=3, htf=0.5, ltf=0.01)


def test_rarest_first_by_hand(dictionary: Dictionary, generator: torch.Generator):
    """Three groups of four, most frequent first: the stages are the last group, the last two, all three."""
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    stages = []
    for first in (8, 4, 0):
        z = codes.z.clone()
        z[:, :first] = 0
        stages.append(0.5 * ((dictionary.decode_normalised(codes.with_z(z).entries) - target) ** 2).sum(1).mean())
    torch.testing.assert_close(RarestFirst(WIDE)(dictionary, codes, target), torch.stack(stages).mean())


@pytest.mark.parametrize("spectrum", [Spectrum(groups=1), Spectrum(groups=3, htf=0.2, ltf=0.05), Spectrum(l0=1.5)])
def test_a_narrow_spectrum_is_plain_reconstruction(
    spectrum: Spectrum, dictionary: Dictionary, generator: torch.Generator
):
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    loss = RarestFirst(spectrum)
    assert loss.stages(12) == [12]
    torch.testing.assert_close(loss(dictionary, codes, target), Reconstruction()(dictionary, codes, target))


def test_rare_groups_do_not_see_frequent_ones(dictionary: Dictionary, generator: torch.Generator):
    """The rare group's gradient is that of a dictionary which has no other group."""
    x = torch.randn(30, 6, generator=generator)
    codes, target = codes_of(dictionary, x)
    (3 * RarestFirst(WIDE)(dictionary, codes, target)).backward()
    small = Dictionary(6, 4)
    small.load_state_dict({k: v if k == "b_dec" else v[8:] for k, v in dictionary.state_dict().items()})
    codes, target = codes_of(small, x)
    Reconstruction()(small, codes, target).backward()
    assert dictionary.W_dec.grad is not None and small.W_dec.grad is not None
    torch.testing.assert_close(dictionary.W_dec.grad[8:], small.W_dec.grad)


def test_frequent_groups_explain_what_rarer_ones_left(dictionary: Dictionary, generator: torch.Generator):
    """The middle group's decoder sees the residual of the rarest, with nothing flowing back into that."""
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    z = codes.z.detach()
    (3 * RarestFirst(WIDE)(dictionary, codes.with_z(z), target)).backward()
    scaled = (z * dictionary.scale).detach()
    residual = (scaled[:, 4:] @ dictionary.W_dec[4:] + dictionary.b_dec - target).detach()
    assert dictionary.W_dec.grad is not None
    torch.testing.assert_close(dictionary.W_dec.grad[4:8], scaled[:, 4:8].T @ residual / 30)


def test_l1_does_not_change_when_scale_moves_between_codes_and_atoms(
    dictionary: Dictionary, generator: torch.Generator
):
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    before = L1(0.1)(dictionary, codes, target)
    with torch.no_grad():
        dictionary.W_dec.mul_(4)
    torch.testing.assert_close(L1(0.1)(dictionary, codes.with_z(codes.z / 4), target), before)


@pytest.mark.parametrize("prefixes", [(0.25, 0.5, 1.0), (1.0,)])
def test_matryoshka_by_hand_with_every_gradient(
    prefixes: tuple[float, ...], dictionary: Dictionary, generator: torch.Generator
):
    """In float64, from the definition: the first 3, 6 and 12 latents reconstruct, and gradients flow to all of them."""
    dictionary, gradients = dictionary.double(), []
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    for own in (True, False):
        dictionary.zero_grad()
        codes, target = codes_of(dictionary, x)
        if own:
            loss = Matryoshka(prefixes)(dictionary, codes, target)
        else:
            ends = [round(12 * share) for share in prefixes]
            z = codes.z * dictionary.scale
            stages = [z[:, :end] @ dictionary.W_dec[:end] + dictionary.b_dec - target for end in ends]
            loss = torch.stack([0.5 * stage.square().sum(1).mean() for stage in stages]).mean()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in dictionary.parameters() if p.requires_grad)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_sampled_prefixes_follow_their_law():
    """P(N ≥ n) of 4000 draws within sampling error; the same step draws the same, another step something else."""
    term = SampledMatryoshka(prefixes=2, smallest=1 / 50)
    ends = torch.tensor([term.at(step, 4000).sizes(200)[0] for step in range(4000)])
    assert int(ends.min()) == 4 and int(ends.max()) <= 200
    for n in (5, 10, 40, 120):
        expected = (n**-0.5 - 201**-0.5) / (4**-0.5 - 201**-0.5)
        assert float((ends >= n).double().mean()) == pytest.approx(expected, abs=4 * (expected / 4000) ** 0.5)
    wide = SampledMatryoshka(prefixes=6)
    assert wide.at(7, 10).sizes(200) == wide.at(7, 99).sizes(200) != wide.at(8, 10).sizes(200)
    assert all(sum(wide.at(step, 9).sizes(200)) == 200 and min(wide.at(step, 9).sizes(200)) > 0 for step in range(50))


def test_a_sampled_matryoshka_is_the_fixed_one_of_its_draw(dictionary: Dictionary, generator: torch.Generator):
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    term = SampledMatryoshka(prefixes=3).at(4, 10)
    ends = torch.tensor(term.sizes(12)).cumsum(0)
    fixed = Matryoshka(tuple((ends / 12).tolist()))
    torch.testing.assert_close(term(dictionary, codes, target), fixed(dictionary, codes, target))


def test_bad_terms_are_refused():
    for options, message in (
        ({"prefixes": 0}, "prefixes=0 must"),
        ({"exponent": 0.0}, "exponent=0.0 must"),
        ({"smallest": 2.0}, "smallest=2.0 is a share"),
    ):
        with pytest.raises(ValueError, match=message):
            SampledMatryoshka(**options)
    for prefixes in ((0.5, 0.25, 1.0), (0.5,), (), (0.0, 1.0)):
        with pytest.raises(ValueError, match="must be ascending shares"):
            Matryoshka(prefixes)
    with pytest.raises(ValueError, match="not all different"):
        Matryoshka((0.01, 0.02, 1.0)).sizes(12)
    with pytest.raises(ValueError, match="coefficient=-1"):
        L1(-1)
    with pytest.raises(ValueError, match=r"band=0\.5"):
        RarestFirst(WIDE, band=0.5)
