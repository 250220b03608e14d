import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overtone import Dictionary, Parametrisation, ReLU, evaluate, recovery
from overtone.metrics.latents import latent_stats


def identity(d: int) -> Dictionary:
    """A dictionary that reconstructs every row: ±e_i with ReLU."""
    dictionary = Dictionary(d, 2 * d, ReLU(), Parametrisation(input_norm="none"))
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.cat([torch.eye(d), -torch.eye(d)]))
    return dictionary


def constant(d: int, value: torch.Tensor) -> Dictionary:
    """A dictionary whose latents never fire: it predicts b_dec."""
    dictionary = Dictionary(d, 4, ReLU(), Parametrisation(input_norm="none"))
    with torch.no_grad():
        dictionary.b_enc.fill_(-1e6)
        dictionary.b_dec.copy_(value)
    return dictionary


def test_perfect_and_mean_predictors(rows: torch.Tensor):
    rows = rows + 3.0  # a mean that an explained variance against zero would get wrong
    perfect = evaluate(identity(12), rows)
    assert perfect.explained_variance == pytest.approx(1.0, abs=1e-6)
    assert perfect.normalised_mse == pytest.approx(0.0, abs=1e-6)
    assert perfect.l0 == pytest.approx(12)
    mean = evaluate(constant(12, rows.mean(0)), rows)
    assert mean.explained_variance == pytest.approx(0.0, abs=1e-6)
    zero = evaluate(constant(12, torch.zeros(12)), rows)
    assert zero.normalised_mse == pytest.approx(1.0)
    assert zero.explained_variance < -1
    assert zero.alive == zero.dense == zero.l0 == 0


@given(batch=st.integers(1, 700))
def test_any_batching_gives_the_same_numbers(batch: int):
    x = torch.randn(600, 12, generator=torch.Generator().manual_seed(5)) + 1
    dictionary = Dictionary(12, 30)
    whole, parts = evaluate(dictionary, x, batch=600), evaluate(dictionary, x, batch=batch)
    assert parts.explained_variance == pytest.approx(whole.explained_variance, rel=1e-6)
    assert parts.normalised_mse == pytest.approx(whole.normalised_mse, rel=1e-6)
    assert (parts.rows, parts.l0, parts.alive, parts.dense) == (whole.rows, whole.l0, whole.alive, whole.dense)


def test_invariant_to_repeating_and_scaling(rows: torch.Tensor):
    dictionary = Dictionary(12, 30)
    once = evaluate(dictionary, rows).summary()
    for changed in (rows.repeat(3, 1), rows * 100):
        other = evaluate(dictionary, changed).summary()
        for name in ("explained_variance", "normalised_mse", "l0", "alive", "dense"):
            assert other[name] == pytest.approx(once[name], rel=1e-5), name


def test_by_hand(rows: torch.Tensor):
    dictionary = Dictionary(12, 30)
    stats, x_hat = evaluate(dictionary, rows, batch=100), dictionary(rows).detach()
    fvu = (rows - x_hat).square().sum() / (rows - rows.mean(0)).square().sum()
    assert stats.explained_variance == pytest.approx(1 - float(fvu), rel=1e-5)
    frequency = (dictionary.encode(rows).z > 0).float().mean(0)
    assert stats.l0 == pytest.approx(float(frequency.sum()), rel=1e-6)
    assert stats.dense == pytest.approx(float((frequency > 0.1).float().mean()))


def test_recovery_laws(generator: torch.Generator):
    truth = torch.randn(10, 8, generator=generator)
    atoms = torch.cat([truth[:7] * 5, torch.randn(20, 8, generator=generator) * 0.01])
    found = recovery(atoms, truth, thresholds=(0.8, 0.999))
    assert found.max_cosine[:7] == pytest.approx(torch.ones(7))
    assert found.frr[0.999] == 0.7
    assert found.frr[0.8] >= found.frr[0.999]
    shuffled = recovery(atoms[torch.randperm(27, generator=generator)], truth * 3, thresholds=(0.8, 0.999))
    assert shuffled.frr == found.frr
    assert recovery(-truth, truth).frr[0.9] < 1, "an atom pointing the other way is not the feature"
    assert recovery(truth, truth).mean_max_cosine == pytest.approx(1)


def test_latent_stats_find_the_top_rows(rows: torch.Tensor):
    dictionary = Dictionary(12, 30)
    stats = latent_stats(dictionary, rows, k=5, batch=64)
    z, pre = dictionary.encode(rows).z.detach(), dictionary.pre_activations(rows).detach()
    best = z.topk(5, dim=0)
    torch.testing.assert_close(stats.top.values, best.values.T.clamp(min=0))
    for latent in range(30):
        for value, row in zip(stats.top.values[latent].tolist(), stats.top.rows[latent].tolist(), strict=True):
            assert row == -1 if value == 0 else z[row, latent] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(stats.peak, pre.amax(0))
    expected = (pre.amax(0) - pre.mean(0)) / pre.std(0, correction=0)
    torch.testing.assert_close(stats.z_score, expected, rtol=1e-3, atol=1e-3)
