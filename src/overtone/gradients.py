"""What a step learns from its batch: loss and gradients, of all rows at once or of one part of them after the other.

Parts are to one process what ranks that share the rows are to several: a loss is a mean over rows, gradients are added up, and
terms that are functions of means over the batch get these through `dictionary.world.rows`. Ranks have theirs ready at the same
time; here, where a loss asks for any, every part says its own in a rehearsal without gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from overtone import firing, ops
from overtone.data.stream import Batch
from overtone.dictionary import Codes, Dictionary
from overtone.losses import LossTerm, total
from overtone.parallel import Axis, World

# How closely a part has to say again what it said in the rehearsal.
_AGAIN = 1e-3


class Learnt(NamedTuple):
    """What a step's rows have said; gradients are in `grad`.

    Attributes:
        loss: of this rank's rows.
        codes: of this rank's rows, without gradients; `seen` are statistics of all ranks' rows.
        sums: per deferred weight what else is its gradient: see `overtone.ops.deferring`.
    """

    loss: Tensor
    codes: Codes
    sums: Sequence[list[ops.EntrySum]]


@dataclass(frozen=True)
class PartOfRows(Axis):
    """The rows' axis as loss terms see it while one part is worked through: a mean is that over all parts of all ranks.

    Args:
        known: the means, in the order in which they are asked for; None: they are still to be found out, and what is given
            back is this part's own.
        said: what this part has said, in that order.
    """

    known: Sequence[Tensor] | None = None
    said: list[Tensor] = field(default_factory=list)

    @override
    def mean(self, local: Tensor) -> Tensor:
        """Mean over all parts. The gradient passes as it is, as among ranks."""
        self.said.append(local.detach())
        if self.known is None:
            return local
        if len(self.said) > len(self.known):
            raise _unforeseen("another mean over the batch")
        return self.known[len(self.said) - 1] + (local - local.detach())

    @override
    def gather(self, local: Tensor) -> Tensor:
        """Not known while parts are worked through."""
        raise _unforeseen("numbers of all parts")

    @override
    def _reduced(self, local: Tensor, op: Any) -> Tensor:
        raise _unforeseen("a sum or bound over all parts")


def _unforeseen(what: str) -> ValueError:
    return ValueError(
        f"a loss term asks for {what}, and of rows in parts only means are known that depend on no other mean; take them "
        "through world.rows.mean, or train with accumulate=1"
    )


def learn(
    terms: tuple[LossTerm, ...],
    dictionary: Dictionary,
    batch: Batch,
    deferred: Sequence[Tensor],
    *,
    parts: int = 1,
    all_codes: bool = True,
) -> Learnt:
    """Put the gradients of the terms' sum on a batch into `grad`.

    Args:
        terms: of the loss.
        dictionary: the dictionary; `world.rows` have the other rows.
        batch: this rank's rows.
        deferred: weights whose gradients may be left as sums over entries; in parts they are made into matrices.
        parts: how many equal parts of the rows are worked through one after the other: what is in memory for one of them is
            given back before the next. The result is that of one piece, but for the order in which numbers are added.
        all_codes: whether the codes of all rows are wanted; otherwise, in parts, only `seen` is of all, and entries are those of
            the last.
    """
    ranks = dictionary.world.rows
    normalised, norm = dictionary.normalise(batch.x)
    onto_itself = batch.target is batch.x and dictionary.layout.onto_itself
    targets = batch.target.split(len(batch.x) // parts)

    def loss_of(codes: Codes, part: int, rows: Axis) -> Tensor:
        wanted = codes.x if onto_itself else dictionary.unexplained(targets[part], codes)
        assert wanted is not None
        with _among(dictionary, rows):
            return total(terms, dictionary, codes, wanted)

    dictionary.zero_grad()
    with ops.deferring(*(deferred if parts == 1 else ())) as sums:
        if parts == 1:
            codes = dictionary.encode_batch(normalised, norm)
            loss = loss_of(codes, 0, ranks)
            (loss / ranks.size).backward()
            return Learnt(loss.detach(), _of_all(codes, ranks), sums)
        loss, seen, kept = normalised.new_zeros(()), firing.empty(len(dictionary.W_dec), norm.device), []
        for codes, its_loss in _each(dictionary, normalised, norm, parts, loss_of):
            (its_loss / (ranks.size * parts)).backward()
            loss += its_loss.detach() / parts
            seen = firing.merge(seen, codes.seen)
            kept = [*kept, _entries(codes)] if all_codes else [_entries(codes)]
            del codes, its_loss  # before the next part has its own
    codes = Codes(ops.concatenate(kept), norm, seen, x=normalised) if all_codes else Codes(kept[0], norm, seen)
    return Learnt(loss, _of_all(codes, ranks), [[] for _ in deferred])


def _each(
    dictionary: Dictionary, x: Tensor, norm: Tensor, parts: int, loss_of: Callable[[Codes, int, Axis], Tensor]
) -> Iterator[tuple[Codes, Tensor]]:
    """Codes and loss of every part; rehearsed where the first part's loss asks for means."""
    ranks, rehearsed, known = dictionary.world.rows, [], None
    while True:
        pieces = dictionary.encode_parts(x, norm, parts)
        for part in range(parts):
            rehearsing = known is None and bool(rehearsed)
            rows = PartOfRows(ranks.rank * parts + part, ranks.size * parts, known=known)
            # Not around a yield, which would leave it to whoever asks for the next part.
            with torch.set_grad_enabled(not rehearsing):
                codes = next(pieces)
                loss = loss_of(codes, part, rows)
            if known is None and (rehearsing or rows.said):
                rehearsed.append(rows.said)
                continue
            if known is not None:
                _check_said(rows.said, rehearsed[part])
            yield codes, loss
            del codes, loss  # as the one that asked
        if known is not None or not rehearsed:
            return
        known = _means(rehearsed, ranks)


def _means(said: list[list[Tensor]], ranks: Axis) -> list[Tensor]:
    """What all parts of all ranks said, averaged."""
    if len({len(of_part) for of_part in said}) > 1:
        raise _unforeseen("means in some parts and not in others")
    return [ranks.mean(torch.stack(of_parts).mean(0)) for of_parts in zip(*said, strict=True)]


def _check_said(said: list[Tensor], before: list[Tensor]) -> None:
    """A mean that was made of another mean is another number once that one is known."""
    if not all(torch.allclose(a, b, rtol=_AGAIN, equal_nan=True) for a, b in zip(said, before, strict=True)):
        raise _unforeseen("a mean that depends on another mean over the batch")


@contextmanager
def _among(dictionary: Dictionary, rows: Axis) -> Iterator[None]:
    """Within, the dictionary's rows are shared with these."""
    world = dictionary.world
    dictionary.world = World(rows, world.latents, world.everyone)
    try:
        yield
    finally:
        dictionary.world = world


def _of_all(codes: Codes, ranks: Axis) -> Codes:
    return codes._replace(seen=firing.of_all(codes.seen, ranks))


def _entries(codes: Codes) -> ops.SparseCodes:
    """What is kept of a part's codes."""
    entries = codes.entries.sparse()
    return entries._replace(values=entries.values.detach(), order=None, transposed=None)
