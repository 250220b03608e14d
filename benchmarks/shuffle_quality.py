"""How well a store's stream is shuffled, beside perfect permutations.

    python benchmarks/shuffle_quality.py [--documents 2400] [--document-rows 512] [--d 8] [--shard-mib 1.5] [--memory-mib 3]
                                         [--epochs 5] [--seeds 4] [--permutations 20] [--folder DIR] [--json PATH]

The rows of a text, numbered; shards are contiguous stretches of it, as a harvest's are. Every row's number is written in its
values, so that the order is read from the batches and not from the library's word. Of every epoch, for some seeds of the
order (one seed alone is a poor judge: correlations of a few epochs scatter):

* absolute rank correlation of the order of the stream with that of the text: over the epoch, and within stretches of 10 batches
  of 4096 (mean over the stretches);
* documents that a batch of 4096 has rows of (mean over the batches);
* of all pairs of rows that shared a window in the epoch before, the share that does so again, and the absolute rank correlation
  of the two epochs' orders. Chance is what independent orders give.

Rows that lie in one block of a file (1 MiB) stay together, so the last two depend on the size of blocks, shards and windows;
--d 768 --documents 1200 --shard-mib 64 --memory-mib 128 is a store as a harvest makes it, scaled down (1.8 GiB).
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import show

from overtone import Store, StoreStream, import_rows
from overtone.cli.common import write_json

BATCH, STRETCH, BASE, DIGITS = 4096, 10, 256, 4  # STRETCH: batches
LEAST = 20  # shards and windows: with fewer the question hardly arises
NAMES = {
    "epoch_correlation": "|ρ| with the text,\nepoch",
    "stretch_correlation": "|ρ| with the text,\n10 batches",
    "documents": "documents\nper batch",
    "together_again": "same window again,\n% of pairs",
    "with_last": "|ρ| with the\nepoch before",
}


def numbered_rows(rows: int, d: int, chunk: int = 65_536) -> Iterator[torch.Tensor]:
    """Rows whose first four values are their number's digits to base 256; the others are 1, so that no row is all zeros."""
    powers = BASE ** torch.arange(DIGITS)
    for start in range(0, rows, chunk):
        numbers = torch.arange(start, min(start + chunk, rows))
        x = torch.ones(len(numbers), d)
        x[:, :DIGITS] = (numbers[:, None] // powers % BASE).float()
        yield x


def numbers_of(x: torch.Tensor) -> np.ndarray:
    """The rows' numbers."""
    return (x[:, :DIGITS].long() * BASE ** torch.arange(DIGITS)).sum(1).numpy()


def orders_of(store: Store, memory_mib: int, seed: int, epochs: int) -> tuple[np.ndarray, int]:
    """(the rows' numbers in the order of the stream, (epochs, rows); rows per window)."""
    stream, rows = StoreStream(store, BATCH, memory_mib=memory_mib, seed=seed), store.rows()
    batches = -(-epochs * rows // BATCH)
    found = np.concatenate([numbers_of(next(stream).x) for _ in range(batches)])[: epochs * rows]
    orders = found.reshape(epochs, rows)
    if any((np.bincount(order, minlength=rows) != 1).any() for order in orders):
        raise SystemExit("an epoch does not have every row exactly once: the stream is wrong")
    return orders, stream.window


def correlation(x: np.ndarray) -> float:
    """Absolute rank correlation of distinct numbers with the order they stand in."""
    ranks = np.empty(len(x))
    ranks[np.argsort(x)] = np.arange(len(x))
    return abs(float(np.corrcoef(ranks, np.arange(len(x)))[0, 1]))


def together_again(before: np.ndarray, order: np.ndarray, window: int) -> float:
    """Of the pairs of rows in one window of an epoch, the share that is in one window of the other."""
    windows = -(-len(order) // window)
    place = np.empty((2, len(order)), dtype=np.int64)
    for i, epoch in enumerate((before, order)):
        place[i, epoch] = np.arange(len(order)) // window
    both = np.bincount(place[0] * windows + place[1], minlength=windows**2).reshape(windows, windows)
    return float(pairs(both).sum() / pairs(both.sum(1)).sum())


def pairs(n: np.ndarray) -> np.ndarray:
    """Number of pairs among n."""
    return n * (n - 1) // 2


def measure(order: np.ndarray, before: np.ndarray | None, document_rows: int, window: int) -> dict[str, float]:
    """The statistics of an epoch; those that need one before it are NaN in the first."""
    whole = order[: len(order) - len(order) % BATCH].reshape(-1, BATCH)
    stretches = [whole[i : i + STRETCH].ravel() for i in range(0, len(whole) - STRETCH + 1, STRETCH)]
    place = np.empty_like(order)
    if before is not None:
        place[before] = np.arange(len(order))
    return {
        "epoch_correlation": correlation(order),
        "stretch_correlation": float(np.mean([correlation(part) for part in stretches])),
        "documents": float(np.mean([len(np.unique(batch // document_rows)) for batch in whole])),
        "together_again": float("nan") if before is None else together_again(before, order, window),
        "with_last": float("nan") if before is None else correlation(place[order]),
    }


def measured(orders: np.ndarray, document_rows: int, window: int) -> list[dict[str, float]]:
    """The statistics of epochs that follow each other."""
    before = [None, *orders[:-1]]
    return [measure(order, last, document_rows, window) for order, last in zip(orders, before, strict=True)]


def spreads(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and range of every statistic over epochs; None where no epoch has one before it."""

    def spread(x: list[float]) -> dict[str, float] | None:
        return {"mean": float(np.mean(x)), "low": min(x), "high": max(x)} if x else None

    return {name: spread([epoch[name] for epoch in found if not np.isnan(epoch[name])]) for name in NAMES}


def show_results(summaries: dict[str, dict[str, Any]], title: str) -> None:
    """A line per summary."""

    def shown(name: str, found: dict[str, float] | None) -> str:
        if found is None:
            return "–"
        scale, form = (100, ".2f") if name == "together_again" else (1, ".1f" if name == "documents" else ".5f")
        mean, low, high = (f"{scale * found[key]:{form}}" for key in ("mean", "low", "high"))
        return f"{mean} ({low}–{high})"

    lines = [[label, *(shown(name, found[name]) for name in NAMES)] for label, found in summaries.items()]
    show(title, ("mean (range)", *NAMES.values()), lines)


def main(
    documents: int = 2400,
    document_rows: int = 512,
    d: int = 8,
    shard_mib: float = 1.5,
    memory_mib: int = 3,
    epochs: int = 5,
    seeds: int = 4,
    permutations: int = 20,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    rows = documents * document_rows
    if d <= DIGITS or rows > 2**24:
        raise SystemExit(f"--d {d} must be at least {DIGITS + 1}, and {rows} rows at most {2**24}")
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        x, path = numbered_rows(rows, d), Path(scratch, "store")
        store = import_rows(x, path, site="x", origin="numbers", dtype="float32", shard_mib=shard_mib, held_out=0)
        for seed in range(seeds):
            orders, window = orders_of(store, memory_mib, seed, epochs)
            found.append(measured(orders, document_rows, window))
    shards, windows = len(store.manifest.shards), -(-rows // window)
    if min(shards, windows) < LEAST:
        raise SystemExit(
            f"{shards} shards and {windows} windows: lower --shard-mib and --memory-mib, to {LEAST} of each"
        )
    rng = np.random.default_rng(0)
    perfect = measured(np.stack([rng.permutation(rows) for _ in range(permutations)]), document_rows, window)
    summaries = {f"epoch {i}": spreads(same) for i, same in enumerate(zip(*found, strict=True), start=1)}
    summaries["all epochs"] = spreads([epoch for run in found for epoch in run])
    summaries["permutations"] = spreads(perfect)
    title = f"{documents} documents of {document_rows} rows of {4 * d} bytes; {shards} shards, {windows} windows; {seeds} seeds"
    show_results(summaries, title)
    setting = {"documents": documents, "document_rows": document_rows, "d": d, "shards": shards, "windows": windows}
    setting |= {"shard_mib": shard_mib, "memory_mib": memory_mib, "seeds": seeds, "permutations": permutations}
    write_json(json, setting | {"summaries": summaries, "epochs": found})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
