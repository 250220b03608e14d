"""Rows worked through in parts train what one piece does: losses, weights, biases, statistics, selections."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import overtone as ot
from overtone import ops
from overtone.checkpoint import checkpoints
from overtone.costs import memory
from overtone.gradients import learn
from overtone.layout import Layout
from overtone.ops import Encoded
from overtone.parallel import World
from overtone.training import step_once
from parallel.compared import same_training
from parallel.work import METHODS, started, stream_of, trained
from parallel.work import run_of as parallel_run
from test_checkpoint import finished

NAMES = list(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_parts_train_what_one_piece_does(name: str):
    [one], [found] = (trained(World(), [name], {"accumulate": parts}).values() for parts in (1, 2))
    same_training(found, one, name)


@pytest.mark.parametrize("name", ["gba", "batch-topk", "normalised", "topk-resampled"])
def test_many_parts_of_many_latents(name: str):
    sizes = {"latents": 200, "batch": 12}
    [one], [found] = (trained(World(), [name], sizes | {"accumulate": parts}).values() for parts in (1, 4))
    same_training(found, one, name)


@pytest.mark.parametrize("name", NAMES)
def test_rules_see_the_whole_batch(name: str):
    """Which latents are active, how often they fire, and the codes that a rule may look at."""
    found = {}
    for parts in (1, 3):
        run = parallel_run(name, accumulate=parts)
        stream = stream_of(run)
        state = started(replace(run, accumulate=1), stream, World())
        step_once(replace(run, accumulate=1), state, next(stream))
        terms = tuple(term for term in run.method.losses if isinstance(term, ot.Reconstruction | ot.NormalisedMSE))
        found[parts] = learn(terms or (ot.Reconstruction(),), state.dictionary, next(stream), [], parts=parts)
    one, many = found[1].codes, found[3].codes
    assert torch.equal(one.seen.rows, many.seen.rows) and torch.equal(one.seen.fired, many.seen.fired)
    torch.testing.assert_close(one.seen.peak, many.seen.peak)
    assert torch.equal(one.z != 0, many.z != 0)
    torch.testing.assert_close(one.z, many.z, rtol=1e-4, atol=2e-6)
    assert torch.equal(one.x, many.x)
    torch.testing.assert_close(found[1].loss, found[3].loss)


def pre_activations(kind: str) -> Tensor:
    """24 rows of 16 latents."""
    pre = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    if kind == "ties":
        return (2 * pre).round() / 2
    if kind == "one part has the largest":
        return torch.cat([pre[:8] - 3, pre[8:16] * 5, pre[16:] - 2])
    return pre - 2.5 if kind == "few are positive" else pre


@pytest.mark.parametrize("implementation", [ops.cpu, ops.reference])
@pytest.mark.parametrize("kind", ["plain", "ties", "one part has the largest", "few are positive"])
def test_the_largest_of_a_batch_are_those_of_all_parts(kind: str, implementation):
    pre, eye, bias = pre_activations(kind), torch.eye(16), torch.zeros(16)
    for k in (1, 3, 16):
        whole = implementation.encode_batch_topk(pre, eye, bias, k).codes.dense()
        parts = implementation.encode_batch_topk_in_parts(pre.split(8), eye, bias, k, world=World())
        assert torch.equal(torch.cat([part.codes.dense() for part in parts]), whole)


def test_a_run_in_parts_resumes_bit_for_bit(rows: Tensor, tmp_path):
    run = ot.Run(ot.gba(l0=3, groups=3, interval=2), 16, 30, 32, accumulate=4, log_every=4, checkpoint_every=7)
    whole = finished(tmp_path / "whole", run, rows)
    assert finished(tmp_path / "parts", run, rows, 3) is None
    again = finished(tmp_path / "parts", run, rows)
    assert whole is not None and again is not None
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    assert ot.RunFolder.open(tmp_path / "parts").run.accumulate == 4


@dataclass(frozen=True)
class MeanOfMean:
    """A term whose second mean depends on its first."""

    def __call__(
        self, dictionary: ot.Dictionary, codes: ot.Codes, target: Float[Tensor, "batch d"]
    ) -> Float[Tensor, ""]:
        rows = dictionary.world.rows
        size = rows.mean(codes.entries.values.mean())
        return rows.mean((codes.entries.values - size).square().mean())


@dataclass(frozen=True)
class AllRows:
    """A term that wants more than means."""

    def __call__(
        self, dictionary: ot.Dictionary, codes: ot.Codes, target: Float[Tensor, "batch d"]
    ) -> Float[Tensor, ""]:
        return dictionary.world.rows.concatenate(codes.entries.values).mean() * codes.entries.values.mean()


@dataclass(frozen=True)
class Together:
    """A user's selection that codes a batch together and says nothing of parts."""

    def encode(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor, *args, **own) -> Encoded:
        return ot.ReLU().encode(x, W_enc, b_enc, centre)

    encode_batch = encode


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ot.end_to_end(ot.topk(3)), r"loss EndToEnd, which asks the model about whole texts, and accumulate=2"),
        (
            ot.Method("mine", Together(), (ot.Reconstruction(),)),
            r"Together\(\) codes a batch together .* give it encode_shared",
        ),
        (ot.Method("mine", ot.TopK(3), (MeanOfMean(),)), "asks for a mean that depends on another mean"),
        (ot.Method("mine", ot.TopK(3), (AllRows(),)), "asks for numbers of all parts"),
    ],
)
def test_what_cannot_be_done_in_parts_is_refused(method: ot.Method, message: str, rows: Tensor):
    run = ot.Run(method, 16, 2, 32, accumulate=2)
    with pytest.raises(ValueError, match=message):
        list(ot.train(run, ot.ArrayStream(rows, run.batch)))


def test_parts_have_to_be_equal(rows: Tensor):
    with pytest.raises(ValueError, match=r"32 rows, .* in accumulate=5 equal parts; take a divisor of 32"):
        list(ot.train(ot.Run(ot.topk(3), 16, 2, 32, accumulate=5), ot.ArrayStream(rows, 32)))
    with pytest.raises(ValueError, match="accumulate=0 must be at least 1"):
        ot.Run(ot.topk(3), accumulate=0)


def test_runs_from_before_there_were_parts_go_on(rows: Tensor, tmp_path):
    run = ot.Run(ot.topk(3), 16, 30, 32, log_every=4, checkpoint_every=7)
    assert finished(tmp_path / "run", run, rows, 3) is None
    newest = checkpoints(tmp_path / "run")[-1]
    for file in (tmp_path / "run" / "config.json", newest / "state.json"):
        description = json.loads(file.read_text())
        del description["run"]["accumulate"]
        file.write_text(json.dumps(description))
    assert finished(tmp_path / "run", run, rows) is not None


def test_parts_take_parts_of_the_memory():
    """Of what a step's rows need; gradients then have to be matrices."""
    one, eight = (
        memory(ot.Run(ot.topk(8), 2**14, batch=4096, accumulate=parts), Layout.of(64), 1, 1, 8) for parts in (1, 8)
    )
    rows = 4 * 4096 * 64
    assert eight["codes and reconstructions"] - rows == pytest.approx(one["codes and reconstructions"] / 8)
    assert eight["gradients"] == 3 * 4 * 2**14 * 64 and one["weights"] == eight["weights"]
