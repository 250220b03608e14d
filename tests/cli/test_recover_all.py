"""`overtone recover all` as a user meets it: every suite, what is published beside it, and going on after an interruption."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from overtone import organism_suites, recipes
from overtone.cli import asked, recover_all
from overtone.data.synthetic import SparseMixture

TINY = ("imbalanced", "hierarchy", "markov-small")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three suites of two methods each and a few steps."""
    before = (
        torch.get_num_threads()
    )  # trainings take one thread for their whole process, which here goes on with other tests
    mixture = partial(SparseMixture, n_features=16, d=8, sparsities=(1, 3))
    suites = recipes.SUITES
    short = {
        "imbalanced": replace(
            suites["imbalanced"], truth=mixture, rows=500, default_methods=("gba", "topk-10"), steps=5
        ),
        "hierarchy": replace(suites["hierarchy"], default_methods=("gba", "topk"), steps=5),
    }
    markov = organism_suites.ORGANISMS["markov-small"]
    organism = replace(markov, default_methods=("topk",), rows=600, scored=300, length=replace(markov.length, steps=5))
    for table in (recipes.SUITES, asked.ALL_SUITES):
        for name, suite in short.items():
            monkeypatch.setitem(table, name, suite)
    for table in (organism_suites.ORGANISMS, asked.ALL_SUITES):
        monkeypatch.setitem(table, "markov-small", organism)
    monkeypatch.setitem(organism_suites.SCALES, "small", TINY)
    yield
    torch.set_num_threads(before)


FRR_OF_GBA = ("imbalanced", "gba", "", "frr_0.8")
ALL = ("recover", "all", "--jobs", 1, "--seed", 3, "--out", "lab", "--models", "kept")


@pytest.mark.filterwarnings("ignore:Matplotlib is building the font cache")
def test_interrupted_and_resumed(call, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured, ran = recover_all.measured, []

    def until(name: str, wanted: asked.Asked):
        ran.append(name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return measured(name, wanted)

    monkeypatch.setattr(recover_all, "measured", until)
    status, _, err = call(*ALL)
    assert (
        status == 130
        and "overtone recover all --scale small --seeds 1 --seed 3 --models kept --out lab --resume" in err
    )
    file = tmp_path / "lab" / "results.json"
    first = json.loads(file.read_text())["suites"]
    assert list(first) == ["imbalanced"]
    status, out, _ = call(*ALL, "--resume")
    assert status == 0 and ran == ["imbalanced", "hierarchy", "hierarchy", "markov-small"]
    suites = json.loads(file.read_text())["suites"]
    assert list(suites) == list(TINY) and suites["imbalanced"] == first["imbalanced"]
    words = " ".join(out.split())
    assert "3 suites in" in words and "of processor)" in words and "measured at: the suite's own data" in words
    published = suites["imbalanced"]["published"]
    assert published["scores"]["gba"] == {"frr_0.8": 1.0, "frr_0.9": 1.0} and "2506.14002" in published["source"]
    assert suites["hierarchy"]["published"] is None
    page = (tmp_path / "lab" / "recovery.md").read_text()
    assert "| place of gba-universal |" in page
    assert all(f"({name}.svg)" in page and (tmp_path / "lab" / f"{name}.svg").is_file() for name in ("all", *TINY))
    assert call(*ALL, "--resume", "--plot", "again.svg")[0] == 0 and len(ran) == 4, "nothing is left to measure"
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "lab" / "all.svg").read_bytes()
    status, _, err = call("plot", "lab", "-o", "third.svg", "--data", "third.csv")
    assert status == 0 and (tmp_path / "third.svg").read_bytes() == (tmp_path / "again.svg").read_bytes(), err
    drawn = csv.DictReader((tmp_path / "third.csv").read_text().splitlines())
    gba = [float(r["value"]) for r in drawn if (r["suite"], r["method"], r["variant"], r["score"]) == FRR_OF_GBA]
    assert gba == [r["frr"]["0.8"] for r in suites["imbalanced"]["results"] if r["method"] == "gba"]
    (tmp_path / "one.json").write_text(json.dumps(suites["imbalanced"]))
    assert call("plot", "one.json", "-o", "one.svg")[0] == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "lab" / "imbalanced.svg").read_bytes()
    assert (tmp_path / "lab" / "recovery.md").read_text() == page
    assert "has seeds [3], not [3, 4]" in call(*ALL, "--resume", "--seeds", 2)[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("all", "--n-features", "9"), "--n-features is not an option of recover all"),
        (("all", "--methods", "gba"), "--methods is not an option of recover all"),
        (("all", "--k", "3"), "give it to one of them: overtone recover SUITE --k"),
        (("all", "--seeds", "0"), "seeds=0 must be at least 1"),
        (("all", "--resume"), "say which one with --json or --out"),
        (("all", "--resume", "--json", "no.json"), "no file of results at no.json"),
        (("all", "--resume", "--json", "other.json"), "other.json is no file of `overtone recover all`"),
        (("hierarchy", "--scale", "full"), "--scale is an option of recover all, not of suite hierarchy"),
        (("hierarchy", "--out", "lab"), "--out is an option of recover all"),
        (("hierarchy", "--plot", "figure.gif"), "figure.gif: a figure's name ends in .svg, .png, .pdf"),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(call, words: tuple[str, ...], message: str, tmp_path: Path):
    (tmp_path / "other.json").write_text("[1]")
    status, _, err = call("recover", *words)
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_a_suite_alone_is_drawn(call, tiny: None, tmp_path: Path):
    status, out, _ = call("recover", "hierarchy", "--jobs", 1, "--methods", "topk", "--plot", "a/h.svg")
    assert status == 0 and "Figure: a/h.svg" in out
    assert (tmp_path / "a" / "h.svg").read_text().startswith("<?xml")
