"""`overtone export`: from a run to every tool's format and from one to the other."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import overtone
from overtone import formats
from overtone.cli.export import Target, about_run
from overtone.runs import RunFolder

SHORT = ("--steps", 20, "--batch", 64, "--latents", 24)


@pytest.fixture
def activations(rows: torch.Tensor, tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", rows.numpy())
    return tmp_path / "rows.npy"


def test_from_a_run_to_one_tool_and_the_next(call, activations: Path, rows: torch.Tensor, tmp_path: Path):
    call("train", "--activations", activations, *SHORT, "--method", "matryoshka(k=3)", "--out", "run")
    status, out, _ = call(
        "export", "run", "--to", "saelens", "-o", "sae", "--model", "tiny", "--site", "resid.3", "--json", "e.json"
    )
    assert status == 0 and "24 latents" in out
    assert json.loads((tmp_path / "e.json").read_text()) == {
        "from": "run",
        "format": "overtone",
        "to": "saelens",
        "out": "sae",
    }
    metadata = json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "tiny" and metadata["hook_name"] == "blocks.3.hook_resid_post"
    assert call("export", "sae", "--to", "overtone", "-o", "mine")[0] == 0
    trained, back = overtone.load("run"), overtone.load("mine")
    assert back.select == trained.select and torch.equal(back(rows), trained(rows))
    status, _, _ = call("evaluate", "sae", "--activations", activations, "--json", "sae.json")
    assert status == 0 and json.loads((tmp_path / "sae.json").read_text())["runs"][0]["metrics"]["rows"] == len(rows)


def test_what_a_format_cannot_hold(call, activations: Path, tmp_path: Path):
    call(
        "train",
        "--activations",
        activations,
        *SHORT,
        "--method",
        "matryoshka(k=3, prefixes=(0.25, 1.0))",
        "--out",
        "run",
    )
    status, _, error = call("export", "run", "--to", "dictionary_learning", "-o", "dl")
    assert status == 2 and "divides every row by its own norm" in error and not (tmp_path / "dl").exists()
    assert about_run(RunFolder.open("run"), 24) == {"group_sizes": [6, 18]}


def test_verbs_formats_are_the_librarys():
    assert get_args(Target) == formats.names()


def test_nowhere_to_go(call, tmp_path: Path):
    status, _, error = call("export", "run")
    assert status == 2 and "give --out FOLDER, or --push OWNER/NAME" in error
