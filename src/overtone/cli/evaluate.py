"""`overtone evaluate`: the metrics of a trained dictionary on rows it has not seen."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from overtone import checkpoint
from overtone.cli.common import console, write_json
from overtone.cli.rows import HELD_OUT, TRAIN, harvested, held_out_of, source_of
from overtone.data.models import load_model
from overtone.data.source import ModelSource, read_matrix
from overtone.data.stream import check_rows
from overtone.dictionary import Dictionary
from overtone.metrics import downstream as metrics
from overtone.metrics.reconstruction import evaluate as reconstruction
from overtone.report.tables import metrics_table
from overtone.runs import RunFolder


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    activations: Path | None = None,
    tensor: str | None = None,
    downstream: bool = False,
    contexts: int = 64,
    seed: int = 0,
    json: Path | None = None,
) -> None:
    """Measure a trained dictionary on held-out data: explained variance, L0, alive share, and what the model loses.

    Args:
        run: a run folder, or a folder with a dictionary (then give --activations).
        activations: rows to measure on instead of the run's own held-out ones: .npy or .safetensors.
        tensor: which tensor of the safetensors file.
        downstream: also run the model with reconstructions in place of its activations (embedding or loss recovered).
        contexts: how many pieces of held-out text for that.
        seed: of the choice of rows, where something is drawn at random (nothing is, so far).
        json: write the results to this file.
    """
    dictionary = checkpoint.load(run)
    if activations is not None:
        rows, where = (
            check_rows(read_matrix(activations, tensor), str(activations), allow_zero=True),
            str(activations),
        )
    else:
        rows, where = held_out_of(RunFolder.open(run)), "the run's held-out rows"
    if rows.shape[1] != dictionary.d:
        raise ValueError(f"{where} have width {rows.shape[1]}, the dictionary was trained on d={dictionary.d}")
    result: dict[str, Any] = reconstruction(dictionary, rows).summary()
    if downstream:
        result |= _downstream(dictionary, RunFolder.open(run), contexts)
    console.print(metrics_table({run.name: result}, f"{len(rows):,} rows: {where}"))
    write_json(json, {"run": str(run), "rows": where, "metrics": result})


def _downstream(dictionary: Dictionary, folder: RunFolder, contexts: int) -> dict[str, float]:
    """Loss recovered for causal models, embedding recovered for the others, on the run's held-out documents."""
    source = source_of(folder)
    if not isinstance(source, ModelSource):
        raise ValueError(
            "--downstream needs the model; this run was trained on a file of activations. Drop --downstream"
        )
    lm = load_model(source.model)
    # By name and not by splitting again: text that has changed since must not put training documents here.
    names = set(harvested(folder, HELD_OUT).names)
    training, held_out = source.documents()
    documents = [document for document in (*held_out, *training) if document.name in names]
    if not documents:
        raise ValueError(f"{source.text} no longer has the documents that were held out; restore the text of the run")
    mean = harvested(folder, TRAIN).x.mean(0)
    options: dict[str, Any] = {"contexts": contexts, "context": source.context}
    if metrics.predicts_tokens(lm):
        found = metrics.loss_recovered(
            lm, source.site, documents, {"dictionary": dictionary.reconstruct}, mean, **options
        )
        score = found["dictionary"]
        return {
            "ce_recovered_mean": score.recovered_mean,
            "ce_recovered_zero": score.recovered_zero,
            "ce": score.ce,
            "ce_clean": score.ce_clean,
        }
    score = metrics.embedding_recovered(
        lm, source.site, documents, {"dictionary": dictionary.reconstruct}, mean, **options
    )["dictionary"]
    return {
        "recovered_mean": score.recovered_mean,
        "recovered_zero": score.recovered_zero,
        "cosine": score.cos,
    }
