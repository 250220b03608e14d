"""How a GBA step of ours grows with the latents M, the width d, the L0 and the batch B, one at a time.

    make bench-env
    python benchmarks/scaling.py [--vary latents d l0 batch] [--values V …] [--windows 5] [--seconds 1.5] [--env shipped]
                                 [--threads T] [--memory-gb G] [--quick] [--json PATH]

Beside every point stands its limit: the 2·d·M FLOPs a token that encoding takes, at the rate of one float32 product of the batch
with all atoms, measured in turns with the steps (as in step.py; through oneDNN, into memory that is there already). Points that
would not fit into the memory are listed as not run. Memory is above what the process held before its model was made.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from common import Spread, show
from interleaved import Bench, Side, bench, in_turns, progress, ratios, spread
from peers.feed import Size
from peers.libraries import LIMIT, OURS

from overtone.files import replace_text

GB = 1e9
USABLE = 0.85  # of the machine's memory
Axis = Literal["latents", "d", "l0", "batch"]
COLUMNS = ("M", "d", "L0", "B", "L0 found", "µs/token", "limit, µs", "times limit", "GFLOP/s", "peak MB", "status")


class Point(NamedTuple):
    """One measurement."""

    latents: int
    d: int
    l0: int
    batch: int

    @property
    def gb(self) -> float:
        """Memory it takes, about: weights, gradient and Adam's two moments, pre-activations; atoms and product of the limit."""
        atoms, pre = self.latents * self.d, self.batch * self.latents
        return 4 * (5 * atoms + 2 * pre) / GB


BASE = Point(latents=16_384, d=768, l0=32, batch=2048)
AXES: dict[str, tuple[int, ...]] = {
    "latents": (4096, 16_384, 65_536, 131_072, 262_144, 524_288, 1_048_576),
    "d": (192, 384, 768, 1536, 3072, 6144, 12_288, 24_576),
    "l0": (8, 16, 32, 64, 128, 256, 512, 1024),
    "batch": (128, 512, 2048, 8192, 32_768, 131_072),
}
QUICK_BASE = Point(latents=1024, d=64, l0=16, batch=256)
QUICK_AXES = {"latents": (1024, 4096), "d": (64, 256), "l0": (16, 64), "batch": (256, 1024)}


def machine_gb() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB


@dataclass(frozen=True)
class Settings:
    """What is measured, and how; see above."""

    vary: tuple[Axis, ...] = ("latents", "d", "l0", "batch")
    values: tuple[int, ...] = ()
    """Of the axis, where one alone is varied; none: all that are listed here."""
    windows: int = 5
    seconds: float = 1.5
    """What a window should last; it has one step at least."""
    env: Literal["shipped", "tuned"] = "shipped"
    threads: int | None = None
    memory_gb: float = round(USABLE * machine_gb(), 1)
    """What a point may take at most."""
    python: Path = Path(__file__).parents[1] / ".venv-bench" / "bin" / "python"
    json: Path | None = None
    quick: bool = False
    """A few tiny points."""

    def chosen(self) -> "Settings":
        if self.values and len(self.vary) != 1:
            raise SystemExit(f"--values {self.values} are of one axis; give --vary one of latents, d, l0, batch")
        return replace(self, windows=2, seconds=0.2) if self.quick else self

    def points(self, axis: str) -> Iterator[Point]:
        base, axes = (QUICK_BASE, QUICK_AXES) if self.quick else (BASE, AXES)
        return (base._replace(**{axis: value}) for value in self.values or axes[axis])


def measure(on: Bench, point: Point, settings: Settings) -> dict[str, Any]:
    """The figures of one point."""
    if point.gb > settings.memory_gb:
        why = f"not run: needs about {point.gb:.0f} GB, more than {settings.memory_gb:g}"
        return point._asdict() | {"status": why}
    size = Size(point.d, point.latents, point.batch)
    ours, limit = in_turns(
        on, Side(OURS, f"gba-{point.l0}", size, settings.env), Side(LIMIT, "float32", size, settings.env)
    )
    if not ours.seconds_per_step:
        failed = next(side for side in (ours, limit) if side.status != "ok")
        return point._asdict() | {"status": f"{failed.side.library}: {failed.status}"}
    products = limit.tokens_per_s
    return (
        point._asdict()
        | spread("us_per_token", [1e6 / tokens for tokens in ours.tokens_per_s])
        | spread("limit_us_per_token", [1e6 / tokens for tokens in products])
        | spread("times_limit", ratios(limit, ours))
        | spread("gflop_per_s", [2 * point.d * point.latents * tokens / 1e9 for tokens in products])
        | {
            "l0_found": ours.report["l0"],
            "peak_mb": ours.report["peak_mb"],
            "steps_per_window": ours.steps,
            "status": "ok",
        }
    )


def line(row: dict[str, Any]) -> list[str]:
    """A point as text."""
    name = [f"{row[key]:,}" for key in ("latents", "d", "l0", "batch")]
    if row["status"] != "ok":
        return [*name, *"–" * 6, row["status"][:60]]
    times = Spread(row["times_limit"], row["times_limit_low"], row["times_limit_high"]).shown()
    found, ours, limit = f"{row['l0_found']:.1f}", f"{row['us_per_token']:.2f}", f"{row['limit_us_per_token']:.2f}"
    return [*name, found, ours, limit, times, f"{row['gflop_per_s']:,.0f}", f"{row['peak_mb']:,.0f}", "ok"]


def main(settings: Settings) -> None:
    settings = settings.chosen()
    asked = {name: value for name, value in asdict(settings).items() if name not in ("python", "json")}
    found: dict[Point, dict[str, Any]] = {}
    with bench(settings.python, settings.windows, settings.seconds, settings.threads) as on:
        for axis in settings.vary:
            for point in settings.points(axis):
                if point in found:
                    continue  # the base lies on every axis
                found[point] = measure(on, point, settings)
                progress(f"{point}: {found[point]['status']}")
                if settings.json is not None:
                    settings.json.parent.mkdir(parents=True, exist_ok=True)
                    result = {"settings": asked, "results": list(found.values())}
                    replace_text(settings.json, json.dumps(result, indent=1) + "\n")
            show(f"A GBA step against {axis}, {settings.env}", COLUMNS, [line(found[p]) for p in settings.points(axis)])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
