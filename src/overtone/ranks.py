"""A batch dealt out, to ranks or in parts: who can train so, and whose rows are which. `parallel` has what ranks say."""

from typing import Any

from overtone.data.stream import Batch, Dealt, Stream
from overtone.gating import Gated, LatentThreshold, ThresholdJumpReLU
from overtone.losses import (
    Alignment,
    Matryoshka,
    NormalisedMSE,
    OfBatch,
    RarestFirst,
    Reconstruction,
    RelativeError,
    SampledMatryoshka,
)
from overtone.method import Method
from overtone.parallel import Axis, World
from overtone.penalties import L0, L1, GateL1, GateReconstruction, Lp, PreActivation, Tanh
from overtone.protocols import fits
from overtone.revival import CountIdle
from overtone.rules import (
    AtomsNearStart,
    CentreAtMean,
    Rule,
    TangentGradient,
    ThresholdEMA,
    UnitEncoder,
    UnitNorm,
    WhitenedEncoder,
)
from overtone.schedules import resolved
from overtone.selection import (
    AbsTopK,
    BatchSelection,
    BatchTopK,
    JumpReLU,
    ReLU,
    SharedSelection,
    SmoothReLU,
    Threshold,
    TopK,
)
from overtone.steering import BiasAdaptation, FixedBias, Release

# Parts that do with some of the latents what they do with all: one by one, or by asking the ranks that have the others.
SPLIT: tuple[type, ...] = (
    *(ReLU, JumpReLU, SmoothReLU, Threshold, TopK, AbsTopK, BatchTopK),
    *(ThresholdJumpReLU, LatentThreshold, Gated),
    *(Reconstruction, NormalisedMSE, RelativeError, RarestFirst, Matryoshka, SampledMatryoshka, Alignment),
    *(L1, Lp, L0, Tanh, PreActivation, GateL1, GateReconstruction),
    *(UnitNorm, UnitEncoder, TangentGradient, AtomsNearStart, CentreAtMean, WhitenedEncoder),
    *(BiasAdaptation, Release, FixedBias, ThresholdEMA, CountIdle),
)

# Rules that ask nothing of a step's codes but how often latents fired, and their peaks.
BY_SEEN: tuple[type, ...] = (
    *(UnitNorm, UnitEncoder, TangentGradient, AtomsNearStart, CentreAtMean, WhitenedEncoder),
    *(BiasAdaptation, Release, FixedBias, CountIdle),
)


def goes_by_seen(rule: Rule) -> bool:
    """Whether a rule looks at `Codes.seen` alone, so that codes of a batch in parts need not be kept for it."""
    return type(rule) in BY_SEEN


def check_ranks(method: Method, latents: int, batch: int, world: World, accumulate: int = 1) -> None:
    """Raise a ValueError where ranks cannot train a dictionary by this method together, each in so many parts of its rows."""
    losses = [resolved(term, 1, 1) for term in method.losses]
    _check_rows(method, losses, batch, world.rows.size)
    _check_parts(method, losses, batch // world.rows.size, accumulate)
    if world.latents.size == 1:
        return
    if latents < world.latents.size:
        raise ValueError(
            f"latents={latents} cannot be split over {world.latents.size} ranks; widen the dictionary, or split it over fewer"
        )
    whole = [part for part in (method.select, *losses, *method.rules) if type(part) not in SPLIT]
    if whole:
        raise ValueError(
            f"method {method.name!r} has {type(whole[0]).__name__}, which needs all latents in one place; let its ranks "
            "share the rows alone"
        )


def _check_rows(method: Method, losses: list[Any], batch: int, ranks: int) -> None:
    if batch % ranks:
        raise ValueError(
            f"batch={batch} cannot be dealt out to {ranks} ranks in equal parts; make it a multiple of {ranks}, or start "
            "another number of ranks"
        )
    asks_text = [term for term in losses if fits(term, OfBatch)]
    if ranks > 1 and asks_text:
        raise ValueError(
            f"method {method.name!r} has the loss {type(asks_text[0]).__name__}, which asks the model about whole texts, and "
            f"{ranks} ranks would each have a part of them; train it in one process"
        )
    if ranks > 1 and fits(method.select, BatchSelection) and not fits(method.select, SharedSelection):
        raise ValueError(
            f"{method.select} codes a batch together and does not say how {ranks} ranks do that; give it encode_shared "
            "(overtone.selection.SharedSelection), or train it in one process"
        )


def _check_parts(method: Method, losses: list[Any], rows: int, parts: int) -> None:
    if parts == 1:
        return
    if rows % parts:
        raise ValueError(
            f"{rows} rows, what a process has of every batch, cannot be worked through in accumulate={parts} equal parts; take a "
            f"divisor of {rows}, or another batch"
        )
    asks_text = [term for term in losses if fits(term, OfBatch)]
    if asks_text:
        raise ValueError(
            f"method {method.name!r} has the loss {type(asks_text[0]).__name__}, which asks the model about whole texts, and "
            f"accumulate={parts} would cut them; take accumulate=1 and a smaller batch"
        )
    if fits(method.select, BatchSelection) and not fits(method.select, SharedSelection):
        raise ValueError(
            f"{method.select} codes a batch together and does not say how it does so in accumulate={parts} parts; give it "
            "encode_shared (overtone.selection.SharedSelection), or take accumulate=1 and a smaller batch"
        )


def deal(stream: Stream, ranks: Axis) -> None:
    """From now on have a stream read this rank's part of its batches alone, where it can; others give whole batches."""
    if fits(stream, Dealt):
        stream.deal(ranks.rank, ranks.size)


def part_of(batch: Batch, ranks: Axis) -> Batch:
    """A rank's rows of a batch."""
    if ranks.size == 1 or batch.whole is not None:
        return batch
    rows = ranks.part(len(batch.x))
    x = batch.x[rows]
    return Batch(x, x if batch.target is batch.x else batch.target[rows])


def first_of(batch: Batch, ranks: Axis, rows: int) -> Batch:
    """The first rows of the whole batch, on every rank; those that were dealt to others come from these."""
    x, target = batch.x[:rows], batch.target[:rows]
    if batch.whole is None:
        return Batch(x, target)
    found = ranks.concatenate(x)[:rows]
    return Batch(found, found if batch.target is batch.x else ranks.concatenate(target)[:rows])
