"""The pictures of the paper's experiments, from their results alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from overtone.report.frontier import COLOURS, MARKERS
from overtone.report.plots import BLUE, GREEN, GREY, ORANGE, pyplot
from overtone.theory.resonance import Setting

Figure = Any  # matplotlib's, which is not there without the extra `report`
VERMILION = "#D55E00"
RATE = "features recovered"


class Measured(NamedTuple):
    """What was found at one point of a grid with one seed: plain values."""

    point: dict[str, Any]
    seed: int
    found: dict[str, Any]


def where(results: Iterable[Measured], **fixed: Any) -> list[Measured]:
    """Those whose points have these settings."""
    return [r for r in results if all(r.point.get(name) == value for name, value in fixed.items())]


def levels(results: Iterable[Measured], name: str) -> list[Any]:
    """The values of a setting, in the order of the points."""
    return list(dict.fromkeys(r.point[name] for r in results))


def over_seeds(results: Sequence[Measured], setting: str, number: str) -> tuple[np.ndarray, np.ndarray]:
    """A number against a setting: values of the setting, ascending, and (value, seed) of the number."""
    at = sorted(levels(results, setting))
    return np.array(at), np.array([[r.found[number] for r in where(results, **{setting: value})] for value in at])


def line(axes: Any, results: Sequence[Measured], setting: str, number: str, look: int | str, label: str = "") -> None:
    """Means over seeds, with bars from the lowest to the highest seed."""
    x, found = over_seeds(results, setting, number)
    middle = found.mean(1)
    reach = np.abs([middle - found.min(1), found.max(1) - middle])
    colour, marker = (
        (COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]) if isinstance(look, int) else (look, "o")
    )
    axes.errorbar(
        x, middle, reach, color=colour, marker=marker, markersize=4.5, markeredgecolor="white", markeredgewidth=0.5,
        linewidth=1.5, elinewidth=1, capsize=2, label=label,
    )  # fmt: skip


def mark(axes: Any, x: float, label: str) -> None:
    """A dotted line at a value of the theory's, with its name at the bottom."""
    axes.axvline(x, color=GREY, linewidth=1.1, linestyle=":", zorder=0)
    axes.annotate(label, (x, 0), (3, 4), ("data", "axes fraction"), "offset points", color=GREY, fontsize=8)


def resonance(results: Sequence[Measured]) -> Figure:
    """Recovery above the start's over (d, p) and over (d, p/f), one column per truth, and its course for three widths."""
    plt = pyplot()
    truths = list(dict.fromkeys((r.point["n_features"], r.point["sparsity"]) for r in results))
    figure, panels = plt.subplots(
        3, len(truths), figsize=(4.3 * len(truths) + 0.6, 9.2), squeeze=False, height_ratios=(1, 1, 0.9)
    )
    image = None
    for column, (n, s) in zip(panels.T, truths, strict=True):
        own = where(results, n_features=n, sparsity=s)
        for axes, unit, name in ((column[0], 1.0, "p"), (column[1], s / n, "p / f")):
            image = _heat(axes, own, unit)
            _theorem(axes, own, unit)
            axes.set(xlabel="dimension d", ylabel=f"target frequency {name}")
        column[0].set_title(f"n = {n}, s = {s}, M = {own[0].point['latents']}")
        _courses(column[2], own)
    figure.colorbar(image, ax=panels[:2], label="features recovered, cosine ≥ 0.9, above the start's share", shrink=0.6)
    return figure


def gain(found: Mapping[str, float], threshold: str) -> float:
    """What training adds to the share that random atoms found (maths.md eq. T17); below 0 where it lost some."""
    return (found[f"frr_{threshold}"] - found[f"start_{threshold}"]) / max(1 - found[f"start_{threshold}"], 1e-9)


def _heat(axes: Any, results: Sequence[Measured], unit: float) -> Any:
    d, p = sorted(levels(results, "d")), sorted(levels(results, "frequency"))
    share = [[np.mean([gain(r.found, "0.9") for r in where(results, d=x, frequency=y)]) for x in d] for y in p]
    axes.grid(False)
    axes.set(xscale="log", yscale="log")
    image = axes.pcolormesh(
        _edges(d), _edges(np.array(p) / unit), np.maximum(share, 0), cmap="cividis", vmin=0, vmax=1, shading="flat"
    )
    for j, y in enumerate(p):
        for i, x in enumerate(d):
            colour = "white" if share[j][i] < 0.55 else "black"
            axes.text(x, y / unit, f"{100 * share[j][i]:.0f}", color=colour, fontsize=7.5, ha="center", va="center")
    axes.set_xticks(d, [str(x) for x in d])
    axes.set_xticks([], minor=True)
    return image


def _edges(centres: Sequence[float] | np.ndarray) -> np.ndarray:
    """Borders of cells around ascending values, halfway in logarithms."""
    logs = np.log(np.asarray(centres, dtype=float))
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]]))


def _theorem(axes: Any, results: Sequence[Measured], unit: float) -> None:
    """The band of Theorem 6.1 with constants 1 and ε, ς → 0, and where superposition turns light."""
    n, s = results[0].point["n_features"], results[0].point["sparsity"]
    low, high = axes.get_xlim()
    d = np.geomspace(low, high, 200)
    bands = [Setting(n, max(1, round(x)), s, epsilon=1e-3, varsigma=1e-3).band() for x in d]
    for edge in ([b.low / unit for b in bands], [b.high / unit for b in bands]):
        axes.plot(d, edge, color=VERMILION, linewidth=1.8)
    axes.axvline(n**0.5, color="white", linewidth=1.2, linestyle=":")
    axes.annotate("d = √n", (n**0.5, 0), (3, 4), ("data", "axes fraction"), "offset points", color="white", fontsize=8)
    axes.set_xlim(low, high)


def _courses(axes: Any, results: Sequence[Measured]) -> None:
    n, s = results[0].point["n_features"], results[0].point["sparsity"]
    d = sorted(levels(results, "d"))
    for look, dimension in enumerate(d):
        own = [
            r._replace(point={**r.point, "ratio": r.point["frequency"] * n / s}, found={"gain": gain(r.found, "0.9")})
            for r in where(results, d=dimension)
        ]
        line(axes, own, "ratio", "gain", look, f"d = {dimension}{' (heavy)' if dimension < n**0.5 else ''}")
    mark(axes, 1 / s, "1/n")
    mark(axes, 1.0, "f")
    axes.set(xscale="log", xlabel="p / f", ylabel="recovered above the start's share", ylim=(-0.1, 1.28))
    axes.legend(frameon=False, fontsize=7, loc="upper center", ncols=3)


def recursion(results: Sequence[Measured]) -> Figure:
    """One panel with the course of some frequencies in the largest d, and one per d with where they end."""
    plt = pyplot()
    widths, frequencies = sorted(levels(results, "d")), sorted(levels(results, "frequency"))
    threshold, steps = results[0].point["threshold"], results[0].point["steps"]
    figure, panels = plt.subplots(1, 1 + len(widths), figsize=(10, 3.2), sharey=True)
    shown = [frequencies[i] for i in np.linspace(0, 0.8 * (len(frequencies) - 1), 3).round().astype(int)]
    for p, colour in zip(shown, (ORANGE, BLUE, GREEN), strict=True):
        own = where(results, d=widths[-1], frequency=p)
        panels[0].plot(np.mean([r.found["predicted"] for r in own], 0), color=colour, label=f"p = {p:g}")
        panels[0].plot(np.mean([r.found["run"] for r in own], 0), "o", color=colour, markersize=2.5)
    panels[0].set(xlabel="step", ylabel=f"{RATE}, cosine ≥ {threshold:g}", ylim=(-0.03, 1.03))
    panels[0].set_title(f"d = {widths[-1]}: line predicted, points run")
    panels[0].legend(frameon=False, loc="upper left")
    for axes, d in zip(panels[1:], widths, strict=True):
        own = where(results, d=d)
        n, s = own[0].point["n_features"], own[0].point["sparsity"]
        band = Setting(n, d, s).band()
        if not band.empty:
            axes.axvspan(band.low, band.high, color=GREY, alpha=0.18, linewidth=0, label="Theorem 6.1, constants 1")
        mark(axes, s / n, "f")
        line(axes, own, "frequency", "predicted_end", BLUE, "predicted")
        line(axes, own, "frequency", "run_end", ORANGE, "run")
        began = np.mean([r.found["run"][0] for r in own])
        axes.axhline(began, color="black", linewidth=0.8, linestyle="--", label="at the start")
        axes.set(xscale="log", xlabel="target frequency p")
        axes.set_title(f"d = {d} ({'heavy' if d < n**0.5 else 'light'}), after {steps} steps")
    panels[1].legend(frameon=False, fontsize=7.5, loc="upper right")
    return figure


def width(results: Sequence[Measured]) -> Figure:
    """FRR against M, one line per s, with what a lottery would give (maths.md eq. T18), and against 1/h² = s (eq. T16)."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    n = results[0].point["n_features"]
    for look, s in enumerate(levels(results, "sparsity")):
        line(left, where(results, sparsity=s), "latents", "frr_0.9", look, f"1/h² = s = {s}")
    widths = levels(results, "latents")
    m = np.geomspace(min(widths), max(widths), 200)
    left.plot(m, 1 - (1 - 1 / n) ** m, color=GREY, linewidth=1.2, linestyle="--", label="every latent, by lot")
    left.set(xscale="log", xlabel="latents M (dotted: M = n)", ylabel=f"{RATE}, cosine ≥ 0.9", ylim=(-0.03, 1.03))
    left.axvline(n, color=GREY, linewidth=1.1, linestyle=":", zorder=0)
    left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.98))
    for look, latents in enumerate(levels(results, "latents")):
        line(right, where(results, latents=latents), "sparsity", "frr_0.9", look, f"M = {latents}")
    right.set(xlabel="1/h² = s")
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


METHODS = {"gba": "GBA", "ba": "BA, p = f", "modified-ba": "modified BA, p = 0.3 f"}


def _methods(axes: Any, results: Sequence[Measured], setting: str, number: str, label: str = "") -> None:
    for look, (name, what) in enumerate(METHODS.items()):
        if own := where(results, method=name):
            line(axes, own, setting, number, look, what + label)


def co_occurrence(results: Sequence[Measured]) -> Figure:
    """FRR at both thresholds against ρ₂."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    n = results[0].point["n_features"]
    for axes, threshold in zip(panels, ("0.8", "0.9"), strict=True):
        _methods(axes, results, "co_occurrence", f"frr_{threshold}")
        mark(axes, n**-0.5, "1/√n")
        axes.set(xscale="log", xlabel="co-occurrence ρ₂ of companions", ylim=(-0.03, 1.03))
        axes.set_title(f"cosine ≥ {threshold}")
    panels[0].set_ylabel(RATE)
    panels[0].legend(frameon=False, loc="center left")
    return figure


def balance(results: Sequence[Measured]) -> Figure:
    """FRR against the ratio of frequencies, of all features and of the rarest and most frequent quarter."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), sharey=True)
    shown = {"frr_0.9": "all features", "frequent_0.9": "the most frequent quarter", "rare_0.9": "the rarest quarter"}
    for axes, (number, title) in zip(panels, shown.items(), strict=True):
        _methods(axes, results, "ratio", number)
        axes.set(xscale="log", xlabel="frequency of the most frequent / of the rarest", ylim=(-0.03, 1.03))
        axes.set_title(title)
    panels[0].set_ylabel(f"{RATE}, cosine ≥ 0.9")
    panels[2].legend(frameon=False, loc="upper right", fontsize=8)
    return figure


def projections(results: Sequence[Measured]) -> Figure:
    """Cosines of one latent with all features over steps, one panel per target frequency; of the first seed."""
    plt = pyplot()
    ratios = levels(results, "ratio")
    figure, panels = plt.subplots(1, len(ratios), figsize=(3.4 * len(ratios), 3.4), sharey=True, squeeze=False)
    for axes, ratio in zip(panels[0], ratios, strict=True):
        own = where(results, ratio=ratio)
        cosines = np.array(own[0].found["cosines"])[:, 0]  # (steps, features) of the first latent
        winner = cosines[-1].argmax()
        # As an image: a hundred lines per panel would be most of the file.
        axes.plot(np.delete(cosines, winner, 1), color=GREY, linewidth=0.6, alpha=0.45, rasterized=True)
        axes.plot(cosines[:, winner], color=VERMILION, linewidth=2.2, label="largest at the end")
        axes.axhline(0.9, color="black", linewidth=0.8, linestyle="--")
        won = np.mean([r.found["winners"] for r in own])
        axes.set_title(f"p = {'' if ratio == 1 else f'{ratio:g} '}f: {100 * won:.0f} % of latents won")
        axes.set(xlabel="step", ylim=(-0.6, 1.03))
    panels[0, 0].set_ylabel("cosine of one latent with every feature")
    panels[0, 0].legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def ablation(results: Sequence[Measured]) -> Figure:
    """FRR and explained variance against K, HTF and LTF, the others at their defaults."""
    plt = pyplot()
    default = results[0].point
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), sharey=True)
    for axes, (name, label) in zip(
        panels, {"groups": "groups K", "htf": "highest target HTF", "ltf": "lowest target LTF"}.items(), strict=True
    ):
        others = {key: value for key, value in default.items() if key != name}
        own = where(results, **others)
        line(axes, own, name, "frr_0.8", 0, f"{RATE}, cosine ≥ 0.8")
        line(axes, own, name, "frr_0.9", 1, f"{RATE}, cosine ≥ 0.9")
        line(axes, own, name, "explained_variance", GREY, "explained variance")
        axes.set(xscale="log", xlabel=label, ylim=(-0.03, 1.05))
        axes.axvline(default[name], color=GREY, linewidth=1.1, linestyle=":", zorder=0)
        values = sorted(levels(own, name))
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xticks([], minor=True)
    panels[0].set_ylabel("share (dotted: the default)")
    panels[1].legend(frameon=False, loc="lower center", fontsize=8)
    return figure


def parts(results: Sequence[Measured]) -> Figure:
    """FRR at 0.9 at the end of every variant, and the best on the way; a dot per seed."""
    plt = pyplot()
    laws, names = levels(results, "law"), levels(results, "variant")[::-1]
    figure, panels = plt.subplots(
        1, len(laws), figsize=(5.2 * len(laws) + 1.4, 0.38 * len(names) + 1.2), sharey=True, squeeze=False
    )
    for axes, law in zip(panels[0], laws, strict=True):
        for y, name in enumerate(names):
            own = where(results, law=law, variant=name)
            ends, bests = ([100 * r.found[number] for r in own] for number in ("frr_0.9", "best_0.9"))
            axes.barh(y, np.mean(ends), color=BLUE, alpha=0.35, height=0.6)
            axes.plot(ends, [y] * len(ends), "o", color=BLUE, markersize=4, label="end of training" if y == 0 else None)
            axes.plot(
                bests, [y] * len(bests), "|", color=VERMILION, markersize=9, markeredgewidth=1.6,
                label="best on the way" if y == 0 else None,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="% of features recovered, cosine ≥ 0.9", xlim=(-2, 103))
        axes.set_title(f"coefficients: {law}")
        axes.grid(False, axis="y")
    panels[0, 0].legend(frameon=False, loc="lower right", fontsize=8)
    return figure
