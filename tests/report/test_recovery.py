"""Recovery as tables and figures: who is best, who comes when, and a mark for every number."""

import pytest

from overtone.report.plots import STYLE, pyplot
from overtone.report.recovery import Line, Recovery, Score, contestants, markdown, rank, rate, rows, summary
from overtone.report.recovery_figures import methods
from overtone.report.recovery_figures import summary as summary_figure

SCORES = (rate("frr_0.9", "FRR 0.9"), Score("flat", "flat", better=-1), Score("l0", "L0", better=0, drawn=False))


def line(name: str, frr: list[float], flat: list[float], **more) -> Line:
    values = {"frr_0.9": frr, "flat": flat, "l0": [3.0] * len(frr)}
    return Line(name, name.upper(), values, more.get("variants", {}), more.get("published", {}))


LINES = [
    line("gba-universal", [0.9, 1.0], [0.3, 0.1], published={"frr_0.9": 1.0}),
    line("topk-10", [0.5, 0.6], [0.1, 0.1], variants={"random": {"frr_0.9": [0.0, 0.1], "flat": [0.9, 0.9]}}),
    line("topk-20", [0.95, 0.95], [0.4, 0.2], published={"frr_0.9": 0.9, "flat": 0.2}),
    line("l1", [0.2, 0.2], [0.1, 0.1]),
    Line("", "probe", {}, {}, {"flat": 0.01}),
]
FOUND = Recovery("hard", "what\nhow long", "caption", SCORES, ("frr_0.9", "flat"), LINES, "a paper; at a size")


def test_methods_share_places_and_a_family_is_its_best():
    assert set(contestants(FOUND, "frr_0.9")) == {"gba-universal", "topk", "l1"}
    assert contestants(FOUND, "frr_0.9")["topk"].name == "topk-20", "of rates the larger is better"
    assert contestants(FOUND, "flat")["topk"].name == "topk-10", "of errors the smaller"
    assert [rank(FOUND, name) for name in ("gba-universal", "topk", "l1")] == [(1, 3), (1, 3), (3, 3)]


def test_tables_mark_the_best_and_name_what_is_published():
    header, *body = rows(FOUND, "<{}>".format)
    assert header == ["method", "FRR 0.9", "flat", "L0"]
    cells = {row[0]: row[1:] for row in body}
    assert cells["GBA-UNIVERSAL"][0].startswith("<95.0") and cells["TOPK-20"][0].startswith("<95.0")
    assert [name for name, row in cells.items() if row[1].startswith("<")] == ["TOPK-10", "L1"]
    assert not any(row[2].startswith("<") for row in cells.values()), "an L0 is neither good nor bad"
    assert cells["probe, published"] == ["–", "0.010", "–"]
    assert [row[0] for row in body].count("– published") == 2 and cells["– random"][0] == "5.0 ± 5.0"


def test_summary_has_every_method_and_the_places_of_gba():
    other = FOUND._replace(suite="other", lines=LINES[1:2], headline=("frr_0.9",))
    made = summary([FOUND, other], "<{}>".format)
    assert made.header == ["method", "hard FRR 0.9", "hard flat", "other FRR 0.9"]
    assert [row[0] for row in made.rows] == ["gba-universal", "topk", "l1"] and made.rows[0][3] == "–"
    assert made.ranks[0] == ["place of gba-universal", "1 of 3", "", ""], (
        "the first headline score ranks; no place where it did not run"
    )
    page = markdown([FOUND, other], "overtone recover all", {"all": "a.svg", "hard": "h.svg", "other": "o.svg"})
    assert page.count("a paper; at a size") == 2 and all(f"]({name}.svg)" in page for name in "aho")


@pytest.mark.filterwarnings("ignore:Matplotlib is building the font cache")
def test_a_figure_has_a_mark_for_every_number():
    """In each panel: a dot per method and seed and one for their mean, one per baseline, a hollow diamond per published value."""
    with pyplot().rc_context(STYLE):
        figure = methods(FOUND)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["FRR 0.9, %", "flat, less is better"]
    for axes, published in zip(panels, (2, 2), strict=True):
        marks = {marker: [m for m in axes.lines if m.get_marker() == marker] for marker in ("o", "D", "x")}
        means, seeds = ([m for m in marks["o"] if len(m.get_xdata()) == n] for n in (1, 2))
        assert (len(means), len(seeds), len(marks["D"]), len(marks["x"])) == (4, 4, published, 1)
        assert all(m.get_markerfacecolor() == "none" for m in marks["D"])
    (gba,) = (m for m in panels[0].lines if m.get_marker() == "o" and list(m.get_ydata()) == [4])
    assert gba.get_xdata()[0] == pytest.approx(95)
    pyplot().close(figure)


def test_the_summary_figure_has_a_number_for_every_score():
    zero = FOUND._replace(suite="nothing", lines=[line("gba-universal", [0.0], [0.1])], headline=("frr_0.9",))
    figure = summary_figure([FOUND, zero])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(texts) == sorted(["95.0", "0.200", "95.0", "0.100", "20.0", "0.100", "0.0"])
    pyplot().close(figure)
