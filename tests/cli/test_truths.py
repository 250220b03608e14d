"""Runs that are trained on a known truth: kept, measured and reported, with the scores that `overtone recover` gives them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overtone.cli.pages import run_views, subjects_of
from overtone.metrics.matching import best_match
from overtone.recipes import SUITES

TRUTH = ("--n-features", 12, "--d", 6, "--sparsities", 1, 2)
WHERE: dict[str, Any] = {"store": None, "site": (), "target": None, "split": "held_out"}
OPTIONS: dict[str, Any] = {**WHERE, "seed": 0, "input_norm": None, "parts": ()}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kept(call: Call, tmp_path: Path) -> Path:
    """Two methods' run folders on one truth."""
    words = ("--rows", 900, "--latents", 20, "--steps", 12, "--jobs", 1, "--runs", "kept", "--json", "r.json")
    status, out, err = call("recover", "imbalanced", "--methods", "gba", "topk-10", *TRUTH, *words)
    assert not status and not err and "overtone report kept/*-0" in out
    return tmp_path


def test_the_report_has_the_scores_of_recover_and_each_latents_nearest_feature(kept: Path):
    subjects = subjects_of([kept / "kept/gba-0", kept / "kept/topk-10-0"], **OPTIONS, rows=None)
    views = run_views(subjects)
    results = json.loads((kept / "r.json").read_text())["results"]
    truth = SUITES["imbalanced"].truth(seed=0, n_features=12, d=6, sparsities=(1, 2))
    for run, subject, result in zip(views, subjects, results, strict=True):
        assert run.metrics["frr_0.8"] == result["frr"]["0.8"] and run.metrics["frr_0.9"] == result["frr"]["0.9"]
        assert run.metrics["f1"] == result["f1"] and run.metrics["mcc"] == result["mcc"]
        assert run.metrics["l0"] == pytest.approx(result["l0"]) and run.metrics["rows"] == 20_000
        assert {"random_frr_0.8", "random_mcc", "random_f1"} <= set(run.metrics)
        atoms, found = subject.dictionary.W_dec.detach(), run.latents.truth
        assert found is not None
        nearest = best_match(atoms, truth.features)
        assert found.feature.tolist() == nearest.nearest.tolist()
        assert found.cosine.abs().numpy() == pytest.approx(nearest.cosine.numpy(), abs=1e-5)
        assert found.frequency.numpy() == pytest.approx(truth.occurrence().numpy())
        assert found.best.numpy() == pytest.approx(best_match(truth.features, atoms, signed=True).cosine.numpy())
    # The two share their rows, each of them shown as the sum that it is.
    assert views[0].text is views[1].text and views[0].latents.counterparts[0].by_firing is not None
    text = views[0].text
    (x, h), row = next(iter(truth.held_out(20_000, seed=0))), int(text.rows[0])
    assert row < len(x)
    coefficients = h.dense()[row]
    terms = [term.split("·v") for term in text.strings[int(text.tokens[0])].split(" + ")]
    shown = [float(value) for value, _ in terms]
    assert [int(i) for _, i in terms] == coefficients.argsort(descending=True)[: len(terms)].tolist()
    assert len(terms) == int((coefficients != 0).sum())
    assert shown == pytest.approx(coefficients.sort(descending=True).values[: len(terms)].tolist(), rel=0.05)


def test_what_else_is_done_with_such_a_run(kept: Path, call: Call):
    run = "kept/gba-0"
    assert not call("report", run, "--rows", 800, "-o", "t.html")[0]
    assert "known features found" in (kept / "t.html").read_text()
    assert not call("evaluate", run, "--rows", 800, "--json", "e.json")[0]
    assert json.loads((kept / "e.json").read_text())["runs"][0]["metrics"]["rows"] == 800
    assert not call("train", "--resume", run)[0], "finished; and its rows are drawn again"
    for words, told in (
        (("view", run), "no model reads text for it; use overtone report"),
        (("report", run, "--split", "train"), "drop --site and --split"),
        (("evaluate", run, "--downstream"), "this run was trained on suite imbalanced"),
        (("latents", run), "does not say which text its rows come from"),
        (("recover", "imbalanced", *TRUTH, "--methods", "gba", "--runs", "kept"), "choose another --runs or remove it"),
        (("recover", "markov", "--runs", "other"), "suite markov has none"),
        (("recover", "all", "--runs", "other"), "--runs is not an option of recover all"),
    ):
        status, _, err = call(*words)
        assert status and told in " ".join(err.split()), words


def test_another_truth_is_not_taken_for_the_runs_own(kept: Path, call: Call):
    config = kept / "kept/gba-0/config.json"
    told = json.loads(config.read_text())
    told["data"]["source"]["features"] = "0" * 16
    config.write_text(json.dumps(told))
    status, _, err = call("report", "kept/gba-0")
    assert status and "draws other features for seed 0 than the run was trained on" in " ".join(err.split())
