"""Latents against what is known of rows: perfect and random detectors, slow references, probes."""

import math

import pytest
import torch

from overtone.data.sequences import Known
from overtone.metrics import known as scores
from overtone.metrics import probes
from overtone.metrics.known import Halves, score_chance, score_known, score_probes

ROWS = 800


def halves(of: torch.Tensor) -> Halves:
    return Halves(of[:ROWS], of[ROWS:])


@pytest.fixture
def which(generator: torch.Generator) -> torch.Tensor:
    """One of four features in every row, the first in half of them."""
    return torch.randint(6, (2 * ROWS,), generator=generator).sub(2).clamp(min=0)


@pytest.fixture
def known(which: torch.Tensor, generator: torch.Generator) -> tuple[Known, Known]:
    occurs = {"kind": torch.nn.functional.one_hot(which, 4).bool()}
    values = {"size": torch.randn(2 * ROWS, 2, generator=generator)}
    whole = Known(occurs, values)
    return whole.at(slice(ROWS)), whole.at(slice(ROWS, None))


def test_a_perfect_detector_scores_one(known: tuple[Known, Known], generator: torch.Generator):
    """Whatever its scale and sign, and however many other latents there are."""
    halved = []
    for half in known:
        size, occurs = half.values["size"], half.occurs["kind"].float()
        others = torch.randn(ROWS, 30, generator=generator).relu()
        halved.append(torch.cat([others, 3 * occurs.flip(1), (2 - size).clamp(min=-9), others], dim=1))
    found = score_known(Halves(*halved), known).summary()
    assert found["kind"] == {"f1": 1, "auroc": 1, "features": 4}
    assert found["size"]["correlation"] == pytest.approx(1, abs=1e-6)


def test_random_codes_are_at_chance(known: tuple[Known, Known], generator: torch.Generator):
    codes = halves(torch.randn(2 * ROWS, 40, generator=generator).relu())
    of_labels, chance = score_known(codes, known).summary(), score_chance(codes, known, generator).summary()
    for found in (of_labels, chance):
        assert abs(found["kind"]["auroc"] - 0.5) < 0.05, "chosen and scored on the same rows it would be above"
        assert abs(found["size"]["correlation"]) < 0.12
    # A latent that fires in half of all rows, whatever the feature: F1 = f / (f + ½).
    shares = [1 / 2, 1 / 6, 1 / 6, 1 / 6]
    assert of_labels["kind"]["f1"] == pytest.approx(sum(f / (f + 0.5) for f in shares) / 4, abs=0.05)


def test_all_pairs_as_one_by_one(known: tuple[Known, Known], generator: torch.Generator):
    codes = torch.randint(-1, 4, (120, 5), generator=generator).relu().float()  # ties
    occurs, size = known[0].occurs["kind"][:120], known[0].values["size"][:120]
    f1, area, r = scores.f1(codes, occurs), scores.auroc(codes, occurs), scores.correlation(codes, size)
    for i in range(5):
        for j in range(4):
            fires, there = codes[:, i] > 0, occurs[:, j]
            hits, wrong, missed = (fires & there).sum(), (fires & ~there).sum(), (~fires & there).sum()
            assert float(f1[i, j]) == pytest.approx(float(2 * hits / (2 * hits + wrong + missed)))
            gap = codes[there, i][:, None] - codes[~there, i]
            assert float(area[i, j]) == pytest.approx(float(((gap > 0).double() + (gap == 0).double() / 2).mean()))
        for j in range(2):
            expected = torch.corrcoef(torch.stack([codes[:, i], size[:, j]]))[0, 1]
            assert float(r[i, j]) == pytest.approx(float(expected), abs=1e-6)


def test_latents_may_be_permuted_and_rescaled(known: tuple[Known, Known], generator: torch.Generator):
    codes = torch.randn(2 * ROWS, 9, generator=generator).relu()
    order, scale = torch.randperm(9, generator=generator), torch.rand(9, generator=generator) + 0.5
    one, two = (score_known(halves(z), known).summary() for z in (codes, (codes * scale)[:, order]))
    assert one["kind"] == two["kind"]
    assert one["size"]["correlation"] == pytest.approx(two["size"]["correlation"], abs=1e-6)


def test_rare_features_are_not_scored(known: tuple[Known, Known], generator: torch.Generator):
    codes = halves(torch.randn(2 * ROWS, 9, generator=generator).relu())
    always = [half._replace(occurs={"kind": half.occurs["kind"] | (torch.arange(4) == 1)}) for half in known]
    always[1].occurs["kind"][19:, 2] = False
    for score in (score_known(codes, (always[0], always[1])), score_probes(codes, (always[0], always[1]))):
        assert score.detected["kind"].f1.isnan().tolist() == [False, True, True, False]
        assert score.summary()["kind"]["features"] == 2 and not math.isnan(score.summary()["kind"]["f1"])


def test_probes_read_what_is_linear(known: tuple[Known, Known], generator: torch.Generator):
    hidden = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    x = []
    for half in known:
        x.append(torch.cat([half.occurs["kind"].float(), half.values["size"]], dim=1) @ hidden + 5)
    found = score_probes(Halves(*x), known).summary()
    assert found["kind"]["f1"] == 1 and found["kind"]["auroc"] == 1
    assert found["size"]["correlation"] == pytest.approx(1, abs=1e-4)
    # No row says anything of another's labels.
    rolled = score_probes(Halves(*(half.roll(1, 0) for half in x)), known).summary()
    assert abs(rolled["kind"]["auroc"] - 0.5) < 0.05


def test_the_threshold_is_the_best_there_is(generator: torch.Generator):
    occurs = torch.rand(60, 3, generator=generator) < 0.3
    said = torch.randn(60, 3, generator=generator).double() + occurs
    chosen = probes.best_threshold(said, occurs)
    reached = scores.f1((said > chosen).float(), occurs).diagonal()
    for j in range(3):
        tried = [float(scores.f1((said[:, j : j + 1] >= t).float(), occurs)[0, j]) for t in said[:, j]]
        assert float(reached[j]) == pytest.approx(max(tried))
