"""What a step will take against what it takes: messages are counted here; times and memory are in docs/log.md."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import overtone as ot
from overtone.costs import Link, Message, Speed, forecast, memory, messages
from overtone.layout import Layout
from parallel.ranks import Ranks
from parallel.work import bytes_said

SIZES = {"latents": 2048, "batch": 64}
METHODS = {
    "tied, joined": (ot.gba(l0=8), SIZES),
    "untied, joined": (ot.topk(8), SIZES),
    "matrices": (ot.topk(8), {"latents": 96, "batch": 512}),
    "nested, of the batch": (ot.matryoshka(8), SIZES),
    "penalised": (replace(ot.topk(8), losses=(ot.Reconstruction(), ot.L1(0.01))), SIZES),
}
MESHES = {"rows": (2, 1), "latents": (1, 2), "both": (2, 2)}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", METHODS)
def test_ranks_say_as_much_as_is_planned(name: str, mesh: str, ranks: Ranks):
    """But for messages of a few numbers; how many entries the rank with the most has, and candidates of a batch, is chance."""
    method, sizes = METHODS[name]
    rows, latents = MESHES[mesh]
    said = ranks(rows * latents, bytes_said, method, sizes, latents=latents)[0]
    planned: dict[tuple[str, str], int] = {}
    for message in messages(ot.Run(method, **sizes), Layout.of(32), rows, latents, said.pop(("l0", ""))):
        key = message.axis, message.kind
        planned[key] = planned.get(key, 0) + message.bytes
    for axis, kind in said.keys() | planned.keys():
        close = {"sum": 0.01, "gather": 0.15}[kind]
        assert planned.get((axis, kind), 0) == pytest.approx(said.get((axis, kind), 0), rel=close, abs=250)


def test_a_ring_sends_a_sum_twice_and_what_all_know_to_all():
    assert Message("", "rows", "sum", 100).sent(4) == 150
    assert Message("", "rows", "gather", 100).sent(4) == 300
    assert Link(1.0, 50.0).seconds(Message("", "rows", "sum", 100), 4) == 4.0


def test_latents_in_parts_take_parts_of_the_memory():
    """Weights and the optimiser's memory of them fall as 1/R, exactly."""
    run = ot.Run(ot.topk(8), 2**16, batch=1024)
    one, four = (memory(run, Layout.of(64), 1, latents, 8) for latents in (1, 4))
    assert one["weights"] == 2 * 2**16 * 64 * 4 and one["optimiser"] == 2 * one["weights"]
    assert [four[what] * 4 for what in ("weights", "optimiser")] == [one[what] for what in ("weights", "optimiser")]


def test_the_bottleneck_is_named():
    run, layout = ot.Run(ot.topk(8), 2048, batch=64), Layout.of(32)
    slow = forecast(run, layout, Speed(0, 1e-9, 1e-9, 1e-6, 8, 0), rows=2, link=Link(1.0, 1e9))
    assert slow.bottleneck == "messages" and slow.step > 5
    alone = forecast(run, layout, Speed(0, 1e-9, 1e-9, 1e-6, 8, 0))
    assert alone.step == pytest.approx(64 * 2048e-9 + 2048e-9 + 64e-6) and alone.bottleneck == "finding active latents"
    with pytest.raises(ValueError, match="a mesh of 2 × 1 ranks talks, and link is missing"):
        forecast(run, layout, Speed(0, 1, 1, 1, 8, 0), rows=2)
    with pytest.raises(ValueError, match="batch=64 cannot be dealt out to 3 ranks"):
        forecast(run, layout, Speed(0, 1, 1, 1, 8, 0), rows=3, link=Link(1, 1))


def test_the_command_plans(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from overtone.cli.plan import plan

    options = {"ranks": 4, "accumulate": 2, "split_latents": 2, "latency_us": 50.0, "gbit": 10.0, "memory_gib": 0.001}
    plan(16, method="topk", l0=4, latents=4096, batch=256, tokens=10_000, json=tmp_path / "plan.json", **options)
    shown = " ".join(capsys.readouterr().out.split())
    assert "topk-4: 4,096 latents, batches of 256 in 2 parts, L0 4.0, 2 × 2 ranks" in shown
    assert "40 steps, 10,240 tokens" in shown and "does not fit into 0.001 GiB" in shown
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["step_seconds"] == pytest.approx(sum(found["seconds"].values())) and found["spread"] < 1
    with pytest.raises(ValueError, match="--split-latents 3 does not divide 4 ranks"):
        plan(16, ranks=4, split_latents=3)
