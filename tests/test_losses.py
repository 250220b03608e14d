import pytest
import torch

from overtone import L1, Dictionary, RarestFirst, Reconstruction
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
    expected = 0.5 * ((dictionary.decode_normalised(codes.z) - target) ** 2).sum(1).mean()
    torch.testing.assert_close(Reconstruction()(dictionary, codes, target), expected)


def test_rarest_first_by_hand(dictionary: Dictionary, generator: torch.Generator):
    """Three groups of four, most frequent first: the stages are the last group, the last two, all three."""
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    stages = []
    for first in (8, 4, 0):
        z = codes.z.clone()
        z[:, :first] = 0
        stages.append(0.5 * ((dictionary.decode_normalised(z) - target) ** 2).sum(1).mean())
    for cascade in (False, True):
        torch.testing.assert_close(
            RarestFirst(3, cascade=cascade)(dictionary, codes, target), torch.stack(stages).mean()
        )


def test_one_group_is_plain_reconstruction(dictionary: Dictionary, generator: torch.Generator):
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    for cascade in (False, True):
        torch.testing.assert_close(
            RarestFirst(1, cascade=cascade)(dictionary, codes, target), Reconstruction()(dictionary, codes, target)
        )


def test_in_the_cascade_rare_groups_do_not_see_frequent_ones(dictionary: Dictionary, generator: torch.Generator):
    """The rare group's gradient is that of a dictionary which has no other group."""
    x = torch.randn(30, 6, generator=generator)

    def gradient(loss: RarestFirst) -> torch.Tensor:
        dictionary.zero_grad()
        codes, target = codes_of(dictionary, x)
        loss(dictionary, codes, target).backward()
        assert dictionary.W_dec.grad is not None
        return dictionary.W_dec.grad[8:].clone() * loss.groups

    small = Dictionary(6, 4)
    small.load_state_dict({k: v if k == "b_dec" else v[8:] for k, v in dictionary.state_dict().items()})
    codes, target = codes_of(small, x)
    Reconstruction()(small, codes, target).backward()
    assert small.W_dec.grad is not None
    torch.testing.assert_close(gradient(RarestFirst(3, cascade=True)), small.W_dec.grad)
    assert not torch.allclose(gradient(RarestFirst(3)), small.W_dec.grad)


def test_l1_does_not_change_when_scale_moves_between_codes_and_atoms(
    dictionary: Dictionary, generator: torch.Generator
):
    codes, target = codes_of(dictionary, torch.randn(30, 6, generator=generator))
    before = L1(0.1)(dictionary, codes, target)
    with torch.no_grad():
        dictionary.W_dec.mul_(4)
    torch.testing.assert_close(L1(0.1)(dictionary, codes._replace(z=codes.z / 4), target), before)


def test_bad_terms_are_refused():
    with pytest.raises(ValueError, match="coefficient=-1"):
        L1(-1)
    with pytest.raises(ValueError, match="groups=0"):
        RarestFirst(0)
