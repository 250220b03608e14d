"""The command line as a user meets it: results, JSON, and errors that are one clear line."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import overtone


@pytest.fixture
def activations(rows: torch.Tensor, tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", rows.numpy())
    return tmp_path / "rows.npy"


SHORT = ("--steps", 30, "--batch", 64, "--latents", 24, "--method", "gba(groups=4)", "--checkpoint-every", 10)


def test_train_evaluate_and_load(call, activations: Path, rows: torch.Tensor, tmp_path: Path):
    words = ("train", "--activations", activations, *SHORT, "--accumulate", 2)
    status, out, _ = call(*words, "--out", "run", "--json", "t.json")
    assert status == 0 and "explained variance" in out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["accumulate"] == 2
    (trained,) = json.loads((tmp_path / "t.json").read_text())["runs"]
    status, _, _ = call("evaluate", "run", "--json", "e.json")
    assert status == 0
    (evaluated,) = json.loads((tmp_path / "e.json").read_text())["runs"]
    assert evaluated["metrics"] == trained["metrics"], "both measure the same held-out rows"
    held_out = rows[-60:]
    mine = overtone.evaluate(overtone.load(tmp_path / "run"), held_out)
    assert evaluated["metrics"]["explained_variance"] == pytest.approx(mine.explained_variance)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "config.json",
        "records.jsonl",
        "checkpoints",
        "dictionary",
    }


@pytest.mark.parametrize(
    ("told", "name"), [((), "gba-universal"), (("--l0", 4), "gba-l0-4"), (("--method", "topk(k=3)"), "topk-3")]
)
def test_what_is_trained_where_no_method_is_named(call, told: tuple, name: str, activations: Path, tmp_path: Path):
    words = ("train", "--activations", activations, "--steps", 2, "--batch", 64, "--latents", 24, *told, "--out", "run")
    assert call(*words)[0] == 0
    assert overtone.RunFolder.open(tmp_path / "run").run.method.name == name


def test_resume_finishes_what_was_stopped(call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    call("train", "--activations", activations, *SHORT, "--out", "whole")
    from overtone import runs

    kept = runs.RunFolder.append

    def stop(self, record):
        kept(self, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "append", stop)
        assert call("train", "--activations", activations, *SHORT, "--out", "parts")[0] == 130
    assert not (tmp_path / "parts" / "dictionary").exists()
    assert call("train", "--resume", "parts")[0] == 0
    whole, parts = (overtone.load(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_safetensors_with_a_named_tensor(call, rows: torch.Tensor, tmp_path: Path):
    save_file({"layer.3": rows + 1, "layer.4": rows}, tmp_path / "rows.safetensors")
    status, _, err = call("train", "--activations", "rows.safetensors", *SHORT, "--out", "run")
    assert status == 2 and "layer.3, layer.4; say which one with --tensor" in err
    assert call("train", "--activations", "rows.safetensors", "--tensor", "layer.4", *SHORT, "--out", "run")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train",), "nothing to train on: --model, --site, --text missing"),
        (("train", "--model", "minilm"), "--site, --text missing"),
        (("train", "--activations", "no.npy"), "no file of activations at"),
        (("train", "--activations", "rows.npy", "--model", "minilm"), "drop --model"),
        (("train", "--activations", "rows.npy", "--method", "l1", "--l0", "3"), "l1 cannot be asked for an L0"),
        (("train", "--activations", "rows.npy", "--method", "topk", "--l0", "99"), "k=99 exceeds latents=96"),
        (("train", "--activations", "rows.npy", "--method", "gba(groups=200)"), "groups=200 exceeds latents=96"),
        (("train", "--activations", "rows.npy", "--method", "gba(htf=0.01, ltf=0.1)"), "must be above ltf=0.1"),
        (("train", "--activations", "rows.npy", "--method", "gba(htf=0.5)", "--l0", "3"), "drop one of them"),
        (("train", "--resume", "nowhere"), "no run folder at nowhere"),
        (("train", "--resume", "."), "has no config.json"),
        (("train", "--resume", ".", "--model", "minilm"), "keeps all its settings"),
        (("train", "--resume", ".", "--lr", "1"), "--lr 1.0 together with --resume"),
        (("train", "--activations", "rows.npy", "--latents", "0"), "latents=0 must be at least 1"),
        (("train", "--activations", "rows.npy", "--l0", "nan"), "l0=nan must be positive"),
        (("train", "--activations", "rows.npy", "--method", "l1(coefficient=-1e999)"), "coefficient=-inf must be finite"),
        (("recover", "imbalanced", "--rows", "0"), "rows=0 must be at least 1"),
        (("recover", "imbalanced", "--jobs", "-1"), "jobs=-1 must be at least 1"),
        (("recover", "imbalanced", "--layer", "1"), "--layer is not an option of suite imbalanced"),
        (("recover", "markov", "--noise", "1"), "--noise is not an option of suite markov; it has --layer, --models"),
        (("recover", "markov", "--anchors", "3"), "suite markov has none"),
        (("recover", "imbalanced", "--n-features", "8", "--sparsities", "2"), "k=50 exceeds latents=48"),
        (("evaluate", "nowhere"), "no dictionary or run at nowhere"),
        (("recover", "imbalanced", "--methods", "gbaa"), "gbaa is unknown in suite imbalanced; known: gba,"),
        (("recover", "imbalanced", "--sparsities", "3", "500"), "between 1 and n_features=128"),
        (("recover", "imbalanced", "--fresh", "--rows", "9"), "give one of the two"),
        (("recover", "imbalanced", "--k", "9"), "k=9: the methods of suite imbalanced have a k each"),
        (("recover", "markov", "--k", "9"), "--k 9 is not an option of suite markov"),
        (("recover", "synth", "--k", "0"), "k=0 must be at least 1"),
        (("recover", "imbalanced", "--seeds", "0"), "seeds=0"),
        (("recover", "hierarchy", "--law", "constant"), "--law is not an option of suite hierarchy; it has --cosine, --d"),
        (("recover", "synth", "--n-features", "100"), "n_features=100 leaves no tree"),
        (("recover", "imbalanced", "--co-occurrence", "0.99"), "co_occurrence=0.99 must lie between"),
        (("recover", "hierarchy", "--cosine", "1"), "cosine=1.0 must lie in [0, 1)"),
        (("recover", "linear-bench", "--coherence", "0.01", "--n-features", "50", "--d", "20"), "still have coherence"),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(words: tuple, message: str, call, activations: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    status, _, err = call(*words)
    assert status == 2
    assert err.startswith("overtone: error: ") and err.count("\n") == 1 and message in err, err
    assert sorted(tmp_path.rglob("*")) == before, "an error in the settings leaves nothing behind"


def test_bad_activations_name_the_row(call, rows: torch.Tensor, tmp_path: Path):
    spoiled = rows.numpy().copy()
    spoiled[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", spoiled)
    assert "nan.npy: row 17 has NaN" in call("train", "--activations", "nan.npy")[2]
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:-100])
    assert "cut.npy is truncated" in call("train", "--activations", "cut.npy")[2]
    torch.save(rows, tmp_path / "rows.pt")
    assert "can run code and are never opened" in call("train", "--activations", "rows.pt")[2]
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    assert "not a plain .npy array" in call("train", "--activations", "objects.npy")[2]


def test_an_existing_folder_is_kept(call, activations: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    status, _, err = call("train", "--activations", activations, *SHORT, "--out", "run")
    assert status == 2 and "exists and is not overwritten" in err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_evaluate_other_rows(call, activations: Path, rows: torch.Tensor, tmp_path: Path):
    call("train", "--activations", activations, *SHORT, "--out", "run")
    np.save(tmp_path / "wide.npy", np.ones((4, 13), dtype=np.float32))
    assert (
        "have width 13, the dictionary was trained on d=12" in call("evaluate", "run", "--activations", "wide.npy")[2]
    )
    np.save(tmp_path / "other.npy", rows[:100].numpy())
    assert call("evaluate", "run/dictionary", "--activations", "other.npy", "--json", "o.json")[0] == 0
    assert json.loads((tmp_path / "o.json").read_text())["runs"][0]["metrics"]["rows"] == 100
    assert "needs the model" in call("evaluate", "run", "--downstream")[2]


def command(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(
        [sys.executable, "-c", "from overtone.cli import main; main()", *words],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=240,
    )  # fmt: skip


def test_recover_in_worker_processes(tmp_path: Path):
    words = ("recover", "imbalanced", "--methods", "gba", "topk-20", "--seeds", "2", "--steps", "20", "--rows", "3000")
    done = command(*words, "--n-features", "16", "--d", "8", "--sparsities", "1", "3", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["suite"] == "imbalanced"
    assert result["settings"]["n_features"] == 16 and result["settings"]["sparsities"] == [1, 3]
    assert [(r["method"], r["seed"]) for r in result["results"]] == [
        ("gba", 0),
        ("gba", 1),
        ("topk-20", 0),
        ("topk-20", 1),
    ]
    assert all(set(r["frr"]) == {"0.8", "0.9"} and r["seconds"] > 0 for r in result["results"])
    assert all(0 < r[score] < 1 for r in result["results"] for score in ("mcc", "f1", "uniqueness", "feature_f1"))
    assert "MCC" in done.stdout and "F1" in done.stdout


def test_recover_scores_a_hierarchy(tmp_path: Path):
    words = ("recover", "hierarchy", "--methods", "gba-l0", "matching-pursuit", "--steps", "20", "--json", "r.json")
    done = command(*words, "--cosine", "0.8", "--baselines", "--anchors", "3", "--k", "3", cwd=tmp_path, COLUMNS="120")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert (
        result["settings"]["cosine"] == 0.8 and result["settings"]["n_features"] == result["settings"]["latents"] == 20
    )
    assert result["settings"]["k"] == 3
    pursuits = [r["l0"] for r in result["results"] if r["method"] == "matching-pursuit"]
    assert 2 < max(pursuits) <= 3  # the suite's own k is 2
    assert all(0 <= r[error] <= 4 for r in result["results"] for error in ("flat", "hierarchical"))
    assert all(0 <= r[share] <= 1 for r in result["results"] for share in ("absorption", "hedging"))
    assert all(column in done.stdout for column in ("flat", "hier", "abs", "hedg"))
    tried = [(r["method"], r["baseline"], r["anchors"]) for r in result["results"]]
    variants = [(None, 0), ("random", 0), ("frozen", 0), ("soft-frozen", 0), (None, 3)]
    assert tried == [(m, *variant) for m in ("gba-l0", "matching-pursuit") for variant in variants]
    for r in result["results"]:  # of 20 features, those of the 3 that it was told do not count
        told = round(r["frr"]["0.8"] * 20 - r["frr_untold"]["0.8"] * (20 - r["anchors"]), 6)
        assert 0 <= told <= r["anchors"]
    # The random dictionary and the frozen one have the same atoms, and a pursuit has nothing else: no encoder to train.
    for name in ("gba-l0", "matching-pursuit"):
        random, frozen = (r for r in result["results"] if r["method"] == name and r["baseline"] in ("random", "frozen"))
        assert random["mcc"] == pytest.approx(frozen["mcc"], abs=1e-6)
        assert (random["l0"] == frozen["l0"]) == (name == "matching-pursuit")


def test_recover_from_a_small_transformer(tmp_path: Path):
    words = ("recover", "markov-small", "--methods", "topk", "--steps", "20", "--rows", "2000", "--jobs", "1")
    done = command(*words, "--models", "kept", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "unigram" in done.stdout and "linear probe" in done.stdout and "chance" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    (organism,) = result["organisms"]
    assert organism["evidence"]["the transformer"]["KL"] < organism["evidence"]["unigram"]["KL"]
    tried = [(r["method"], r["baseline"]) for r in result["results"]]
    assert tried == [("probe", None), ("coordinates", None), ("topk", None), ("topk", "random")]
    probe, _, found, _ = (r["known"] for r in result["results"])
    assert all(probe[kind]["auroc"] > found[kind]["auroc"] > 0.5 for kind in ("token", "token −1"))
    assert result["settings"]["layer"] == 1 and len(list((tmp_path / "kept").iterdir())) == 1


@pytest.mark.parametrize("verb", ["quickstart", "recover", "harvest", "train", "compare", "evaluate", "theory"])
def test_help_explains_every_option(verb: str, tmp_path: Path):
    done = command(verb, "--help", cwd=tmp_path, COLUMNS="200")
    assert done.returncode == 0
    assert "--seed" in done.stdout and "--json" in done.stdout
    function = getattr(importlib.import_module(f"overtone.cli.{verb}"), verb)
    for option in inspect.signature(function).parameters:
        described = re.search(rf"^        {option}: (.+)", function.__doc__, flags=re.MULTILINE)
        assert described and len(described[1]) > 10, f"--{option} has no description"


def test_importing_overtone_stays_light(tmp_path: Path):
    heavy = ("transformers", "datasets", "matplotlib", "tyro", "rich")
    code = f"import sys, overtone; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("words", [("recover", "--help"), ("methods",)])
def test_a_reader_that_has_enough_is_no_error(words: tuple[str, ...]):
    gone, ours = os.pipe()
    os.close(gone)
    ended = subprocess.run([sys.executable, "-m", "overtone", *words], stdout=ours, stderr=subprocess.PIPE, text=True)
    os.close(ours)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for children")
def test_trainings_end_with_a_command_that_is_killed(tmp_path: Path):
    words = ("recover", "imbalanced", "--methods", "ba", "topk-10", "--jobs", "2", "--steps", "1000000")
    command = subprocess.Popen([sys.executable, "-m", "overtone", *words], cwd=tmp_path, stdout=subprocess.DEVNULL)

    def trainings() -> set[str]:
        children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
        return {child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}

    def within(seconds: float, reached) -> bool:
        end = time.monotonic() + seconds
        while not reached() and time.monotonic() < end:
            time.sleep(0.2)
        return reached()

    try:
        assert within(120, lambda: len(trainings()) == 2)
        started = trainings()
    finally:
        command.kill()
        command.wait()
    assert within(60, lambda: not any(Path(f"/proc/{child}").exists() for child in started))
