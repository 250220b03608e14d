"""What the recovery suites share: what is asked of one, and which options it has."""

import inspect
from pathlib import Path
from typing import Any, NamedTuple

from overtone.organism_suites import ORGANISMS, OrganismSuite
from overtone.recipes import SUITES, Suite

ALL_SUITES: dict[str, Suite | OrganismSuite] = {**SUITES, **ORGANISMS}


class Asked(NamedTuple):
    """What is to be measured of a suite.

    Attributes:
        methods: names of its contestants.
        options: of the truth: every one that it has.
        seeds: one truth each.
        rows: fixed rows that dictionaries are trained on; None: fresh ones for every step.
        latents: width of the dictionaries; None: the suite's.
        steps: of a dictionary's training; None: the suite's.
        baselines: whether methods are shown beside baselines that learn no features.
        anchors: so many features are told to each method, in trainings of their own.
        k: active latents to compare methods at; None: the suite's.
        jobs: processes.
        keep: folder for a run folder of each training; None: nothing is kept.
    """

    methods: tuple[str, ...]
    options: dict[str, Any]
    seeds: range
    rows: int | None
    latents: int | None
    steps: int | None
    baselines: bool
    anchors: int
    k: int | None
    jobs: int
    keep: Path | None = None


def truth_settings(suite: Suite | OrganismSuite, given: dict[str, Any]) -> dict[str, Any]:
    """The truth's settings, its defaults where none was given (None); one that it does not have is an error."""
    own = {name: p.default for name, p in inspect.signature(suite.truth).parameters.items() if name in given}
    given = {name: value for name, value in given.items() if value is not None}
    foreign = [name for name in given if name not in own]
    if foreign:
        raise ValueError(
            f"{option(foreign[0])} is not an option of suite {suite.name}; it has {', '.join(map(option, own))}"
        )
    return own | given


def option(name: str) -> str:
    """As it is written on the command line."""
    return "--" + name.replace("_", "-")


def chosen_methods(suite: Suite | OrganismSuite, methods: tuple[str, ...]) -> tuple[str, ...]:
    """The methods asked for, or the suite's default ones; a name that it does not have is an error."""
    names = tuple(dict.fromkeys(methods or suite.default_methods))
    unknown = [name for name in names if name not in suite.contestants]
    if unknown:
        raise ValueError(
            f"--methods {unknown[0]} is unknown in suite {suite.name}; known: {', '.join(suite.contestants)}"
        )
    return names
