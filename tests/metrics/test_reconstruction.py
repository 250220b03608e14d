import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overtone import ArrayStream, Dictionary, Parametrisation, ReLU, Run, evaluate, recovery, start
from overtone.metrics.latents import latent_stats, z_scores
from small_methods import SMALL


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


def test_a_perfect_and_a_mean_predictor_in_every_dimension_and_decile(rows: torch.Tensor):
    rows = rows + 3.0
    for dictionary, value in ((identity(12), 1.0), (constant(12, rows.mean(0)), 0.0)):
        found = evaluate(dictionary, rows, batch=128)
        assert found.dimension_explained_variance.tolist() == pytest.approx([value] * 12, abs=1e-6)
        assert found.decile_explained_variance.tolist() == pytest.approx([value] * 10, abs=1e-6)
    assert evaluate(identity(12), rows).cosine == pytest.approx(1.0)
    still = rows.clone()
    still[:, 3] = 7.0
    assert evaluate(identity(12), still).dimension_explained_variance.isnan().nonzero().tolist() == [[3]]


def test_distributions_by_hand(rows: torch.Tensor):
    rows = rows[rows.norm(dim=1) > 0]
    dictionary = Dictionary(12, 30)
    found, x_hat = evaluate(dictionary, rows, batch=97), dictionary(rows).detach()
    error, centred = (rows - x_hat).square(), (rows - rows.mean(0)).square()
    torch.testing.assert_close(
        found.dimension_explained_variance.float(), 1 - error.sum(0) / centred.sum(0), rtol=1e-4, atol=1e-4
    )
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(rows, x_hat, dim=1).mean()), rel=1e-5)
    l0 = (dictionary.encode(rows).z != 0).sum(1)
    assert found.active.tolist() == torch.bincount(l0).tolist()
    for share in (0.01, 0.5, 0.95, 1.0):
        expected = int(l0.sort().values[max(0, -(-int(share * 1e6) * len(l0) // 1_000_000) - 1)])
        assert found.l0_quantile(share) == expected
    histogram = found.frequency_histogram
    assert sum(histogram.values()) == 30 and histogram["never"] == int((found.firing.fired == 0).sum())


def test_deciles_are_those_of_the_sorted_rows(generator: torch.Generator):
    """Ten norms, each in a bin of its own and of a tenth of the rows: deciles without approximation; shared out otherwise."""
    direction = torch.nn.functional.normalize(torch.randn(500, 12, generator=generator), dim=1)
    norms = (1.3 ** torch.arange(10)).repeat_interleave(50)
    rows = direction * norms[:, None]
    dictionary = Dictionary(12, 30)
    error = (rows - dictionary(rows).detach()).square().sum(1).double()
    variance = (rows - rows.mean(0)).square().sum(1).double()
    order = torch.randperm(500, generator=generator)
    found = evaluate(dictionary, rows[order], batch=83)
    expected = 1 - error.view(10, 50).sum(1) / variance.view(10, 50).sum(1)
    torch.testing.assert_close(found.decile_explained_variance, expected, rtol=1e-5, atol=1e-5)
    upper = found.moments.parts(10).up_to
    assert (upper >= norms[::50].double() * (1 - 1e-6)).all() and (upper <= norms[::50].double() * 1.07).all()
    parts = evaluate(dictionary, rows).moments.parts(7)
    assert float(parts.error.sum()) == pytest.approx(float(error.sum()), rel=1e-5)
    assert float(parts.variance.sum()) == pytest.approx(float(variance.sum()), rel=1e-5)
    level = evaluate(dictionary, direction)
    assert level.decile_explained_variance.tolist() == pytest.approx([level.explained_variance] * 10, rel=1e-6)


@given(batch=st.integers(1, 300), copies=st.integers(1, 3), octaves=st.sampled_from([-20, 0, 9]))
def test_distributions_do_not_see_batches_copies_or_scale(batch: int, copies: int, octaves: int):
    x = torch.randn(250, 12, generator=torch.Generator().manual_seed(5)) * 2 + 50
    dictionary = Dictionary(12, 30)
    once = evaluate(dictionary, x).distributions()
    other = evaluate(dictionary, x.repeat(copies, 1) * 2.0**octaves, batch=batch).distributions()
    for name in ("dimension_explained_variance", "decile_explained_variance"):
        assert other[name] == pytest.approx(once[name], rel=1e-5, abs=1e-5), name
    assert [copies * rows for rows in once["l0_histogram"]] == other["l0_histogram"]
    assert once["l0_quantiles"] == other["l0_quantiles"] and once["frequency_histogram"] == other["frequency_histogram"]
    assert other["decile_norm_up_to"] == pytest.approx([up * 2.0**octaves for up in once["decile_norm_up_to"]])


# Of the smooth ReLU no code is 0, and a latent is active where its pre-activation is above 0.
@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"modified-ba"}))
def test_the_mean_of_the_l0s_is_the_l0(name: str, rows: torch.Tensor):
    dictionary = start(Run(SMALL[name], latents=24, steps=1, batch=200), ArrayStream(rows, 200)).dictionary
    stats = evaluate(dictionary, rows, batch=200)
    counts = torch.arange(len(stats.active), dtype=torch.float64)
    assert float((counts * stats.active).sum() / stats.rows) == pytest.approx(stats.l0)
    assert int(stats.active.sum()) == stats.rows == len(rows)


def test_z_scores_need_no_codes_and_no_single_batch(rows: torch.Tensor):
    dictionary = Dictionary(12, 30)
    expected = latent_stats(dictionary, rows, batch=64)
    found = z_scores(dictionary, [rows[:17], rows[17:400], rows[400:]], expected.peak)
    torch.testing.assert_close(found, expected.z_score, rtol=1e-5, atol=1e-5)
