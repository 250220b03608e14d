"""Every named method, small enough for the dictionaries of the tests."""

import inspect
from typing import Any

from overtone import Method
from overtone.catalogue import Entry, named

OPTIONS: dict[str, Any] = {
    "k": 3,
    "groups": 3,
    "prefixes": (0.25, 1.0),
    "chunk": 5,
    "start": 0.2,
    "bandwidth": 0.1,
}


def small(entry: Entry, **more: Any) -> Method:
    parameters = inspect.signature(entry.make).parameters
    options = {name: value for name, value in OPTIONS.items() if name in parameters}
    if "share" in parameters:  # of an L0 that small dictionaries do not have by default
        options["l0"] = 4
    return entry.make(**options | more)


SMALL = {name: small(entry) for name, entry in named().items()}
