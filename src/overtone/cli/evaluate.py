"""`overtone evaluate`: the metrics of a trained dictionary on rows it has not seen."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from overtone import checkpoint
from overtone.cli.common import console, tell_sites, write_json
from overtone.cli.rows import EVALUATED, held_out_documents, model_of, open_store, source_of
from overtone.data.source import FileSource, read_matrix
from overtone.data.store import HELD_OUT, TRAIN, Store
from overtone.data.stream import Batch, check_rows
from overtone.dictionary import Dictionary
from overtone.layout import Layout
from overtone.metrics import downstream as metrics
from overtone.metrics.reconstruction import evaluate as reconstruction
from overtone.report.tables import metrics_table
from overtone.runs import CONFIG, RunFolder
from overtone.seeds import generator
from overtone.users_code import parts_named


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    activations: Path | None = None,
    tensor: str | None = None,
    store: Path | None = None,
    site: tuple[str, ...] = (),
    target: str | None = None,
    downstream: bool = False,
    contexts: int = 64,
    rows: int = EVALUATED,
    seed: int = 0,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
) -> None:
    """Measure a trained dictionary on held-out data: explained variance, L0, alive share, and what the model loses.

    Args:
        run: a run folder, or a folder with a dictionary (then give --activations or --store).
        activations: rows to measure on instead of the run's own held-out ones: .npy, .safetensors or .parquet.
        tensor: which tensor of the safetensors file, or column of the Parquet file.
        store: a store whose held-out rows to measure on instead.
        site: which site of that store, or which several of a crosscoder (default: the run's own).
        target: which site is to be reconstructed (default: the run's own).
        downstream: also run the model with reconstructions in place of its activations (embedding or loss recovered).
        contexts: how many pieces of held-out text for that.
        rows: how many rows to measure on, at most.
        seed: of the sample of rows, where there are more.
        parts: your own Python files or modules that the method's parts are defined in.
        json: write the results to this file.
    """
    if rows < 1:
        raise ValueError(f"rows={rows} must be at least 1")
    own = parts_named(parts)
    dictionary = checkpoint.load(run, parts=own)
    folder = RunFolder.open(run, own) if (run / CONFIG).exists() else None
    batches, where, layout = held_out_rows(run, folder, activations, tensor, store, site, target, rows, seed)
    _check_layout(layout, where, dictionary.layout)
    result: dict[str, Any] = reconstruction(dictionary, batches).summary()
    if downstream:
        (found,) = downstream_scores(folder or RunFolder.open(run), {run.name: dictionary}, contexts).values()
        result |= found
    console.print(metrics_table({run.name: result}, f"{result['rows']:,} rows: {where}"))
    tell_sites(run.name, dictionary, result)
    write_json(json, {"run": str(run), "rows": where, "metrics": result})


def held_out_rows(
    run: Path,
    folder: RunFolder | None,
    activations: Path | None,
    tensor: str | None,
    store: Path | None,
    site: tuple[str, ...],
    target: str | None,
    rows: int,
    seed: int,
) -> tuple[Iterable[Tensor | Batch], str, Layout]:
    """(the rows to measure a run on, what they are, their sites); arguments as in `evaluate`."""
    if activations is not None:
        x = check_rows(read_matrix(activations, tensor), str(activations), allow_zero=True)
        if len(x) > rows:
            x = x[torch.randperm(len(x), generator=generator(seed, "sample of a file"))[:rows]]
        return x.split(1024), f"rows of {activations}", Layout.of(x.shape[1])
    source = source_of(folder) if folder else None
    if store is None and folder is None:
        raise ValueError(f"{run} is no run folder, so its rows are not known; give --activations FILE or --store STORE")
    if store is None and isinstance(source, FileSource):
        x = source.split().held_out[:rows]
        return x.split(1024), "the run's held-out rows", Layout.of(x.shape[1])
    sites: str | tuple[str, ...] | None = (site[0] if len(site) == 1 else site) or None
    if source is not None and not isinstance(source, FileSource):
        sites, target = sites or source.site, target or source.target
    if store is not None:
        opened, what = Store(store), f"held-out rows of {store}"
    else:
        assert folder is not None
        opened, what = open_store(folder), "the run's held-out rows"
    batches = opened.batches(sites, HELD_OUT, target=target, limit=rows, seed=seed)
    return batches, what, opened.layout(sites, target)


def _check_layout(rows: Layout, where: str, trained: Layout) -> None:
    """Rows of other sites than those it was trained on may be measured on, of other widths not."""
    if rows.d != trained.d:
        raise ValueError(f"{where} have width {rows.d}, the dictionary was trained on d={trained.d}")
    if rows.d_out != trained.d_out or rows.onto_itself != trained.onto_itself:
        raise ValueError(
            f"{where} are of {rows}, the dictionary is of {trained}; give the rows that it reconstructs: --store with --site and "
            "--target"
        )


def downstream_scores(
    folder: RunFolder, dictionaries: Mapping[str, Dictionary], contexts: int
) -> dict[str, dict[str, float]]:
    """Loss recovered for causal models, embedding recovered for the others, on held-out documents of the run's store.

    Args:
        folder: one of the runs; its rows are those of all.
        dictionaries: what to put in place of the activations, by name. They share the model's own passes.
        contexts: how many pieces of text.
    """
    source = source_of(folder)
    if isinstance(source, FileSource):
        raise ValueError(
            "--downstream needs the model; this run was trained on a file of activations. Drop --downstream"
        )
    (dictionary, *_) = dictionaries.values()
    if not dictionary.layout.plain or not isinstance(source.site, str):
        raise ValueError(
            "--downstream puts the reconstruction of one site where its rows were read, but "
            f"{folder.path} is of {dictionary.layout}; drop --downstream"
        )
    store = open_store(folder)
    lm, plan = model_of(store)
    documents = held_out_documents(store, plan, contexts)
    mean = store.mean(source.site, TRAIN if store.rows(TRAIN) else HELD_OUT)
    options: dict[str, Any] = {"contexts": contexts, "context": plan.context}
    swaps = {name: dictionary.reconstruct for name, dictionary in dictionaries.items()}
    if metrics.predicts_tokens(lm):
        return {
            name: {
                "ce_recovered_mean": score.recovered_mean,
                "ce_recovered_zero": score.recovered_zero,
                "ce": score.ce,
                "ce_clean": score.ce_clean,
            }
            for name, score in metrics.loss_recovered(lm, source.site, documents, swaps, mean, **options).items()
        }
    return {
        name: {
            "recovered_mean": score.recovered_mean,
            "recovered_zero": score.recovered_zero,
            "cosine": score.cos,
        }
        for name, score in metrics.embedding_recovered(lm, source.site, documents, swaps, mean, **options).items()
    }
