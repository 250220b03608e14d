"""How alike the seeds of a comparison are: measured once for each method and width, and kept in the comparison's folder."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from overtone import checkpoint
from overtone.cli.common import console, finite, progress_bar
from overtone.data.stream import Batch
from overtone.dictionary import Dictionary
from overtone.files import replace_file, replace_text, write_tensors
from overtone.firing import FiringStats
from overtone.metrics.consistency import Consistency, consistency
from overtone.metrics.latents import z_scores
from overtone.report.consistency import Seeds, scatter, table
from overtone.report.plots import save
from overtone.runs import RunFolder
from overtone.selection import AbsTopK

SCORES, KEPT, PICTURE = "latents.safetensors", "consistency-{}.json", "consistency"


def write_scores(
    folder: RunFolder, dictionary: Dictionary, seen: FiringStats, rows: Callable[[], Iterable[Tensor | Batch]]
) -> None:
    """Peak, frequency and Z-score of a run's latents on the rows that `seen` was counted on."""
    z = z_scores(dictionary, rows(), seen.peak)
    scores = {"peak": seen.peak.float(), "frequency": seen.frequency.float(), "z_score": z}
    replace_file(folder.path / SCORES, lambda path: write_tensors(path, scores))


def measured(path: Path, groups: Sequence[tuple[str, str, int, Sequence[RunFolder]]]) -> list[Seeds]:
    """The consistency of every group of seeds, read where it was measured before.

    Args:
        path: the comparison's folder.
        groups: (name of its file, method with its options, width, its runs).
    """
    found = []
    with progress_bar() as progress:
        task = progress.add_task("Consistency over seeds", total=len(groups))
        for name, label, latents, folders in groups:
            file = path / KEPT.format(name)
            if not file.exists():
                replace_text(file, json.dumps(finite(_measure(folders).to_json(latents=True)), allow_nan=False) + "\n")
            scores = [checkpoint.read_tensors(folder.path / SCORES) for folder in folders]
            found.append(Seeds(label, latents, Consistency.from_json(json.loads(file.read_text())), scores))
            progress.advance(task)
    return found


def show(path: Path, found: Sequence[Seeds], title: str) -> None:
    """Print the table and draw the picture."""
    console.print(table(found))
    pictures = [path / f"{PICTURE}.{kind}" for kind in ("svg", "png")]
    try:
        for picture in pictures:
            save(lambda: scatter(found, title=title), picture)
    except ImportError as error:
        console.print(f"No picture of single latents: {error}", markup=False)
    else:
        console.print(f"Consistency of single latents: {' and '.join(map(str, pictures))}")


def _measure(folders: Sequence[RunFolder]) -> Consistency:
    dictionaries = [folder.dictionary() for folder in folders]
    scores = [checkpoint.read_tensors(folder.path / SCORES) for folder in folders]
    signed = not isinstance(dictionaries[0].select, AbsTopK)
    return consistency([dictionary.W_dec.detach() for dictionary in dictionaries], scores, signed=signed)
