"""Theorem 6.1 as functions: values by hand, and how band and width move."""

import math
from dataclasses import replace

import pytest
import torch

from overtone.theory.resonance import Setting, by_octave, predict

POWERS = Setting(n_features=256, d=1024, sparsity=4, varsigma=0.5)


def test_by_hand():
    band = POWERS.band()
    assert band.low == 2**-8
    assert band.high == pytest.approx(2**-5)  # n^(−(1 + 1/4)/2); the dimension would allow √1024/256 = 2⁻³
    assert (band.limit, band.empty) == ("sparsity", False)
    assert band.octaves == pytest.approx(3.0)
    assert POWERS.upper_edges()["dimension"] == pytest.approx(2**-3)
    assert POWERS.upper_edges()["separation"] == pytest.approx(256 ** (-2 * 1.05**2 / 4))
    assert (POWERS.occurrence, POWERS.steps, POWERS.heavy) == (4 / 256, 2.0, False)
    assert POWERS.saturating_d() == pytest.approx(2**6)  # √d / 256 = 2⁻⁵
    assert POWERS.probability == pytest.approx(1 - 256**-0.2)


def test_the_band_widens_with_d_until_it_does_not():
    highs = [replace(POWERS, d=d).band().high for d in (1, 4, 16, 64, 256, 1024)]
    assert highs[:4] == sorted(set(highs[:4]))
    assert highs[3] == pytest.approx(highs[4]) == pytest.approx(highs[5])
    assert replace(POWERS, d=16).band().limit == "dimension"


def test_where_it_stops_widening_is_the_square_root_of_n_for_large_s():
    # With ε small enough that separation does not bind: s large makes n^(−(1+1/s)/2) → n^(−1/2).
    setting = Setting(n_features=1e6, d=10, sparsity=1e3, varsigma=1e-6)
    assert setting.saturating_d() == pytest.approx(1e3, rel=0.02)


def test_width_grows_linearly_with_n_and_exponentially_with_s():
    assert replace(POWERS, n_features=2560).log10_width(0.01) - POWERS.log10_width(0.01) == pytest.approx(1.0)
    steps = [replace(POWERS, sparsity=s).log10_width(0.01) for s in (1, 2, 3)]
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0]) == pytest.approx(2 / 0.95**2)
    assert POWERS.log10_width(0.1) < POWERS.log10_width(0.01)


def test_the_sparsity_in_reach_is_the_width_solved_for_s():
    for p in (0.001, 0.02):
        latents = round(10 ** POWERS.log10_width(p))
        assert POWERS.sparsity_in_reach(latents, p) == pytest.approx(4.0)
    assert POWERS.sparsity_in_reach(10, 0.1) == 0.0


def test_one_or_two_features_per_row_have_no_band():
    for s in (1, 2):
        assert replace(POWERS, sparsity=s).band().empty


def test_open_constants_scale_what_they_belong_to():
    other = replace(POWERS, lower=3.0, upper=2.0, constant=10.0)
    assert other.band().low == 3 * POWERS.band().low
    assert other.band().high == pytest.approx(2 * POWERS.band().high)
    assert other.log10_width(0.1) == pytest.approx(1 + POWERS.log10_width(0.1))
    assert other.saturating_d() == pytest.approx(POWERS.saturating_d())


def test_equal_frequencies_have_the_theorems_own_band():
    band = POWERS.band()
    frequency = torch.full((256,), POWERS.occurrence)
    for target, expected in ((0.9 * band.low, False), (1.1 * band.low, True), (0.9 * band.high, True), (0.5, False)):
        found = predict(frequency, torch.tensor([0.9, target]), POWERS)
        assert bool(found.recovered.all()) == bool(found.recovered.any()) == expected
    assert found.low[0] == pytest.approx(band.low)
    assert found.high[0] == pytest.approx(band.high)


def test_rarer_features_want_rarer_targets():
    frequency = torch.tensor([0.1, 0.01, 0.001, 0.0])
    found = predict(frequency, torch.tensor([0.001]), POWERS)
    assert (found.low[:3].diff() < 0).all()
    assert (found.high[:3].diff() < 0).all()
    assert found.recovered.tolist() == [False, False, True, False]
    two = predict(frequency, torch.tensor([0.001, 0.05, 0.001]), POWERS)
    assert two.recovered.tolist() == [True, False, True, False]


def test_octaves_keep_every_feature_that_occurs():
    frequency = torch.tensor([0.3, 0.26, 0.1, 0.0])
    octaves = by_octave(frequency, torch.tensor([True, False, True, True]), torch.tensor([True, True, False, True]))
    assert [(o.low, o.high, o.features, o.predicted, o.measured) for o in octaves] == [
        (0.25, 0.5, 2, 0.5, 1.0),
        (0.0625, 0.125, 1, 1.0, 0.0),
    ]
    assert by_octave(frequency, torch.tensor([True] * 4))[0].measured is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 1.0}, "epsilon=1.0 must lie between 0 and 1"),
        ({"varsigma": 0.0}, "varsigma=0.0"),
        ({"sparsity": 300}, "sparsity=300 must lie between 0 and n_features=256"),
        ({"upper": -1.0}, "upper=-1.0 must be positive"),
        ({"d": 0}, "d=0 must both be at least 1"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        replace(POWERS, **change)


def test_frequencies_that_are_none():
    for p in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            POWERS.log10_width(p)
