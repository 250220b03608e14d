"""Streams of activation rows: what training reads. A stream is endless, seeded, and resumes exactly."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.seeds import generator


class Batch(NamedTuple):
    """Rows to read and rows to reconstruct; the same tensor for an autoencoder."""

    x: Float[Tensor, "batch d"]
    target: Float[Tensor, "batch d"]


@runtime_checkable
class Stream(Protocol):
    """An endless iterator over batches whose position can be saved and restored."""

    d: int

    def __iter__(self) -> Iterator[Batch]:
        """Itself."""
        ...

    def __next__(self) -> Batch:
        """The next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        ...


@runtime_checkable
class RowSource(Protocol):
    """What reads rows of several sites at once; its position can be saved and restored."""

    batch: int

    def next_rows(self) -> dict[str, Tensor]:
        """Site → the next batch of its rows; row i is of the same token at every site."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        ...


class SharedRows:
    """One pass over the rows for several dictionaries in lockstep: every reader gets every batch, read once.

    No reader may be more than one batch ahead of another; each position saved is that of its own reader.
    """

    def __init__(self, source: RowSource):
        self.source, self.count = source, 0
        self._rows: dict[str, Tensor] = {}
        self._before: dict[str, Any] = {}  # the position before the current batch
        self._readers: list[SharedReader] = []

    def reader(self, site: str, d: int, target: str | None = None) -> "SharedReader":
        """A stream of one site's rows."""
        self._readers.append(SharedReader(self, site, d, target))
        return self._readers[-1]

    def rows(self, number: int) -> dict[str, Tensor]:
        """Batch `number`: the current one or the next."""
        if number == self.count:
            self._before = self.source.state_dict()
            self._rows, self.count = self.source.next_rows(), self.count + 1
        if number != self.count - 1:
            raise RuntimeError(f"a reader wants batch {number}, the others are at {self.count - 1}; step them in turn")
        return self._rows

    def position(self, number: int) -> dict[str, Any]:
        """The position of a reader that has seen `number` batches."""
        return self.source.state_dict() if number == self.count else self._before

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, all readers alike."""
        self.source.load_state_dict(state)
        self.count = 0
        for reader in self._readers:
            reader.count = 0


class SharedReader:
    """A stream that shares its reading with others; from `SharedRows.reader`."""

    def __init__(self, shared: SharedRows, site: str, d: int, target: str | None):
        self.d, self.count = d, 0
        self._shared, self._site, self._target = shared, site, target or site

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = self._shared.rows(self.count)
        self.count += 1
        return Batch(rows[self._site], rows[self._target])

    def state_dict(self) -> dict[str, Any]:
        """The position after this reader's last batch."""
        return self._shared.position(self.count)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, together with all other readers."""
        self._shared.load_state_dict(state)


def check_rows(x: Float[Tensor, "rows d"], source: str, *, allow_zero: bool = False) -> Float[Tensor, "rows d"]:
    """Rows fit to train on, or a ValueError naming the first bad row and its source."""
    if x.ndim != 2:
        raise ValueError(f"{source}: activations have shape {tuple(x.shape)}; give a matrix (rows, d)")
    if x.shape[0] == 0:
        raise ValueError(f"{source}: no rows; the text was empty or everything was dropped")
    if x.shape[1] == 0:
        raise ValueError(f"{source}: activations have width 0; give rows of at least one number")
    # A row's norm is finite and positive exactly when the row is usable: one pass, no masks the size of x.
    norm = torch.linalg.vector_norm(x.float(), dim=1)
    bad, zero = ~norm.isfinite(), norm == 0
    if bad.any():
        row = int(bad.nonzero()[0])
        kind = "NaN" if x[row].isnan().any() else "Inf"
        if x[row].isfinite().all():
            raise ValueError(f"{source}: row {row} has values too large for float32; scale the activations down")
        raise ValueError(
            f"{source}: row {row} has {kind} ({int(bad.sum())} of {len(x)} rows do); find out why the model gives "
            "it, or drop these rows"
        )
    if not allow_zero and zero.any():
        row = int(zero.nonzero()[0])
        if (x[row] != 0).any():
            raise ValueError(f"{source}: row {row} has values too small for float32; scale the activations up")
        raise ValueError(
            f"{source}: row {row} is all zeros ({int(zero.sum())} of {len(x)} rows are) and has no "
            "direction; drop these rows (padding is the usual reason)"
        )
    return x


class ArrayStream:
    """Rows in memory, every row exactly once per epoch, in a new order every epoch.

    The order of epoch e depends on (seed, e) alone, so the position is two integers. A last incomplete batch is
    filled from the next epoch: every batch has `batch` rows.

    Args:
        x: activations, (rows, d). Checked: finite, no all-zero row.
        batch: rows per batch.
        seed: seed of the order.
        source: what to call the rows in errors.
    """

    def __init__(self, x: Float[Tensor, "rows d"], batch: int, *, seed: int = 0, source: str = "activations"):
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        self.x = check_rows(x, source)
        self.d, self.batch, self.seed = x.shape[1], batch, seed
        self.epoch, self.position = 0, 0
        self._order = self._permutation(0)

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(len(self.x), generator=generator(self.seed, "order of rows", epoch))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        parts, missing = [], self.batch
        while missing:
            part = self._order[self.position : self.position + missing]
            parts.append(part)
            missing -= len(part)
            self.position += len(part)
            if self.position == len(self.x):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation(self.epoch)
        x = self.x[parts[0] if len(parts) == 1 else torch.cat(parts)].float()
        return Batch(x, x)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position in it."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same; the checksum is of up to 1024 rows spread over all."""
        some = self.x[:: max(1, len(self.x) // 1024)].float().contiguous()
        checksum = hashlib.sha256(some.numpy().tobytes()).hexdigest()[:16]
        return {"rows": len(self.x), "seed": self.seed, "batch": self.batch, "checksum": checksum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position; the rows and the seed must be those it was saved with."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the stream has {name}={value}, the saved position was of {name}={state.get(name)}; "
                    "resume with the same data and seed"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation(self.epoch)
