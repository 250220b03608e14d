"""Consistency over seeds: a dictionary agrees with itself, in any order; chance is as the sphere has it; bounds bound."""

import math

import pytest
import torch
from scipy.special import betainc

from overtone.metrics.consistency import consistency, random_baseline
from overtone.metrics.matching import bounded_correlation, mean_correlation


def test_a_dictionary_is_consistent_with_itself_in_any_order_and_scale(generator: torch.Generator):
    atoms = torch.randn(60, 12, generator=generator)
    orders = [torch.randperm(60, generator=generator) for _ in range(2)]
    peak = torch.rand(60, generator=generator)
    runs = [atoms, *(atoms[order] * (1 + torch.rand(60, 1, generator=generator)) for order in orders)]
    found = consistency(runs, [{"peak": peak}, *({"peak": peak[order]} for order in orders)])
    assert list(found.groups) == ["all", "peak 1%", "peak 10%"]
    for group in found.groups.values():
        assert len(group.mcs) == 6
        assert group.mcs == pytest.approx([1] * 6, abs=1e-6) and group.share == [1] * 6
    assert [b for pair in found.matched for b in pair] == pytest.approx([1] * 6, abs=1e-6)
    assert all(run.tolist() == pytest.approx([1] * 60, abs=1e-6) for run in found.each)


def test_permuting_runs_changes_nothing(generator: torch.Generator):
    shared = torch.randn(20, 10, generator=generator)
    runs = [torch.cat([shared, torch.randn(20, 10, generator=generator)]) for _ in range(3)]
    scores = [{"z_score": torch.arange(40.0).flip(0)}] * 3
    found = consistency(runs, scores, top=(0.5,))
    assert found.groups["z_score 50%"].share == [1] * 6, "the shared half has the highest scores"
    assert all(0.5 <= share < 0.7 for share in found.groups["all"].share)
    orders = [torch.randperm(40, generator=generator) for _ in runs]
    again = consistency(
        [2 * run[order] for run, order in zip(runs, orders, strict=True)],
        [{"z_score": s["z_score"][order]} for s, order in zip(scores, orders, strict=True)],
        top=(0.5,),
    )
    for name, group in found.groups.items():
        assert again.groups[name].mcs == pytest.approx(group.mcs, abs=1e-6)
        assert again.groups[name].share == group.share
    assert [p.low for p in again.matched] == pytest.approx([p.low for p in found.matched], abs=1e-6)
    flipped = consistency([runs[0], -runs[1]])
    assert max(flipped.groups["all"].share) < 0.1, "an atom pointing the other way is another latent"
    assert consistency([runs[0], -runs[1]], signed=False).groups["all"].share[0] >= 0.5


def test_the_random_baseline_is_what_the_sphere_has():
    """P(cos ≤ t) = ½ + ½ sign(t) I(t²; ½, (d − 1)/2), so that E max of M is 1 − ∫ P(cos ≤ t)^M from −1 to 1."""
    latents, d = 500, 16
    t = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    inside = torch.as_tensor(betainc(0.5, (d - 1) / 2, t.numpy() ** 2))
    below = 0.5 + 0.5 * t.sign() * inside
    expected = 1 - float(torch.trapezoid(below**latents, t))
    spread = math.sqrt(1 - 2 * float(torch.trapezoid(t * below**latents, t)) - expected**2)
    agreement, matched = random_baseline(latents, d)
    assert agreement.mcs == pytest.approx([expected] * 2, abs=5 * spread / math.sqrt(latents))
    above = 1 - float(below[(t - 0.9).abs().argmin()]) ** latents
    assert agreement.share == pytest.approx([above] * 2, abs=5 * math.sqrt(max(above, 1e-3) / latents))
    assert matched.low == matched.high < expected + 0.05
    same = consistency([torch.eye(4), torch.eye(4)])
    assert same.random == random_baseline(4, 4)[0] and same.random.mcs[0] < 0.9


@pytest.mark.parametrize("sizes", [(40, 40), (25, 60), (60, 25)])
def test_bounds_hold_and_greed_takes_the_nearest_first(sizes: tuple[int, int], generator: torch.Generator):
    a, b = (torch.randn(n, 7, generator=generator) for n in sizes)
    b[:10] = a[:10] + 0.1 * torch.randn(10, 7, generator=generator)
    exact, bounds = mean_correlation(a, b), bounded_correlation(a, b, exact_up_to=0)
    assert bounds.low <= exact + 1e-6 and exact <= bounds.high + 1e-6
    cosine = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2).abs()
    total = 0.0
    for _ in range(min(sizes)):
        best = int(cosine.argmax())
        total += float(cosine.flatten()[best])
        cosine[best // sizes[1]], cosine[:, best % sizes[1]] = -1, -1
    assert bounds.low == pytest.approx(total / min(sizes), abs=1e-5)
    twins = a.repeat(2, 1)
    assert bounded_correlation(twins, twins, exact_up_to=0) == pytest.approx((1, 1), abs=1e-5), "ties end too"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="two or more dictionaries of one shape, not of 1 run"):
        consistency([torch.eye(3)])
    with pytest.raises(ValueError, match=r"2 runs of shapes \[\(2, 3\), \(3, 3\)\]"):
        consistency([torch.eye(3), torch.eye(3)[:2]])
    with pytest.raises(ValueError, match="scores of 1 runs for the atoms of 2"):
        consistency([torch.eye(3), torch.eye(3)], [{}])
