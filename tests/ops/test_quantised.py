"""Products of 8-bit integers miss nothing: what they find is what float32 finds, value by value."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from ops.problems import KINDS, B, M, problem
from overtone import ops
from overtone.ops import candidates, quantised, screening
from overtone.ops.candidates import Largest, LargestOfBatch, LargestSizes, active_entries
from overtone.ops.quantised import Quantised

K = 9

pytestmark = pytest.mark.skipif(
    not quantised.is_available(), reason="numba is missing (extra `fast`), or this CPU has no 8-bit products"
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_the_active_entries_are_those_of_float64(kind: str, seed: int):
    x, W, b = problem(kind, seed)
    found = quantised.above(x, W, b, 0.0)
    assert found is not None and found.tally is not None
    pre = x.double() @ W.double().T + b
    decided = pre.abs() > 1e-6 * (1 + b.abs())  # closer to 0 float32 cannot tell
    mine = torch.zeros(B, M, dtype=torch.bool)
    mine[found.rows, found.latents] = True
    assert torch.equal(mine[decided], (pre > 0)[decided])
    torch.testing.assert_close(found.pre.double(), pre[found.rows, found.latents], rtol=1e-5, atol=2e-5)
    assert torch.equal(found.latents[found.transposed.order].sort(stable=True).indices, torch.arange(len(found.pre)))
    assert torch.equal(found.rows, torch.arange(B).repeat_interleave(found.tally.offsets.diff()))
    assert torch.equal(found.tally.fired, torch.bincount(found.latents, minlength=M))


@pytest.mark.parametrize("kind", [*KINDS, "peaked"])
def test_the_bound_holds(kind: str):
    x, W, _ = problem("random" if kind == "peaked" else kind, 0)
    if kind == "peaked":  # one entry takes all levels
        x[:, 0], W[::2, 1] = 50.0, 9.0
    rows, atoms = Quantised.of(x), Quantised.of(W)
    scale, row_error, row_size = rows.bounds()
    integers = rows.levels.double() @ atoms.levels.double().T
    rounded = integers * torch.from_numpy(scale)[:, None] * torch.from_numpy(atoms.scale)
    bound = np.outer(row_error, atoms.norm) + np.outer(row_size, atoms.error)
    error = (rounded - x.double() @ W.double().T).abs().numpy()
    assert (error <= bound).all()
    assert error.max() > 0.02 * bound.max(), "and is no empty one"


@pytest.mark.parametrize("jump", [False, True])
def test_the_operation_does_not_depend_on_how_entries_are_found(jump: bool):
    x, W, b = problem("random", 1)

    def run(integers: bool) -> tuple[ops.Encoded, Tensor]:
        atoms = W.clone().requires_grad_()
        with (
            patch.object(quantised, "is_worthwhile", lambda *_: integers),
            patch.object(screening, "is_worthwhile", lambda *_: False),
        ):
            encoded = ops.encode_threshold(x, atoms, b, jump=jump)
        encoded.codes.values.square().sum().backward()
        assert atoms.grad is not None
        return encoded, atoms.grad

    (fast, fast_grad), (slow, slow_grad) = run(True), run(False)
    for name in ("latents", "offsets", "order"):
        assert torch.equal(getattr(fast.codes, name), getattr(slow.codes, name)), name
    assert torch.equal(fast.fired, slow.fired)
    for a, other in ((fast.codes.values, slow.codes.values), (fast.peak, slow.peak), (fast_grad, slow_grad)):
        torch.testing.assert_close(a, other, rtol=1e-5, atol=1e-5)


def test_the_number_of_threads_changes_nothing():
    x, W, b = problem("unequal", 2)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 7):
            torch.set_num_threads(n)
            found.append(quantised.above(x, W, b, 0.0))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for mine, theirs in ((found[0][:3], other[:3]), (found[0].transposed, other.transposed)):
            assert all(torch.equal(a, c) for a, c in zip(mine, theirs, strict=True))


def test_frequent_latents_are_left_to_others():
    x, W, _ = problem("random", 0)
    assert quantised.above(x, W, torch.zeros(M), 0.0) is None
    assert quantised.above(x, W, torch.full((M,), -0.1), 0.0) is None, "a sixth of the entries is above"


def test_not_a_number_and_zeros():
    x, W, b = problem("random", 0)
    x[5], W[7] = 0, 0
    found = quantised.above(x, W, b, 0.0)
    assert found is not None and found.tally is not None
    assert found.tally.offsets.diff()[5] == found.tally.fired[7] == 0
    x[3] = torch.nan
    assert quantised.above(x, W, b, 0.0) is None, "others say what comes of it"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_are_those_that_float32_finds(kind: str, seed: int):
    x, W, b = problem(kind, seed)
    for rule in (Largest(K), LargestSizes(K), LargestOfBatch(K)):
        found = rule.found(x, W, 0.1 * b)
        assert found is not None
        slow = active_entries(x, W, 0.1 * b, rule, torch.arange(B * M))
        fast = candidates._active(found, rule, B)
        torch.testing.assert_close(fast.pre, slow.pre, rtol=1e-5, atol=2e-5)
        for mine, theirs in ((fast[1:3], slow[1:3]), (fast.transposed, slow.transposed)):
            assert all(torch.equal(a, c) for a, c in zip(mine, theirs, strict=True)), rule


def test_of_equal_entries_the_lower_latent_is_among_the_largest():
    x, W, b = problem("random", 0)
    W[M // 2 :], b[M // 2 :] = W[: M // 2], b[: M // 2]
    for rule in (Largest(K), LargestSizes(K)):
        found, slow = rule.found(x, W, b), active_entries(x, W, b, rule, torch.arange(B * M))
        assert found is not None and torch.equal(found.latents, slow.latents)


def test_what_is_not_positive_is_not_among_the_largest():
    x, W, b = problem("random", 0)
    found = Largest(M).found(x, W, b)
    every = quantised.above(x, W, b, 0.0)
    assert found is not None and every is not None and torch.equal(found.latents, every.latents)
    assert torch.equal(found.rows, every.rows)
    x[3] = torch.nan
    assert Largest(K).found(x, W, b) is None and LargestOfBatch(K).found(x, W, b) is None, "others say what comes of it"
