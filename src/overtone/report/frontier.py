"""The picture of a comparison: explained variance against L0, one line per method, one panel per width."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from overtone.report.comparison import Point
from overtone.report.plots import GREY, STYLE, pyplot

# Okabe–Ito without its yellow, which is lost on white. Where colours come round again, markers and dashes differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
PANEL = (4.4, 3.8)  # inches
GAP = 0.058  # between the middles of two labels, as a share of a panel's height
SIZE = 9.0  # of a label, in points


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


def frontier(found: Sequence[Point], paths: Sequence[Path], *, title: str) -> None:
    """Explained variance against the L0 that was reached, on held-out rows; up and left is better.

    A marker is the mean over seeds; its bars reach from the lowest to the highest seed in both directions.

    Args:
        found: the points; those of one `line` and width are joined in the order of their L0.
        paths: files to write; their names say in which format.
        title: what was trained on what.
    """
    plt = pyplot()
    drawn = [p for p in found if p.mean("l0") > 0 and math.isfinite(p.mean("explained_variance"))]
    if not drawn:
        raise ValueError("no dictionary has an active latent and a finite explained variance: nothing to draw")
    looks = {line: Look.of(i) for i, line in enumerate(dict.fromkeys(p.line for p in found))}
    widths = sorted({p.latents for p in drawn})
    with plt.rc_context(STYLE):
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
        for path in paths:
            figure.savefig(path)
        plt.close(figure)


def _panel(axes: Any, found: Sequence[Point], looks: dict[str, Look]) -> None:
    axes.set_xscale("log")
    for line, look in looks.items():
        of_line = sorted((p for p in found if p.line == line), key=lambda p: p.mean("l0"))
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
    """Each line's name at the right edge, as near to the line's end as the others let it, and a thin line between."""
    ends = {line: max((p for p in found if p.line == line), key=lambda p: p.mean("l0")) for line in looks
            if any(p.line == line for p in found)}  # fmt: skip
    low, high = axes.get_ylim()
    wanted = {line: (p.mean("explained_variance") - low) / (high - low) for line, p in ends.items()}
    order = sorted(wanted, key=lambda line: wanted[line])
    for line, y in zip(order, spread_out([wanted[line] for line in order], GAP), strict=True):
        look, end = looks[line], ends[line]
        axes.annotate(
            line, xy=(end.mean("l0"), end.mean("explained_variance")), xycoords="data",
            xytext=(1.035, y), textcoords="axes fraction", va="center", fontsize=SIZE, color=look.ink,
            arrowprops={"arrowstyle": "-", "color": look.colour, "alpha": 0.45, "linewidth": 0.7, "shrinkA": 1,
                        "shrinkB": 4, "relpos": (0.0, 0.5)},
        )  # fmt: skip


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
