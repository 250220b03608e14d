"""Bars of step.py's results: tokens/s of every library and method, a panel for each configuration.

    python benchmarks/step_plot.py RESULTS.json PICTURE.svg

The ending of the picture's name decides its format. Solid bars are the environment as shipped, pale ones the tuned one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from peers.libraries import LIMIT, OURS, PEERS

# Okabe and Ito's, which colour-blind readers can tell apart.
COLOURS = dict(zip((OURS, *PEERS), ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00"), strict=True))
ALPHAS = {"shipped": 1.0, "tuned": 0.45}
BAR_INCHES, PANEL_INCHES, FONT = 0.17, 3.3, 8
Row = dict[str, Any]


def labels(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Library and method of every bar, library by library, in the order measured."""
    found = dict.fromkeys((row["library"], row["method"]) for row in rows if row["library"] != LIMIT)
    return sorted(found, key=lambda name: [*COLOURS].index(name[0]))


def draw(axes: Axes, rows: Sequence[Row], names: Sequence[tuple[str, str]], environments: Sequence[str]) -> None:
    """One configuration."""
    height = 0.8 / len(environments)
    found = {(row["library"], row["method"], row["env"]): row["tokens_per_s"] for row in rows}
    for place, (library, method) in enumerate(names):
        for i, env in enumerate(environments):
            y = place - 0.4 + (i + 0.5) * height
            tokens = found.get((library, method, env))
            if tokens:
                axes.barh(y, tokens, height, color=COLOURS[library], alpha=ALPHAS[env])
                axes.annotate(
                    short(tokens), (tokens, y), (2, 0), textcoords="offset points", va="center", fontsize=FONT - 2
                )
            elif (library, method, env) in found:
                axes.annotate("not run", (0.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=FONT - 2)
    limit = found.get((LIMIT, "float32", environments[0]))
    if limit:
        axes.axvline(limit, color="black", linewidth=0.8, linestyle="--")
    measured = [tokens for tokens in found.values() if tokens]
    axes.set_xscale("log")
    axes.set_xlim(min(measured) / 2, max(measured) * 3)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def short(tokens: float) -> str:
    """Three digits: 1.23k."""
    if tokens < 1000:
        return f"{tokens:.0f}"
    return f"{tokens / 1000:.3g}k" if tokens < 999_500 else f"{tokens / 1e6:.3g}M"


def legend(environments: Sequence[str], limit: bool) -> list[Any]:
    """What bars and line mean."""
    patches = [
        Patch(color="0.3", alpha=ALPHAS[env], label={"shipped": "as shipped"}.get(env, env)) for env in environments
    ]
    line = plt.Line2D([], [], color="black", linewidth=0.8, linestyle="--", label="encoding alone, float32")
    return [*patches, *[line] * limit]


def main(results: tyro.conf.Positional[Path], picture: tyro.conf.Positional[Path]) -> None:
    rows: list[Row] = json.loads(results.read_text())["results"]
    rows = [row for row in rows if row["reference"] == rows[0]["reference"]]
    names = labels(rows)
    configs, environments = (list(dict.fromkeys(row[key] for row in rows)) for key in ("config", "env"))
    size = (1.6 + PANEL_INCHES * len(configs), 1.2 + BAR_INCHES * len(names) * max(1.4, len(environments)))
    plt.rcParams |= {"font.size": FONT, "svg.fonttype": "none", "pdf.fonttype": 42}
    figure, panels = plt.subplots(1, len(configs), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, config in zip(panels[0], configs, strict=True):
        draw(axes, [row for row in rows if row["config"] == config], names, environments)
        size = next(row for row in rows if row["config"] == config)
        axes.set_title(f"{config}: d {size['d']}, M {size['latents']}, B {size['batch']}")
        axes.set_xlabel("tokens/s")
    first = panels[0][0]
    first.set_yticks(range(len(names)), [f"{library}  {method}" for library, method in names])
    for tick, (library, _) in zip(first.get_yticklabels(), names, strict=True):
        tick.set_color(COLOURS[library])
    first.invert_yaxis()
    limit = any(row["library"] == LIMIT and row["tokens_per_s"] for row in rows)
    figure.legend(handles=legend(environments, limit), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(picture, dpi=200)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
