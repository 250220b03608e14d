"""The paper's experiments: every one can be measured, drawn from its JSON alone, and shows what it is about."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from overtone.cli.experiment import Job, Name, work_on
from overtone.laboratory import EXPERIMENTS, Experiment, grid
from overtone.laboratory.theorem import modified_ba_recovers, projections_over_time
from overtone.report.experiments import Measured, gain, over_seeds, where
from overtone.report.plots import save

# Sizes at which a measurement takes a fraction of a second; which methods, frequencies and variants there are stays as it is.
TINY = {"latents": 40, "steps": 12, "rows": 600, "batch": 256}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Measurements take one thread for their whole process, which here goes on with other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(one: Experiment) -> list[dict[str, Any]]:
    """The first and the last point of the small grid, made tiny."""
    points = one.points["small"]
    return [{k: TINY.get(k, v) for k, v in point.items()} for point in (points[0], points[-1])]


def test_the_command_knows_every_experiment():
    assert set(get_args(Name)) == set(EXPERIMENTS)
    assert all(one.name == name for name, one in EXPERIMENTS.items())


@pytest.mark.parametrize("one", EXPERIMENTS.values(), ids=lambda one: one.name)
def test_grids_have_no_point_twice_and_something_varies(one: Experiment):
    for scale, points in one.points.items():
        assert len({json.dumps(point, sort_keys=True) for point in points}) == len(points) > 1
        assert one.varied(scale)
    assert len(one.points["paper"]) > len(one.points["small"]) or one.name == "projections"


@pytest.mark.parametrize("one", EXPERIMENTS.values(), ids=lambda one: one.name)
def test_measured_twice_is_the_same_and_survives_json(one: Experiment):
    point = tiny(one)[0]
    first, again = one.measured(point, 0), one.measured(point, 0)
    assert first == again
    assert set(one.told) <= set(first.found)
    assert Measured(**json.loads(json.dumps(first._asdict()))) == first
    assert first.found != one.measured(point, 1).found


def synthetic(one: Experiment, points: list[dict[str, Any]]) -> list[Measured]:
    """Numbers of the right names and shapes at every point of a grid, for two seeds."""
    model = one.measured(tiny(one)[0], 0).found
    draws = np.random.default_rng(0)
    return [
        Measured(dict(p), seed, {k: v if isinstance(v, list) else float(draws.random()) for k, v in model.items()})
        for p in points
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("one", EXPERIMENTS.values(), ids=lambda one: one.name)
def test_a_picture_of_every_grid(one: Experiment, tmp_path: Path):
    results = synthetic(one, list(one.points["small"]))
    save(lambda: one.draw(results), tmp_path / "one.svg")
    save(lambda: one.draw(results), tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_grid():
    assert grid(a=1, b=(2, 3), c=("x", "y")) == [
        {"a": 1, "b": 2, "c": "x"},
        {"a": 1, "b": 2, "c": "y"},
        {"a": 1, "b": 3, "c": "x"},
        {"a": 1, "b": 3, "c": "y"},
    ]


def test_over_seeds_sorts_points_and_keeps_seeds():
    results = [Measured({"x": x, "k": k}, s, {"y": x + s}) for x in (3, 1) for k in (0, 1) for s in (0, 10)]
    x, y = over_seeds(where(results, k=1), "x", "y")
    assert x.tolist() == [1, 3] and y.tolist() == [[1, 11], [3, 13]]


def test_gain_is_what_random_atoms_did_not_have():
    assert gain({"start_0.9": 0.2, "frr_0.9": 0.2}, "0.9") == 0
    assert gain({"start_0.9": 0.2, "frr_0.9": 1.0}, "0.9") == pytest.approx(1)


SMALL = {"n_features": 64, "sparsity": 3, "d": 48, "steps": 15, "batch": 1024, "rows": 8192}


def test_resonance_has_an_upper_edge():
    """At a third of a feature's frequency most features are found; at three times it hardly more than at the start."""
    found = {
        ratio: modified_ba_recovers(seed=0, frequency=ratio * 3 / 64, latents=128, **SMALL) for ratio in (0.3, 3.0)
    }
    assert found[0.3]["frr_0.8"] > 0.5 and found[3.0]["frr_0.8"] < 0.15
    assert all(f["start_0.8"] < 0.1 for f in found.values())


def test_the_winner_takes_all():
    found = projections_over_time(seed=0, ratio=0.3, latents=64, followed=2, **SMALL)
    cosines = np.array(found["cosines"])
    assert cosines.shape == (16, 2, 64)
    assert found["largest"] > 0.8 and found["second"] < 0.6


def test_a_job_finds_its_point(monkeypatch: pytest.MonkeyPatch):
    short = replace(EXPERIMENTS["projections"], points={"small": tiny(EXPERIMENTS["projections"])})
    monkeypatch.setitem(EXPERIMENTS, "projections", short)
    job = Job("projections", "small", 1, 0)
    assert work_on(job) == (job, short.measured(short.points["small"][1], 0))
