"""What an experiment is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from overtone.report.experiments import Figure, Measured

Scale = Literal["small", "paper"]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A grid of points, a measurement at every point and seed, and a picture of all of them.

    Attributes:
        name: of the experiment.
        what: its question, one line.
        points: settings of every measurement, by scale: plain values, keyword arguments of `measure`.
        measure: numbers at one point, from `seed` and the point's settings; plain values, too.
        told: which of the numbers a table shows, by their name, with its heading.
        draw: the picture, from the results alone.
    """

    name: str
    what: str
    points: Mapping[str, Sequence[Settings]]
    measure: Callable[..., dict[str, Any]]
    told: Mapping[str, str]
    draw: Callable[[Sequence[Measured]], Figure]

    def measured(self, point: Settings, seed: int) -> Measured:
        """What is found at one point with one seed."""
        return Measured(dict(point), seed, self.measure(seed=seed, **point))

    def varied(self, scale: Scale) -> list[str]:
        """Settings that are not the same at every point."""
        points = self.points[scale]
        names = dict.fromkeys(name for point in points for name in point)
        return [name for name in names if any(point.get(name) != points[0].get(name) for point in points)]


def grid(**axes: Any) -> list[dict[str, Any]]:
    """Every combination of the axes' values, the last axis fastest; what is no tuple is the same everywhere."""
    values = [axis if isinstance(axis, tuple) else (axis,) for axis in axes.values()]
    return [dict(zip(axes, combination, strict=True)) for combination in product(*values)]
