"""One pass over rows does what gradients, rules and torch's Adam do one after the other."""

import gc
import weakref
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from overtone import (
    ArrayStream,
    Batch,
    Method,
    Orthogonality,
    Run,
    TangentGradient,
    UnitNorm,
    gba,
    ops,
    optimiser,
    start,
    topk,
)
from overtone.ops import loops
from overtone.training import TrainState, step_once

pytestmark = pytest.mark.skipif(not loops.are_compiled(), reason="numba is not installed (extra `fast`)")

D, M, B = 24, 160, 96
METHODS = {
    "tied, with the densest latents": gba(groups=10),
    "tied, sparse": gba(l0=6, groups=3),
    "two matrices, tangent": replace(topk(5), rules=(TangentGradient(), UnitNorm())),
    "two matrices, no sphere": replace(topk(5), rules=()),
    "more sums than a pass takes": replace(topk(5), losses=topk(5).losses * 2),
    "a gradient beside": replace(topk(5), losses=(*topk(5).losses, Orthogonality(0.5))),
}


def rows() -> Tensor:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(40, D, generator=g)
    return (torch.rand(4 * B, 40, generator=g) < 0.1).float() @ features + 0.1 * torch.randn(4 * B, D, generator=g)


def trained(method: Method, steps: int, by_row: bool) -> TrainState:
    run, x = Run(method, latents=M, steps=steps, batch=B), rows()
    state = start(run, ArrayStream(x, B))
    # Where thresholds start, at a quantile, a row lies on each to the last bit; and a lone unit atom leaves a residual orthogonal
    # to itself, so its scale's gradient is rounding error alone, which Adam makes a whole step of. Neither bit is the optimiser's
    # matter, and which it is depends on the processor's order of sums.
    state.dictionary.b_enc.data.mul_(0.999)
    if state.dictionary.scale is not None:
        state.dictionary.scale.data.mul_(0.9)
    with patch.object(ops, "can_update_rows", ops.can_update_rows if by_row else lambda _: False):
        for step in range(steps):
            step_once(run, state, Batch(part := x.split(B)[step % 4], part))
    return state


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_steps_are_those_of_torch_and_of_the_rules(method: Method):
    one, other = trained(method, 12, True), trained(method, 12, False)
    plan = optimiser.plan(method, one.dictionary)
    assert (
        plan.all_weights and sum(by_row.weight.ndim == 2 for by_row in plan.passes) == 2 - method.parametrisation.tied
    )
    torch.testing.assert_close(one.window_loss, other.window_loss, rtol=1e-5, atol=0)
    for name, weight in one.dictionary.named_parameters():
        twin = other.dictionary.get_parameter(name)
        torch.testing.assert_close(weight, twin, rtol=1e-3, atol=2e-5)
        if weight.requires_grad:
            kept, theirs = one.optimiser.state[weight], other.optimiser.state[twin]
            assert kept.keys() == theirs.keys() and kept["step"] == theirs["step"]
            torch.testing.assert_close(kept["exp_avg_sq"], theirs["exp_avg_sq"], rtol=1e-3, atol=1e-9)


def test_one_pass_is_adam_in_float64():
    g = torch.Generator().manual_seed(1)
    weight, mean, gradient = (torch.randn(M, D, generator=g) for _ in range(3))
    square, step = torch.rand(M, D, generator=g), ops.AdamStep(0.01, (0.9, 0.99), 1e-8, 7)
    twin = torch.nn.Parameter(weight.double())
    adam = torch.optim.Adam([twin], lr=step.lr, betas=step.betas, eps=step.eps)
    adam.state[twin] = {"step": torch.tensor(6.0), "exp_avg": mean.double(), "exp_avg_sq": square.double()}
    along = (gradient * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True)
    twin.grad = (gradient - along * weight).double()
    adam.step()
    version = weight._version
    ops.update_rows(ops.Rows(weight, mean, square, tangent=True, unit=True), gradient, [], step)
    wanted = (twin / twin.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.double(), adam.state[twin]["exp_avg"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(square.double(), adam.state[twin]["exp_avg_sq"], rtol=1e-5, atol=1e-6)
    assert weight._version > version, "autograd has to know that it changed"


def test_a_rule_that_looks_at_gradients_gets_them():
    class Watched(UnitNorm):
        def before_step(self, dictionary):
            assert dictionary.W_dec.grad is not None
            seen.append(dictionary.W_dec.grad.abs().sum())

    seen: list[Tensor] = []
    trained(replace(gba(l0=6), rules=(*gba(l0=6).rules, Watched())), 2, True)
    assert len(seen) == 2 and min(seen) > 0


def test_what_sums_refer_to_goes_with_the_step():
    gc.collect()
    gc.disable()  # a circle through autograd's graph would not be found by it anyway
    try:
        weight = torch.nn.Parameter(torch.randn(M, D))
        with ops.deferring(weight) as (sums,):
            encoded = ops.encode_topk(torch.randn(B, D), weight, torch.zeros(M), 3)
            ops.decode(encoded.codes, weight).square().sum().backward()
        assert len(sums) == 2 and weight.grad is None
        kept = weakref.ref(sums[0].tables[0].untyped_storage()), weakref.ref(sums[1].values)
        del sums, encoded
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()
