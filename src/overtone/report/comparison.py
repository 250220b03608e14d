"""Dictionaries compared: from one result per run to points over seeds, a table, JSON and Markdown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from overtone.report.tables import COLUMNS, cell, markdown_table

SHOWN = ("explained_variance", "l0", "alive", "recovered_mean", "ce_recovered_mean", "rows_per_s")


class Result(NamedTuple):
    """What one trained dictionary came to.

    Attributes:
        line: what is compared, without the option that moves along a frontier: "topk".
        label: with it: "topk(k=32)".
        latents: width.
        seed: of the initial weights.
        metrics: name → value, on held-out rows.
    """

    line: str
    label: str
    latents: int
    seed: int
    metrics: dict[str, float]


class Point(NamedTuple):
    """The seeds of one method at one width together: metric → values, in the order of `seeds`."""

    line: str
    label: str
    latents: int
    seeds: list[int]
    metrics: dict[str, list[float]]

    @property
    def name(self) -> str:
        """As a table calls it."""
        return f"{self.label} × {self.latents}"

    def mean(self, metric: str) -> float:
        """Over seeds."""
        return sum(self.metrics[metric]) / len(self.seeds)


def points(results: Sequence[Result]) -> list[Point]:
    """One point per method, setting and width, in the order they first come in."""
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.label, result.latents), []).append(result)
    return [
        Point(
            same[0].line,
            label,
            latents,
            [r.seed for r in same],
            {metric: [r.metrics[metric] for r in same] for metric in same[0].metrics},
        )
        for (label, latents), same in groups.items()
    ]


def shown(found: Sequence[Point]) -> dict[str, dict[str, list[float]]]:
    """The metrics that a table in a terminal has room for; the width goes without saying where there is but one."""
    one = len({point.latents for point in found}) == 1
    return {
        point.label if one else point.name: {k: v for k, v in point.metrics.items() if k in SHOWN} for point in found
    }


def markdown(found: Sequence[Point]) -> str:
    """All metrics as a Markdown table: mean ± half the range over seeds."""
    keys = [key for key in COLUMNS if any(key in point.metrics for point in found)]
    header = ["method", "latents", *(COLUMNS[key][0] for key in keys)]
    rows = [
        [f"`{p.label}`", f"{p.latents:,}", *(cell(p.metrics.get(key), COLUMNS[key][1]) for key in keys)] for p in found
    ]
    return markdown_table([header, *rows])


def to_json(found: Sequence[Point]) -> list[dict[str, Any]]:
    """Every value of every seed."""
    return [point._asdict() for point in found]
