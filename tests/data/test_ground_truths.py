"""Ground truths are what they say: frequencies, magnitudes, coherence, hierarchy; seeds decide everything."""

import pytest
import torch

from overtone import FreshStream
from overtone.data.ground_truths import (
    Hierarchy,
    IndependentFeatures,
    linear_representation_bench,
    sanity_check,
    separated_features,
)
from overtone.data.synthetic import GroundTruth

MAKERS = {
    "linear": lambda seed=0: linear_representation_bench(60, 40, sparsity=0.9, coherence=0.2, seed=seed),
    "sanity": lambda seed=0: sanity_check(96, 12, l0=4, seed=seed),
    "skewed": lambda seed=0: sanity_check(96, 12, l0=4, probability="log-uniform", seed=seed),
    "hierarchy": lambda seed=0: Hierarchy(cosine=0.6, seed=seed),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest):
    return MAKERS[request.param]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_are_sums_of_unit_features(make):
    truth: GroundTruth = make()
    x, h = truth.sample(2000, draws())
    torch.testing.assert_close(truth.features.norm(dim=1), torch.ones(len(truth.features)))
    torch.testing.assert_close(x, h @ truth.features)
    assert (h >= 0).all()


def test_features_occur_as_often_as_they_should(make):
    truth, rows = make(), 40_000
    p = truth.occurrence()
    share = (truth.sample(rows, draws()).h > 0).double().mean(0)
    assert ((share - p).abs() <= 5 * (p * (1 - p) / rows).sqrt()).all()


def test_seeds_decide_everything(make):
    one, two, other = make(3), make(3), make(4)
    assert torch.equal(one.features, two.features) and not torch.equal(one.features, other.features)
    assert torch.equal(one.rows(500, seed=1).x, two.rows(500, seed=1).x)
    assert not torch.equal(one.rows(500, seed=1).x, one.rows(500, seed=2).x)


def test_streams_resume_and_have_no_row_without_direction(make):
    truth = make()
    stream, again = truth.stream(256, seed=5), truth.stream(256, seed=5)
    assert isinstance(stream, FreshStream) and stream.layout.d == truth.features.shape[1]
    first = next(stream).x
    state = stream.state_dict()
    second = next(stream).x
    again.load_state_dict(state)
    assert torch.equal(next(again).x, second) and not torch.equal(first, second)
    assert len(first) == 256 and (first != 0).any(1).all()
    assert len(truth.rows(9000).x) == 9000


def test_the_linear_bench_is_as_its_paper_says():
    truth = linear_representation_bench()
    gram = truth.features @ truth.features.T
    assert truth.features.shape == (1000, 768) and gram.fill_diagonal_(-1).max() <= 0.1
    h = truth.sample(3000, draws()).h
    assert h[h > 0].mean() == pytest.approx(1.0, abs=0.02) and (h > 0).sum(1).double().mean() == pytest.approx(
        10, abs=0.3
    )
    shifted = linear_representation_bench(30, 30, coherence=0.5, least=2.0, spread=0.5).sample(3000, draws()).h
    assert shifted[shifted > 0].min() >= 2 and shifted[shifted > 0].mean() == pytest.approx(2.5, abs=0.06)


def test_descent_ends_at_the_coherence_or_says_so():
    far = separated_features(60, 40, 0.15, seed=1)
    assert (far @ far.T).fill_diagonal_(-1).max() <= 0.15
    with pytest.raises(ValueError, match="50 features in d=8 still have coherence"):
        separated_features(50, 8, 0.01, patience=30)


def test_the_sanity_check_is_as_its_paper_says():
    constant, skewed = sanity_check(), sanity_check(probability="log-uniform")
    assert constant.features.shape == (3200, 100)
    torch.testing.assert_close(constant.probability, torch.full((3200,), 0.00625))
    p = skewed.probability.double()
    assert p.sum().item() == pytest.approx(20, rel=1e-5)
    ratio = p.log().diff()
    torch.testing.assert_close(ratio, ratio.mean().expand(3199), rtol=1e-2, atol=0)
    assert p.max().item() == pytest.approx(10**-1.2, rel=0.03) and p.min().item() == pytest.approx(10**-5.5, rel=0.03)
    h = constant.sample(2000, draws()).h
    logarithms = h[h > 0].log()
    assert logarithms.mean().item() == pytest.approx(0, abs=0.01)
    assert logarithms.std().item() == pytest.approx(0.25, abs=0.01)


def test_children_have_their_parents_and_no_siblings():
    truth = Hierarchy(cosine=0.7)
    active = truth.sample(20_000, draws()).h > 0
    child = truth.parent_of >= 0
    assert truth.n_features == 20 and child.sum() == 9
    assert (active[:, child] <= active[:, truth.parent_of[child]]).all(), "a child implies its parent"
    for parent in range(3):
        siblings = active[:, truth.parent_of == parent].sum(1)
        assert siblings.max() == 1
        with_parent = siblings[active[:, parent]].double()
        assert (with_parent == 0).double().mean().item() == pytest.approx(0.4, abs=0.03)
    assert truth.occurrence().sum().item() == pytest.approx(1.36)
    assert active.sum(1).double().mean().item() == pytest.approx(1.36, abs=0.03)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.8])
def test_only_siblings_are_correlated(cosine: float):
    truth = Hierarchy(cosine=cosine)
    siblings = (truth.parent_of[:, None] == truth.parent_of) & (truth.parent_of >= 0)
    expected = torch.where(siblings, cosine, 0.0).fill_diagonal_(1.0)
    torch.testing.assert_close(truth.features @ truth.features.T, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_representation_bench(sparsity=1.0), "sparsity=1.0 is a share of rows"),
        (lambda: sanity_check(10, 4, l0=11), "would need probabilities up to 1.1"),
        (lambda: Hierarchy(children=6), "exclude each other: at most 1 in all"),
        (lambda: Hierarchy(d=19), "d=19 cannot hold 20 independent features"),
        (lambda: Hierarchy(leaves=-1), "leaves=-1 must be at least"),
        (lambda: Hierarchy(leaf_probability=0.0), "leaf_probability=0.0 must lie in"),
        (lambda: IndependentFeatures(torch.eye(2), torch.zeros(2)), "not all be 0"),
        (lambda: IndependentFeatures(torch.eye(2), torch.ones(2), least=-1.0), "would make magnitudes negative"),
    ],
)
def test_bad_settings_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
