"""A recovery suite from what is asked of it to its table and its figure, whatever its truth is."""

from pathlib import Path
from typing import Any

from overtone.cli.asked import Asked
from overtone.cli.common import console
from overtone.cli.features import recover_features, told_features
from overtone.cli.organisms import recover_organism, told_organism
from overtone.organism_suites import ORGANISMS
from overtone.report.plots import save
from overtone.report.recovery import Recovery, table
from overtone.report.recovery_figures import methods
from overtone.version import __version__

KIND = "overtone-recovery"


def measured(name: str, asked: Asked) -> dict[str, Any]:
    """Train and score; what was found, as it is written to a file."""
    found = (recover_organism if name in ORGANISMS else recover_features)(name, asked)
    return {"format": KIND, "version": 1, "overtone": __version__} | found


def told(document: dict[str, Any]) -> Recovery:
    """What `measured` gave or what was read back of it, for tables and figures."""
    return (told_organism if document["suite"] in ORGANISMS else told_features)(document)


def tell(document: dict[str, Any]) -> Recovery:
    """Print the table."""
    recovery = told(document)
    console.print(table(recovery))
    return recovery


def draw(recovery: Recovery, path: Path) -> None:
    """Draw the scores into a file."""
    save(lambda: methods(recovery), path)
    console.print(f"Figure: {path}")
