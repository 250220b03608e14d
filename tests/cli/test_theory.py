"""`overtone theory`: of a suite before training, beside a training, and of a run's own codes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from overtone.theory.resonance import Setting

SMALL = ("--n-features", 16, "--d", 8, "--sparsities", 3, "--rows", 2000)


def test_of_a_suite(call, tmp_path: Path):
    status, out, _ = call("theory", "imbalanced", *SMALL, "--dynamics", 0.05, "--dynamics-steps", 2, "--json", "t.json")
    assert status == 0
    assert "H3 co-occurrence" in out and "Theorem 6.1 at n = 16" in out
    result = json.loads((tmp_path / "t.json").read_text())
    band = Setting(16, 8, 3).band()
    assert result["theorem"]["band"]["high"] == pytest.approx(band.high)
    assert result["conditions"]["most_active"] == 3
    (octave,) = result["prediction"]["octaves"]
    assert octave["features"] == 16 and octave["measured"] is None
    (followed,) = result["dynamics"]
    assert len(followed["recovered"]) == 3 and followed["bias"] < 0


def test_beside_a_training(call, tmp_path: Path):
    words = ("theory", "hierarchy", "--rows", 2000, "--train", "--steps", 20, "--json", "t.json")
    status, out, _ = call(*words)
    assert status == 0
    assert "Recovered by gba, with targets 0.001 … 0.5" in out
    frequent, rare = json.loads((tmp_path / "t.json").read_text())["prediction"]["octaves"]
    assert (frequent["features"], rare["features"]) == (3, 17)  # parents; children and leaves
    assert 0 <= rare["measured"] <= 1


def test_of_a_run(call, rows: torch.Tensor, tmp_path: Path):
    np.save(tmp_path / "rows.npy", rows.numpy())
    method = ("--method", "gba(groups=4)", "--latents", 24)
    assert call("train", "--activations", "rows.npy", *method, "--steps", 30, "--batch", 64, "--out", "run")[0] == 0
    status, out, _ = call("theory", "run", "--json", "t.json")
    assert status == 0 and "24 of 24 latents" in out
    result = json.loads((tmp_path / "t.json").read_text())
    assert result["conditions"]["d"] == 12 and result["conditions"]["n_features"] <= 24
    assert 0 <= result["inside_band"] <= 1
    # A sample of latents can only miss pairs.
    assert call("theory", "run", "--at-most", 12, "--json", "s.json")[0] == 0
    sampled = json.loads((tmp_path / "s.json").read_text())
    assert sampled["looked_at"] == 12
    assert sampled["conditions"]["co_occurrence"] <= result["conditions"]["co_occurrence"]
    assert sampled["conditions"]["coherence"] <= result["conditions"]["coherence"] + 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "'nowhere' is neither a suite (imbalanced,"),
        (("imbalanced", "--method", "topk-20"), "method='topk-20' has no target frequencies"),
        (("imbalanced", "--method", "gbaa"), "method='gbaa' is unknown in suite imbalanced"),
        (("imbalanced", "--epsilon", "1"), "epsilon=1.0 must lie between 0 and 1"),
        (("hierarchy", "--sparsities", "3"), "--sparsities is not an option of suite hierarchy"),
        (("imbalanced", "--rows", "0"), "rows=0 must be at least 1"),
    ],
)
def test_errors_are_one_clear_line(words: tuple, message: str, call):
    status, _, err = call("theory", *words)
    assert status == 2
    assert message in err and err.count("\n") == 1
