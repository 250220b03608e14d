"""Regression in context: its Bayes estimator against normal equations, and what is known of every position."""

import pytest
import torch

from overtone.data.regression import RegressionMixture, RegressionSequences, predictions
from overtone.seeds import generator

LAW = RegressionMixture(tasks=3, d_x=2, pairs=6, spread=0.4, noise=0.3, seed=2)


@pytest.fixture(scope="module")
def drawn() -> RegressionSequences:
    return LAW.draw(4000, generator(5, "test"))


def solved(x: torch.Tensor, y: torch.Tensor, mean: torch.Tensor, variance: float) -> torch.Tensor:
    """Posterior mean of weights under N(mean, variance · I), by the normal equations."""
    ridge = LAW.noise**2 / variance * torch.eye(2, dtype=torch.float64)
    return mean + torch.linalg.solve(x.T @ x + ridge, x.T @ (y - x @ mean))


def test_estimates_solve_the_normal_equations(drawn: RegressionSequences):
    bayes, ridge, told = LAW.bayes(drawn), LAW.ridge(drawn), LAW.told(drawn)
    square = float(LAW.means.square().mean()) + LAW.spread**2
    for row in range(3):
        x, y = drawn.x[row].double(), drawn.y[row].double()
        for t in range(1, LAW.pairs):
            before, seen = x[:t], y[:t]
            covariance = LAW.noise**2 * torch.eye(t).double() + LAW.spread**2 * before @ before.T
            # The density of what was seen, weights integrated out; its constant is the same for all tasks.
            off = seen - LAW.means @ before.T
            log = -(off * torch.linalg.solve(covariance, off.T).T).sum(1) / 2
            assert torch.allclose(bayes.belief[row, t], log.softmax(0))
            each = torch.stack([solved(before, seen, mean, LAW.spread**2) for mean in LAW.means])
            assert torch.allclose(bayes.weights[row, t], log.softmax(0) @ each)
            assert torch.allclose(told.weights[row, t], each[drawn.task[row]])
            assert torch.allclose(ridge.weights[row, t], solved(before, seen, torch.zeros(2).double(), square))


def test_who_knows_more_predicts_better(drawn: RegressionSequences):
    evidence = LAW.evidence(torch.zeros(4000, 12, 1), drawn)
    means = [evidence[name]["mean"] for name in evidence if name != "the transformer"]
    assert means == sorted(means)
    assert evidence["the transformer"] == evidence["predicts 0"]
    assert evidence["Bayes: infers task and weights"]["off Bayes"] == 0
    squares = (predictions(drawn, drawn.weights[:, None]) - drawn.y).square()
    assert abs(squares.mean() - 0.3**2) < 4.5 * squares.std() / squares.numel() ** 0.5
    # Whatever knows the posterior mean is off by the posterior's variance more than nothing: the error only falls.
    errors = [evidence["Bayes: infers task and weights"][f"{t} pairs"] for t in (0, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True)


def test_what_is_known_is_of_its_place(drawn: RegressionSequences):
    known, read = LAW.known(drawn), LAW.inputs(drawn)
    for i, place in enumerate(LAW.places):
        assert torch.equal(known.values["x"][:, i], read[:, place, :2])
        assert (read[:, place, 2] == 0).all() and torch.equal(read[:, place - 1, 2], drawn.y[:, i])
    along = (known.values["x"] * known.values["w"]).sum(-1)
    assert torch.allclose(along, known.values["wᵀx"][..., 0], atol=1e-5)
    guessed = (known.values["x"] * known.values["Bayes ŵ"]).sum(-1)
    assert torch.allclose(guessed, known.values["Bayes ŵᵀx"][..., 0], atol=1e-5)
    assert torch.equal(known.occurs["task"].long().argmax(-1)[:, 3], drawn.task)
    assert torch.allclose(known.values["belief"].sum(-1), torch.ones(4000, 5))


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"noise=0 is a standard deviation and must be above 0"):
        RegressionMixture(noise=0)
    with pytest.raises(ValueError, match="pairs=1 must be at least 2"):
        RegressionMixture(pairs=1)
