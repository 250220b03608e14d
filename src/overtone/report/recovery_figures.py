"""The pictures of a recovery: every method's scores with its seeds, beside what is published; and all suites at a glance."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from overtone.report.experiments import Figure
from overtone.report.frontier import COLOURS
from overtone.report.plots import GREY, pyplot
from overtone.report.recovery import Line, Recovery, Score, best, contestants, in_order, mean

OURS, THEIRS, REFERENCE = COLOURS[0], COLOURS[1], "black"
VARIANTS = ("x", "+", "1", "2", "3", "4")  # thin: they stand behind the methods
PANEL, ROW = 1.95, 0.3  # inches
ACROSS = 4  # panels
ABOVE = 1.3  # inches of titles, ticks and legend


def methods(recovery: Recovery) -> Figure:
    """One panel per score, one row per method: dots are seeds and their mean, hollow diamonds what is published."""
    plt = pyplot()
    scores = [score for score in recovery.scores if score.drawn]
    lines, labels = recovery.lines[::-1], list(dict.fromkeys(v for line in recovery.lines for v in line.variants))
    down = math.ceil(len(scores) / ACROSS)
    across = math.ceil(len(scores) / down)
    size = (PANEL * across + 2.2, (ROW * len(lines) + 0.6) * down + ABOVE)
    figure, panels = plt.subplots(down, across, figsize=size, sharey=True, squeeze=False)
    for axes, score in zip(panels.flat, scores, strict=False):
        for y, line in enumerate(lines):
            _row(axes, y, line, score, labels)
        _frame(axes, score)
    for axes in panels.flat[len(scores) :]:
        axes.set_visible(False)
    panels[0, 0].set_yticks(range(len(lines)), [line.label for line in lines])
    panels[0, 0].set_ylim(-0.6, len(lines) - 0.4)
    _legend(figure, panels.flat, labels)
    note = [f"hollow: {recovery.published}"] if recovery.published else []
    told = [part for text in (*recovery.title.split("\n"), *note) for part in textwrap.wrap(text, int(15.5 * size[0]))]
    figure.suptitle("\n".join(told), fontsize=9, color=GREY)
    return figure


def _row(axes: Any, y: int, line: Line, score: Score, labels: Sequence[str]) -> None:
    for label, values in line.variants.items():
        if score.key in values:
            at = score.factor * mean(values[score.key])
            marker = VARIANTS[labels.index(label) % len(VARIANTS)]
            axes.plot(at, y, marker, color=GREY, markersize=5, linestyle="", label=label, zorder=1)
    if score.key in line.published:
        axes.plot(
            score.factor * line.published[score.key], y, "D", markerfacecolor="none", markeredgecolor="black",
            markersize=7, linestyle="", label="published", zorder=2,
        )  # fmt: skip
    if score.key in line.found:
        colour, label = _kind(line)
        values = score.factor * np.array(line.found[score.key])
        if len(values) > 1:
            axes.hlines(y, values.min(), values.max(), color=colour, linewidth=1.2, zorder=3)
            axes.plot(values, [y] * len(values), "o", color=colour, markersize=3, alpha=0.6, linestyle="", label="seed")
        axes.plot(
            values.mean(), y, "o", color=colour, markersize=6, markeredgecolor="white", markeredgewidth=0.7,
            linestyle="", label=label, zorder=4,
        )  # fmt: skip


def _kind(line: Line) -> tuple[str, str]:
    if not line.name:
        return REFERENCE, "bare rows"
    return (OURS, "GBA") if line.name.startswith("gba") else (THEIRS, "other methods")


def _frame(axes: Any, score: Score) -> None:
    unit = ", %" if score.factor == 100 else ", less is better" if score.better < 0 else ""
    axes.set_title(f"{score.heading}{unit}", fontweight="normal", fontsize=9)
    if score.better > 0:
        axes.set_xlim(-0.04 * score.factor, 1.04 * score.factor)
        ticks = [score.factor * share for share in (0, 0.25, 0.5, 0.75, 1)]
        axes.set_xticks(ticks, [f"{ticks[0]:g}", "", f"{ticks[2]:g}", "", f"{ticks[4]:g}"])
    else:
        most = max(axes.dataLim.x1, 1e-9)
        axes.set_xlim(-0.04 * most, 1.06 * most)
        axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="y", length=0)


def _legend(figure: Figure, panels: Iterable[Any], labels: Sequence[str]) -> None:
    """Each look once, whatever panel has it."""
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = [label for label in ("GBA", "other methods", "bare rows", "seed", "published", *labels) if label in handles]
    figure.legend(
        [handles[label] for label in order], order, loc="outside lower center", ncols=len(order), frameon=False, fontsize=8
    )  # fmt: skip


def summary(found: Sequence[Recovery]) -> Figure:
    """Methods × the suites' headline scores, the best in bold; colour: a score's share of the best one of its column."""
    plt = pyplot()
    columns = [(recovery, recovery.score(key)) for recovery in found for key in recovery.headline]
    held = [contestants(recovery, score.key) for recovery, score in columns]
    names = in_order(held)
    figure, axes = plt.subplots(figsize=(0.95 * len(columns) + 2.6, ROW * len(names) + ABOVE + 0.5))
    shares = np.full((len(names), len(columns)), np.nan)
    for j, (lines, (_, score)) in enumerate(zip(held, columns, strict=True)):
        leaders, most = best(lines.values(), score), max(mean(line.found[score.key]) for line in lines.values())
        for name, line in lines.items():
            i, value = names.index(name), mean(line.found[score.key])
            shares[i, j] = value / max(most, 1e-9)
            axes.text(
                j + 0.5, i + 0.5, score.form.format(score.factor * value), ha="center", va="center", fontsize=8.5,
                fontweight="bold" if line.name in leaders else "normal", color="white" if shares[i, j] < 0.55 else "black",
            )  # fmt: skip
    image = axes.pcolormesh(shares, cmap="cividis", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    axes.set_xticks(
        np.arange(len(columns)) + 0.5,
        [f"{recovery.suite}\n{score.heading}{', %' * (score.factor == 100)}" for recovery, score in columns],
        rotation=35, ha="left", rotation_mode="anchor", fontsize=8.5,
    )  # fmt: skip
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
    figure.colorbar(image, label="share of the column's best", shrink=0.7, pad=0.02)
    return figure
