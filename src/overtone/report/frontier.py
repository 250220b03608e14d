"""The picture of a comparison: explained variance against L0, one line per method, one panel per width."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from overtone.report.comparison import Point
from overtone.report.plots import COLOURS, DASHES, GREY, pyplot

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
PANEL = (4.4, 3.8)  # inches
GAP = 0.058  # between the middles of two labels, as a share of a panel's height
SIZE = 9.0  # of a label, in points
LETTER = 0.021  # width of a label's letter, as a share of a panel's width


class Look(NamedTuple):
    """How one method is drawn."""

    colour: str
    marker: str
    dash: Any

    @classmethod
    def of(cls, number: int) -> "Look":
        """The look of line `number`."""
        turn = number // len(COLOURS)
        return cls(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], DASHES[turn % len(DASHES)])

    @property
    def ink(self) -> tuple[float, ...]:
        """The colour, dark enough for text."""
        return tuple(0.72 * int(self.colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def frontier(found: Sequence[Point], *, title: str) -> Any:
    """Explained variance against the L0 that was reached, on held-out rows; up and left is better.

    A marker is the mean over seeds; its bars reach from the lowest to the highest seed in both directions.

    Args:
        found: the points; those of one `line` and width are joined in the order of their L0.
        title: what was trained on what.
    """
    plt = pyplot()
    drawn = [p for p in found if p.mean("l0") > 0 and math.isfinite(p.mean("explained_variance"))]
    if not drawn:
        raise ValueError("no dictionary has an active latent and a finite explained variance: nothing to draw")
    looks = {line: Look.of(i) for i, line in enumerate(dict.fromkeys(p.line for p in found))}
    widths = sorted({p.latents for p in drawn})
    size = (PANEL[0] * len(widths) + 1.2, PANEL[1])
    figure, panels = plt.subplots(1, len(widths), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, width in zip(panels[0], widths, strict=True):
        _panel(axes, [p for p in drawn if p.latents == width], looks)
        axes.set_xlabel("L0 (active latents per row, log scale)")
        if len(widths) > 1:
            axes.set_title(f"{width:,} latents", fontweight="normal", fontsize=SIZE)
    panels[0, 0].set_ylabel("explained variance (held-out rows)")
    _ticks(panels[0, 0], [v for p in drawn for v in p.metrics["l0"]])
    _labels(panels[0, -1], [p for p in drawn if p.latents == widths[-1]], looks)
    figure.suptitle(title, fontsize=SIZE, color=GREY)
    return figure


def _panel(axes: Any, found: Sequence[Point], looks: dict[str, Look]) -> None:
    axes.set_xscale("log")
    for line, look in looks.items():
        of_line = _in_order(found, line)
        x, y = (np.array([p.mean(key) for p in of_line]) for key in ("l0", "explained_variance"))
        bars = {name: _bars(of_line, key) for name, key in (("xerr", "l0"), ("yerr", "explained_variance"))}
        axes.errorbar(
            x, y, **bars, color=look.colour, marker=look.marker, linestyle=look.dash,
            linewidth=1.6, elinewidth=1.1, capsize=1.8, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip
    axes.margins(x=0.08, y=0.08)


def _bars(found: Sequence[Point], key: str) -> np.ndarray:
    """How far the seeds reach below and above their mean."""
    values = [p.metrics[key] for p in found]
    below = [p.mean(key) - min(v) for p, v in zip(found, values, strict=True)]
    above = [max(v) - p.mean(key) for p, v in zip(found, values, strict=True)]
    return np.maximum([below, above], 0.0)


def _ticks(axes: Any, l0s: Sequence[float]) -> None:
    """Plain numbers, halving and doubling; all that matplotlib would write where that gives too few."""
    low, high = axes.get_xlim()
    powers = [2.0**i for i in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    inside = [p for p in powers if low <= p <= high]
    ticks = inside if len(inside) > 1 else sorted({float(f"{v:.2g}") for v in (min(l0s), max(l0s))})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)


def _labels(axes: Any, found: Sequence[Point], looks: dict[str, Look]) -> None:
    """Each line's name: beside its end where nothing is drawn there, else at the panel's edge with a dotted line to the end."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends: dict[str, np.ndarray] = {}
    drawn = []  # points along all lines, as shares of the panel
    for line in looks:
        corners = to_axes.transform(
            [[p.mean("l0"), p.mean("explained_variance")] for p in _in_order(found, line)] or np.empty((0, 2))
        )
        if len(corners):
            ends[line] = corners[-1]
            drawn += [a + t * (b - a) for a, b in pairwise(corners) for t in np.linspace(0, 1, 60)] + [corners[-1]]
    beside = []
    for line, end in ends.items():
        width = LETTER * len(line)
        box = (end[0] + 0.01, end[0] + 0.03 + width, end[1] - GAP / 2, end[1] + GAP / 2)
        if end[0] < 0.8 and box[1] < 1 and not any(_inside(point, box) for point in drawn):
            axes.annotate(
                line, end, (7, 0), "axes fraction", "offset points", va="center", fontsize=SIZE, color=looks[line].ink
            )
            beside.append(line)
            drawn += [np.array([x, y]) for x in np.linspace(*box[:2], 9) for y in np.linspace(*box[2:], 5)]
    order = sorted(ends.keys() - beside, key=lambda line: ends[line][1])
    for line, y in zip(order, spread_out([float(ends[line][1]) for line in order], GAP), strict=True):
        axes.annotate(
            line, ends[line], (1.035, y), "axes fraction", "axes fraction", va="center", fontsize=SIZE, color=looks[line].ink,
            arrowprops={"arrowstyle": "-", "color": looks[line].colour, "linewidth": 0.9, "linestyle": (0, (1, 1.6)),
                        "shrinkA": 1, "shrinkB": 4, "relpos": (0.0, 0.5)},
        )  # fmt: skip


def _in_order(found: Sequence[Point], line: str) -> list[Point]:
    """The points of one line, from sparse to dense."""
    return sorted((p for p in found if p.line == line), key=lambda p: p.mean("l0"))


def _inside(point: np.ndarray, box: tuple[float, float, float, float]) -> bool:
    return bool(box[0] <= point[0] <= box[1] and box[2] <= point[1] <= box[3])


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart, within [0, 1] where there is room, nearest to the wanted ones (least squares).

    With y_i = u_i + i·gap the distances ask u to be ascending: isotonic regression, by pooling adjacent violators.
    """
    blocks: list[list[float]] = []
    for i, y in enumerate(wanted):
        blocks.append([y - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    room = max(0.0, 1.0 - gap * (len(wanted) - 1))
    pooled = [min(max(float(np.mean(block)), 0.0), room) for block in blocks for _ in block]
    return [u + i * gap for i, u in enumerate(pooled)]
