"""A trained decoder as a ground truth: rows of its residual stream, and what is known of the sequences they belong to."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.data.fresh import RowLaw
from overtone.data.sequences import Evidence, Known, SequenceLaw
from overtone.organisms.transformer import Decoder
from overtone.seeds import generator

SEQUENCES_PER_PASS = 512


class KnownRows(NamedTuple):
    """Rows, and what is true of each."""

    x: Float[Tensor, "rows d"]
    known: Known


@dataclass(frozen=True, eq=False)
class Organism(RowLaw[KnownRows]):
    """Rows of a decoder's residual stream, while it reads sequences of a known law.

    Args:
        law: of the sequences.
        model: a decoder of such sequences.
        layer: the block whose output the rows are (resid.`layer`).
        per_sequence: rows taken from a sequence, at random places: a compromise between rows that depend on each other and
            the time to read a sequence of which most is not used.
    """

    law: SequenceLaw[Any]
    model: Decoder
    layer: int = 0
    per_sequence: int = 8

    def __post_init__(self):
        if not 0 <= self.layer < self.model.shape.layers:
            raise ValueError(f"layer={self.layer} is not in 0 … {self.model.shape.layers - 1}, the model's blocks")
        if not 1 <= self.per_sequence <= len(self.law.places):
            raise ValueError(
                f"per_sequence={self.per_sequence} is not in 1 … {len(self.law.places)}; a sequence has that many"
            )

    @property
    def width(self) -> int:
        """d of the residual stream."""
        return self.model.shape.width

    @torch.no_grad()
    def drawn(self, rows: int, generator: torch.Generator) -> KnownRows:
        """Fresh rows with what is known of them; those of one sequence are neighbours."""
        parts, missing = [], rows
        while missing:
            sequences = min(SEQUENCES_PER_PASS, -(-missing // self.per_sequence))
            part = self._of_sequences(sequences, generator)
            parts.append(KnownRows(part.x[:missing], part.known.at(slice(missing))))
            missing -= len(parts[-1].x)
        return joined(parts)

    def _of_sequences(self, sequences: int, generator: torch.Generator) -> KnownRows:
        drawn = self.law.draw(sequences, generator)
        order = torch.rand(sequences, len(self.law.places), generator=generator).argsort(1)
        places = order[:, : self.per_sequence].flatten()
        which = torch.arange(sequences).repeat_interleave(self.per_sequence)
        stream = self.model.residual(self.law.inputs(drawn), self.layer)
        positions = torch.tensor(self.law.places)[places]
        return KnownRows(stream[which, positions], self.law.known(drawn).at(which, places))

    @torch.no_grad()
    def evidence(self, sequences: int = 1024, *, seed: int = 0) -> Evidence:
        """How well the model predicts fresh sequences, beside predictors of which it is known what they know."""
        drawn = self.law.draw(sequences, generator(seed, "evidence"))
        return self.law.evidence(self.model(self.law.inputs(drawn)), drawn)

    def lag_heads(self, sequences: int = 256, *, seed: int = 0) -> Float[Tensor, "layers heads"]:
        """Share of its attention that each head gives to the position just before."""
        drawn = self.law.draw(sequences, generator(seed, "evidence"))
        return self.model.read_from(self.law.inputs(drawn), 1)


def joined(parts: list[KnownRows]) -> KnownRows:
    """The rows of all parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    kinds = [{kind: torch.cat([part.known[i][kind] for part in parts]) for kind in parts[0].known[i]} for i in (0, 1)]
    return KnownRows(torch.cat([part.x for part in parts]), Known(*kinds))
