"""H1–H3 and V1: by hand where the answer is known, and their invariances."""

import math

import pytest
import torch

from overtone.data.synthetic import SparseMixture
from overtone.theory.conditions import chance, coherence, conditions, random_coherence, tally

H = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])


def test_by_hand():
    found = conditions(tally([H]), torch.eye(3), least=1)
    assert found.rows == 4  # the empty row is none
    assert (found.most_active, found.mean_active) == (2, 5 / 4)
    assert found.frequency.tolist() == [0.5, 0.5, 0.25]
    assert found.co_occurrence == 0.5
    assert set(found.pair) == {0, 1}
    assert found.co_occurrence_bound == pytest.approx(3**-0.5)
    assert found.smallest == pytest.approx(1 / 1.5)
    assert found.evenness == pytest.approx(1.0)  # of 1, (3/2)²/(5/2) and 1
    assert found.coherence == 0.0


def test_a_feature_that_always_comes_with_another_co_occurs_fully():
    h = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = conditions(tally([h]), torch.eye(2), least=1)
    assert (found.co_occurrence, found.pair) == (1.0, (0, 1))


def test_coherence_is_the_cosine_of_the_closest_pair_either_way():
    v = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(0.75)], [0.0, 5.0]])
    assert coherence(v) == pytest.approx(math.sqrt(0.75))
    assert coherence(v[:2]) == pytest.approx(0.5)
    assert coherence(v[:1]) == 0.0


def test_invariances(generator):
    truth = SparseMixture(n_features=20, d=10, sparsities=(3,))
    h = truth.rows(3000).h
    order = torch.randperm(20, generator=generator)
    scale = torch.rand(20, generator=generator) + 0.5
    plain = conditions(tally([h]), truth.features)
    other = conditions(tally((h[:, order] * scale).split(700)), truth.features[order] / scale[:, None])
    for name in ("rows", "n_features", "mean_active", "most_active", "co_occurrence"):
        assert getattr(plain, name) == getattr(other, name)
    for name in ("smallest", "evenness", "coherence"):
        assert getattr(plain, name) == pytest.approx(getattr(other, name), rel=1e-5)
    assert {int(order[i]) for i in other.pair} == set(plain.pair)
    assert torch.equal(plain.frequency[order], other.frequency)


def test_of_independent_choices_within_sampling_error():
    truth = SparseMixture(n_features=30, d=16, sparsities=(4,))
    rows = 20_000
    found = conditions(tally(truth.rows(rows).h.split(4096)), truth.features)
    f = 4 / 30
    assert (found.frequency - f).abs().max() < 5 * math.sqrt(f * (1 - f) / rows)
    # Given one feature, each other one is among the 3 of 29; ρ₂ is the largest of 870 such shares.
    q = 3 / 29
    assert q < found.co_occurrence < q + 5 * math.sqrt(q * (1 - q) / (f * rows))
    assert found.evenness == pytest.approx(0.75, abs=0.01)
    assert found.most_active == 4


def test_what_chance_does_to_a_maximum(generator):
    for rows, f in ((2000, 0.05), (8000, 0.05), (8000, 0.3)):
        h = (torch.rand(rows, 100, generator=generator) < f).float()
        found = conditions(tally([h]), torch.eye(100))
        assert 0.6 * found.co_occurrence_by_chance < found.co_occurrence <= found.co_occurrence_by_chance
    times = torch.tensor([20, 50])
    assert chance(times, 0.1) > chance(10 * times, 0.1) > chance(1_000_000 * times, 0.1) > 0.1
    assert chance(1_000_000 * times, 0.1) == pytest.approx(0.1, abs=1e-3)
    assert chance(times, 1.0) == 1.0


def test_a_feature_hardly_seen_has_no_say():
    h = torch.zeros(100, 3)
    h[:50, 0], h[50:, 1], h[0, 2] = 1.0, 1.0, 1.0
    found = conditions(tally([h]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), least=2)
    assert (found.n_features, found.unseen, found.co_occurrence, found.coherence) == (2, 1, 0.0, 0.0)
    assert conditions(tally([h]), torch.eye(3), least=1).co_occurrence == 1.0


def test_random_directions_are_about_as_coherent_as_said(generator):
    for n, d in ((200, 50), (1000, 200)):
        assert coherence(torch.randn(n, d, generator=generator)) == pytest.approx(random_coherence(n, d), rel=0.2)


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="the model has H ≥ 0"):
        tally([torch.tensor([[1.0, -0.5]])])
    with pytest.raises(ValueError, match="no row has an active feature"):
        tally([torch.zeros(4, 2)])
    with pytest.raises(ValueError, match="2 features for 3 columns"):
        conditions(tally([H]), torch.eye(2))
