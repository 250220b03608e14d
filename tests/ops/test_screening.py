"""Screening in bfloat16 misses nothing: whatever the numbers, what is active in float32 is a candidate."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from ops.problems import KINDS, B, M, problem
from overtone import ops
from overtone.ops import quantised, screening

K = 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_no_active_entry_is_missed(kind: str, seed: int):
    x, W, b = problem(kind, seed)
    places = screening.above(x, W, b, 0.0)
    assert places is not None
    active = (x.double() @ W.double().T + b > 0).flatten()
    missing = active.clone()
    missing[places] = False
    assert not missing.any()
    assert active.sum() <= len(places) < 0.05 * B * M, "and few others are asked"
    assert (places.diff() > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_the_k_largest_are_among_the_candidates(kind: str, seed: int):
    x, W, b = problem(kind, seed)
    places = screening.largest(x, W, 0.1 * b, K)
    assert places is not None
    pre = x.double() @ W.double().T + 0.1 * b
    wanted = (torch.arange(B)[:, None] * M + pre.topk(K).indices).flatten()
    assert torch.isin(wanted, places).all()
    assert len(places) < 4 * B * K or kind == "unequal"
    places = screening.largest(x, W, 0.1 * b, K, signed=True)
    wanted = (torch.arange(B)[:, None] * M + pre.abs().topk(K).indices).flatten()
    assert places is not None and torch.isin(wanted, places).all()
    assert len(places) < 4 * B * K or kind == "unequal"
    places = screening.largest_of_all(x, W, 0.1 * b, B * K)
    assert places is not None and torch.isin(pre.flatten().topk(B * K).indices, places).all()
    assert len(places) < 4 * B * K or kind == "unequal"


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_holds(kind: str):
    x, W, b = problem(kind, 0)
    screen = screening._screen(x, W, b)
    stored = (screen.x @ screen.W.T + b.bfloat16()).double()
    error = (stored - (x.double() @ W.double().T + b)).abs()
    allowed = 2 * 2**-9 * stored.abs()
    assert (error <= allowed + screen.row_error[:, None]).all()
    assert (error <= allowed + screen.error + 2**-9 * b.abs()).all()


@pytest.mark.parametrize("rule", ["threshold", "topk", "batch_topk", "abs_topk", "group_max"])
def test_screening_changes_nothing_but_the_speed(rule: str):
    """The public operation, with the screen and without, gradients included."""
    x, W, b = problem("random", 1)

    def run(screened: bool) -> tuple[ops.Encoded, Tensor]:
        atoms = W.clone().requires_grad_()
        with (
            patch.object(screening, "is_worthwhile", lambda *_: screened),
            patch.object(quantised, "is_worthwhile", lambda *_: False),
        ):
            encoded = {
                "threshold": lambda: ops.encode_threshold(x, atoms, b, jump=True),
                "topk": lambda: ops.encode_topk(x, atoms, b, K),
                "batch_topk": lambda: ops.encode_batch_topk(x, atoms, b, K),
                "abs_topk": lambda: ops.encode_abs_topk(x, atoms, b, K),
                "group_max": lambda: ops.encode_group_max(x, atoms, b, K),
            }[rule]()
        encoded.codes.values.square().sum().backward()
        assert atoms.grad is not None
        return encoded, atoms.grad

    (fast, fast_grad), (slow, slow_grad) = run(True), run(False)
    assert len(slow.codes.values) > 0
    for name in ("latents", "offsets", "order"):
        assert torch.equal(getattr(fast.codes, name), getattr(slow.codes, name)), name
    assert torch.equal(fast.fired, slow.fired)
    for a, b_ in ((fast.codes.values, slow.codes.values), (fast.peak, slow.peak), (fast_grad, slow_grad)):
        torch.testing.assert_close(a, b_, rtol=1e-5, atol=1e-5)


def test_dense_codes_are_not_screened():
    x, W, _ = problem("random", 0)
    assert screening.above(x, W, torch.zeros(M), 0.0) is None, "half of the entries are above 0"
    assert screening.above(x, W, torch.full((M,), -0.05), 0.0) is None
    assert screening.largest(x, W, torch.zeros(M), M // 2 + 100) is None, "some of the k largest are below 0"


def test_not_a_number_is_nowhere_active():
    x, W, b = problem("random", 0)
    x[3] = torch.nan
    with patch.object(screening, "is_worthwhile", lambda *_: True):
        codes = ops.encode_threshold(x, W, b).codes
    assert codes.l0()[3] == 0
