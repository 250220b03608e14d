"""`overtone evaluate` of several dictionaries: side by side, kept as they come, gone on with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import overtone
from overtone.cli import evaluate as verb


@pytest.fixture
def folders(rows: torch.Tensor, tmp_path: Path) -> list[Path]:
    np.save(tmp_path / "rows.npy", rows[-200:].numpy())
    for seed in range(3):
        overtone.save(overtone.Dictionary(12, 24, overtone.TopK(2 + seed), seed=seed), tmp_path / f"d{seed}")
    return [tmp_path / f"d{seed}" for seed in range(3)]


WORDS = ("--activations", "rows.npy", "--json", "e.json")


def test_several_dictionaries_side_by_side(call, folders: list[Path], rows: torch.Tensor, tmp_path: Path):
    status, out, err = call("evaluate", "d0", "d1", "d2", *WORDS)
    assert status == 0 and "d2" in out and "relative norm" in out, err
    found = json.loads((tmp_path / "e.json").read_text())
    assert [result["run"] for result in found["runs"]] == ["d0", "d1", "d2"]
    for folder, result in zip(folders, found["runs"], strict=True):
        mine = overtone.evaluate(overtone.load(folder), rows[-200:])
        assert result["metrics"] == pytest.approx(mine.summary())
        assert result["distributions"]["l0_histogram"] == mine.active.tolist()
        assert len(result["distributions"]["decile_explained_variance"]) == 10
    alone = call("evaluate", "d1", *WORDS[:2], "--json", "alone.json")
    assert alone[0] == 0 and json.loads((tmp_path / "alone.json").read_text())["runs"] == found["runs"][1:2]


def test_a_stopped_evaluation_goes_on(call, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert call("evaluate", "d0", "d1", "d2", *WORDS[:2], "--json", "whole.json")[0] == 0
    real, measured = verb.reconstruction, []

    def stop_at_second(dictionary, batches):
        measured.append(dictionary.select.k)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(dictionary, batches)

    monkeypatch.setattr(verb, "reconstruction", stop_at_second)
    status, _, err = call("evaluate", "d0", "d1", "d2", *WORDS)
    assert status == 130 and "--resume" in err
    assert len(json.loads((tmp_path / "e.json").read_text())["runs"]) == 1
    status, out, err = call("evaluate", "d0", "d1", "d2", *WORDS, "--resume")
    assert status == 0 and "d0" in out, err
    assert measured == [2, 3, 3, 4], "what was finished is not measured again"
    whole, parts = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "e.json"))
    assert parts == whole
    status, _, err = call("evaluate", "d0", *WORDS, "--resume", "--rows", 100)
    assert status == 2 and "was measured with rows=200000, and not with rows=100" in err
    with torch.no_grad():
        changed = overtone.load("d1")
        changed.W_dec.mul_(-1)
    overtone.save(changed, "other")
    (tmp_path / "other").rename(tmp_path / "d1-new")
    (tmp_path / "d1").rename(tmp_path / "d1-old")
    (tmp_path / "d1-new").rename(tmp_path / "d1")
    assert call("evaluate", "d0", "d1", *WORDS, "--resume")[0] == 0
    assert measured[4:] == [3], "other weights at the same place are another dictionary"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("d0", "d0", *WORDS), "d0 is given twice"),
        (("d0", *WORDS[:2], "--resume"), "--resume takes finished results from the file of --json"),
        (("d0", "nowhere", *WORDS), "no dictionary or run at nowhere"),
        (("d0", *WORDS, "--rows", 0), "rows=0 must be at least 1"),
    ],
)
def test_errors_are_one_clear_line(words: tuple, message: str, call, folders: list[Path]):
    status, _, err = call("evaluate", *words)
    assert status == 2 and err.startswith("overtone: error: ") and err.count("\n") == 1 and message in err, err
