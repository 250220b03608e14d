"""Figures for a run: matplotlib, vector where the file name says so, colour-blind safe."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREEN, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#6B7280",
)  # Okabe–Ito, safe for colour-blind readers
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}

FORMATS = (".svg", ".png", ".pdf")


def spectrum(frequency: Sequence[float], target: Sequence[float], path: Path, *, title: str) -> None:
    """Frequency that every latent reached against its group's target.

    Args:
        frequency: measured activation frequency of every latent (0: never fired).
        target: target frequency of every latent.
        path: file to write.
        title: what was measured on what.
    """
    plt = pyplot()
    reached, wanted = np.asarray(frequency), np.asarray(target)
    groups = np.unique(wanted)
    floor = min(groups.min(), reached[reached > 0].min(initial=1.0)) / 2
    shown = np.maximum(reached, floor)
    # A fixed horizontal spread within each group's column, so that the picture is the same every time.
    width = np.log(groups[1] / groups[0]) * 0.35 if len(groups) > 1 else 0.3
    jitter = np.random.default_rng(0).uniform(-width, width, len(wanted))
    over = reached > 1.5 * wanted
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.2))
        for mask, colour, label in ((~over, BLUE, "latent"), (over, ORANGE, "latent above 1.5 × its target")):
            axes.scatter(
                (wanted * np.exp(jitter))[mask],
                shown[mask],
                s=5,
                alpha=0.45,
                linewidths=0,
                color=colour,
                label=label,
            )
        axes.plot(groups, groups, color=GREY, linewidth=1, label="target", zorder=0)
        axes.plot(
            groups,
            [np.median(reached[wanted == g]).clip(floor) for g in groups],
            "o",
            color="black",
            markersize=4,
            label="median of the group",
        )
        axes.set(xscale="log", yscale="log", xlabel="target frequency of the group", ylabel="frequency reached")
        axes.set_title(title)
        axes.legend(frameon=False, loc="lower right", markerscale=1.6)
        figure.savefig(path)
        plt.close(figure)


def curves(records: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, title: str) -> None:
    """Loss and L0 over training, one line per dictionary."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.4))
        for (name, rows), colour in zip(records.items(), (BLUE, ORANGE, GREEN, GREY), strict=False):
            tokens = [r["rows"] / 1000 for r in rows]
            left.plot(tokens, [1 - r["explained_variance"] for r in rows], color=colour, label=name)
            right.plot(tokens, [r["l0"] for r in rows], color=colour, label=name)
        left.set(
            xlabel="thousand tokens seen",
            ylabel="variance unexplained",
            yscale="log",
            title="Reconstruction loss",
        )
        right.set(xlabel="thousand tokens seen", ylabel="active latents per token", ylim=(0, None), title="L0")
        left.legend(frameon=False)
        figure.suptitle(title, fontsize=10, color=GREY)
        figure.savefig(path)
        plt.close(figure)


def check_figure(path: Path) -> None:
    """An error where no figure can be drawn into a file: its name says no format, or matplotlib is missing."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: a figure's name ends in {', '.join(FORMATS)}; give it one of them")
    pyplot()


def save(draw: Callable[[], Any], path: Path) -> None:
    """Draw into a file; its name says in which format. The same results give the same file."""
    plt = pyplot()
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({**STYLE, "svg.hashsalt": "overtone"}):
        figure = draw()
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def pyplot() -> Any:
    """matplotlib's pyplot without a window, or an ImportError that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "overtone[report]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
