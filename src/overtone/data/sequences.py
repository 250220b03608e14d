"""Laws of sequences that a small transformer can learn, and of which everything is known at every position."""

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Drawn = TypeVar("Drawn")
# Of predictors by name, what is measured of each by name.
Evidence = dict[str, dict[str, float]]


class Known(NamedTuple):
    """What is true of some places of sequences, by kind.

    Attributes:
        occurs: whether each of a kind's features occurs there.
        values: each of a kind's quantities there.
    """

    occurs: dict[str, Bool[Tensor, "*places _"]]
    values: dict[str, Float[Tensor, "*places _"]]

    def at(self, *indices: Int[Tensor, " rows"] | slice) -> "Known":
        """What is true of some of the places, chosen by indices as a tensor's elements are."""
        return Known(*({kind: known[indices] for kind, known in kinds.items()} for kinds in self))


class SequenceLaw(ABC, Generic[Drawn]):
    """A law of sequences: what a model reads of them, what it should predict, and what is known of them.

    Attributes:
        seed: of what all sequences have in common.
    """

    seed: int

    @property
    @abstractmethod
    def channels(self) -> int:
        """Numbers that a model reads at every position."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Numbers that it predicts at every position."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """Length of a sequence."""

    @property
    @abstractmethod
    def places(self) -> range:
        """Positions of which something is known: the rows."""

    @abstractmethod
    def draw(self, sequences: int, generator: torch.Generator) -> Drawn:
        """Fresh sequences."""

    @abstractmethod
    def inputs(self, drawn: Drawn) -> Float[Tensor, "sequences positions channels"]:
        """What a model reads."""

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "sequences positions outputs"], drawn: Drawn) -> Float[Tensor, ""]:
        """What a model is trained to make small, from what it predicts at every position."""

    @abstractmethod
    def known(self, drawn: Drawn) -> Known:
        """What is true at each of `places` of every sequence, (sequences, places, …)."""

    @abstractmethod
    def evidence(self, outputs: Float[Tensor, "sequences positions outputs"], drawn: Drawn) -> Evidence:
        """How well a model predicts, beside predictors of which it is known what they know."""


def at_least(law: Any, **least: int) -> None:
    """ValueError unless every setting named is as large as it has to be."""
    for name, bound in least.items():
        if getattr(law, name) < bound:
            raise ValueError(f"{name}={getattr(law, name)} must be at least {bound}")
