"""`overtone recover all`: every suite, one summary; results are kept as each suite is done."""

import json as reader
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from overtone.cli.asked import Asked
from overtone.cli.common import console, resumable, write_json
from overtone.cli.suites import draw, measured, tell
from overtone.files import replace_text
from overtone.report.plots import save
from overtone.report.recovery import Recovery, markdown, summary_table
from overtone.report.recovery_figures import summary
from overtone.version import __version__

Scale = Literal["small", "full"]
KIND = "overtone-recovery-of-all"
RESULTS, PAGE = "results.json", "recovery.md"


def recover_all(
    plans: Mapping[str, Asked], scale: Scale, json: Path | None, plot: Path | None, out: Path | None, resume: bool
) -> None:
    """Run every suite and print its table, then the summary.

    Args:
        plans: what is asked of each suite.
        scale: of the suites.
        json: file for the results.
        plot: file for the summary's figure.
        out: folder for results, figures and a page.
        resume: whether suites whose results are in the file already are read from there.
    """
    kept = [path for path in (json, None if out is None else out / RESULTS) if path is not None]
    if resume and not kept:
        raise ValueError("--resume goes on with a file of results; say which one with --json or --out")
    first = next(iter(plans.values()))
    settings = {"scale": scale, "seeds": list(first.seeds), "baselines": first.baselines}
    done = _read(kept[-1], settings) if resume else {}
    found, began = list[Recovery](), time.perf_counter()
    models = next((asked.options["models"] for asked in plans.values() if "models" in asked.options), None)
    command = _command(scale, first, {"models": models, "json": json, "out": out})
    with resumable(f"{command} --resume" if kept else f"{command} --out FOLDER, which keeps what is done"):
        for name, asked in plans.items():
            if name in done:
                console.print(f"{name}: read from {kept[-1]}")
            else:
                done[name] = measured(name, asked)
            for path in kept:
                description = {"format": KIND, "version": 1, "overtone": __version__}
                write_json(path, {**description, **settings, "suites": done}, quiet=True)
            found.append(tell(done[name]))
    console.print(summary_table(found))
    console.print(f"{len(plans)} suites in {time.perf_counter() - began:.0f} s ({_used(done):.0f} s of processor)")
    for path in kept:
        console.print(f"Results as JSON: {path}")
    if plot is not None:
        save(lambda: summary(found), plot)
        console.print(f"Figure: {plot}")
    if out is not None:
        _leave(out, found, command)


def figure_of(out: Path, suite: str) -> Path:
    """Where a suite's figure is left; "all": that of the summary."""
    return out / f"{suite}.svg"


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The suites that are done, of a run with the same settings."""
    if not path.is_file():
        raise ValueError(f"--resume: no file of results at {path}; leave --resume out to begin")
    try:
        held = reader.loads(path.read_text())
        suites, others = held["suites"], {key: held[key] for key in settings}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--resume: {path} is no file of `overtone recover all`") from error
    differing = [key for key, value in settings.items() if others[key] != value]
    if differing:
        key = differing[0]
        raise ValueError(
            f"--resume: {path} has {key} {others[key]}, not {settings[key]}; ask for the same or give another file"
        )
    return suites


def _command(scale: Scale, asked: Asked, files: Mapping[str, Path | None]) -> str:
    words = f"overtone recover all --scale {scale} --seeds {len(asked.seeds)}"
    if asked.seeds[0]:
        words += f" --seed {asked.seeds[0]}"
    if asked.baselines:
        words += " --baselines"
    return words + "".join(f" --{name} {path}" for name, path in files.items() if path is not None)


def _used(done: Mapping[str, dict[str, Any]]) -> float:
    """Seconds of processor, those of an earlier run included."""
    results = (
        result for document in done.values() for result in (*document.get("organisms", ()), *document["results"])
    )
    return sum(result["cpu_seconds"] for result in results)


def _leave(out: Path, found: list[Recovery], command: str) -> None:
    """A figure of every suite and of all, and the page that shows them."""
    for recovery in found:
        draw(recovery, figure_of(out, recovery.suite))
    save(lambda: summary(found), figure_of(out, "all"))
    pictures = {name: figure_of(out, name).name for name in ("all", *(recovery.suite for recovery in found))}
    replace_text(out / PAGE, markdown(found, command, pictures))
    console.print(f"Figures and {PAGE} in {out}")
