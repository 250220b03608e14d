"""Streams of activation rows: what training reads. A stream is endless, seeded, and resumes exactly."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.data.passages import Passage
from overtone.layout import Block, Layout, side_by_side
from overtone.seeds import generator


class Batch(NamedTuple):
    """Rows to read and rows to reconstruct; the same tensor for an autoencoder and a crosscoder.

    Attributes:
        x: rows to read.
        target: rows to reconstruct.
        passage: the text that they are rows of and the model that read it, where the stream keeps them together.
        whole: rows of the batch that these are a rank's part of (`Dealt`); None: they are all of it.
    """

    x: Float[Tensor, "batch d"]
    target: Float[Tensor, "batch d_out"]
    passage: Passage | None = None
    whole: int | None = None

    @property
    def rows(self) -> int:
        """Rows of the batch, those of other ranks counted."""
        return len(self.x) if self.whole is None else self.whole

    @classmethod
    def of(cls, layout: Layout, rows: Mapping[str, Float[Tensor, "batch _"]]) -> "Batch":
        """Rows of the same tokens at several sites, laid side by side."""
        x = side_by_side(layout.reads, rows)
        return cls(x, x if layout.writes is None else side_by_side(layout.writes, rows))

    @classmethod
    def part(cls, layout: Layout, rows: Mapping[str, Float[Tensor, "part _"]], whole: int) -> "Batch":
        """The same, where these may be some of a batch of `whole` rows."""
        batch = cls.of(layout, rows)
        return batch if len(batch.x) == whole else batch._replace(whole=whole)


@runtime_checkable
class Stream(Protocol):
    """An endless iterator over batches whose position can be saved and restored; `layout` says what their columns are."""

    layout: Layout

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


@runtime_checkable
class Dealt(Protocol):
    """A stream, or a source of rows, that can leave out of its batches what other ranks have of them, and not read it."""

    def deal(self, rank: int, ranks: int) -> None:
        """From now on give of every batch of B rows only rows rank · B // ranks to (rank + 1) · B // ranks.

        Rows, their order, and positions stay those of whole batches; `deal(0, 1)` gives these again.
        """
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

    def reader(self, layout: Layout) -> "SharedReader":
        """A stream of the rows of some of the sites."""
        self._readers.append(SharedReader(self, layout))
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

    def __init__(self, shared: SharedRows, layout: Layout):
        self.layout, self.count = layout, 0
        self._shared = shared

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = self._shared.rows(self.count)
        self.count += 1
        return Batch.part(self.layout, rows, self._shared.source.batch)

    def deal(self, rank: int, ranks: int) -> None:
        """Leave out other ranks' rows, for all readers, where the source can."""
        if isinstance(self._shared.source, Dealt):
            self._shared.source.deal(rank, ranks)

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
        target: rows to reconstruct, of the same tokens; None: those of x.
        layout: which columns belong to which sites; None: one site each.
    """

    def __init__(
        self,
        x: Float[Tensor, "rows d"],
        batch: int,
        *,
        seed: int = 0,
        source: str = "activations",
        target: Float[Tensor, "rows_out d_out"] | None = None,
        layout: Layout | None = None,
    ):
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        self.x = check_rows(x, source)
        self.target = None if target is None else check_rows(target, f"targets of {source}", allow_zero=True)
        self.layout = layout or _layout_of(x, target)
        self._check_layout(source)
        self.batch, self.seed = batch, seed
        self.epoch, self.position = 0, 0
        self._order, self._part = self._permutation(0), slice(None)

    def _check_layout(self, source: str) -> None:
        widths = self.x.shape[1], self.x.shape[1] if self.target is None else self.target.shape[1]
        if self.target is not None and len(self.target) != len(self.x):
            raise ValueError(f"{source} has {len(self.x)} rows and {len(self.target)} targets; give one for each")
        if widths != (self.layout.d, self.layout.d_out) or (self.target is None) != self.layout.onto_itself:
            raise ValueError(
                f"{source} has width {widths[0]} and {'no target' if self.target is None else f'targets of {widths[1]}'}; "
                f"the layout is {self.layout}"
            )

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
        chosen = (parts[0] if len(parts) == 1 else torch.cat(parts))[self._part]
        x = self.x[chosen].float()
        whole = None if len(x) == self.batch else self.batch
        return Batch(x, x if self.target is None else self.target[chosen].float(), whole=whole)

    def deal(self, rank: int, ranks: int) -> None:
        """Leave out other ranks' rows from now on; `Dealt`."""
        self._part = slice(rank * self.batch // ranks, (rank + 1) * self.batch // ranks)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position in it."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same; the checksum is of up to 1024 rows spread over all."""
        digest = hashlib.sha256()
        for rows in (self.x,) if self.target is None else (self.x, self.target):
            digest.update(rows[:: max(1, len(rows) // 1024)].float().contiguous().numpy().tobytes())
        return {"rows": len(self.x), "seed": self.seed, "batch": self.batch, "checksum": digest.hexdigest()[:16]}

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


def _layout_of(x: Float[Tensor, "rows d"], target: Float[Tensor, "rows_out d_out"] | None) -> Layout:
    """One unnamed site, or one and its target."""
    plain = Layout.of(x.shape[1])
    return plain if target is None else Layout(plain.reads, (Block("", target.shape[1]),))
