"""A run's rows: harvested once into the run folder, or read from the user's file."""

from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from overtone.cli.common import console, token_progress
from overtone.config import from_json, to_json
from overtone.data.activations import Activations
from overtone.data.models import LanguageModel, load_model
from overtone.data.source import FileSource, Harvested, ModelSource, Split
from overtone.runs import RunFolder, claim_folder
from overtone.training import Run

Source = ModelSource | FileSource
TRAIN, HELD_OUT = "train.safetensors", "held_out.safetensors"


def new_run(path: Path, source: Source, make_run: Callable[[int], Run]) -> tuple[RunFolder, Split]:
    """Claim a folder, get the rows, write the configuration; `make_run` is told the rows' width d."""
    # Everything that can be wrong is found before the folder is made: an error leaves nothing behind.
    if isinstance(source, FileSource):
        split = source.split()
        run = make_run(split.train.shape[1])
        claim_folder(path)
    else:
        lm = load_model(source.model)
        run = make_run(source.width(lm))
        source.documents()
        claim_folder(path)
        both = harvest_into(path, source, lm)
        split = Split(both.train.x, both.held_out.x)
    return RunFolder.create(path, run, {"source": to_json(source)}), split


def harvest_into(path: Path, source: ModelSource, lm: LanguageModel) -> Harvested:
    """Read the text with the model and keep the activations in the run folder, so that a resumed run has the same rows."""
    with token_progress(f"Reading {source.text} with {source.model}") as progress:
        harvested = source.harvest(lm, progress)
    folder = path / "activations"
    folder.mkdir()
    harvested.train.save(folder / TRAIN)
    harvested.held_out.save(folder / HELD_OUT)
    console.print(
        f"Read {harvested.train.rows:,} tokens of {source.text} at {source.site} of {source.model} "
        f"(+ {harvested.held_out.rows:,} held out), d = {harvested.train.d}"
    )
    return harvested


def source_of(folder: RunFolder) -> Source:
    """Where a run's rows come from."""
    return from_json(folder.data["source"], extra=(ModelSource, FileSource))


def rows_of(folder: RunFolder) -> Split:
    """The rows of an existing run."""
    source = source_of(folder)
    if isinstance(source, FileSource):
        return source.split()
    return Split(harvested(folder, TRAIN).x, harvested(folder, HELD_OUT).x)


def held_out_of(folder: RunFolder) -> Float[Tensor, "rows d"]:
    """The rows that an existing run was not trained on."""
    source = source_of(folder)
    return source.split().held_out if isinstance(source, FileSource) else harvested(folder, HELD_OUT).x


def harvested(folder: RunFolder, name: str) -> Activations:
    """The activations that a run was trained on (TRAIN) or not (HELD_OUT)."""
    # Runs that share their rows (the quickstart's) lie in the folder of the run that harvested them.
    for base in (folder.path, folder.path.parent):
        file = base / "activations" / name
        if file.is_file():
            return Activations.load(file)
    raise FileNotFoundError(
        f"{folder.path} has no activations/{name}: its harvest was removed. Measure on other rows with --activations FILE"
    )
