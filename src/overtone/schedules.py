"""Loss terms that change over a run: warm-up and decay of coefficients, annealing of exponents. The loop asks at each step."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from overtone.dictionary import Codes, Dictionary
from overtone.losses import LossTerm
from overtone.protocols import fits


@runtime_checkable
class Scheduled(LossTerm, Protocol):
    """A loss term that is another one at every step."""

    def at(self, step: int, steps: int) -> LossTerm:
        """The term at step 1 … steps."""
        ...


@dataclass(frozen=True)
class Ramp:
    """A term one of whose numbers moves linearly, with the step, from `start` to `end`, and stands still before and after.

    Called by itself it is the term at the end of the run. A ramp of a ramp moves two numbers.

    Args:
        term: the term, a frozen dataclass.
        field: the name of the number: "coefficient", "p", …
        start, end: its values.
        first, last: where it moves, as shares of the run.
    """

    term: LossTerm
    field: str
    start: float
    end: float
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self):
        if not 0 <= self.first < self.last <= 1:
            raise ValueError(f"first={self.first} and last={self.last} are shares of the run: 0 ≤ first < last ≤ 1")
        for value in (self.start, self.end):
            _with(self._innermost(), self.field, value)  # the term says now, not in mid-run, what it does not take

    def _innermost(self) -> LossTerm:
        return self.term._innermost() if isinstance(self.term, Ramp) else self.term

    def at(self, step: int, steps: int) -> LossTerm:
        """The term at step 1 … steps."""
        share = (step / steps - self.first) / (self.last - self.first)
        value = self.start + min(1.0, max(0.0, share)) * (self.end - self.start)
        return _with(resolved(self.term, step, steps), self.field, value)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss, of the term at the end."""
        return self.at(1, 1)(dictionary, codes, target)


def warmed(term: LossTerm, share: float) -> LossTerm:
    """The term with its coefficient rising linearly from 0 over the first `share` of the run; 0: as it is."""
    return Ramp(term, "coefficient", 0.0, _number(term, "coefficient"), 0.0, share) if share else term


def decayed(term: LossTerm, share: float) -> LossTerm:
    """The term with its coefficient falling linearly to 0 over the last `share` of the run; 0: as it is."""
    return Ramp(term, "coefficient", _number(term, "coefficient"), 0.0, 1.0 - share, 1.0) if share else term


def resolved(term: LossTerm, step: int, steps: int) -> LossTerm:
    """What a term is at step 1 … steps."""
    return term.at(step, steps) if fits(term, Scheduled) else term


def _number(term: Any, field: str) -> float:
    if not is_dataclass(term) or field not in {f.name for f in fields(term)}:
        raise ValueError(f"{term!r} has no {field!r} to move; wrap a term that has one")
    return getattr(term, field)


def _with(term: LossTerm, field: str, value: float) -> LossTerm:
    _number(term, field)
    return replace(term, **{field: value})  # pyright: ignore[reportArgumentType]
