"""The recursion of projections is modified BA: against gradients of atoms, and against training."""

import pytest
import torch
from torch.nn.functional import normalize, softplus

import overtone as ot
from overtone.data.synthetic import SparseMixture
from overtone.theory.dynamics import ModifiedBA, advance, bias_of, follow, mixture, random_projections
from overtone.training import start, train

TRUTH = SparseMixture(n_features=24, d=12, sparsities=(2, 4))
ALGORITHM = ModifiedBA(0.05)


def atoms(latents: int) -> torch.Tensor:
    return normalize(torch.randn(latents, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1)


def test_a_step_is_the_step_of_the_atoms():
    data, v = mixture(TRUTH, 500), TRUTH.features.double()
    w = atoms(7).requires_grad_()
    x = data.h @ v
    bias = bias_of((w @ v.T).detach(), data, 0.05)
    pulled = x @ w.T
    alignment = (softplus(pulled + bias, beta=50.0) * pulled).mean(0).sum()
    (gradient,) = torch.autograd.grad(alignment, w)
    stepped = normalize(w + 10.0 * gradient, dim=1).detach()
    found = advance((w @ v.T).detach(), data, bias, ALGORITHM)
    torch.testing.assert_close(found, stepped @ v.T, atol=1e-10, rtol=1e-8)


def test_rows_are_unit_rows_less_their_mean():
    data = mixture(TRUTH, 3000)
    assert data.h.mean(0).abs().max() < 1e-12
    # Each x̃ has norm 1 and mean m: their mean square is 1 − ‖m‖².
    x = data.h @ TRUTH.features.double()
    rows = normalize(TRUTH.rows(20_000).x.double(), dim=1)
    assert float(x.square().sum(1).mean()) == pytest.approx(1 - float(rows.mean(0).square().sum()), abs=0.01)


def test_permutations():
    data, begin = mixture(TRUTH, 400), random_projections(TRUTH, 9)
    order, latents = torch.randperm(24), torch.randperm(9)
    moved = type(data)(data.h[:, order], data.gram[order][:, order])
    plain = follow(begin, data, ALGORITHM, 3).projections[-1]
    other = follow(begin[latents][:, order], moved, ALGORITHM, 3).projections[-1]
    torch.testing.assert_close(other, plain[latents][:, order], atol=1e-9, rtol=1e-7)


def test_atoms_stay_on_the_sphere():
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(2))).Q
    truth = SparseMixture(n_features=12, d=12, sparsities=(2,), features=basis)
    path = follow(random_projections(truth, 20), mixture(truth, 1000), ALGORITHM, 5)
    for projections in path.projections:  # of an orthonormal basis, squares of projections sum to the norm
        torch.testing.assert_close(projections.square().sum(1), torch.ones(20).double(), atol=1e-5, rtol=0)


def test_the_bias_is_the_quantile():
    data, begin = mixture(TRUTH, 1000), random_projections(TRUTH, 50)
    for p in (0.01, 0.2):
        firing = ((begin @ data.h.T + bias_of(begin, data, p)) > 0).double().mean()
        assert float(firing) == pytest.approx(p, abs=1e-4)


def test_what_it_says_of_a_run():
    run = ot.Run(ot.modified_ba(0.03), latents=128, steps=15, batch=2048, decay=0.0)
    truth = SparseMixture(n_features=32, d=16, sparsities=(3,))
    stream = truth.stream(2048)
    state = start(run, stream)
    v = truth.features.double()
    begin = state.dictionary.W_dec.detach().double() @ v.T
    path = follow(begin, mixture(truth, 4096, seed=5), ModifiedBA(0.03), 15)
    assert path.bias == pytest.approx(float(state.dictionary.b_enc[0]), abs=0.01)
    for _ in train(run, stream, state):
        pass
    ran, said = state.dictionary.W_dec.detach().double() @ v.T, path.projections[-1]
    assert float(ran.amax(1).mean()) > float(begin.amax(1).mean()) + 0.2  # they did move
    assert float(ran.amax(1).mean()) == pytest.approx(float(said.amax(1).mean()), abs=0.02)
    assert float((ran.argmax(1) == said.argmax(1)).double().mean()) > 0.8
    assert path.recovered(0.8)[0] <= path.recovered(0.8)[-1]


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="neither noise nor offsets"):
        mixture(SparseMixture(n_features=8, d=4, sparsities=(2,), noise=0.1), 10)
    with pytest.raises(ValueError, match="frequency=0"):
        ModifiedBA(0.0)
    with pytest.raises(ValueError, match=r"step=-1"):
        ModifiedBA(step=-1.0)
    with pytest.raises(ValueError, match="steps=-1"):
        follow(random_projections(TRUTH, 2), mixture(TRUTH, 10), ALGORITHM, -1)
