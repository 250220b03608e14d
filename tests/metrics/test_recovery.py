import pytest
import torch

from overtone.data.ground_truths import Hierarchy
from overtone.metrics.recovery import hierarchy_errors, recovery


def test_recovery_does_not_see_order_or_length_and_sign_only_where_asked(generator: torch.Generator):
    truth, atoms = torch.randn(30, 8, generator=generator), torch.randn(50, 8, generator=generator)
    atoms[:15] = truth[:15]
    score = recovery(atoms, truth, (0.95,))
    order = torch.randperm(50, generator=generator)
    same = recovery(3 * atoms[order], 0.1 * truth, (0.95,))
    assert score.frr == same.frr and score.frr[0.95] >= 0.5
    assert same.mean_max_cosine == pytest.approx(score.mean_max_cosine, rel=1e-5)
    signs = torch.where(torch.rand(50, 1, generator=generator) < 0.5, -1.0, 1.0)
    assert recovery(signs * atoms, truth, (0.95,)).frr[0.95] < score.frr[0.95]
    unsigned = recovery(atoms, truth, (0.95,), signed=False)
    assert unsigned.mean_max_cosine >= score.mean_max_cosine
    torch.testing.assert_close(recovery(signs * atoms, truth, signed=False).max_cosine, unsigned.max_cosine)


def test_hierarchy_errors_tell_absorption_from_separation(generator: torch.Generator):
    truth = Hierarchy(cosine=0.8)
    v, parent = truth.features, truth.parent_of
    child = parent >= 0
    exact = hierarchy_errors(2 * v[torch.randperm(20, generator=generator)], v, parent)
    assert exact.flat == pytest.approx(0, abs=1e-9) and exact.hierarchical == pytest.approx(0, abs=1e-9)
    absorbed = v.clone()
    absorbed[child] += 0.5 * v[parent[child]]
    errors = hierarchy_errors(absorbed, v, parent)
    assert errors.hierarchical == pytest.approx(0.25 / 1.25, rel=1e-4) and errors.flat < 0.01
    apart = v.clone()
    apart[child] = Hierarchy(cosine=0.0).features[child]
    errors = hierarchy_errors(apart, v, parent)
    assert errors.hierarchical == pytest.approx(0, abs=1e-9) and errors.flat == pytest.approx(0.64, rel=1e-4)
