"""Laws of frequencies, coefficients and directions, and mixtures that are made of them, within sampling error."""

import pytest
import torch

from overtone import SparseMixture
from overtone.data.laws import CoefficientLaw, check_law, coefficients, directions, low_coherence, relative_frequencies


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_frequencies_follow_their_law():
    equal, zipf = relative_frequencies("equal", 50), relative_frequencies("zipf", 50, exponent=0.7)
    falling = relative_frequencies("geometric", 50, ratio=30)
    for share in (equal, zipf, falling):
        assert share.sum().item() == pytest.approx(1) and (share.diff() <= 0).all()
    torch.testing.assert_close(zipf[0] / zipf[9], torch.tensor(10**0.7, dtype=torch.float64))
    torch.testing.assert_close(falling.log().diff(), falling.log().diff()[0].expand(49))
    assert (falling[0] / falling[-1]).item() == pytest.approx(30) and equal[0] == equal[-1]


@pytest.mark.parametrize(
    ("law", "mean", "deviation"),
    [
        ("uniform", 0.5, 12**-0.5),
        ("constant", 1.0, 0.0),
        ("half-normal", (2 / torch.pi) ** 0.5, (1 - 2 / torch.pi) ** 0.5),
        ("exponential", 1.0, 1.0),
    ],
)
def test_coefficients_are_least_plus_spread_times_their_law(law, mean: float, deviation: float):
    plain = coefficients(law, (40_000,), draws())
    assert plain.mean().item() == pytest.approx(mean, abs=5 * deviation / 200 + 1e-6)
    assert plain.std().item() == pytest.approx(deviation, rel=0.05, abs=1e-6) and plain.min() > 0
    torch.testing.assert_close(coefficients(law, (40_000,), draws(), least=2.0, spread=3.0), 2 + 3 * plain)


def test_log_normal_coefficients():
    logarithm = coefficients("log-normal", (40_000,), draws(), least=0.5, spread=0.25).log()
    assert logarithm.mean().item() == pytest.approx(0.5, abs=0.007)
    assert logarithm.std().item() == pytest.approx(0.25, rel=0.02)


def test_directions_have_the_cosines_of_their_law():
    n, d = 600, 200
    gram = {law: (v := directions(law, n, d)) @ v.T for law in ("gaussian", "low-coherence", "signs", "heavy-tailed")}
    for product in gram.values():
        torch.testing.assert_close(product.diagonal(), torch.ones(n), rtol=0, atol=1e-5)
    rest = ~torch.eye(n, dtype=torch.bool)
    assert gram["gaussian"][rest].square().mean().item() == pytest.approx(1 / d, rel=0.03)
    assert gram["signs"][rest].square().mean().item() == pytest.approx(1 / d, rel=0.03)
    torch.testing.assert_close(directions("signs", n, d).abs(), torch.full((n, d), d**-0.5))
    # Student's t has a tail: the fourth moment of an entry is far above the Gaussian's 3.
    tail = {law: (directions(law, n, d) * d**0.5).pow(4).mean() for law in ("gaussian", "heavy-tailed")}
    assert tail["gaussian"] < 3.1 and tail["heavy-tailed"] > 6
    # Σ⟨v_i, v_j⟩² cannot be below n²/d (Welch); the descent goes a good part of the way.
    assert gram["low-coherence"].square().sum() < 0.5 * (gram["gaussian"].square().sum() + n**2 / d)


def test_neighbours_are_correlated_and_strangers_are_not():
    v = directions("correlated", 800, 100, cosine=0.8)
    for distance in (1, 2, 5, 60):
        cosine = (v[distance:] * v[:-distance]).sum(1).mean().item()
        assert cosine == pytest.approx(0.8**distance, abs=0.03)


def test_the_descent_has_the_gradient_of_its_products():
    """One step of Adam by the small matrix VᵀV, against automatic differentiation of the n² products."""
    v = directions("gaussian", 40, 10)
    slow = v.clone().requires_grad_()
    adam = torch.optim.Adam([slow], lr=0.01)
    for _ in range(3):
        adam.zero_grad()
        product = slow @ slow.T
        norm = product.diagonal()
        (product.square().sum() - norm.square().sum() + 40 * (norm - 1).square().sum()).backward()
        adam.step()
    expected = torch.nn.functional.normalize(slow.detach(), dim=1)
    torch.testing.assert_close(low_coherence(v, steps=3, lr=0.01), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sparsities", [(4,), (3, 6)])
@pytest.mark.parametrize("wanted", [0.2, 0.6, 0.8])
def test_companions_occur_together_as_often_as_asked(sparsities: tuple[int, ...], wanted: float):
    n, rows = 40, 30_000
    active = (SparseMixture(n, 16, sparsities, co_occurrence=wanted).rows(rows).h > 0).double()
    assert set(active.sum(1).long().tolist()) == set(sparsities)
    frequency = sum(sparsities) / len(sparsities) / n
    assert (active.mean(0) - frequency).abs().max() < 5 * (frequency / rows) ** 0.5
    together = active.T @ active / active.sum(0)[:, None]
    companion = torch.arange(n) ^ 1
    of_companions = together[torch.arange(n), companion]
    assert of_companions.mean().item() == pytest.approx(wanted, abs=0.01)
    assert (of_companions - wanted).abs().max() < 5.5 * (wanted * (1 - wanted) / (frequency * rows)) ** 0.5
    # ρ₂ is the largest of all pairs, and only companions are above the independent ones.
    strangers = together.masked_fill(torch.eye(n, dtype=torch.bool), 0)
    strangers[torch.arange(n), companion] = 0
    assert strangers.max() < of_companions.min()


def test_given_and_geometric_frequencies():
    weights = torch.linspace(5, 1, 30)
    for truth in (
        SparseMixture(30, 12, (2, 5), frequencies=weights),
        SparseMixture(30, 12, (2, 5), frequencies="geometric", frequency_ratio=20.0),
    ):
        f, rows = truth.occurrence(), 30_000
        assert f.sum().item() == pytest.approx(3.5)
        found = (truth.rows(rows).h > 0).double().mean(0)
        assert ((found - f) / (f * (1 - f) / rows).sqrt()).abs().max() < 5
    torch.testing.assert_close(SparseMixture(30, 12, (2,), frequencies=weights).occurrence(), 2 * weights.double() / 90)


def test_coefficients_of_a_mixture_are_bounded_away_from_zero():
    h = SparseMixture(least=0.5, spread=2.0).rows(500).h
    assert h[h > 0].min() >= 0.5 and h.max() <= 2.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseMixture(frequencies=torch.ones(5)), "frequencies must be 128 numbers above 0"),
        (lambda: SparseMixture(co_occurrence=0.97), "must lie between 0.1321 .independent. and 0.9565"),
        (lambda: SparseMixture(co_occurrence=0.5, frequencies="zipf"), "give frequencies='equal'"),
        (lambda: SparseMixture(noise=-1.0), "noise=-1.0"),
        (lambda: SparseMixture(least=-1.0), "would make magnitudes negative"),
        (lambda: relative_frequencies("geometric", 4, ratio=0.5), "frequency_ratio=0.5 must be at least 1"),
        (lambda: directions("correlated", 4, 4, cosine=1.0), "cosine=1.0 must lie in"),
        (lambda: check_law("law", "gamma", CoefficientLaw), "law='gamma' is not one of uniform, constant"),
    ],
)
def test_bad_settings_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
