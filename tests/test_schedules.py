"""Terms that change over a run, and rules that touch gradients and dead latents."""

import math
from dataclasses import replace

import pytest
import torch

from overtone import (
    L1,
    ArrayStream,
    CountIdle,
    DeadResampling,
    Dictionary,
    Lp,
    Parametrisation,
    Ramp,
    Reconstruction,
    Run,
    SurplusResampling,
    TangentGradient,
    ThresholdJumpReLU,
    decayed,
    jumprelu,
    topk,
    warmed,
)
from overtone.revival import surplus
from overtone.schedules import resolved
from overtone.training import start, step_once


def test_ramps_are_straight_and_hold_their_ends():
    term = warmed(L1(0.4), 0.5)
    coefficients = [resolved(term, step, 8).coefficient for step in range(1, 9)]  # pyright: ignore[reportAttributeAccessIssue]
    assert coefficients == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4])
    assert resolved(decayed(L1(0.4), 0.5), 6, 8) == L1(0.2)
    assert resolved(L1(0.4), 6, 8) == L1(0.4)
    assert warmed(L1(0.4), 0.0) == decayed(L1(0.4), 0.0) == L1(0.4)


def test_a_ramp_of_a_ramp_moves_two_numbers():
    term = Ramp(warmed(Lp(0.4), 0.5), "p", 1.0, 0.2, first=0.5)
    assert resolved(term, 2, 8) == Lp(0.2, 1.0)
    last = resolved(term, 8, 8)
    assert isinstance(last, Lp) and last.coefficient == 0.4 and last.p == pytest.approx(0.2)


def test_called_by_itself_it_is_the_last_term(rows: torch.Tensor):
    dictionary = Dictionary(12, 20)
    x, norm = dictionary.normalise(rows)
    codes = dictionary.encode_batch(x, norm)
    assert warmed(L1(0.4), 0.5)(dictionary, codes, x) == L1(0.4)(dictionary, codes, x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(L1(0.1), "p", 1.0, 0.1), "has no 'p' to move"),
        (lambda: Ramp(Lp(0.1), "p", 1.0, 0.0), r"p=0\.0 must lie in"),
        (lambda: Ramp(L1(0.1), "coefficient", 0.0, 0.1, 0.5, 0.5), "first=0.5 and last=0.5"),
        (lambda: warmed(Reconstruction(), 0.5), "has no 'coefficient' to move"),
    ],
)
def test_bad_ramps_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_training_goes_by_the_schedule(rows: torch.Tensor):
    """A coefficient that starts at 0 trains as no term at all, for as long as it is 0."""
    late = Ramp(L1(5.0), "coefficient", 0.0, 5.0, first=0.5)
    weights = []
    for losses in ((Reconstruction(), late), (Reconstruction(),)):
        run = Run(replace(topk(4), losses=losses), latents=20, steps=10, batch=50)
        stream = ArrayStream(rows, 50)
        state = start(run, stream)
        seen = []
        for _ in range(6):
            step_once(run, state, next(stream))
            seen.append(state.dictionary.W_enc.detach().clone())
        weights.append(seen)
    assert torch.equal(weights[0][4], weights[1][4]) and not torch.equal(weights[0][5], weights[1][5])


def test_tangent_gradients_are_orthogonal_to_their_atoms(rows: torch.Tensor):
    dictionary = Dictionary(12, 20)
    with torch.no_grad():
        dictionary.W_dec.mul_(3)
    x, norm = dictionary.normalise(rows)
    Reconstruction()(dictionary, dictionary.encode_batch(x, norm), x).backward()
    before = dictionary.W_dec.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
    TangentGradient().before_step(dictionary)
    after = dictionary.W_dec.grad
    assert after is not None
    torch.testing.assert_close((after * dictionary.W_dec).sum(1), torch.zeros(20), atol=1e-5, rtol=0)
    removed = before - after
    cosine = torch.nn.functional.cosine_similarity(removed, dictionary.W_dec, dim=1).abs()
    torch.testing.assert_close(cosine, torch.ones(20), atol=1e-3, rtol=0)


def test_idle_rows_are_counted(rows: torch.Tensor):
    """By hand from the codes of each batch."""
    run = Run(topk(2, aux_after=100), latents=40, steps=8, batch=50)
    stream = ArrayStream(rows, 50)
    state, expected = start(run, stream), torch.zeros(40, dtype=torch.int64)
    for _ in range(8):
        batch = next(stream)
        fired = (state.dictionary.encode(batch.x).z > 0).any(0)
        expected = torch.where(fired, 0, expected + 50)
        step_once(run, state, batch)
        assert torch.equal(state.dictionary.idle, expected)
    assert torch.equal(state.dictionary.dead(100), expected >= 100)


def test_aux_k_wakes_latents_that_no_row_selects(rows: torch.Tensor):
    """Latents whose bias lets no row select them stay dead under TopK; more of them come back with AuxK."""
    alive = {}
    for after in (None, 100):
        run = Run(replace(topk(3, aux_after=after), lr=0.02), latents=20, steps=120, batch=50)
        stream = ArrayStream(rows, 50)
        state = start(run, stream)
        with torch.no_grad():
            state.dictionary.b_enc[:10] = -0.4
        for _ in range(run.steps):
            step_once(run, state, next(stream))
        alive[after] = int((state.dictionary.encode(rows).z > 0).any(0)[:10].sum())
    assert alive[100] > alive[None]


def resampling(method, interval: int):
    return replace(
        method,
        rules=(*method.rules, CountIdle(), DeadResampling(interval=interval, after=1, until=20)),
        parametrisation=replace(method.parametrisation, counts_idle=True),
    )


@pytest.mark.parametrize("method", [topk(3), jumprelu(3, start=0.3)], ids=lambda m: m.name)
def test_resampled_latents_become_rows_and_start_anew(method, rows: torch.Tensor):
    run = Run(resampling(method, 4), latents=40, steps=12, batch=50)
    stream = ArrayStream(rows, 50)
    state = start(run, stream)
    with torch.no_grad():
        state.dictionary.b_enc[:5] = -9.0
    for _ in range(3):
        step_once(run, state, next(stream))
    before = state.dictionary.W_dec.detach().clone()
    batch = next(stream)
    step_once(run, state, batch)
    dictionary, [reborn] = state.dictionary, state.rules[-1]["resampled"].nonzero(as_tuple=True)
    assert len(reborn) >= 5 and len(reborn) < 40
    rows_seen, _ = dictionary.normalise(batch.x)
    cosines = dictionary.W_dec[reborn] @ torch.nn.functional.normalize(rows_seen - dictionary.b_dec, dim=1).T
    torch.testing.assert_close(cosines.amax(1).detach(), torch.ones(len(reborn)), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(dictionary.W_enc[reborn], dictionary.W_dec[reborn]).detach(),
        torch.ones(len(reborn)),
    )
    assert (dictionary.b_enc[reborn] == 0).all() and (dictionary.idle[reborn] == 0).all()
    if isinstance(dictionary.select, ThresholdJumpReLU):
        assert dictionary.get_parameter("log_threshold")[reborn].tolist() == pytest.approx(
            [math.log(0.3)] * len(reborn)
        )
    moments = state.optimiser.state[dictionary.W_dec]
    others = torch.ones(40, dtype=torch.bool)
    others[reborn] = False
    assert (moments["exp_avg"][reborn] == 0).all() and (moments["exp_avg"][others] != 0).any()
    assert (dictionary.W_dec[others] - before[others]).abs().max() < 0.1
    step_once(run, state, next(stream))
    assert not state.rules[-1]["resampled"].any()


def test_rows_are_drawn_by_their_error():
    """All error in one row: every dead latent becomes that row."""
    dictionary = Dictionary(3, 4, parametrisation=Parametrisation(False, False, "trained", counts_idle=True))
    with torch.no_grad():
        dictionary.b_enc.fill_(-5)
        dictionary.b_dec.copy_(torch.tensor([1.0, 0, 0]))
    x = torch.tensor([[1.0, 0, 0]] * 7 + [[0, 1.0, 0]])
    codes = dictionary.encode_batch(x, torch.ones(8, 1))
    rule = DeadResampling(interval=1, after=1, until=9)
    state = rule.begin(dictionary, x)
    CountIdle().after_step(dictionary, {}, codes, 1)
    state = rule.after_step(dictionary, state, codes, 1)
    assert int(state["resampled"].sum()) == 1, "one row has error, so one latent is drawn"
    [reborn] = state["resampled"].nonzero()
    expected = torch.tensor([-1.0, 1, 0]) / math.sqrt(2)
    torch.testing.assert_close(dictionary.W_dec[reborn[0]].detach(), expected)
    later = rule.after_step(dictionary, state, codes, 10)
    assert not later["resampled"].any(), "none after `until`"


def test_latents_that_double_another_or_do_not_fire_are_surplus():
    atoms = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0.99, 0.1], [0, 1], [0, 1], [-1, 0]]), dim=1)
    fired = torch.tensor([5, 9, 4, 4, 0])
    assert surplus(atoms, fired, 0.9).tolist() == [True, False, False, True, True], "the rarer, the later, the silent"
    order = torch.tensor([4, 1, 2, 0, 3])
    assert surplus(atoms[order], fired[order], 0.9).tolist() == [True, False, False, True, True]
    assert surplus(atoms, fired + 1, 0.999).tolist() == [False, False, False, True, False]


def test_surplus_latents_become_what_the_others_leave():
    """One latent doubles another, and one feature has none: it gets that one."""
    dictionary = Dictionary(3, 3, parametrisation=Parametrisation(centre="fixed", input_norm="none"))
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]))
        dictionary.b_enc.fill_(-0.1)
        dictionary.scale[2] = 0.5
    x = torch.tensor([[0.0, 0.3, 0.9], [0.0, 0.8, 0.0], [0.0, 0.5, 0.7]])
    codes = dictionary.encode_batch(x, torch.ones(3, 1))
    rule = SurplusResampling(interval=2, most=0.4)
    state = rule.begin(dictionary, x)
    state["fired"] += torch.tensor([3, 0, 2])
    quiet = rule.at(1, 10).after_step(dictionary, state, codes, 2)
    assert not quiet["resampled"].any(), "before its stretch of the run"
    still = rule.at(5, 10).after_step(dictionary, state, codes, 5)
    assert still["fired"].tolist() == [3, 3, 2] and not still["resampled"].any(), "between two looks"
    after = rule.at(6, 10).after_step(dictionary, state, codes, 6)
    assert after["resampled"].tolist() == [False, False, True] and not after["fired"].any()
    torch.testing.assert_close(dictionary.W_dec[2].detach(), torch.tensor([0.0, 0, 1]))
    assert dictionary.scale is not None and dictionary.scale[2] == 1
    assert torch.equal(dictionary.b_enc.detach(), torch.full((3,), -0.1)), "thresholds stay"


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"interval": 0}, "interval=0 must be at least 1 step"),
        ({"first": 0.9}, "first=0.9 and last=0.8 are shares of the run"),
        ({"near": 0.0}, r"near=0.0 must lie in \(0, 1\]"),
        ({"most": 2.0}, r"most=2.0 must lie in \(0, 1\]"),
    ],
)
def test_wrong_settings_of_surplus_resampling(wrong: dict, said: str):
    with pytest.raises(ValueError, match=said):
        SurplusResampling(**wrong)
