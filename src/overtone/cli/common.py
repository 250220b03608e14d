"""What the verbs share: method options, progress, tables, JSON results."""

import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from overtone import method as methods
from overtone.files import replace_text
from overtone.method import Method
from overtone.training import Record, Run

MethodName = Literal["gba", "gba-paper", "ba", "modified-ba", "topk", "l1"]
METHODS: dict[str, Callable[..., Method]] = {
    "gba": methods.gba,
    "gba-paper": methods.gba_paper,
    "ba": methods.ba,
    "modified-ba": methods.modified_ba,
    "topk": methods.topk,
    "l1": methods.l1,
}

console = Console()


def make_method(name: str, options: dict[str, Any]) -> Method:
    """A named method with the options that were given (None: not given); an option it does not have is an error."""
    make = METHODS[name]
    allowed = inspect.signature(make).parameters
    given = {key: value for key, value in options.items() if value is not None}
    foreign = sorted(set(given) - set(allowed))
    if foreign:
        raise ValueError(
            f"--{foreign[0]} is not an option of method {name}; it has {', '.join(f'--{a}' for a in options if a in allowed)}"
        )
    return make(**given)


@contextmanager
def progress_bar(*columns: ProgressColumn) -> Iterator[Progress]:
    """A progress bar that disappears when done, with elapsed and remaining time."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        *columns,
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        yield progress


def follow(records: Iterable[Record], run: Run, label: str) -> list[Record]:
    """Consume the records of a run behind a progress bar that shows loss, L0, alive share and speed."""
    seen: list[Record] = []
    with progress_bar(TextColumn("{task.fields[status]}")) as progress:
        task = progress.add_task(label, total=run.steps, status="")
        for record in records:
            seen.append(record)
            status = (
                f"loss {record.loss:.4f} · L0 {record.l0:.1f} · alive {record.alive:.1%} · "
                f"{record.rows_per_s:,.0f} tokens/s"
            )
            progress.update(task, completed=record.step, status=status)
    return seen


@contextmanager
def token_progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress callback for harvesting."""
    with progress_bar(TextColumn("{task.completed:,.0f} tokens")) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """The machine-readable result, where it was asked for."""
    if path is not None:
        result = _finite(result)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        console.print(f"Results as JSON: {path}")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spread(values: list[float], digits: int = 1) -> str:
    """Mean ± half the range of a few seeds; the value alone for one."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {(max(values) - min(values)) / 2:.{digits}f}"
