from dataclasses import replace

import pytest
import torch

from overtone import (
    ArrayStream,
    Method,
    Run,
    fit,
    gba,
    gba_paper,
    gba_universal,
    imbalanced,
    l1,
    ops,
    recovery,
    start,
    topk,
    train,
    transcoder,
)
from overtone.metrics.reconstruction import evaluate


def run_of(**changes) -> Run:
    return replace(Run(method=gba(groups=4), latents=24, steps=40, batch=64, log_every=10), **changes)


def test_records_say_what_happened(rows: torch.Tensor):
    run = run_of(steps=45, decay=0.5)
    records = list(train(run, ArrayStream(rows, run.batch)))
    assert [r.step for r in records] == [10, 20, 30, 40, 45]
    assert [r.rows for r in records] == [640, 1280, 1920, 2560, 2880]
    assert records[-1].loss < records[0].loss
    assert records[-1].lr < records[0].lr == run.method.lr
    assert all(0 < r.l0 < 24 and 0 < r.alive <= 1 and r.rows_per_s > 0 for r in records)
    assert all(0 < r.step_seconds <= r.seconds for r in records)


def test_l0_of_a_record_is_that_of_the_codes(rows: torch.Tensor):
    run = run_of(method=topk(3), steps=10)
    record = next(iter(train(run, ArrayStream(rows, run.batch))))
    assert record.l0 == pytest.approx(3, abs=0.2)


def test_the_same_seed_gives_the_same_weights(rows: torch.Tensor):
    def weights(seed: int) -> torch.Tensor:
        return fit(rows, gba(groups=4), latents=24, steps=20, batch=64, seed=seed).W_dec

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_what_is_trained_where_no_method_is_named(rows: torch.Tensor):
    """`gba_universal` of rows alone, `gba` of several sites, its untied form of a target."""
    assert Run().method == gba_universal()
    sizes = {"latents": 24, "steps": 2, "batch": 64}
    plain, several = fit(rows, **sizes), fit({"a": rows, "b": rows}, **sizes)
    assert plain.parametrisation == gba_universal().parametrisation
    assert several.parametrisation == gba().parametrisation
    assert fit(rows, target=rows, **sizes).parametrisation == transcoder(gba()).parametrisation


def test_a_dictionary_does_not_start_at_the_truth():
    """The same seed for features, rows, order and atoms: nothing is found before training, beyond chance."""
    truth = imbalanced(seed=0)
    run = Run(method=gba(), latents=512, seed=0)
    found = recovery(start(run, truth.stream(512, rows=2000, seed=0)).dictionary.W_dec.detach(), truth.features)
    chance = recovery(torch.randn(512, 42, generator=torch.Generator().manual_seed(99)), truth.features)
    assert found.frr[0.8] == 0
    assert abs(found.mean_max_cosine - chance.mean_max_cosine) < 0.02


def test_the_stream_is_read_from_its_beginning(rows: torch.Tensor):
    """Rules look at rows before training; the first batch is trained on all the same."""
    stream = ArrayStream(rows, 64)
    start(run_of(), stream)
    assert stream.state_dict() == ArrayStream(rows, 64).state_dict()


def test_atoms_stay_on_the_sphere_and_biases_in_range(rows: torch.Tensor):
    dictionary = fit(rows, gba(groups=4), latents=24, steps=60, batch=64)
    torch.testing.assert_close(dictionary.W_dec.detach().norm(dim=1), torch.ones(24))
    assert dictionary.b_enc.min() >= -1 and dictionary.b_enc.max() <= 0
    assert dictionary.W_dec.grad is None, "a finished dictionary does not carry gradients around"


@pytest.mark.parametrize("method", [gba(groups=4), gba(l0=4), topk(4)], ids=lambda m: m.name)
def test_fast_and_slow_operations_train_alike(method: Method, rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    """The loss over 500 steps is that of the reference, up to the order in which float32 numbers are added."""

    def losses() -> list[float]:
        run, stream = run_of(method=method, steps=500, log_every=25), ArrayStream(rows, 64)
        return [record.loss for record in train(run, stream)]

    fast = losses()
    monkeypatch.setattr(ops, "_implementation", lambda *_: ops.reference)
    assert fast == pytest.approx(losses(), rel=2e-3)


def test_schedule():
    run = run_of(steps=100, warmup=0.1, decay=0.2, lr=1.0)
    assert run.lr_at(1) == pytest.approx(0.1)
    assert run.lr_at(10) == run.lr_at(50) == run.lr_at(80) == 1.0
    assert run.lr_at(91) == pytest.approx(0.5)
    assert run.lr_at(100) == pytest.approx(0.05)


def test_a_diverging_run_says_so(rows: torch.Tensor):
    run = run_of(method=l1(), lr=1e30, steps=20)
    with pytest.raises(FloatingPointError, match=r"no longer finite at step \d+ \(lr=1e\+30\); lower lr"):
        list(train(run, ArrayStream(rows, run.batch)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"latents": 0}, "latents=0"),
        ({"lr": -1.0}, "lr=-1.0 must be positive and finite"),
        ({"lr": float("nan")}, "lr=nan must be positive"),
        ({"warmup": 0.6, "decay": 0.6}, "may not sum above 1"),
    ],
)
def test_bad_runs_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        run_of(**changes)


def test_more_groups_or_k_than_latents(rows: torch.Tensor):
    with pytest.raises(ValueError, match="groups=20 exceeds latents=8"):
        fit(rows, gba(), latents=8, steps=1)
    with pytest.raises(ValueError, match="k=32 exceeds latents=8"):
        fit(rows, topk(32), latents=8, steps=1)


def test_gba_recovers_known_features_and_wrong_frequencies_do_not():
    """A small ground truth, default settings, scored at the end of training (issue-sized runs: `overtone recover`)."""
    truth = imbalanced(n_features=32, d=24, sparsities=(2, 6), seed=3)
    x = truth.rows(8000, seed=3).x

    def score(method) -> float:
        atoms = fit(x, method, latents=128, steps=1200, batch=256, seed=3).W_dec.detach()
        return recovery(atoms, truth.features).frr[0.9]

    right, wrong = score(gba()), score(gba(htf=0.5, ltf=0.45))
    assert right >= 30 / 32
    assert wrong < 0.5


@pytest.mark.parametrize("l0", [2, 5])
def test_the_l0_dial_is_met(l0: int, rows: torch.Tensor):
    dictionary = fit(rows, gba(l0=l0, groups=4), latents=48, steps=400, batch=128)
    assert evaluate(dictionary, rows).l0 == pytest.approx(l0, rel=0.2)


def test_targets_bound_l0_as_published(rows: torch.Tensor):
    method = gba_paper(groups=4, htf=0.1, ltf=0.02, interval=1)
    assert method.spectrum is not None
    dictionary = fit(rows, method, latents=48, steps=600, batch=128)
    assert evaluate(dictionary, rows).l0 <= 1.1 * float(method.spectrum.targets(48).sum())
