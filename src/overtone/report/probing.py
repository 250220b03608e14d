"""Tables of probing: a row for each dictionary, seeds together, and for what they have to be compared with."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from overtone.report.tables import cell

SEED = re.compile(r"-seed-\d+")


class Column(NamedTuple):
    """One column: what it is called, where its value is in a result (a path of keys), and its format."""

    label: str
    path: tuple[str, ...]
    form: str = "{:.3f}"


def probing_table(results: Mapping[str, Mapping[str, Any]], columns: Sequence[Column], title: str) -> Table:
    """Results by name, those that differ in their seed alone as mean ± half the range."""
    table = Table(title=title, title_justify="left")
    for label in ("", *(column.label for column in columns)):
        table.add_column(label, justify="right" if label else "left", overflow="fold")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, result in results.items():
        groups.setdefault(SEED.sub("", name), []).append(result)
    for name, group in groups.items():
        table.add_row(name, *(cell(_values(group, column.path), column.form) for column in columns))
    return table


def _values(group: Sequence[Mapping[str, Any]], path: Sequence[str]) -> list[float] | None:
    """The numbers there are."""
    found: list[Any] = list(group)
    for key in path:
        found = [value.get(key) for value in found if value is not None]
    known = [value for value in found if value is not None and not math.isnan(value)]
    return known or None
