"""What the verbs share: progress, tables, JSON results."""

import json
import math
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from overtone.data.fresh import RowLaw
from overtone.dictionary import Dictionary
from overtone.files import replace_text
from overtone.metrics.sites import site_norms
from overtone.parallel import World, connected
from overtone.runs import RunFolder, execute
from overtone.training import Record, Run, start, train

# Into a file or a pipe, tables take the room they need, unless the user says how much there is.
WIDE = 200
console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=WIDE)


@contextmanager
def together(split_latents: int) -> Iterator[World]:
    """The processes that torchrun started, of which one prints."""
    with connected(split_latents) as world:
        before, console.quiet = console.quiet, not world.first
        try:
            yield world
        finally:
            console.quiet = before


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Within the `with`, an interruption says how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"go on with: {command}") from stop


def resume_command(verb: str, path: Path, places: Sequence[str] = ()) -> str:
    """What goes on with a stopped run. `places`: where the user's own parts are defined."""
    parts = f" --parts {' '.join(places)}" if places else ""
    return f"overtone {verb} --resume {path}{parts}"


def check_given_once(paths: Sequence[Path]) -> None:
    """Raise ValueError where a dictionary is given twice, or none is."""
    if not paths:
        raise ValueError("no dictionary to measure; give one or several run folders")
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice; give every dictionary once")


def names_of(paths: Sequence[Path]) -> list[str]:
    """What dictionaries are called in tables: the last parts of their paths, where these differ."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


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


def follow(records: Iterable[tuple[int, Record]], runs: Sequence[tuple[str, Run]]) -> None:
    """Consume the records of runs, (number of the run, record), behind bars that show loss, L0, alive share and speed."""
    with progress_bar(TextColumn("{task.fields[status]}")) as progress:
        tasks = [progress.add_task(label, total=run.steps, status="") for label, run in runs]
        for number, record in records:
            status = (
                f"loss {record.loss:.4f} · L0 {record.l0:.1f} · alive {record.alive:.1%} · "
                f"{record.rows_per_s:,.0f} tokens/s"
            )
            progress.update(tasks[number], completed=record.step, status=status)


def in_processes(function: Callable[[Any], Any], work: Sequence[Any], jobs: int, what: str) -> Iterator[Any]:
    """Results as they come. Each training is too small for several threads, so processes share the cores.

    With one job at a time, the work is done in this process.
    """
    context = multiprocessing.get_context("spawn")
    with progress_bar(TextColumn(f"{{task.completed:.0f}} of {{task.total:.0f}} {what}")) as progress:
        task = progress.add_task("Training", total=len(work))
        if jobs == 1:
            for job in work:
                result = function(job)
                progress.advance(task)
                yield result
            return
        with ProcessPoolExecutor(min(jobs, len(work)), mp_context=context, initializer=_end_with_parent) as pool:
            futures = [pool.submit(function, job) for job in work]
            try:
                for future in as_completed(futures):
                    progress.advance(task)
                    try:
                        yield future.result()
                    except BrokenProcessPool as error:
                        raise OSError(
                            "a training process was killed, most likely for memory; use fewer --jobs"
                        ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker once the process that started it is gone: killed, it cannot say so, and a worker waits for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def trained_on(
    truth: RowLaw[Any], run: Run, *, rows: int | None, at_start: bool = False, keep: RunFolder | None = None
) -> Dictionary:
    """The dictionary that a run on rows of a truth ends with, or begins with.

    Args:
        truth: where the rows are from.
        run: what is trained.
        rows: how many fixed ones; None: fresh ones for every step.
        at_start: whether the dictionary is wanted as it is before training.
        keep: where to leave the run, if anywhere.
    """
    stream = truth.stream(run.batch, rows=rows, seed=run.seed)
    if keep is not None:
        for _ in execute(keep, stream):
            pass
        return keep.dictionary()
    state = start(run, stream)
    if not at_start:
        for _ in train(run, stream, state):
            pass
    return state.dictionary


@contextmanager
def token_progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress callback for harvesting."""
    with progress_bar(TextColumn("{task.completed:,.0f} tokens")) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def write_json(path: Path | None, result: dict[str, Any], *, quiet: bool = False) -> None:
    """The machine-readable result, where it was asked for."""
    if path is not None:
        result = finite(result)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")
        if not quiet:
            console.print(f"Results as JSON: {path}")


def finite(value: Any) -> Any:
    """The result with null where a number is NaN or infinite: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite_again(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as `finite` wrote them, with null as NaN again."""
    return {
        key: math.nan if value is None else finite_again(value) if isinstance(value, dict) else value
        for key, value in metrics.items()
    }


def tell_sites(label: str, dictionary: Dictionary, result: dict[str, Any]) -> None:
    """Print how a crosscoder's sites fare, and whose its latents are; nothing for one site."""
    explained = result.get("site_explained_variance")
    if explained is None:
        return
    norms = site_norms(dictionary)
    parts = [
        f"{site}: explained variance {ev:.3f}, {len(norms.exclusive(site)):,} latents its own"
        for site, ev in explained.items()
    ]
    console.print(
        f"{label} – {'; '.join(parts)}; {len(norms.shared()):,} of {dictionary.latents:,} latents shared by all"
    )


def spread(values: list[float], digits: int = 1) -> str:
    """Mean ± half the range of a few seeds; the value alone for one."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ±{(max(values) - min(values)) / 2:.{digits}f}"


def one_line(text: str) -> str:
    """Text for a terminal: white space is a space, and characters that would steer the terminal are shown as such."""
    return "".join(" " if c.isspace() else c if c.isprintable() else "�" for c in text)
