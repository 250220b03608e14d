"""Rows without end: laws that draw them, and the streams over what is drawn."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.data.stream import ArrayStream, Batch
from overtone.layout import Layout
from overtone.seeds import generator

ROWS_PER_PART = 8192


@runtime_checkable
class HasRows(Protocol):
    """Rows, and whatever else is known of them."""

    @property
    def x(self) -> Float[Tensor, "rows d"]:
        """The rows."""
        ...


Rows = TypeVar("Rows", bound=HasRows, covariant=True)


class RowLaw(ABC, Generic[Rows]):
    """A law that rows are drawn from, as many as are asked for, and streams over them."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of a row."""

    @abstractmethod
    def drawn(self, rows: int, generator: torch.Generator) -> Rows:
        """Fresh rows, none of them zero."""

    def parts(self, rows: int, *, seed: int = 0) -> Iterator[Rows]:
        """A fixed data set, a part at a time."""
        draws = generator(seed, "fixed rows")
        return (self.drawn(min(ROWS_PER_PART, rows - i), draws) for i in range(0, rows, ROWS_PER_PART))

    def held_out(self, rows: int, *, seed: int = 0, batch: int = 2048) -> Iterator[Rows]:
        """Rows that no stream gives, a batch at a time: to score on."""
        draws = generator(seed, "held-out rows")
        return (self.drawn(min(batch, rows - i), draws) for i in range(0, rows, batch))

    def stream(self, batch: int, *, rows: int | None = None, seed: int = 0) -> "ArrayStream | FreshStream":
        """A stream over `rows` fixed rows, or over fresh ones without end."""
        if rows is None:
            return FreshStream(self, batch, seed=seed)
        x = torch.cat([part.x for part in self.parts(rows, seed=seed)])
        return ArrayStream(x, batch, seed=seed, source="synthetic rows")


class FreshStream:
    """Rows never seen before. Batch i depends on (seed, i) alone: the position is one integer."""

    def __init__(self, truth: RowLaw[Any], batch: int, *, seed: int = 0):
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        self.truth, self.batch, self.seed, self.position = truth, batch, seed, 0
        self.layout = Layout.of(truth.width)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        x = self.truth.drawn(self.batch, generator(self.seed, "fresh rows", self.position)).x
        self.position += 1
        return Batch(x, x)

    def state_dict(self) -> dict[str, Any]:
        """Number of batches given."""
        return {"position": self.position, "batch": self.batch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position."""
        for name in ("batch", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the stream has {name}={getattr(self, name)}, the saved position was of {name}={state[name]}; "
                    "resume with the same settings"
                )
        self.position = state["position"]
