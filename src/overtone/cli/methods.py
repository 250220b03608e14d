"""`overtone methods`: what can be trained, as the methods' functions describe themselves."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from overtone import literals
from overtone.catalogue import Entry, additions, find, named
from overtone.cli.common import console, write_json


def methods(names: Annotated[tuple[str, ...], tyro.conf.Positional] = (), json: Path | None = None) -> None:
    """List the named methods with their papers and options, or explain some of them.

    Every one is a function of the same name in Python, `overtone.batch_topk(k=32)`, and a text on the command line,
    --method "batch-topk(k=32)".

    Args:
        names: methods to explain, one option a line; a user's own FILE.py:NAME too. Default: list all.
        json: write names, papers and options to this file.
    """
    entries = [find(name) for name in names] if names else list(named().values())
    if names:
        for entry in entries:
            console.print(_explained(entry))
            console.print(escape(inspect.getdoc(entry.make) or "").partition("\n\nArgs:")[0] + "\n")
    else:
        console.print(_listed(entries))
        console.print("In Python, around any of them:")
        for entry in additions().values():
            console.print(
                f"  overtone.{entry.name}({', '.join(entry.options)}): {entry.summary}", markup=False, highlight=False
            )
    write_json(json, {"methods": [_described(entry) for entry in entries]})


def _listed(entries: list[Entry]) -> Table:
    table = Table(
        title='Methods: --method NAME or --method "NAME(option=value)"', title_justify="left", show_lines=True
    )
    for column in ("method", "what it is", "arXiv", "options and their defaults"):
        table.add_column(column, overflow="fold", min_width=10 if column == "arXiv" else None)
    for entry in entries:
        options = ", ".join(_default(o.name, o.default) for o in entry.options.values())
        papers = "\n".join(source.removeprefix("arXiv ") for source in entry.sources)
        table.add_row(entry.name, escape(entry.summary), papers or "–", escape(options))
    return table


def _explained(entry: Entry) -> Table:
    table = Table(title=f"{entry.name}: {', '.join(entry.sources) or 'no paper named'}", title_justify="left")
    for column in ("option", "type", "what it is"):
        table.add_column(column, overflow="fold")
    for option in entry.options.values():
        shown = _default(option.name, option.default)
        table.add_row(escape(shown), escape(literals.name(option.annotation)), escape(option.about))
    return table


def _default(name: str, default: Any) -> str:
    return name if default is inspect.Parameter.empty else f"{name}={default!r}"


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "sources": entry.sources,
        "dial": entry.dial,
        "options": [
            {
                "name": option.name,
                "type": literals.name(option.annotation),
                "required": option.required,
                "default": None if option.required else option.default,
                "about": option.about,
            }
            for option in entry.options.values()
        ],
    }
