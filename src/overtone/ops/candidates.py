"""Which entries of the pre-activations are active, on the CPU: candidates first, the decision in float32 after."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from overtone.ops import quantised, screening, select
from overtone.ops.entries import Entries
from overtone.ops.memory import lend
from overtone.ops.precision import fast_float32
from overtone.ops.shared import among_largest
from overtone.ops.transposed import Transposed
from overtone.parallel import World

# A piece of pre-activations stays in cache (8 MiB) unless that makes it so short that streaming the weights dominates.
_PIECE, _PIECE_ROWS = 2**21, 256
# How many more entries than its share a part looks for, lest another's be fewer.
_SPARE = 1.15


class Rule(ABC):
    """What makes an entry active."""

    whole_batch = False  # whether candidates can only be told from the whole batch
    signed = False  # whether negative entries can be active too, and an entry counts by its size

    def found(self, x: Tensor, W: Tensor, b: Tensor) -> Entries | None:
        """All active entries, maybe with others, by products of 8-bit integers; None: others are faster."""
        return None

    @abstractmethod
    def screened(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor | None:
        """Flat places, ascending, of candidates from bfloat16 products; None: too many."""

    @abstractmethod
    def candidates(self, pre: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Flat places, ascending, of candidates among float32 pre-activations; `mask` is scratch of their shape."""

    @abstractmethod
    def active(self, values: Tensor, rows: Tensor, rows_total: int) -> Bool[Tensor, " candidates"]:
        """Which candidates, in the order of rows, are active."""


@dataclass(frozen=True)
class Above(Rule):
    """All entries above the threshold."""

    threshold: float

    @override
    def screened(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor | None:
        return screening.above(x, W, b, self.threshold)

    @override
    def candidates(self, pre: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return select.above(pre, mask, self.threshold)

    @override
    def active(self, values: Tensor, rows: Tensor, rows_total: int) -> Bool[Tensor, " candidates"]:
        return values > self.threshold


@dataclass(frozen=True)
class Largest(Rule):
    """The k largest entries of every row, where they are positive."""

    k: int

    @override
    def found(self, x: Tensor, W: Tensor, b: Tensor) -> Entries | None:
        return quantised.largest(x, W, b, self.k)

    @override
    def screened(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor | None:
        return screening.largest(x, W, b, self.k)

    @override
    def candidates(self, pre: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return select.at_least_kth(pre, mask, self.k)

    @override
    def active(self, values: Tensor, rows: Tensor, rows_total: int) -> Bool[Tensor, " candidates"]:
        kept = torch.from_numpy(select.largest(values.numpy(), rows.numpy(), rows_total, self.k))
        return kept & (values > 0)


@dataclass(frozen=True)
class LargestSizes(Rule):
    """The k entries of every row that are largest in size, where they are not zero."""

    k: int
    signed = True

    @override
    def found(self, x: Tensor, W: Tensor, b: Tensor) -> Entries | None:
        return quantised.largest(x, W, b, self.k, signed=True)

    @override
    def screened(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor | None:
        return screening.largest(x, W, b, self.k, signed=True)

    @override
    def candidates(self, pre: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return select.at_least_kth(np.abs(pre), mask, self.k)

    @override
    def active(self, values: Tensor, rows: Tensor, rows_total: int) -> Bool[Tensor, " candidates"]:
        size = values.abs()
        return torch.from_numpy(select.largest(size.numpy(), rows.numpy(), rows_total, self.k)) & (size > 0)


@dataclass(frozen=True)
class LargestOfGroups(Rule):
    """The largest entry of each of k groups of neighbouring latents, in every row, where it is positive."""

    k: int

    @override
    def screened(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor | None:
        # A group has too few latents for its largest to stand out in bfloat16: most would be candidates.
        return None

    @override
    def candidates(self, pre: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return select.largest_of_groups(pre, self.k)

    @override
    def active(self, values: Tensor, rows: Tensor, rows_total: int) -> Bool[Tensor, " candidates"]:
        return values > 0


@dataclass(frozen=True)
class LargestOfBatch(Rule):
    """The k · batch largest entries of the batch, where they are positive."""

    k: int
    whole_batch = True

    @override
    def found(self, x: Tensor, W: Tensor, b: Tensor) -> Entries | None:
        return quantised.largest_of_batch(x, W, b, self.k)

    @override
    def screened(self, x: Tensor, W: Tensor, b: Tensor) -> Tensor | None:
        return screening.largest_of_all(x, W, b, self.k * len(x))

    @override
    def candidates(self, pre: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return select.at_least_kth_of_all(pre, mask, self.k * len(pre))

    @override
    def active(self, values: Tensor, rows: Tensor, rows_total: int) -> Bool[Tensor, " candidates"]:
        together = np.zeros(len(values), np.int64)
        kept = torch.from_numpy(select.largest(values.numpy(), together, 1, self.k * rows_total))
        return kept & (values > 0)


@torch.no_grad()
def screened_places(x: Tensor, W_enc: Tensor, b_enc: Tensor, rule: Rule) -> Tensor | None:
    """Flat places of what may be active, ascending; None where screening does not pay."""
    return rule.screened(x, W_enc, b_enc) if screening.is_worthwhile(x, W_enc) else None


@torch.no_grad()
def active_entries(x: Tensor, W_enc: Tensor, b_enc: Tensor, rule: Rule, places: Tensor | None) -> Entries:
    """The active entries, in the order of rows, out of candidates at these places; None: not found yet."""
    pre = None
    if places is None:
        places, pre = _scan(x, W_enc, b_enc, rule)
    rows = places // len(W_enc)
    latents = places - rows * len(W_enc)
    transposed = Transposed.of(latents, rows, len(W_enc))
    if pre is None:
        pre = transposed.dots(W_enc, [x], [len(W_enc)])
        pre += b_enc.index_select(0, latents)
    return _active(Entries(pre, rows, latents, transposed), rule, len(x))


@torch.no_grad()
def largest_entries(x: Tensor, W_enc: Tensor, b_enc: Tensor, rule: Rule) -> Entries:
    """The active entries, in the order of rows, by whichever way is fast."""
    found = rule.found(x, W_enc, b_enc) if quantised.is_worthwhile(x, W_enc) else None
    if found is not None:
        return _active(found, rule, len(x)) if rule.whole_batch else found
    return active_entries(x, W_enc, b_enc, rule, screened_places(x, W_enc, b_enc, rule))


@torch.no_grad()
def shifted_by(x: Tensor, centre: Tensor | None) -> Tensor:
    """Rows less the centre, in recycled memory."""
    return x if centre is None else torch.sub(x, centre, out=lend(*x.shape))


@torch.no_grad()
def largest_entries_of_parts(
    parts: Sequence[Tensor], W_enc: Tensor, b_enc: Tensor, centre: Tensor | None, k: int, world: World
) -> list[Entries]:
    """The active entries of each part of this rank's rows, over its latents: those among the k · batch largest of all ranks'.

    Every rank has an equal share of entries that reach its own smallest of them, so the wanted ones all reach the smallest of
    these. In each part it looks for some more than that part's share; where they do not go down so far, it looks again.
    """
    rows = sum(map(len, parts))
    wanted = k * rows * world.rows.size
    share = -(-wanted // world.size)
    wider = min(math.ceil(_SPARE * share / rows), len(W_enc))
    found = [largest_entries(shifted_by(x, centre), W_enc, b_enc, LargestOfBatch(wider)) for x in parts]
    values = torch.cat([entries.pre for entries in found])
    own = values.topk(share, sorted=False).values.amin() if len(values) >= share else values.new_zeros(())
    floor = float(world.everyone.min(own))
    for i, x in enumerate(parts):
        pre = found[i].pre
        if len(pre) == wider * len(x) < len(x) * len(W_enc) and floor <= float(pre.amin()):
            rule, shifted = Above(float(np.nextafter(np.float32(floor), np.float32(0)))), shifted_by(x, centre)
            found[i] = active_entries(shifted, W_enc, b_enc, rule, screened_places(shifted, W_enc, b_enc, rule))
    lengths = [len(entries.pre) for entries in found]
    kept = among_largest(torch.cat([entries.pre for entries in found]), wanted, world.everyone).split(lengths)
    return [one if mask.all() else one.where(mask) for one, mask in zip(found, kept, strict=True)]


def _active(candidates: Entries, rule: Rule, rows_total: int) -> Entries:
    """Those of the candidates that are."""
    active = rule.active(candidates.pre, candidates.rows, rows_total)
    return candidates if active.all() else candidates.where(active)


def _scan(x: Tensor, W_enc: Tensor, b_enc: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Flat places of the candidates, and their pre-activations, from products in float32."""
    latents = len(W_enc)
    size = len(x) if rule.whole_batch else min(len(x), max(_PIECE // latents, _PIECE_ROWS))
    buffer, mask = lend(size, latents), lend(size, latents, dtype=np.bool_).numpy()
    places, found = [], []
    for first in range(0, len(x), size):
        piece = x[first : first + size]
        pre = buffer[: len(piece)]
        with fast_float32():
            torch.addmm(b_enc, piece, W_enc.T, out=pre)
        here = torch.from_numpy(rule.candidates(pre.numpy(), mask[: len(piece)]))
        found.append(pre.view(-1).index_select(0, here))
        places.append(here + first * latents)
    return torch.cat(places), torch.cat(found)
