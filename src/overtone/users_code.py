"""Modules and files of a user's own. Imported only where the user names them on the command line, never because data does."""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from overtone import config


def load_module(place: str) -> ModuleType:
    """A user's module, by its name or its file, imported once."""
    if not place.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it; the `overtone` command has not
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {place}; give the Python file that your method is in, as {place}:NAME")
    key = str(path)
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None
        sys.modules[key] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
        try:
            spec.loader.exec_module(sys.modules[key])
        except BaseException:
            del sys.modules[key]
            raise
    return sys.modules[key]


def parts_named(places: Iterable[str]) -> tuple[type, ...]:
    """`parts_of` several modules or files of the user's, by name."""
    return tuple(part for place in places for part in parts_of(load_module(place)))


def parts_of(module: ModuleType) -> tuple[type, ...]:
    """The dataclasses that a module defines: what a configuration may name once the user has named the module."""
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    parts = tuple(c for c in own if dataclasses.is_dataclass(c))
    taken = {part.__name__ for part in config.PARTS}
    for part in parts:
        if part.__name__ in taken:
            raise ValueError(
                f"{module.__name__} calls a class {part.__name__}, as overtone does one of its own; give yours another name"
            )
    return parts
