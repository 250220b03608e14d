"""`overtone experiment` as a user meets it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from overtone.laboratory import EXPERIMENTS
from overtone.laboratory.experiment import grid

TINY = grid(
    n_features=16, d=12, sparsity=2, frequency=(0.05, 0.2), latents=20, steps=3, batch=64, rows=300, threshold=0.8
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Measurements take one thread for their whole process, which here goes on with other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_table_and_every_number(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    short = replace(EXPERIMENTS["recursion"], points={"small": TINY})
    monkeypatch.setitem(EXPERIMENTS, "recursion", short)
    words = ("experiment", "recursion", "--seeds", 2, "--seed", 5, "--jobs", 1, "--json", "r.json")
    status, out, _ = call(*words)
    assert status == 0 and "4 measurements" in out and "±" in out
    written = json.loads((tmp_path / "r.json").read_text())
    assert [(r["point"]["frequency"], r["seed"]) for r in written["results"]] == [
        (0.05, 5), (0.05, 6), (0.2, 5), (0.2, 6)
    ]  # fmt: skip
    again = short.measured(TINY[1], 6)
    assert written["results"][3] == again._asdict()
    pytest.importorskip("matplotlib", reason='needs pip install "overtone[report]"')
    status, _, err = call("plot", "r.json", "-o", "f.svg", "--data", "d.json")
    assert status == 0 and (tmp_path / "f.svg").is_file(), err
    rows = json.loads((tmp_path / "d.json").read_text())["rows"]
    assert rows[3] == {**again.point, "seed": 6, **again.found}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("width", "--seeds", 0), "seeds=0 must be at least 1"),
        (("width", "--jobs", 0), "jobs=0 must be at least 1"),
    ],
)
def test_errors_are_one_line(call, words: tuple[object, ...], message: str):
    status, _, err = call("experiment", *words)
    assert status == 2 and message in err and err.count("\n") == 1
