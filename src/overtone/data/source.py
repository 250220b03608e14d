"""Where a run's rows come from, as a value: a store, a model while it is read, a file that fits in memory, or a known truth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.data.exchange import read_chunks
from overtone.data.stream import check_rows


class Split(NamedTuple):
    """Rows to train on and rows never trained on."""

    train: Float[Tensor, "rows d"]
    held_out: Float[Tensor, "rows d"]


@dataclass(frozen=True)
class StoreSource:
    """The rows of an activation store.

    Args:
        path: the store; a relative path is taken from the run's folder.
        site: what is read; several sites, side by side, for a crosscoder.
        target: the site to reconstruct; None: `site` itself.
        memory_mib: memory for rows in flight, in MiB; the order of the rows depends on it.
    """

    path: str
    site: str | tuple[str, ...]
    target: str | None = None
    memory_mib: int = 512


@dataclass(frozen=True)
class LiveSource:
    """Rows straight from a model while it is read, through a shuffle buffer.

    Args:
        path: the store of held-out rows; a relative path is taken from the run's folder.
        site: what is read; several sites, side by side, for a crosscoder.
        target: the site to reconstruct; None: `site` itself.
        buffer_rows: rows in the shuffle buffer.
    """

    path: str
    site: str | tuple[str, ...]
    target: str | None
    buffer_rows: int


@dataclass(frozen=True)
class FileSource:
    """Activations in a file: .npy (rows, d), .safetensors or .parquet.

    Args:
        path: the file.
        tensor: which tensor of a safetensors file, or column of a Parquet file; None: its only one.
        held_out: share of the rows, at the end of the file, kept for evaluation. The end and not a random choice, because
            files are written in the order of the text and neighbouring rows resemble each other.
    """

    path: str
    tensor: str | None = None
    held_out: float = 0.1

    def split(self) -> Split:
        """The rows, checked."""
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} is a share and must lie between 0 and 1 (exclusive)")
        x = check_rows(read_matrix(Path(self.path), self.tensor), self.path)
        cut = len(x) - max(1, round(len(x) * self.held_out))
        if cut < 1:
            raise ValueError(f"{self.path} has {len(x)} rows, too few to train on and to hold some out; give more rows")
        return Split(x[:cut], x[cut:])


@dataclass(frozen=True)
class TruthSource:
    """Rows of a recovery suite's ground truth, whose features are known; it is drawn again from what is kept here.

    Args:
        suite: its name.
        seed: of the truth, and of its rows.
        rows: how many fixed rows are trained on; None: fresh ones for every step.
        features: checksum of the features, so that a truth which is drawn otherwise is never taken for this one.
        options: settings of the truth.
    """

    suite: str
    seed: int
    rows: int | None
    features: str
    options: Mapping[str, Any] = field(default_factory=dict)


def read_matrix(path: Path, tensor: str | None = None) -> Float[Tensor, "rows d"]:
    """A float32 matrix from .npy, .safetensors or .parquet. Pickled files are refused, never opened."""
    chunks = list(read_chunks(path, tensor=tensor))
    if not chunks:
        raise ValueError(f"{path} holds no rows")
    return torch.cat(chunks)
