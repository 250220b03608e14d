"""Scores against a ground truth: laws, expectations of random dictionaries, and an absorbed parent made by hand."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.special import betainc

from overtone import Dictionary, Parametrisation, ReLU, score_against
from overtone.data.ground_truths import Hierarchy
from overtone.data.synthetic import Samples, SparseMixture
from overtone.metrics import detection
from overtone.metrics.matching import best_match, match, mean_correlation
from overtone.metrics.recovery import recovery
from overtone.ops import SparseCodes

PLAIN = Parametrisation(tied=False, scale=False, bias="trained", input_norm="none")


@dataclass
class Known:
    """A truth, rows of it, and a dictionary of given atoms and encoder rows."""

    truth: Hierarchy
    rows: Samples

    def dictionary(self, atoms: torch.Tensor, encoder: torch.Tensor, bias: float = -0.01) -> Dictionary:
        dictionary = Dictionary(self.truth.d, len(atoms), ReLU(), PLAIN)
        with torch.no_grad():
            dictionary.W_dec.copy_(atoms)
            dictionary.W_enc.copy_(encoder)
            dictionary.b_enc.fill_(bias)
        return dictionary

    def scores(self, dictionary: Dictionary, batch: int = 500) -> dict:
        batches = zip(self.rows.x.split(batch), self.rows.h.split(batch), strict=True)
        return score_against(dictionary, self.truth.features, batches, parent_of=self.truth.parent_of).summary()


@pytest.fixture
def known() -> Known:
    truth = Hierarchy(cosine=0.5)
    return Known(truth, truth.rows(2000, seed=1))


def inverse(features: torch.Tensor) -> torch.Tensor:
    """Encoder rows that read every coefficient exactly."""
    return torch.linalg.pinv(features).T


def test_a_perfect_dictionary_scores_one(known: Known):
    v = known.truth.features
    scores = known.scores(known.dictionary(v, inverse(v)))
    ones = ("mcc", "uniqueness", "splitting", "mean_max_cosine", "precision", "recall", "f1")
    for name in (*ones, "feature_precision", "feature_recall", "feature_f1"):
        assert scores[name] == pytest.approx(1, abs=1e-5), name
    assert scores["frr"] == {"0.8": 1.0, "0.9": 1.0}
    assert scores["relative_norm"] == pytest.approx(1, abs=0.02) and scores["projection"] == pytest.approx(1, abs=0.02)
    for name in ("flat", "hierarchical", "absorption", "hedging"):
        assert scores[name] == pytest.approx(0, abs=1e-5), name


def imperfect(known: Known) -> Dictionary:
    generator = torch.Generator().manual_seed(3)
    v = known.truth.features
    atoms = torch.cat([v, torch.randn(5, known.truth.d, generator=generator)])
    atoms = atoms + 0.15 * torch.randn(atoms.shape, generator=generator)
    return known.dictionary(atoms, atoms, bias=-0.4)


def assert_same(scores: dict, others: dict, leaving_out: tuple[str, ...] = ()) -> None:
    for name, value in scores.items():
        if name not in leaving_out:
            assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_scores_do_not_see_order_batches_repetition_or_scale(known: Known):
    dictionary, generator = imperfect(known), torch.Generator().manual_seed(4)
    scores = known.scores(dictionary)
    assert 0 < scores["f1"] < 1 and 0 < scores["absorption"] < 1 and scores["hedging"] > 0
    assert_same(scores, known.scores(dictionary, batch=83))

    order = torch.randperm(dictionary.latents, generator=generator)
    shuffled = known.dictionary(dictionary.W_dec[order], dictionary.W_enc[order], bias=-0.4)
    assert_same(scores, known.scores(shuffled))

    x, h = known.rows
    twice = Known(known.truth, Samples(x.repeat(2, 1), h.repeat(2, 1)))
    assert_same(scores, twice.scores(dictionary), leaving_out=("rows",))

    larger = known.dictionary(dictionary.W_dec, dictionary.W_enc, bias=-40.0)
    assert_same(scores, Known(known.truth, Samples(100 * x, 100 * h)).scores(larger))

    features = torch.randperm(len(known.truth.features), generator=generator)
    renamed = torch.empty_like(features).scatter_(0, features, torch.arange(len(features)))
    parent = known.truth.parent_of[features]
    again = score_against(
        dictionary,
        known.truth.features[features],
        [(x, SparseCodes.from_dense(h[:, features]))],
        parent_of=torch.where(parent >= 0, renamed[parent], -1),
    )
    assert_same(scores, again.summary())


def test_counts_are_those_of_dense_codes():
    """Against the definition, entry by entry: SynthSAEBench's latents, and features the same way round."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 40, generator=generator) * (torch.rand(300, 40, generator=generator) < 0.2)
    h = torch.rand(300, 25, generator=generator) * (torch.rand(300, 25, generator=generator) < 0.1)
    z[:, :5] = 0  # dead latents, and a feature that does not occur: 0 and not 0/0
    h[:, :3] = 0
    matching = match(torch.randn(40, 6, generator=generator), torch.randn(25, 6, generator=generator))
    counts = detection.count(SparseCodes.from_dense(z), SparseCodes.from_dense(h), matching)
    fires, occurs = z != 0, h > 0
    for found, predicted, actual in (
        (counts.latents(matching), fires, occurs[:, matching.of_latents.nearest]),
        (counts.features(matching), fires[:, matching.of_features.nearest], occurs),
    ):
        hits = (predicted & actual).sum(0)
        precision, recall = hits.double() / predicted.sum(0), hits.double() / actual.sum(0)
        torch.testing.assert_close(found.precision, precision.nan_to_num())
        torch.testing.assert_close(found.recall, recall.nan_to_num())
        torch.testing.assert_close(found.f1, (2 * precision * recall / (precision + recall)).nan_to_num())


def test_look_up_is_indexing_without_the_zeros(generator: torch.Generator):
    dense = torch.randn(30, 9, generator=generator) * (torch.rand(30, 9, generator=generator) < 0.3)
    rows = torch.randint(30, (500,), generator=generator)
    latents = torch.randint(9, (500,), generator=generator)
    assert torch.equal(SparseCodes.from_dense(dense).look_up(rows, latents), dense[rows, latents])
    assert not SparseCodes.from_dense(0 * dense).look_up(rows, latents).any()


def test_latents_that_fire_at_random_score_what_chance_gives():
    """Precision is then the feature's frequency, recall the latent's."""
    generator, rows, p, f = torch.Generator().manual_seed(0), 40_000, 0.2, 0.05
    z = (torch.rand(rows, 20, generator=generator) < p).float()
    h = (torch.rand(rows, 30, generator=generator) < f).float()
    matching = match(torch.randn(20, 8, generator=generator), torch.randn(30, 8, generator=generator))
    latents = detection.count(SparseCodes.from_dense(z), SparseCodes.from_dense(h), matching).latents(matching)
    assert float(latents.precision.mean()) == pytest.approx(f, abs=5 * math.sqrt(f / (p * rows * 20)))
    assert float(latents.recall.mean()) == pytest.approx(p, abs=5 * math.sqrt(p / (f * rows * 20)))


def test_a_random_dictionary_is_as_near_as_chance_has_it(generator: torch.Generator):
    """P(|cos| ≤ t) = I(t²; ½, (d − 1)/2) on the sphere, so E max of M = ∫ 1 − I^M."""
    n, d, latents = 600, 12, 50
    atoms, truth = torch.randn(latents, d, generator=generator), torch.randn(n, d, generator=generator)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    share = torch.as_tensor(betainc(0.5, (d - 1) / 2, t.numpy() ** 2))
    expected = float(torch.trapezoid(1 - share**latents, t))
    best = recovery(atoms, truth, signed=False)
    assert best.mean_max_cosine == pytest.approx(expected, abs=5 * float(best.max_cosine.std()) / math.sqrt(latents))
    # One atom and one feature at a time: E|cos| = Γ(d/2) / (√π Γ((d + 1)/2)).
    alone = torch.tensor([mean_correlation(a[None], v[None]) for a, v in zip(truth[:300], truth[300:], strict=True)])
    expected = math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    assert float(alone.mean()) == pytest.approx(expected, abs=5 * float(alone.std()) / math.sqrt(300))


def test_mcc_matches_one_to_one_and_nearest_does_not():
    """By hand: two atoms nearest to the same of two features, with cosines 1 and 0.8; one has to take the other feature."""
    truth = torch.eye(2)
    atoms = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    for scale in (1, -3):
        assert mean_correlation(scale * atoms, truth) == pytest.approx((1 + 0.6) / 2)
    assert mean_correlation(atoms, truth[:1]) == pytest.approx(1)
    matching = match(atoms, truth)
    assert matching.of_latents.nearest.tolist() == [0, 0] and matching.uniqueness == 0.5
    assert matching.splitting(0.7) == 2 and matching.splitting(0.9) == 1 and match(-atoms, truth).uniqueness == 0.5
    assert best_match(-atoms, truth, signed=True).cosine.max() <= 0


def test_an_absorbed_parent_is_found(known: Known):
    """Its latent is silent wherever a child is, and the child's atom has it in: all of absorption, nothing of hedging."""
    truth = known.truth
    v, child = truth.features, truth.parent_of >= 0
    parent = truth.parent_of[child]
    encoder, atoms = inverse(v), v.clone()
    encoder[: truth.parents].index_add_(0, parent, -10 * inverse(v)[child])
    atoms[child] += 0.9 * v[parent]
    scores = known.scores(known.dictionary(atoms, encoder))
    assert scores["absorption"] == pytest.approx(1, abs=0.03) and scores["hedging"] == pytest.approx(0, abs=1e-5)
    assert scores["precision"] == pytest.approx(1), "what absorbs is precise still"
    expected = 1 - (scores["feature_recall"] * 20 - 17) / 3
    assert expected == pytest.approx(0.6, abs=0.05), "parents are missed in the rows of their three children, 0.2 each"
    # Silence alone is no absorption: the child's latent has to bring the parent along.
    silent = known.scores(known.dictionary(v, encoder))
    assert silent["absorption"] == 0 and silent["feature_recall"] == pytest.approx(scores["feature_recall"])
    # Nor are atoms alone: a parent's latent that fires has not been absorbed.
    loud = known.scores(known.dictionary(atoms, inverse(v)))
    assert loud["absorption"] == 0 and loud["hierarchical"] > 0.1


def test_a_hedging_parent_is_found(known: Known):
    truth = known.truth
    v, atoms = truth.features, truth.features.clone()
    child = (truth.parent_of >= 0).nonzero().squeeze(1)
    atoms.index_add_(0, truth.parent_of[child], 0.2 * v[child])
    scores = known.scores(known.dictionary(atoms, inverse(v)))
    # Three siblings of cosine ½: ‖Σ 0.2 v_c‖² = 0.04 · (3 + 6/2).
    assert scores["hedging"] == pytest.approx(0.2 / math.sqrt(1 + 0.04 * 6), rel=1e-4)
    assert scores["absorption"] == 0


def test_shrinkage_is_that_of_the_reconstruction(known: Known):
    v = known.truth.features
    scores = known.scores(known.dictionary(0.5 * v, inverse(v), bias=0.0))
    assert scores["relative_norm"] == pytest.approx(0.5, rel=1e-3)
    assert scores["projection"] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no rows to score on"),
        ([(torch.zeros(3, 20), torch.zeros(3, 7))], r"coefficients of shape \(3, 7\); give one for each of the 20"),
        ([(torch.zeros(3, 20), torch.zeros(2, 20))], r"3 rows have coefficients of shape \(2, 20\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(samples: list, message: str, known: Known):
    v = known.truth.features
    with pytest.raises(ValueError, match=message):
        score_against(known.dictionary(v, v), v, samples)
    with pytest.raises(ValueError, match="no feature has a parent"):
        score_against(known.dictionary(v, v), v, samples, parent_of=torch.full((20,), -1))


def test_held_out_rows_are_none_of_a_stream():
    truth = SparseMixture(16, 8, (2,))
    blocks = list(truth.held_out(700, seed=3, batch=256))
    assert [len(block.x) for block in blocks] == [256, 256, 188]
    held_out = torch.cat([block.x for block in blocks])
    others = torch.cat([truth.rows(700, seed=3).x, next(truth.stream(700, seed=3)).x])
    assert (torch.cdist(held_out, others) > 1e-6).all()
