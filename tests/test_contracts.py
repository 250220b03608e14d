"""The laws that every named method keeps at the edges: what is selected, 16-bit rows, one row, nobody alive, everybody alive.

Shapes, permutation, linearity and gradients are in test_dictionary.py; round trips and resumption in test_checkpoint.py; both run
over every named method too.
"""

from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import Tensor

import overtone as ot
from overtone.training import begin, step_once
from small_methods import SMALL

LATENTS, D = 20, 12
METHODS = SMALL | {
    "matryoshka-sampled": ot.matryoshka(3, sampled=3),
    "topk-steered": ot.with_frequency_control(ot.topk(3), ot.Spectrum(3)),
}


def made_rows(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(24, D, generator=generator)
    weights = torch.rand(count, 24, generator=generator) * (torch.rand(count, 24, generator=generator) < 0.15)
    return weights @ features + 0.05 * torch.randn(count, D, generator=generator)


ROWS = made_rows(200)


def run_of(method: ot.Method, **options) -> ot.Run:
    return ot.Run(method, **{"latents": LATENTS, "steps": 15, "batch": 40, "lr": 0.02, "log_every": 5} | options)


def trained(name: str, rows: Tensor, **options) -> ot.TrainState:
    """From all rows as the sample: a stream would be read ahead for it."""
    run, whole = run_of(METHODS[name], **options), rows.float()
    stream = ot.ArrayStream(rows, run.batch)
    state = begin(run, stream.layout, ot.Batch(whole, whole))
    list(ot.train(run, stream, state))
    return state


@cache
def state_of(name: str) -> ot.TrainState:
    """Not at its start: biases, scales and thresholds have values that matter."""
    return trained(name, ROWS)


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def dictionary(name: str) -> ot.Dictionary:
    return deepcopy(state_of(name).dictionary)


def between(sizes: Tensor, k: int, dim: int = 1) -> Tensor:
    """Halfway between the k-th and the next largest."""
    top = sizes.topk(k + 1, dim).values
    return top.narrow(dim, k - 1, 2).mean(dim, keepdim=True)


def over(dictionary: ot.Dictionary, y: Tensor, batch: bool) -> Tensor:
    """By how much each pre-activation is on the active side of its selection's border, from the definitions."""
    select, own = dictionary.select, dict(dictionary.named_parameters())
    if isinstance(select, ot.AbsTopK):
        return y.abs() - between(y.abs(), select.k)
    if isinstance(select, ot.TopK):
        return y - between(y, select.k).clamp(min=0)
    if isinstance(select, ot.GroupMax):
        return torch.cat([g - between(g, 1).clamp(min=0) for g in y.tensor_split(select.k, dim=1)], 1)
    if isinstance(select, ot.BatchTopK):
        return y - (between(y.reshape(1, -1), select.k * len(y)).clamp(min=0) if batch else own["threshold"])
    if isinstance(select, ot.ThresholdJumpReLU):
        return y - own["log_threshold"].exp()
    if isinstance(select, ot.Gated):
        return torch.minimum(y, (y - dictionary.b_enc) * own["r_mag"].exp() + own["b_mag"])
    return y


def pursued(dictionary: ot.Dictionary, x: Tensor) -> Tensor:
    """Which atoms matching pursuit picks, row by row and step by step."""
    picked = torch.zeros(len(x), LATENTS, dtype=torch.bool)
    for row, left in enumerate((x - dictionary.b_dec).detach()):
        for _ in range(dictionary.select.steps):  # pyright: ignore[reportAttributeAccessIssue]
            products = dictionary.W_dec.detach() @ left
            best = int(products.argmax())
            if products[best] <= 0:
                break
            left = left - products[best] * dictionary.W_dec[best].detach()
            picked[row, best] = True
    return picked


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batch"])
def test_the_support_is_what_the_selection_says(dictionary: ot.Dictionary, batch: bool):
    """In float64, so that no border is missed by rounding."""
    dictionary = dictionary.double()
    x, norm = dictionary.normalise(ROWS.double())
    codes = dictionary.encode_batch(x, norm) if batch else dictionary.encode_normalised(x, norm)
    fired = codes.z.detach() != 0
    if isinstance(dictionary.select, ot.MatchingPursuit):
        assert torch.equal(fired, pursued(dictionary, x))
        return
    margin = over(dictionary, dictionary.pre_activations(ROWS.double()).detach(), batch).detach()
    clear = margin.abs() > 1e-9
    if isinstance(dictionary.select, ot.SmoothReLU):  # codes are positive everywhere; what fires is y > 0
        torch.testing.assert_close(codes.seen.fired, (margin > 0).sum(0))
        return
    assert clear.all() and torch.equal(fired, margin > 0)
    torch.testing.assert_close(codes.seen.fired, fired.sum(0))


def test_rows_of_sixteen_bits(name: str, dictionary: ot.Dictionary):
    """bfloat16 rows are what their values are: coded, and trained on, as float32 rows of these values; weights stay float32."""
    short = ROWS.bfloat16()
    assert dictionary(short).dtype == torch.float32
    assert torch.equal(dictionary(short), dictionary(short.float()))
    a, b = (trained(name, x, steps=4).dictionary.state_dict() for x in (short, short.float()))
    assert all(torch.equal(a[key], b[key]) and a[key].isfinite().all() for key in a)


def test_batches_of_one_row_train(name: str):
    state = trained(name, ROWS, batch=1, steps=3)
    assert state.step == 3 and all(weight.isfinite().all() for weight in state.dictionary.parameters())
    assert torch.equal(state.dictionary.encode(ROWS[:1]).z, state.dictionary.encode(ROWS[0]).z[None])


def stepped(name: str, dictionary: ot.Dictionary) -> ot.TrainState:
    """One step from these weights."""
    run, batch = run_of(METHODS[name]), ot.Batch(ROWS[:40], ROWS[:40])
    state = begin(run, dictionary.layout, batch)
    state.dictionary.load_state_dict(dictionary.state_dict())
    step_once(run, state, batch)
    assert bool(state.window_loss.isfinite())
    assert all(weight.isfinite().all() for weight in state.dictionary.parameters())
    return state


@torch.no_grad()
def test_nobody_alive(name: str, dictionary: ot.Dictionary):
    """No latent fires on any row: the reconstruction is b_dec, and a step changes nothing to NaN."""
    dictionary.W_enc.zero_()
    dictionary.b_enc.fill_(0 if isinstance(dictionary.select, ot.AbsTopK) else -1)
    codes = dictionary.encode(ROWS)
    assert not codes.seen.alive.any() and not codes.seen.peak.any()
    size = 1.0 if dictionary.read_scale is None else dictionary.read_scale
    torch.testing.assert_close(dictionary.decode(codes), dictionary.b_dec * codes.norm * size)
    with torch.enable_grad():
        state = stepped(name, dictionary)
    assert state.window.fired.sum() == 0


@torch.no_grad()
def test_everybody_alive(name: str, dictionary: ot.Dictionary):
    """Every pre-activation is positive: as many fire as the selection lets through, all of them where it counts none."""
    if isinstance(
        dictionary.select, ot.MatchingPursuit
    ):  # it has no bias to raise: atoms of either sign along eight axes
        dictionary.W_dec.copy_(torch.cat([torch.eye(D), -torch.eye(D)])[:LATENTS])
    else:
        dictionary.b_enc.fill_(10)
    if isinstance(dictionary.select, ot.Gated):
        dictionary.get_parameter("b_mag").fill_(10)
    k = getattr(dictionary.select, "k", getattr(dictionary.select, "steps", LATENTS))
    codes = dictionary.encode_batch(*dictionary.normalise(ROWS))
    assert codes.seen.fired.sum() == k * len(ROWS)
    assert dictionary(ROWS).isfinite().all()
    with torch.enable_grad():
        state = stepped(name, dictionary)
    assert state.window.fired.sum() == 40 * k
