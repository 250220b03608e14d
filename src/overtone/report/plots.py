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
# Okabe–Ito without its yellow, which is lost on white. Where colours come round again, markers and dashes differ.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
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

NEVER, BELOW = "never", "below"  # of a histogram of frequencies: what has no lower end
FORMATS = (".svg", ".png", ".pdf")


def spectrum(frequency: Sequence[float], target: Sequence[float], *, title: str) -> Any:
    """Frequency that every latent reached against its group's target.

    Args:
        frequency: measured activation frequency of every latent (0: never fired).
        target: target frequency of every latent.
        title: what was measured on what.
    """
    reached, wanted = np.asarray(frequency), np.asarray(target)
    groups = np.unique(wanted)
    floor = min(groups.min(), reached[reached > 0].min(initial=1.0)) / 2
    shown = np.maximum(reached, floor)
    # A fixed horizontal spread within each group's column, so that the picture is the same every time.
    width = np.log(groups[1] / groups[0]) * 0.35 if len(groups) > 1 else 0.3
    jitter = np.random.default_rng(0).uniform(-width, width, len(wanted))
    over = reached > 1.5 * wanted
    figure, axes = pyplot().subplots(figsize=(6.4, 4.2))
    for mask, colour, label in ((~over, BLUE, "latent"), (over, ORANGE, "latent above 1.5 × its target")):
        # Dots as pixels: a vector file of them would have megabytes.
        axes.scatter(
            (wanted * np.exp(jitter))[mask],
            shown[mask],
            s=5,
            alpha=0.45,
            linewidths=0,
            color=colour,
            label=label,
            rasterized=True,
        )
    axes.plot(groups, groups, color=GREY, linewidth=1, label="target", zorder=0)
    medians = [np.median(reached[wanted == g]).clip(floor) for g in groups]
    axes.plot(groups, medians, "o", color="black", markersize=4, label="median of the group")
    axes.set(xscale="log", yscale="log", xlabel="target frequency of the group", ylabel="frequency reached")
    axes.set_title(title)
    axes.legend(frameon=False, loc="lower right", markerscale=1.6)
    return figure


def curves(records: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str) -> Any:
    """Reconstruction, L0 and the method's own loss over training, one line per dictionary."""
    figure, panels = pyplot().subplots(1, 3, figsize=(11, 3.4))
    for number, (name, rows) in enumerate(records.items()):
        tokens = [r["rows"] / 1000 for r in rows]
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
        for axes, values in zip(
            panels,
            ([1 - r["explained_variance"] for r in rows], [r["l0"] for r in rows], [r["loss"] for r in rows]),
            strict=True,
        ):
            axes.plot(tokens, values, label=name, **look)
    for axes, label, heading in zip(
        panels,
        ("variance unexplained", "active latents per token", "the method's own loss"),
        ("Reconstruction", "L0", "Loss"),
        strict=True,
    ):
        axes.set(xlabel="thousand tokens seen", ylabel=label, title=heading)
    panels[0].set_yscale("log")
    panels[1].set_ylim(0, None)
    panels[2].set_yscale("log")
    panels[0].legend(frameon=False)
    figure.suptitle(title, fontsize=10, color=GREY)
    return figure


def frequencies(histograms: Mapping[str, Mapping[str, int]], *, title: str) -> Any:
    """How many latents fire how often, one line per dictionary; those that never fire are counted in its name.

    Args:
        histograms: of each, as `ReconstructionStats.frequency_histogram` gives it.
        title: what was measured on what.
    """
    figure, axes = pyplot().subplots(figsize=(6.4, 3.8))
    for number, (name, counts) in enumerate(histograms.items()):
        lower = [float(key) for key in counts if key not in (NEVER, *(k for k in counts if k.startswith(BELOW)))]
        edges = [lower[0] / 10**0.5, *lower, 1.0]
        shares = np.array([counts[key] for key in counts if key != NEVER]) / max(1, sum(counts.values()))
        never = f" ({counts[NEVER]:,} never)" if counts[NEVER] else ""
        axes.stairs(shares, edges, color=COLOURS[number % len(COLOURS)], linewidth=1.6, label=name + never)
    axes.set(xscale="log", xlabel="share of rows that a latent fires on", ylabel="share of latents", ylim=(0, None))
    axes.legend(frameon=False)
    axes.set_title(title)
    return figure


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
