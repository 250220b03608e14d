import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overtone import Spectrum
from overtone.spectrum import group_sizes


def test_paper_spectrum_is_geometric_from_half_to_a_thousandth():
    p = Spectrum().frequencies(100)
    assert p[0] == 0.5
    assert p[-1] == pytest.approx(1e-3)
    ratios = p[1:] / p[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(9))


@pytest.mark.parametrize(("htf", "mean"), [(0.5, 0.100), (0.1, 0.025)])
def test_mean_of_the_spectrum_is_the_published_one(htf: float, mean: float):
    assert Spectrum(htf=htf, ltf=1e-3).targets(1000).mean() == pytest.approx(mean, rel=0.05)


@given(
    latents=st.integers(20, 5000),
    groups=st.integers(1, 20),
    share=st.floats(0.001, 0.07),
    ltf=st.none() | st.just(1e-5),
)
def test_the_l0_dial_solves_for_the_spectrum(latents: int, groups: int, share: float, ltf: float | None):
    ltf = ltf if groups > 1 else None
    spectrum = Spectrum(groups=groups, l0=share * latents, ltf=ltf)
    targets = spectrum.targets(latents)
    assert targets.double().sum() == pytest.approx(share * latents, rel=1e-5)
    assert (targets.diff() <= 0).all(), "most frequent group first"
    if ltf is None and groups > 1:
        assert targets[0] / targets[-1] == pytest.approx(4)


@given(latents=st.integers(1, 300), data=st.data())
def test_groups_are_even_and_cover_all_latents(latents: int, data: st.DataObject):
    groups = data.draw(st.integers(1, latents))
    sizes = group_sizes(latents, groups)
    assert sum(sizes) == latents
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.bincount(Spectrum(groups=groups).group_of(latents)), torch.tensor(sizes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"htf": 1e-4, "ltf": 1e-3}, "htf=0.0001 must be above ltf=0.001"),
        ({"htf": 0.1, "ltf": 0.1}, "must be above"),
        ({"htf": 1.5}, "htf=1.5 is a frequency"),
        ({"ltf": 0.0}, "ltf=0.0 is a frequency"),
        ({"l0": -1}, "l0=-1 must be positive"),
        ({"l0": 3, "htf": 0.5}, "drop one of them"),
        ({"htf": 5e-4}, r"must be above ltf=0\.001 \(the default\)"),
        ({"groups": 1, "ltf": 0.1}, "one group has one frequency"),
        ({"l0": float("nan")}, "l0=nan must be positive"),
        ({"groups": 0}, "groups=0 must be at least 1"),
    ],
)
def test_bad_spectra_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Spectrum(**options)


def test_limits_that_depend_on_the_width():
    with pytest.raises(ValueError, match="groups=10 exceeds latents=8"):
        Spectrum().targets(8)
    with pytest.raises(ValueError, match=r"l0=90 needs a mean frequency of 0\.9"):
        Spectrum(l0=90).targets(100)
    with pytest.raises(ValueError, match=r"ltf=0\.1 is not below"):
        Spectrum(l0=5, ltf=0.1).targets(100)
