"""From results to points, a table and the frontier."""

import math
import random
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overtone.report.comparison import Point, Result, markdown, points, shown
from overtone.report.frontier import frontier, spread_out
from overtone.report.plots import save

RESULTS = [
    Result("topk", f"topk(k={k})", width, seed, {"explained_variance": 0.1 * seed + width / 1000, "l0": float(k)})
    for width in (64, 128)
    for k in (4, 8)
    for seed in (0, 1, 2)
]


def test_seeds_come_together():
    found = points(RESULTS)
    assert [(p.label, p.latents) for p in found] == [(f"topk(k={k})", w) for w in (64, 128) for k in (4, 8)]
    assert all(p.seeds == [0, 1, 2] for p in found)
    assert found[0].mean("explained_variance") == pytest.approx(0.164)
    mixed = RESULTS[:]
    random.Random(0).shuffle(mixed)
    again = {(p.label, p.latents): sorted(zip(p.seeds, p.metrics["l0"], strict=True)) for p in points(mixed)}
    assert again == {(p.label, p.latents): sorted(zip(p.seeds, p.metrics["l0"], strict=True)) for p in found}


def test_a_table_has_mean_and_spread():
    rows = markdown(points(RESULTS)).splitlines()
    assert rows[0] == "| method | latents | explained variance | L0 |"
    assert rows[2] == "| `topk(k=4)` | 64 | 0.164 ± 0.100 | 4.0 ± 0.0 |"
    assert list(shown(points(RESULTS))) == [f"topk(k={k}) × {w}" for w in (64, 128) for k in (4, 8)]


@given(st.lists(st.floats(-0.5, 1.5), max_size=17).map(sorted))
def test_labels_keep_their_order_their_distance_and_the_panel(wanted: list[float]):
    gap = 0.058
    found = spread_out(wanted, gap)
    assert len(found) == len(wanted)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(found))
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in found)


@given(st.integers(1, 17), st.floats(0, 0.005))
def test_labels_that_have_room_stay(count: int, more: float):
    wanted = [i * (0.058 + more) for i in range(count)]
    assert spread_out(wanted, 0.058) == pytest.approx(wanted)


def test_labels_in_each_others_way_give_way_alike():
    assert spread_out([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread_out([0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1]), "the panel's edge stays put"


def point(line: str, latents: int, l0: list[float], ev: list[float]) -> Point:
    return Point(line, line, latents, list(range(len(l0))), {"l0": l0, "explained_variance": ev})


def test_many_lines_widths_and_lone_points_are_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib", reason='needs pip install "overtone[report]"')
    many = [
        point(f"method-{i}", w, [k, k + 1.0], [0.5 + 0.01 * i, 0.6])
        for i in range(18)
        for w in (64, 128)
        for k in (4, 40)
    ]
    lone = [point("dead", 64, [0.0], [0.0]), point("constant", 64, [3.0], [math.nan]), point("one", 64, [33.0], [0.5])]
    for name, found in (("many", [*many, *lone]), ("lone", lone)):
        for kind in ("svg", "png"):
            save(partial(frontier, found, title=name), tmp_path / f"{name}.{kind}")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000 and (tmp_path / f"{name}.svg").exists()
    with pytest.raises(ValueError, match="nothing to draw"):
        frontier(lone[:2], title="none")
