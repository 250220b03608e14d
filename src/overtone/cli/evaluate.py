"""`overtone evaluate`: the metrics of a trained dictionary on rows it has not seen."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.progress import TextColumn
from torch import Tensor

from overtone import checkpoint, formats
from overtone.cli.common import (
    check_given_once,
    console,
    finite_again,
    names_of,
    progress_bar,
    resumable,
    tell_sites,
    write_json,
)
from overtone.cli.rows import EVALUATED, Stored, held_out_documents, model_of, open_store, run_at, source_of
from overtone.cli.truths import SCORED_ROWS, OnTruth
from overtone.data.source import FileSource, TruthSource, read_matrix
from overtone.data.store import HELD_OUT, TRAIN, Store
from overtone.data.stream import Batch, check_rows
from overtone.dictionary import Dictionary
from overtone.layout import Layout
from overtone.metrics import downstream as metrics
from overtone.metrics.reconstruction import evaluate as reconstruction
from overtone.report.tables import metrics_table
from overtone.runs import RunFolder
from overtone.seeds import generator
from overtone.users_code import parts_named
from overtone.version import __version__

KIND = "overtone-evaluation"
LARGEST_RESULTS = 2**30  # bytes


def evaluate(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    activations: Path | None = None,
    tensor: str | None = None,
    store: Path | None = None,
    site: tuple[str, ...] = (),
    target: str | None = None,
    downstream: bool = False,
    contexts: int = 64,
    rows: int = EVALUATED,
    seed: int = 0,
    input_norm: formats.InputNorm | None = None,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
    resume: bool = False,
) -> None:
    """Measure trained dictionaries on held-out data: explained variance, L0, alive share, and what the model loses.

    Several are shown side by side. With --json, each is written as soon as it has been measured, with its distributions:
    explained variance by dimension and by decile of the norm, L0, frequencies. Stopped, the same command with --resume goes on.

    Args:
        runs: run folders, or dictionaries of overtone's or another tool's (then give --activations or --store).
        activations: rows to measure on instead of a run's own held-out ones: .npy, .safetensors or .parquet.
        tensor: which tensor of the safetensors file, or column of the Parquet file.
        store: a store whose held-out rows to measure on instead.
        site: which site of that store, or which several of a crosscoder (default: the run's own).
        target: which site is to be reconstructed (default: the run's own).
        downstream: also run the model with reconstructions in place of its activations (embedding or loss recovered).
        contexts: how many pieces of held-out text for that.
        rows: how many rows to measure on, at most.
        seed: of the sample of rows, where there are more.
        input_norm: how rows are scaled before another tool's dictionary reads them, where its files do not say (row: to norm 1;
            rms: to norm √d).
        parts: your own Python files or modules that the methods' parts are defined in.
        json: write the results to this file.
        resume: take from --json what was measured with the same settings before.
    """
    check_options(runs, rows, json, resume)
    given = {"activations": activations, "store": store}
    settings: dict[str, Any] = {name: None if path is None else str(path.resolve()) for name, path in given.items()}
    settings |= {"tensor": tensor, "site": list(site), "target": target, "rows": rows, "seed": seed}
    settings |= {"contexts": contexts if downstream else None, "input_norm": input_norm}
    own = parts_named(parts)
    done = finished(json, KIND, settings) if resume and json is not None else {}
    results: list[dict[str, Any]] = []
    with resumable(f"overtone evaluate … --json {json or 'FILE'} --resume"):
        for run in runs:
            dictionary = formats.load(run, parts=own, input_norm=input_norm)
            weights = checksum(dictionary)
            result = done.get((str(run), weights))
            if result is None:
                folder = run_at(run, own)
                found = held_out_rows(run, folder, activations, tensor, store, site, target, rows, seed)
                result = {"run": str(run), "weights": weights, **measure(run.name, dictionary, *found)}
                if downstream:
                    named = {run.name: dictionary}
                    (lost,) = downstream_scores(folder or RunFolder.open(run), named, contexts).values()
                    result["metrics"] |= lost
            results.append(result)
            if json is not None:
                description = {"format": KIND, "version": 1, "overtone": __version__, "settings": settings}
                write_json(json, description | {"runs": results}, quiet=run != runs[-1])
    _show(runs, results, own)


def check_options(runs: Sequence[Path], rows: int, json: Path | None, resume: bool) -> None:
    """Refuse options that do not go together."""
    if rows < 1:
        raise ValueError(f"rows={rows} must be at least 1")
    check_given_once(runs)
    if resume and json is None:
        raise ValueError("--resume takes finished results from the file of --json; give it too")


def measure(
    name: str, dictionary: Dictionary, batches: Iterable[Tensor | Batch], where: str, layout: Layout
) -> dict[str, Any]:
    """What the rows say of a dictionary."""
    _check_layout(layout, where, dictionary.layout)
    with _watched(name, batches) as seen:
        stats = reconstruction(dictionary, seen)
    return {"rows": where, "metrics": stats.summary(), "distributions": stats.distributions()}


def _show(runs: Sequence[Path], results: Sequence[Mapping[str, Any]], own: Sequence[type]) -> None:
    """The table; dictionaries that were measured on other rows than the others are named with theirs."""
    where = dict.fromkeys(f"{r['metrics']['rows']:,} rows: {r['rows']}" for r in results)
    shown = names_of(runs)
    metrics = {name: finite_again(r["metrics"]) for name, r in zip(shown, results, strict=True)}
    console.print(metrics_table(metrics, "\n".join(where)))
    for run, name in zip(runs, shown, strict=True):
        if "site_explained_variance" in metrics[name]:
            tell_sites(name, formats.load(run, parts=own), metrics[name])


def finished(path: Path, kind: str, settings: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(run, checksum of its weights) → its result in an earlier file of the same settings."""
    if not path.exists():
        return {}
    earlier = checkpoint.read_json(path, kind, largest=LARGEST_RESULTS)
    before = earlier.get("settings", {})
    other = sorted(key for key in settings if before.get(key) != settings[key])
    if other:
        was = ", ".join(f"{key}={before.get(key)!r}" for key in other)
        now = ", ".join(f"{key}={settings[key]!r}" for key in other)
        raise ValueError(
            f"{path} was measured with {was}, and not with {now}; go on with the same, or give another --json"
        )
    return {(result["run"], result["weights"]): result for result in earlier["runs"]}


def checksum(dictionary: Dictionary) -> str:
    """Of a dictionary's weights and parts, so that a result is never taken for that of another."""
    digest = hashlib.sha256(f"{dictionary} {dictionary.parametrisation}".encode())
    for name, weight in sorted(dictionary.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy())
    return digest.hexdigest()[:16]


@contextmanager
def _watched(name: str, batches: Iterable[Tensor | Batch]) -> Iterator[Iterator[Tensor | Batch]]:
    """The batches behind a progress bar that counts their rows."""
    with progress_bar(TextColumn("{task.completed:,.0f} rows")) as progress:
        task = progress.add_task(f"Measuring {name}", total=None)

        def each() -> Iterator[Tensor | Batch]:
            for batch in batches:
                yield batch
                progress.advance(task, len(batch if isinstance(batch, Tensor) else batch.x))

        yield each()


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
    if store is None and isinstance(source, TruthSource):
        shown = OnTruth(source, min(rows, SCORED_ROWS))
        return (part.x for part in shown.rows()), shown.where, Layout.of(shown.truth.width)
    sites: str | tuple[str, ...] | None = (site[0] if len(site) == 1 else site) or None
    if isinstance(source, Stored):
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
    if not isinstance(source, Stored):
        what = "a file of activations" if isinstance(source, FileSource) else f"suite {source.suite}"
        raise ValueError(f"--downstream needs the model; this run was trained on {what}. Drop --downstream")
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
                "kl": score.kl,
                "kl_recovered_mean": score.kl_recovered_mean,
                "kl_recovered_zero": score.kl_recovered_zero,
            }
            for name, score in metrics.loss_recovered(lm, source.site, documents, swaps, mean, **options).items()
        }
    return {
        name: {
            "recovered_mean": score.recovered_mean,
            "recovered_zero": score.recovered_zero,
            "embedding_cosine": score.cos,
        }
        for name, score in metrics.embedding_recovered(lm, source.site, documents, swaps, mean, **options).items()
    }
