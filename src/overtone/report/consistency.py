"""Consistency over seeds as a table, and the picture of which latents are the consistent ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from overtone.metrics.consistency import ALL, Consistency
from overtone.report.plots import GREY, pyplot
from overtone.report.tables import cell

MEAN, SHARE = "{:.3f}", "{:.1%}"
WORDS = {"peak": "peak", "frequency": "frequency", "z_score": "Z-score"}
PANEL = (3.1, 2.7)  # inches
ACROSS = 4


class Seeds(NamedTuple):
    """The runs of one method at one width that differ in their seed.

    Attributes:
        label: the method with its options.
        latents: width.
        consistency: over the pairs of runs.
        scores: of each run, score → value of every latent: peak, frequency, z_score.
    """

    label: str
    latents: int
    consistency: Consistency
    scores: list[dict[str, Float[Tensor, " latents"]]]

    @property
    def name(self) -> str:
        """As tables and pictures call it."""
        return f"{self.label} × {self.latents}"

    def to_json(self) -> dict[str, Any]:
        """All but the values of single latents."""
        return {"label": self.label, "latents": self.latents, **self.consistency.to_json()}


def lines(found: Sequence[Seeds]) -> list[list[str]]:
    """The table: a header, a line for each method and width, and below those that have the same random baseline, that."""
    groups = [*found[0].consistency.groups]
    header = ["", "MCS", "> 0.9", *(f"> 0.9, top {_in_words(name)}" for name in groups if name != ALL), "PW-MCC"]
    table = [header]
    for width, (mcs, share) in dict.fromkeys(map(_baseline, found)):
        same = [seeds for seeds in found if _baseline(seeds) == (width, (mcs, share))]
        for seeds in same:
            c = seeds.consistency
            shares = [cell(c.groups[name].share, SHARE) for name in groups]
            low, high = ([getattr(pair, end) for pair in c.matched] for end in ("low", "high"))
            table.append([seeds.name, cell(c.groups[ALL].mcs, MEAN), *shares, _between(low, high)])
        matched = same[0].consistency.random_matched
        table.append(
            [
                f"random atoms × {width}",
                *(MEAN.format(mcs), *[SHARE.format(share)] * len(groups)),
                _between([matched.low], [matched.high]),
            ]
        )
    return table


def _baseline(seeds: Seeds) -> tuple[int, tuple[float, float]]:
    """What the random atoms have: other widths have others, and so have codes of either sign."""
    return seeds.latents, seeds.consistency.random.mean()


def _in_words(group: str) -> str:
    score, share = group.rsplit(" ", 1)
    return f"{share.removesuffix('%')} % by {WORDS.get(score, score)}"


def _between(low: list[float], high: list[float]) -> str:
    return cell(low, MEAN) if low == high else f"{cell(low, MEAN)} … {cell(high, MEAN)}"


def table(found: Sequence[Seeds]) -> Table:
    """For a terminal."""
    header, *rows = lines(found)
    shown = Table(
        title=f"Consistency over {len(found[0].scores)} seeds; ± half the range over pairs", title_justify="left"
    )
    for label in header:
        shown.add_column(label, justify="right" if label else "left", overflow="fold", no_wrap=not label)
    for row in rows:
        shown.add_row(*row)
    return shown


def scatter(found: Sequence[Seeds], *, title: str) -> Any:
    """Every latent of the first seed: its Z-score, its peak, and as its colour how near the other seeds come to it.

    The picture of the paper (arXiv 2506.14002). Latents that never rose above 0 have no peak and are not drawn.

    Args:
        found: one panel each.
        title: what was trained on what.
    """
    plt = pyplot()
    across = min(ACROSS, len(found))
    down = math.ceil(len(found) / across)
    size = (PANEL[0] * across + 0.9, PANEL[1] * down + 0.4)
    figure, panels = plt.subplots(down, across, figsize=size, squeeze=False, sharex=True, sharey=True)
    drawn = None
    for axes, seeds in zip(panels.flat, found, strict=False):
        drawn = _panel(axes, seeds.scores[0], seeds.consistency.each[0].numpy())
        axes.set_title(seeds.name, fontweight="normal", fontsize=8)
    for axes in [*panels.flat][len(found) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("Z-score")
    for axes in panels[:, 0]:
        axes.set_ylabel("peak")
    figure.colorbar(drawn, ax=panels, label="MCS with the other seeds", fraction=0.03)
    figure.suptitle(title, fontsize=9, color=GREY)
    return figure


def _panel(axes: Any, scores: Mapping[str, Tensor], mcs: np.ndarray) -> Any:
    z, peak = (scores[name].numpy() for name in ("z_score", "peak"))
    kept = (peak > 0) & (z > 0)
    order = np.argsort(mcs[kept])  # the consistent ones on top, where they cover each other
    axes.set(xscale="log", yscale="log")
    # Dots as pixels: a vector file of them would have tens of megabytes.
    return axes.scatter(
        z[kept][order],
        peak[kept][order],
        c=mcs[kept][order],
        s=3,
        linewidths=0,
        vmin=0,
        vmax=1,
        cmap="viridis",
        rasterized=True,
    )
