"""Training steps of overtone head to head with sae-lens, dictionary-learning, eai-sparsify and overcomplete.

    make bench-env
    python benchmarks/step.py [--configs A A4096 B C] [--peers sae-lens …] [--methods topk …] [--env shipped tuned]
                              [--references gba-32] [--windows 5] [--seconds 1.5] [--threads T] [--quick] [--json PATH]
    python benchmarks/step_plot.py RESULTS.json PICTURE.svg

Every library runs its own training loop on its own model as it ships them (benchmarks/peers/*_step.py say which), in a process
of its own, fed with ready float32 batches in memory. Windows of steps alternate with windows of a method of ours, the
reference; two such processes are alive at a time. `shipped` is the plain environment, `tuned` gives everybody an allocator that
keeps its memory, transparent huge pages and float32 products through oneDNN (interleaved.py says how).

ratio: the reference's tokens/s over this row's, of neighbouring windows: median (range). % of limit: of the tokens/s that one
float32 matrix product of the batch with all atoms would allow, measured in the same way. Memory is above what the process held
before its model was made: weights, optimiser, temporaries. L0 is measured on a batch after the last window; methods without a k
have not come to theirs by then, but are dense, whatever it is.

Every row is saved at once under --json. A library that cannot run has the reason as its status.
"""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from common import Spread, show
from interleaved import Bench, Outcome, Side, bench, in_turns, progress, ratios, spread
from peers.feed import Size
from peers.libraries import LIBRARIES, LIMIT, OURS, PEERS

from overtone.files import replace_text

CONFIGS = {
    "A": Size(d=384, latents=4096, batch=512),
    "A4096": Size(d=384, latents=4096, batch=4096),
    "B": Size(d=768, latents=16_384, batch=2048),
    "C": Size(d=1536, latents=65_536, batch=512),
    "tiny": Size(d=64, latents=1024, batch=256),
}
SHOWN = 200  # letters of a reason; all of it is in the JSON
COLUMNS = ("library", "method", "tokens/s", "ratio", "% of limit", "L0", "peak MB", "steps a window", "status")


@dataclass(frozen=True)
class Settings:
    """What is compared, and how; see above."""

    configs: tuple[str, ...] = ("A", "A4096", "B", "C")
    peers: tuple[str, ...] = tuple(PEERS)
    methods: tuple[str, ...] = ()
    """Of any library, ours too; none: all."""
    env: tuple[Literal["shipped", "tuned"], ...] = ("shipped", "tuned")
    references: tuple[str, ...] = ("gba-32",)
    """Methods of ours that all others take turns with, one after the other."""
    windows: int = 5
    seconds: float = 1.5
    """What a window should last; it has one step at least."""
    threads: int | None = None
    python: Path = Path(__file__).parents[1] / ".venv-bench" / "bin" / "python"
    json: Path | None = None
    quick: bool = False
    """A tiny configuration in the first environment, with one method of every library."""

    def chosen(self) -> "Settings":
        """What is run; SystemExit for a name that there is not."""
        known = {"configs": CONFIGS, "peers": PEERS, "references": LIBRARIES[OURS].METHODS}
        known["methods"] = {method: None for module in LIBRARIES.values() for method in module.METHODS}
        for option, names in known.items():
            for name in getattr(self, option):
                if name not in names:
                    raise SystemExit(f"--{option} {name} is none of {', '.join(names)}")
        return replace(self, configs=("tiny",), env=self.env[:1], windows=2, seconds=0.3) if self.quick else self

    def rows(self, reference: str) -> Iterator[tuple[str, str]]:
        """Library and method of every row but the reference's."""
        for library in (OURS, LIMIT, *self.peers):
            methods = [method for method in LIBRARIES[library].METHODS if self.wanted(library, method)]
            others = [method for method in methods if (library, method) != (OURS, reference)]
            yield from ((library, method) for method in others[: 1 if self.quick else None])

    def wanted(self, library: str, method: str) -> bool:
        return not self.methods or method in self.methods or library == LIMIT


def row(outcome: Outcome, config: str, reference: str, ratio: list[float]) -> dict[str, Any]:
    """A line of the results."""
    side = outcome.side
    about = {"library": side.library, "method": side.method, "config": config, "env": side.env, "reference": reference}
    measured = {name: outcome.report.get(name) for name in ("peak_mb", "start_peak_mb", "l0")}
    windows = {"windows": len(outcome.seconds_per_step), "steps_per_window": outcome.steps}
    about |= side.size._asdict()
    found = spread("tokens_per_s", outcome.tokens_per_s) | spread("ratio", ratio)
    return about | found | measured | windows | {"version": outcome.about.get("version"), "status": outcome.status}


def pooled(outcomes: list[Outcome]) -> Outcome:
    """The reference's windows of all its turns."""
    able = [outcome for outcome in outcomes if outcome.seconds_per_step] or outcomes
    seconds = [seconds for outcome in able for seconds in outcome.seconds_per_step]
    return replace(able[-1], seconds_per_step=seconds)


def with_limit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one configuration, with their share of the float32 limit: both took turns with the reference."""
    limit = next((row["ratio"] for row in rows if (row["library"], row["method"]) == (LIMIT, "float32")), None)
    return [row | {"of_limit": limit / row["ratio"] if limit and row["ratio"] else None} for row in rows]


def measure(on: Bench, settings: Settings, config: str, env: str, reference: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of one configuration so far, after every row; the reference is the first."""
    us = Side(OURS, reference, CONFIGS[config], env)
    references, rows = [], []
    for library, method in settings.rows(reference):
        ours, other = in_turns(on, us, Side(library, method, CONFIGS[config], env))
        if ours.status != "ok":
            other = replace(other, status=f"the reference failed: {ours.status}")
        references.append(ours)
        rows.append(row(other, config, reference, ratios(ours, other)))
        progress(f"{config} {env} {library} {method}: {rows[-1]['tokens_per_s'] or other.status}")
        alone = pooled(references)
        yield with_limit([row(alone, config, reference, [1.0] * bool(alone.seconds_per_step)), *rows])


def line(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    name = [row["library"], row["method"]]
    if row["tokens_per_s"] is None:
        return [*name, *"–" * 6, "not run: see below"]
    ratio = Spread(row["ratio"], row["ratio_low"], row["ratio_high"]).shown()
    share = "–" if row["of_limit"] is None else f"{100 * row['of_limit']:.1f}"
    l0 = "–" if row["l0"] is None else f"{row['l0']:,.1f}"
    tokens, peak = (f"{row[quantity]:,.0f}" for quantity in ("tokens_per_s", "peak_mb"))
    return [*name, tokens, ratio, share, l0, peak, str(row["steps_per_window"]), "ok"]


def show_rows(config: str, env: str, reference: str, rows: list[dict[str, Any]]) -> None:
    """A table of them, and why rows are missing."""
    size = ", ".join(f"{name} {value}" for name, value in CONFIGS[config]._asdict().items())
    show(f"{config} ({size}), {env}, in turns with {reference}", COLUMNS, [line(row) for row in rows])
    for row in rows:
        if row["tokens_per_s"] is None:
            print(f"{row['library']} {row['method']} did not run: {row['status'][:SHOWN]}")


def save(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(result, indent=1) + "\n")


def main(settings: Settings) -> None:
    settings = settings.chosen()
    asked = {name: value for name, value in asdict(settings).items() if name not in ("python", "json")}
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    done: list[dict[str, Any]] = []
    with bench(settings.python, settings.windows, settings.seconds, settings.threads) as on:
        for config in settings.configs:
            for env in settings.env:
                for reference in settings.references:
                    rows: list[dict[str, Any]] = []
                    for rows in measure(on, settings, config, env, reference):
                        save(settings.json, {"settings": asked, "machine": machine, "results": done + rows})
                    done += rows
                    show_rows(config, env, reference, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
