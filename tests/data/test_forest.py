"""SynthSAEBench's law: frequencies, trees, correlations and magnitudes are what they should be, within sampling error."""

import pytest
import torch
from torch.special import ndtr

from overtone.data.forest import FeatureForest, synth_sae_bench
from overtone.ops.codes import SparseCodes
from overtone.seeds import generator

ROWS = 60_000


@pytest.fixture(scope="module")
def truth() -> FeatureForest:
    return synth_sae_bench(512)


@pytest.fixture(scope="module")
def codes(truth: FeatureForest) -> SparseCodes:
    return truth.coded(ROWS, generator(1, "rows of a test")).codes


def share(codes: SparseCodes) -> torch.Tensor:
    return torch.bincount(codes.latents, minlength=codes.latents_total).double() / codes.rows_total


def test_rows_are_sums_of_features_and_the_bias(truth: FeatureForest):
    x, h = truth.sample(300, generator(2, "rows of a test"))
    torch.testing.assert_close(x, h @ truth.features + truth.offset)
    assert truth.offset.norm().item() == pytest.approx(0.5) and (h >= 0).all()


@pytest.mark.parametrize(
    "changes", [{}, {"exclusive": False, "correlation": 0.0}, {"branching": 3, "compensated": False}]
)
def test_features_occur_as_often_as_announced(changes: dict):
    truth = synth_sae_bench(256, **changes)
    f, found = truth.occurrence(), share(truth.coded(ROWS, generator(3, "rows of a test")).codes)
    error = (found - f) / (f * (1 - f) / ROWS).sqrt()
    assert error.abs().max() < 5 and error.square().mean().sqrt() == pytest.approx(1, abs=0.2)


def test_frequencies_are_those_announced_where_nothing_is_taken_from_them():
    """One child each, no correlation, magnitudes far from 0: compensation is exact, and so is the integral."""
    settings = {"branching": 1, "correlation": 0.0, "deviations": (0.5, 0.0)}
    truth = synth_sae_bench(256, **settings)
    torch.testing.assert_close(truth.occurrence(), truth.announced, rtol=1e-5, atol=0)
    assert synth_sae_bench(256, **settings, compensated=False).occurrence().sum() < truth.announced.sum()


def test_who_of_the_siblings_is_left_is_counted_over_all_outcomes():
    """P(child | parent) by all 2⁴ outcomes of four siblings, without common factors."""
    truth = synth_sae_bench(128, roots=1, depth=1, correlation=0.0)
    g = (truth.firing.double() * ndtr(truth.mean.double() / truth.deviation.double()))[:5]
    expected = torch.zeros(4, dtype=torch.float64)
    for outcome in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).double():
        chance = torch.where(outcome > 0, g[1:], 1 - g[1:]).prod()
        expected += chance * outcome / outcome.sum().clamp(min=1)
    torch.testing.assert_close(truth.occurrence()[1:5], g[0] * expected, rtol=1e-5, atol=0)


def test_children_have_their_parents_and_no_siblings(truth: FeatureForest):
    parent = truth.parent_of
    active = truth.sample(5000, generator(4, "rows of a test")).h > 0
    child = (parent >= 0).nonzero().squeeze(1)
    assert len(child) == truth.in_trees - truth.roots == 4 * (4 + 16 + 64)
    assert (active[:, child] <= active[:, parent[child]]).all(), "a child implies its parent"
    siblings = torch.zeros(5000, truth.n_features).index_add_(1, parent[child], active[:, child].float())
    assert siblings.max() == 1
    loose = synth_sae_bench(512, exclusive=False).sample(5000, generator(4, "rows of a test")).h > 0
    assert torch.zeros(5000, 512).index_add_(1, parent[child], loose[:, child].float()).max() > 1


def test_magnitudes_are_cut_normals_and_follow_the_parent(truth: FeatureForest, codes: SparseCodes):
    free = torch.arange(truth.n_features) >= truth.in_trees
    feature, value = codes.latents, codes.values.double()
    mean = torch.zeros(truth.n_features).double().index_add_(0, feature, value) / torch.bincount(feature, minlength=512)
    spread, centre = truth.deviation.double(), truth.mean.double()
    ratio = centre / spread
    cut = centre + spread * (-ratio.square() / 2).exp() / (2 * torch.pi) ** 0.5 / ndtr(ratio)
    error = (mean - cut) / spread * (truth.occurrence() * ROWS).sqrt()
    assert error[free].abs().max() < 5
    # A child's magnitude is its own times its parent's, over the parent's mean.
    h = truth.sample(20_000, generator(5, "rows of a test")).h
    child = truth.roots
    both = h[:, child] > 0
    own = h[both, child] / (h[both, 0] / truth.mean[0])
    assert own.mean().item() == pytest.approx(cut[child].item(), abs=5 * float(spread[child]) / int(both.sum()) ** 0.5)


def test_features_without_relatives_correlate_as_the_copula_says():
    truth = synth_sae_bench(256, roots=0, correlation=0.19, least=0.05, most=0.3, deviations=(0.1, 0.0))
    active = (truth.coded(ROWS, generator(6, "rows of a test")).codes.dense() > 0).double()
    own = (1 + truth.loading.double().square().sum(1)).rsqrt()
    factor = truth.loading.double() * own[:, None]
    torch.testing.assert_close(own.square() + factor.square().sum(1), torch.ones(256).double())
    together = active.T @ active / ROWS
    # Pr(both | common factors), averaged over the factors.
    draws, points = generator(7, "factors of a test"), 100_000
    expected = torch.zeros(256, 256, dtype=torch.float64)
    for _ in range(10):
        common = torch.randn(points // 10, truth.rank, generator=draws)
        fires = ndtr(common @ truth.loading.T - truth.threshold).double()
        expected += fires.T @ fires / points
    off = ~torch.eye(256, dtype=torch.bool)
    error = ((together - expected) / (expected * (1 - expected) / ROWS).sqrt())[off]
    assert error.abs().max() < 6 and error.square().mean().sqrt() < 1.15
    independent = truth.firing[:, None].double() * truth.firing.double()
    assert ((expected - independent) / independent)[off].std() > 0.1, "and they do correlate"


def test_the_published_setting():
    """SynthSAEBench-16k v2: about 34 features per row, 25 of the first quarter; its scaling keeps ranks and shares."""
    full = synth_sae_bench(push_apart=False)
    f = full.occurrence()
    assert (full.d, full.roots, full.in_trees, full.least) == (768, 128, 10_880, 5e-4)
    assert f.sum() == pytest.approx(34, abs=1) and f[:4096].sum() == pytest.approx(25, abs=0.7)
    small = synth_sae_bench(1024)
    assert (small.d, small.roots, small.in_trees, small.least) == (192, 8, 680, 2e-3)
    assert small.announced[0] == pytest.approx(0.4) and small.announced[-1] == pytest.approx(2e-3)
    assert 7.5 < small.occurrence().sum() < 8.7 and (small.mean[0], small.mean[-1]) == (5.0, 4.0)
    plain = synth_sae_bench(1024, push_apart=False)
    nearest = [(t.features @ t.features.T).fill_diagonal_(0).abs().amax(1).mean() for t in (small, plain)]
    assert nearest[0] < 0.95 * nearest[1]


def test_seeds_decide_everything(truth: FeatureForest):
    again, other = synth_sae_bench(512), synth_sae_bench(512, seed=1)
    for name in ("features", "offset", "deviation", "loading"):
        assert torch.equal(getattr(truth, name), getattr(again, name))
        assert not torch.equal(getattr(truth, name), getattr(other, name))
    one, two = truth.coded_rows(9000, seed=1), again.coded_rows(9000, seed=1)
    assert torch.equal(one.x, two.x) and torch.equal(one.codes.latents, two.codes.latents)
    stream, resumed = truth.stream(64, seed=5), truth.stream(64, seed=5)
    next(stream)
    resumed.load_state_dict(stream.state_dict())
    assert torch.equal(next(stream).x, next(resumed).x)


def test_entries_are_codes_in_the_order_of_rows_and_features(codes: SparseCodes):
    place = codes.rows * codes.latents_total + codes.latents
    assert (place.diff() > 0).all() and codes.rows_total == ROWS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: synth_sae_bench(100), "n_features=100 leaves no tree"),
        (lambda: FeatureForest(100, 10, roots=2), "2 trees of depth 3 and branching 4 have 170 nodes, more than"),
        (lambda: FeatureForest(most=0.1, least=0.2), "0 < least ≤ most ≤ 1"),
        (lambda: FeatureForest(branching=0), "branching=0 must be at least 1"),
        (lambda: FeatureForest(correlation=-0.1), "correlation=-0.1 must be at least 0"),
        (lambda: FeatureForest(magnitudes=(1.0, 0.0)), "give numbers above 0"),
        (lambda: FeatureForest(deviations=(0.5, -1.0)), "cannot be negative"),
    ],
)
def test_bad_settings_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
