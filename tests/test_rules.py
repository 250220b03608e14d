from dataclasses import replace
from typing import Any

import pytest
import torch

from observed import seen
from overtone import (
    ArrayStream,
    BatchTopK,
    BiasAdaptation,
    Dictionary,
    FiringStats,
    FixedBias,
    Parametrisation,
    Release,
    Run,
    Spectrum,
    ThresholdEMA,
    UnitNorm,
    adapt_bias,
    fit,
    gba,
    gba_jumprelu,
    gba_matryoshka,
    gba_released,
    gba_universal,
    gba_untied,
    matching_pursuit,
    modified_ba,
    start,
    universal_threshold,
    with_frequency_control,
)
from overtone.steering import quantile_bias
from overtone.training import step_once


def stats(rows: int, fired: list[int], peak: list[float]) -> FiringStats:
    return FiringStats(torch.tensor(rows), torch.tensor(fired), torch.tensor(peak))


def test_one_adaptation_by_hand():
    # Group 0 (target 0.5): latent 0 over-active, latent 1 exactly on target, latent 2 dead.
    # Group 1 (target 0.01): latent 3 over-active and near the floor, latent 4 dead near 0, latent 5 under target.
    seen = stats(1000, [600, 500, 0, 20, 0, 5], [2.0, 4.0, 0.0, 1.0, 0.0, 0.4])
    bias = torch.tensor([-0.10, -0.20, -0.30, -0.995, -0.001, -0.5])
    adapted = adapt_bias(bias, seen, torch.tensor([0.5, 0.5, 0.5, 0.01, 0.01, 0.01]), torch.tensor([0, 0, 0, 1, 1, 1]))
    # R_0 = (2 + 4)/2 = 3, R_1 = (1 + 0.4)/2 = 0.7: means over the latents that have a positive peak.
    expected = torch.tensor(
        [
            -0.10 - 0.01 * 2.0,
            -0.20,
            -0.30 + 0.01 * 3.0,
            -1.0,  # −0.995 − 0.01·1 = −1.005, held at the floor
            0.0,  # −0.001 + 0.01·0.7 = 0.006, held at 0
            -0.5,
        ]
    )
    torch.testing.assert_close(adapted, expected)


def test_a_group_without_a_peak_leaves_its_dead_latents_alone():
    adapted = adapt_bias(torch.tensor([-0.5]), stats(10, [0], [0.0]), torch.tensor([0.1]), torch.tensor([0]))
    assert adapted.tolist() == [-0.5]


def test_adaptation_permutes_with_the_latents(generator: torch.Generator):
    m = 40
    group = torch.arange(m) * 4 // m
    targets = torch.tensor([0.5, 0.1, 0.02, 0.004])[group]
    seen = FiringStats(
        torch.tensor(500), torch.randint(0, 300, (m,), generator=generator), torch.rand(m, generator=generator)
    )
    bias = -torch.rand(m, generator=generator)
    order = torch.randperm(m, generator=generator)
    permuted = FiringStats(seen.rows, seen.fired[order], seen.peak[order])
    torch.testing.assert_close(
        adapt_bias(bias[order], permuted, targets[order], group[order]), adapt_bias(bias, seen, targets, group)[order]
    )


def test_repeating_the_rows_changes_no_bias(generator: torch.Generator):
    pre = torch.randn(200, 10, generator=generator)
    once, twice = seen(pre), seen(pre.repeat(2, 1))
    bias, group, targets = torch.full((10,), -0.3), torch.zeros(10, dtype=torch.int64), torch.full((10,), 0.45)
    torch.testing.assert_close(adapt_bias(bias, once, targets, group), adapt_bias(bias, twice, targets, group))


@pytest.mark.parametrize(("p", "expected"), [(0.5, 0.5), (0.2, 0.2), (0.01, 0.16), (0.9, 0.5)])
def test_quantile_start_fires_at_its_target(p: float, expected: float, generator: torch.Generator):
    """Biases stay in [−1, 0]: on unit-variance projections no frequency outside [P(N > 1), ½] can be had."""
    projections = torch.randn(3, 4000, generator=generator)
    frequency = (projections + quantile_bias(projections, p)[:, None] > 0).float().mean(1)
    torch.testing.assert_close(frequency, torch.full((3,), expected), atol=0.02, rtol=0)


def test_latents_under_their_target_are_raised_where_asked():
    seen = stats(1000, [70, 80, 0, 200], [0.5, 0.5, 0.0, 0.5])
    bias, targets = torch.tensor([-0.3, -0.3, -0.3, -0.3]), torch.full((4,), 0.1)
    group = torch.zeros(4, dtype=torch.int64)
    published = adapt_bias(bias, seen, targets, group)
    torch.testing.assert_close(published, torch.tensor([-0.3, -0.3, -0.295, -0.305]))
    both = adapt_bias(bias, seen, targets, group, raise_below=0.75)
    # 70 of 1000 is under 0.75 of the target, 80 is not; the dead latent has no peak of its own and takes the group's.
    torch.testing.assert_close(both, torch.tensor([-0.295, -0.3, -0.295, -0.305]))


def test_a_latent_is_not_narrowed_beyond_its_share_of_the_peak():
    seen = stats(100, [50, 50, 50], [0.2, 0.2, 0.2])
    bias = torch.tensor([-0.1, -0.1995, -0.6])
    targets, group = torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int64)
    adapted = adapt_bias(bias, seen, targets, group, narrowest=0.5)
    # Peaks of the projections are 0.3, 0.3995 and 0.8: limits −0.15, −0.19975 and −0.4. The first takes its whole step,
    # the second stops at its limit, the third is past it and stays.
    torch.testing.assert_close(adapted, torch.tensor([-0.102, -0.19975, -0.6]))


def test_only_latents_more_frequent_than_their_group_are_narrowed_beyond_it():
    bias, targets = torch.full((6,), -0.6), torch.full((6,), 0.001)
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    seen = stats(100, [10, 10, 16, 10, 30, 30], [0.2] * 6)
    adapted = adapt_bias(bias, seen, targets, group, narrowest=0.7, mixture_above=1.5)
    # All are at their limit, −0.7 · 0.8 above −0.6. Medians are 10 and 30: 16 is above one and a half of its own, 30 is not.
    torch.testing.assert_close(adapted, torch.tensor([-0.6, -0.6, -0.602, -0.6, -0.6, -0.6]))


def test_bias_adaptation_adapts_every_interval_and_then_forgets(rows: torch.Tensor):
    dictionary = Dictionary(12, 20)
    rule = BiasAdaptation(Spectrum(groups=2, htf=0.2, ltf=0.05), interval=3)
    state = rule.begin(dictionary, rows)
    for step in (1, 2, 3):
        assert torch.equal(dictionary.b_enc, torch.zeros(20))
        codes = dictionary.encode(rows[100 * step : 100 * (step + 1)])
        state = rule.after_step(dictionary, state, codes, step)
    assert (dictionary.b_enc < 0).all(), "half-active latents are over both targets"
    assert state["rows"] == 0
    assert not state["fired"].any()


def test_no_state_of_a_rule_grows_with_the_rows(rows: torch.Tensor):
    dictionary = Dictionary(12, 20)
    rule = BiasAdaptation(Spectrum(groups=2), interval=1000)
    state = rule.begin(dictionary, rows)
    size = sum(t.numel() for t in state.values())
    codes = dictionary.encode(rows)
    for step in range(1, 6):
        state = rule.after_step(dictionary, state, codes, step)
    assert sum(t.numel() for t in state.values()) == size <= 4 * 20


def test_steering_reaches_its_targets():
    """With atoms held still, the rule alone brings over-active latents to their group's frequency."""
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1))
    dictionary = Dictionary(16, 60)
    rule = BiasAdaptation(Spectrum(groups=3, htf=0.3, ltf=0.03), interval=1)
    state = rule.begin(dictionary, x)
    for step in range(1, 401):
        codes = dictionary.encode(x)
        state = rule.after_step(dictionary, state, codes, step)
    frequency = (dictionary.encode(x).z > 0).float().mean(0)
    ratio = frequency / rule.spectrum.targets(60)
    assert ratio.max() < 1.1
    assert ratio.min() > 0.7


def test_fixed_bias_sets_one_bias_for_all(rows: torch.Tensor):
    dictionary = Dictionary(12, 50)
    normalised, _ = dictionary.normalise(rows)
    FixedBias(0.1).begin(dictionary, normalised)
    assert dictionary.b_enc.unique().numel() == 1
    assert (dictionary.pre_activations(rows) > 0).float().mean() == pytest.approx(0.1, abs=0.01)


def test_unit_norm_leaves_directions(rows: torch.Tensor):
    dictionary = Dictionary(12, 5)
    with torch.no_grad():
        dictionary.W_dec *= torch.tensor([0.5, 1, 2, 3, 4])[:, None]
    before = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1)
    UnitNorm().project(dictionary)
    torch.testing.assert_close(dictionary.W_dec.detach(), before)


STEERED = {
    **{"untied": gba_untied(4, groups=3), "trained thresholds": gba_jumprelu(4, groups=3)},
    **{"Matryoshka groups": gba_matryoshka(4, groups=3)},
}


@pytest.mark.parametrize("name", STEERED)
def test_frequencies_of_other_methods_are_steered_too(name: str, rows: torch.Tensor):
    """L0 and every group's share of it are those asked for, whatever else selects and explains."""
    method, m = STEERED[name], 24
    dictionary = fit(rows, replace(method, lr=1e-3), latents=m, steps=400, batch=100)
    frequency = dictionary.encode(rows).seen.frequency
    assert method.spectrum is not None
    targets = method.spectrum.targets(m)
    assert float(frequency.sum()) == pytest.approx(4, rel=0.25)
    groups = [part.sum() / wanted.sum() for part, wanted in zip(frequency.split(8), targets.split(8), strict=True)]
    assert all(0.55 < float(share) < 1.45 for share in groups), groups
    assert not dictionary.b_enc.requires_grad and dictionary.b_enc.min() >= -1 and dictionary.b_enc.max() <= 0
    torch.testing.assert_close(dictionary.W_enc.detach().norm(dim=1), torch.ones(m))


def test_released_latents_have_one_threshold_and_the_wanted_l0(rows: torch.Tensor):
    """Steered to half of L0 at first, each latent at a threshold of its own; all at one at the end, which gives L0."""
    method, sizes = replace(gba_released(4, groups=3), lr=1e-3), {"latents": 24, "batch": 100}
    run = Run(method=method, steps=400, **sizes)
    stream = ArrayStream(rows, batch=100, seed=0)
    state = start(run, stream)
    for _ in range(200):
        step_once(run, state, next(stream))
    assert float(state.dictionary.encode(rows).seen.frequency.sum()) == pytest.approx(2, rel=0.3)
    assert state.dictionary.b_enc.unique().numel() > 12
    for _ in range(200):
        step_once(run, state, next(stream))
    assert float(state.dictionary.encode(rows).seen.frequency.sum()) == pytest.approx(4, rel=0.1)
    assert state.dictionary.b_enc.unique().numel() == 1


def test_hardly_any_row_of_noise_exceeds_the_universal_threshold():
    """Of a row's projections on M independent directions; and it goes with the scale of the rows."""
    generator, latents = torch.Generator().manual_seed(0), 400
    noise = 3 * torch.randn(4000, latents, generator=generator)  # its coordinates are its projections on the axes
    theta = universal_threshold(noise, latents)
    # (M = 400) 1 − Φ(√(2 ln M))^M = 0.104: of the largest of 400, one in ten.
    assert float((noise.amax(1) > theta).double().mean()) == pytest.approx(0.104, abs=0.02)
    torch.testing.assert_close(universal_threshold(5 * noise, latents), 5 * theta)


def test_told_nothing_thresholds_go_to_a_share_of_the_universal_one_and_end_at_the_whole(rows: torch.Tensor):
    """Straight from one to the other, in logarithms: half-way in time it is their geometric mean."""
    run = Run(method=replace(gba_universal(groups=3, threshold=0.6), lr=1e-3), steps=200, latents=24, batch=100)
    stream = ArrayStream(rows, batch=100, seed=0)
    state = start(run, stream)
    dictionary = state.dictionary
    sample = torch.cat([next(stream).x for _ in range(100)])[:8192]
    stream.load_state_dict(ArrayStream(rows, batch=100, seed=0).state_dict())
    universal = universal_threshold(dictionary.normalise(sample)[0] - dictionary.centre, 24).detach()
    for _ in range(60):
        step_once(run, state, next(stream))
    assert dictionary.b_enc.unique().numel() > 12
    for steps, share in ((60, 0.6), (40, 0.6**0.5), (40, 1.0)):
        for _ in range(steps):
            step_once(run, state, next(stream))
        torch.testing.assert_close(-dictionary.b_enc, (share * universal).expand(24))


@pytest.mark.parametrize("centre", ["fixed", "trained"])
def test_told_nothing_the_centre_starts_at_the_mean_and_stays_there_unless_it_is_trained(
    centre: Any, rows: torch.Tensor
):
    run = Run(method=gba_universal(groups=3, centre=centre), steps=20, latents=24, batch=100)
    stream = ArrayStream(rows, batch=100, seed=0)
    state = start(run, stream)
    mean = state.dictionary.centre.detach().clone()
    assert bool(mean.any())
    for _ in range(20):
        step_once(run, state, next(stream))
    assert torch.equal(state.dictionary.centre, mean) == (centre == "fixed")


def test_a_release_goes_all_the_way_in_equal_steps_of_the_logarithm():
    """The shares of the remaining way that `at` gives add up to straight lines, whatever the interval."""
    rule = Release(BiasAdaptation(interval=5), l0=4, first=0.2, last=0.6)
    assert rule.at(20, 100).pull == 0
    way, left = [], 1.0
    for step in range(25, 101, 5):
        left *= 1 - rule.at(step, 100).pull
        way.append(left)
    assert way == pytest.approx([(7 - i) / 8 for i in range(8)] + [0.0] * 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"l0": 0}, "l0=0 must be positive"),
        ({"l0": 4, "first": 0.8}, r"first=0.8 and last=0.75 are shares of the run"),
        ({"l0": None, "universal": 0.0}, "universal=0.0 is a share of the universal threshold"),
        ({"l0": None, "final": -1.0}, "final=-1.0 is a share of the universal threshold"),
        ({"l0": 4, "gain": 1.0}, "gain=1.0 is a relative change"),
    ],
)
def test_a_wrong_release_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Release(BiasAdaptation(), **wrong)


def test_thresholds_are_trained_while_biases_are_steered(rows: torch.Tensor):
    dictionary = fit(rows, gba_jumprelu(4, groups=3), latents=24, steps=50, batch=100)
    assert dictionary.get_parameter("log_threshold").std() > 0 and dictionary.b_enc.std() > 0


def test_biases_are_steered_once():
    for method in (gba(), modified_ba(), gba_jumprelu()):
        with pytest.raises(ValueError, match="steers its biases already"):
            with_frequency_control(method, Spectrum())
    with pytest.raises(ValueError, match=r"pursues with other atoms .* or has a bias to train or steer"):
        with_frequency_control(matching_pursuit(3), Spectrum(groups=2)).check(16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BiasAdaptation(interval=0), "interval=0 must be at least 1"),
        (lambda: BiasAdaptation(narrowest=0.0), r"narrowest=0\.0 is a share"),
        (lambda: BiasAdaptation(mixture_above=0.5), r"mixture_above=0\.5 is a multiple"),
        (lambda: BiasAdaptation(raise_below=1.5), r"raise_below=1\.5 is a share"),
        (lambda: FixedBias(1.0), "frequency=1.0 must lie between"),
    ],
)
def test_bad_rules_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_threshold_follows_the_smallest_code_of_each_batch(rows: torch.Tensor):
    """By hand: the first batch sets it, later ones move it by the rate; then rows alone have about k codes."""
    dictionary = Dictionary(12, 40, BatchTopK(3), Parametrisation(tied=False))
    rule = ThresholdEMA(0.25)
    normalised, norm = dictionary.normalise(rows)
    state, expected = rule.begin(dictionary, normalised), None
    for step, (x, n) in enumerate(zip(normalised.split(100), norm.split(100), strict=True)):
        codes = dictionary.encode_batch(x, n)
        assert int(codes.entries.l0().sum()) == 300
        smallest = float(codes.z.detach()[codes.z > 0].min())
        expected = smallest if expected is None else 0.75 * expected + 0.25 * smallest
        state = rule.after_step(dictionary, state, codes, step)
        assert float(dictionary.threshold) == pytest.approx(expected, rel=1e-6)
    alone = dictionary.encode(rows)
    assert 2.5 < float(alone.entries.l0().float().mean()) < 3.5
    assert alone.z.detach()[alone.z > 0].min() > dictionary.threshold
    with pytest.raises(ValueError, match="has no threshold to learn"):
        rule.begin(Dictionary(12, 40), normalised)
