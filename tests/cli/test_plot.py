"""`overtone plot`: every kind of results becomes a figure and its numbers, which are those of the results."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib", reason='needs pip install "overtone[report]"')
import overtone
from overtone.report.plots import frequencies

pytestmark = pytest.mark.filterwarnings("ignore:Matplotlib is building the font cache")

COMPARED = (
    "--steps",
    20,
    "--batch",
    64,
    "--latents",
    24,
    "--method",
    "gba(groups=4)",
    "topk",
    "--l0",
    3,
    5,
    "--seeds",
    2,
)


@pytest.fixture
def compared(call, rows: torch.Tensor, tmp_path: Path) -> Path:
    """A comparison of two methods at two L0 with two seeds, in c/."""
    import numpy as np

    np.save(tmp_path / "rows.npy", rows.numpy())
    status, _, err = call("compare", "--activations", "rows.npy", *COMPARED, "--out", "c")
    assert status == 0, err
    return tmp_path / "c"


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_comparison_and_its_runs(call, compared: Path, tmp_path: Path):
    document: dict[str, Any] = json.loads((compared / "results.json").read_text())
    status, out, err = call("plot", "c", "-o", "f/frontier.svg", "--data", "f/frontier.csv")
    assert status == 0 and "Figure: f/frontier.svg" in out, err
    assert (tmp_path / "f/frontier.svg").read_bytes() == (compared / "frontier.svg").read_bytes()
    found = table(tmp_path / "f/frontier.csv")
    assert len(found) == 8
    for point in document["points"]:
        own = [row for row in found if row["method"] == point["label"]]
        assert [int(row["seed"]) for row in own] == point["seeds"]
        for key in ("l0", "explained_variance"):
            assert [float(row[key]) for row in own] == point["metrics"][key]

    status, _, err = call("plot", "c", "-o", "c.pdf", "--figure", "consistency", "--data", "c.json")
    assert status == 0 and (tmp_path / "c.pdf").stat().st_size > 1000, err
    alike = json.loads((tmp_path / "c.json").read_text())["rows"]
    kept = json.loads(next(compared.glob("consistency-topk*3*.json")).read_text())
    label = next(p["label"] for p in document["points"] if p["label"] == "topk(k=3)")
    assert [row["mcs"] for row in alike if row["method"] == label] == pytest.approx(kept["each"][0])
    assert len(alike) == 4 * 24 and {"frequency", "peak", "z_score"} <= set(alike[0])

    gba, topk = (next(compared.glob(f"{name}*seed-0")) for name in ("gba", "topk"))
    status, _, err = call("plot", gba, topk, "-o", "t.png", "--data", "t.csv", "--title", "Two")
    assert status == 0, err
    records = [json.loads(line) for line in (gba / "records.jsonl").read_text().splitlines()]
    assert [float(r["l0"]) for r in table(tmp_path / "t.csv") if r["run"] == gba.name] == [r["l0"] for r in records]
    status, _, err = call("plot", gba, "-o", "s.svg", "--figure", "spectrum", "--data", "s.csv")
    assert status == 0, err
    run = overtone.runs.RunFolder.open(gba).run
    assert run.method.spectrum is not None
    reached = table(tmp_path / "s.csv")
    assert [float(r["target"]) for r in reached] == pytest.approx(run.method.spectrum.targets(24).tolist())
    status, _, err = call("plot", topk, "-o", "s.svg", "--figure", "spectrum")
    assert status == 2 and "which has no target frequencies" in err


def test_an_evaluation(call, rows: torch.Tensor, tmp_path: Path):
    import numpy as np

    np.save(tmp_path / "rows.npy", rows[-200:].numpy())
    for seed in range(2):
        overtone.save(overtone.Dictionary(12, 24, overtone.TopK(2 + seed), seed=seed), tmp_path / f"d{seed}")
    assert call("evaluate", "d0", "d1", "--activations", "rows.npy", "--json", "e.json")[0] == 0
    status, _, err = call("plot", "e.json", "-o", "e.svg", "--data", "e.csv")
    assert status == 0, err
    for result in json.loads((tmp_path / "e.json").read_text())["runs"]:
        counts = result["distributions"]["frequency_histogram"]
        own = [row for row in table(tmp_path / "e.csv") if row["dictionary"] == Path(result["run"]).name]
        assert {row["fires on, from"]: int(row["latents"]) for row in own} == counts
        figure = frequencies({"one": counts}, title="")
        drawn = figure.axes[0].patches[0].get_data().values
        assert drawn.sum() * 24 == pytest.approx(24 - counts["never"])


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (
            '{"format": "overtone-score"}',
            (),
            "'overtone-score', which has no figure; those that have: overtone-recovery (",
        ),
        ("[1]", (), "is of format None, which has no figure"),
        ("{", (), "is no JSON"),
        ('{"format": "overtone-evaluation", "version": 99}', (), "version 99"),
        (
            '{"format": "overtone-evaluation", "version": 1}',
            ("--figure", "scores"),
            "overtone-evaluation has frequencies",
        ),
        (None, (), "no results at x.json"),
        ("{}", ("--data", "d.xls"), "ends in .csv or .json"),
        ("{}", ("-o", "f.gif"), "a figure's name ends in .svg, .png, .pdf"),
    ],
)
def test_what_cannot_be_drawn(call, tmp_path: Path, content: str | None, words: tuple, message: str):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    status, _, err = call("plot", "x.json", *(() if "-o" in words else ("-o", "f.svg")), *words)
    assert status == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "f.svg").exists()
