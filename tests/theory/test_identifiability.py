"""ε-identifiability: what is the same up to permutation, scaling and splitting, and what another decomposition can do."""

import math

import pytest
import torch

from overtone.data.ground_truths import Hierarchy
from overtone.data.synthetic import SparseMixture
from overtone.theory.conditions import coherence
from overtone.theory.identifiability import Decomposition, ambiguity, difference, sheared, split

NESTED = torch.tensor([[1.0, 2.0], [1.0, 3.0], [0.0, 1.0]])  # feature 0 occurs only with feature 1


def decomposition(seed: int = 0) -> Decomposition:
    truth = SparseMixture(n_features=12, d=8, sparsities=(2, 3), seed=seed)
    return Decomposition(truth.rows(400, seed=seed).h, truth.features)


def test_permutation_scaling_and_splitting_are_no_difference(generator):
    first = decomposition()
    second = split(split(first, 4, 3), 0, 2)
    scale = torch.rand(len(second.v), generator=generator) + 0.5
    order = torch.randperm(len(second.v), generator=generator)
    second = Decomposition((second.h * scale)[:, order], (second.v / scale[:, None])[order])
    torch.testing.assert_close(second.h @ second.v, first.h @ first.v, atol=1e-5, rtol=1e-5)
    found = difference(first, second)
    assert found.epsilon == pytest.approx(0.0, abs=1e-6)
    assert found.coefficient_error == pytest.approx(0.0, abs=1e-6)
    assert sorted(found.parts.tolist()) == [1] * 10 + [2, 3]


def test_a_turned_feature_is_as_far_off_as_it_is_turned():
    h, angle = torch.eye(2), 0.3
    turned = torch.tensor([[math.cos(angle), math.sin(angle)], [0.0, 1.0]])
    found = difference(Decomposition(h, torch.eye(2)), Decomposition(h, turned))
    assert found.epsilon == pytest.approx(1 - math.cos(angle), abs=1e-6)


def test_a_feature_without_counterpart_is_the_difference():
    first = Decomposition(torch.eye(2), torch.eye(2))
    found = difference(first, Decomposition(torch.ones(2, 1), torch.tensor([[1.0, 0.0]])))
    assert found.epsilon == 1.0
    unused = Decomposition(torch.tensor([[1.0, 0.0]]), torch.eye(2))
    assert difference(unused, Decomposition(torch.ones(1, 1), torch.tensor([[2.0, 0.0]]))).epsilon == 0.0


def test_without_nesting_nothing_is_found():
    found = ambiguity(*decomposition(), least=1, max_coherence=0.9)
    assert (found.kind, found.epsilon, found.nested) == ("none", 0.0, 0)


def test_shear_of_orthogonal_features_goes_as_far_as_coherence_lets_it():
    found = ambiguity(NESTED, torch.eye(2), max_coherence=0.5, least=1)
    assert (found.kind, found.pair, found.nested) == ("shear", (0, 1), 1)
    assert found.epsilon == pytest.approx(1 - math.sqrt(0.75))
    assert abs(found.t) == pytest.approx(math.tan(math.pi / 6))
    assert ambiguity(NESTED, torch.eye(2), least=1).epsilon == 0.0  # exact orthogonality asked for: V1 leaves no room


def test_constant_proportion_merges():
    h = torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]])
    found = ambiguity(h, torch.eye(2), least=1)
    assert found.kind == "merge"
    assert found.epsilon == pytest.approx(1 - 1 / math.sqrt(5))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_found_is_another_decomposition_under_the_same_conditions(seed):
    pair = decomposition(seed)
    h = pair.h.clone()
    h[:, 3] = torch.where(h[:, 7] > 0, h[:, 3] + 1.0, h[:, 3])  # 7 now occurs only with 3
    pair = Decomposition(h, pair.v)
    mu = coherence(pair.v) + 0.05
    found = ambiguity(*pair, max_coherence=mu, least=1)
    assert found.epsilon > 0
    other = sheared(pair, *found.pair, found.t)
    torch.testing.assert_close(other.h @ other.v, pair.h @ pair.v, atol=1e-4, rtol=1e-4)
    assert float(other.h.min()) > -1e-5
    assert int((other.h > 1e-5).sum(1).max()) <= int((h > 0).sum(1).max())
    i = found.pair[0]
    against = torch.nn.functional.normalize(other.v, dim=1) @ torch.nn.functional.normalize(other.v[i], dim=0)
    assert float(against[torch.arange(12) != i].abs().max()) <= mu + 1e-4
    turned = torch.nn.functional.cosine_similarity(other.v[i], pair.v[i], dim=0)
    assert found.epsilon == pytest.approx(1 - float(turned), abs=1e-5)


def test_invariances(generator):
    truth = Hierarchy(cosine=0.5)
    h = truth.rows(2000).h
    order = torch.randperm(20, generator=generator)
    scale = torch.rand(20, generator=generator) + 0.5
    plain = ambiguity(h, truth.features)
    other = ambiguity((h * scale)[:, order].repeat(2, 1), (truth.features / scale[:, None])[order])
    assert plain.nested == other.nested == 9  # every child in its parent
    assert plain.epsilon == pytest.approx(other.epsilon, rel=1e-4)
    # A child lies orthogonal to its parent; siblings at 60° allow it to come as near to the parent.
    assert plain.epsilon == pytest.approx(1 - math.cos(math.pi / 6), abs=1e-4)


def test_what_makes_no_sense():
    with pytest.raises(ValueError, match="parts=1 must be at least 2"):
        split(decomposition(), 0, 1)
    with pytest.raises(ValueError, match="feature=12 is not in 0 … 11"):
        split(decomposition(), 12, 2)
    empty = Decomposition(torch.zeros(2, 1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="no feature occurs"):
        difference(empty, empty)
