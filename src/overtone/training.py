"""The one training loop: batches in, records out. It prints nothing and writes nothing."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overtone import firing
from overtone.data.stream import Batch, Stream
from overtone.dictionary import Dictionary
from overtone.firing import FiringStats
from overtone.gradients import learn
from overtone.layout import Layout
from overtone.losses import OfBatch
from overtone.method import Method
from overtone.methods import gba_universal
from overtone.metrics.reconstruction import accumulate
from overtone.optimiser import add_up_gradients, make_optimiser, plan, update_rows
from overtone.parallel import World
from overtone.protocols import fits
from overtone.ranks import check_ranks, deal, first_of, goes_by_seen, part_of
from overtone.rules import GradientRule, Resampling, RuleState, TimedRule
from overtone.schedules import resolved

SAMPLE_ROWS = 8192
EVALUATED_ROWS = 512


@dataclass(frozen=True)
class Run:
    """Everything that decides a training run apart from its data.

    Args:
        method: what is trained (overtone.method).
        latents: dictionary width M.
        steps: optimiser steps.
        batch: rows per step.
        accumulate: parts that a step's rows are worked through in, their gradients added up: memory is that of one part, and
            the result that of one piece.
        lr: learning rate; None: the method's own.
        warmup: share of the steps over which the learning rate rises linearly from 0.
        decay: share of the steps, at the end, over which it falls linearly to 0.
        seed: seed of the initial weights.
        log_every: steps per record.
        checkpoint_every: steps between checkpoints, where a run folder is written.
    """

    method: Method = field(default_factory=gba_universal)
    latents: int = 4096
    steps: int = 3000
    batch: int = 512
    accumulate: int = 1
    lr: float | None = None
    warmup: float = 0.0
    decay: float = 0.2
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500

    def __post_init__(self):
        for name in ("latents", "steps", "batch", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        self.method.check(self.latents)
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be positive and finite")
        if not min(self.warmup, self.decay) >= 0 or self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup={self.warmup} and decay={self.decay} are shares of the run and may not sum above 1"
            )

    def lr_at(self, step: int) -> float:
        """Learning rate of step 1 … steps."""
        rise = step / (self.warmup * self.steps) if self.warmup else 1.0
        fall = (self.steps - step + 1) / (self.decay * self.steps) if self.decay else 1.0
        return (self.lr or self.method.lr) * min(1.0, rise, fall)


class Record(NamedTuple):
    """What happened since the last record.

    Attributes:
        step: optimiser steps so far.
        rows: activation rows seen so far.
        loss: the method's loss, mean over the window, in units of the normalised input.
        l0: mean number of active latents per row over the window.
        alive: share of latents that fired in the window.
        explained_variance: of the window's last batch, against its mean, in the units of the data.
        lr: learning rate.
        seconds: wall time since the run, or its resumption, began.
        rows_per_s: rows per second over the window.
        step_seconds: time within the window's optimiser steps alone: without reading rows, or other runs trained beside.
    """

    step: int
    rows: int
    loss: float
    l0: float
    alive: float
    explained_variance: float
    lr: float
    seconds: float
    rows_per_s: float
    step_seconds: float


@dataclass
class TrainState:
    """All that training carries from step to step; a checkpoint keeps all of it."""

    dictionary: Dictionary
    optimiser: torch.optim.Optimizer
    rules: list[RuleState]
    window: FiringStats
    window_loss: Float[Tensor, ""]
    step: int = 0


def start(run: Run, stream: Stream, world: World | None = None) -> TrainState:
    """A state before the first step. Reads ahead for the rules' starting values and puts the stream back.

    Args:
        run: the configuration.
        stream: batches, the same ones on every rank of `world`, or (`Dealt`) a part of each; it then goes on so.
        world: the processes that train together; None: this one alone.
    """
    ranks = (world or World()).rows
    check_ranks(run.method, run.latents, run.batch, world or World())
    deal(stream, ranks)
    position, batches = stream.state_dict(), []
    while sum(len(batch.x) for batch in batches) < SAMPLE_ROWS:
        batch = next(stream)
        batches.append(first_of(batch, ranks, batch.rows))
    stream.load_state_dict(position)
    x = torch.cat([batch.x for batch in batches])[:SAMPLE_ROWS]
    target = x if stream.layout.onto_itself else torch.cat([batch.target for batch in batches])[:SAMPLE_ROWS]
    return begin(run, stream.layout, Batch(x, target), world)


def begin(run: Run, layout: Layout, sample: Batch, world: World | None = None) -> TrainState:
    """A state before the first step, from a sample of the rows to come."""
    method, world = run.method, world or World()
    check_ranks(method, run.latents, run.batch, world, run.accumulate)
    dictionary = Dictionary(layout, run.latents, method.select, method.parametrisation, seed=run.seed, world=world)
    dictionary.measure_sites(sample.x, sample.target)
    normalised, _ = dictionary.normalise(sample.x)
    rules = [rule.begin(dictionary, normalised) for rule in method.rules]
    window, optimiser = firing.empty(len(dictionary.W_dec)), make_optimiser(method, dictionary, run.lr_at(1))
    return TrainState(dictionary, optimiser, rules, window, torch.zeros(()))


def step_once(run: Run, state: TrainState, batch: Batch) -> None:
    """One optimiser step and the after-step rules, in place; of a batch that all ranks have whole, each takes its part."""
    dictionary, ranks = state.dictionary, state.dictionary.world.rows
    batch = part_of(batch, ranks)
    terms = [resolved(term, state.step + 1, run.steps) for term in run.method.losses]
    terms = tuple(term.of_batch(batch) if fits(term, OfBatch) else term for term in terms)
    by_row = plan(run.method, dictionary)
    all_codes = not all(map(goes_by_seen, run.method.rules))
    deferred = [one.weight for one in by_row.passes]
    loss, codes, sums = learn(terms, dictionary, batch, deferred, parts=run.accumulate, all_codes=all_codes)
    sums = add_up_gradients(dictionary, by_row, sums)
    state.window_loss += ranks.mean(loss)
    state.step += 1
    for group in state.optimiser.param_groups:
        group["lr"] = run.lr_at(state.step)
    for rule in run.method.rules[by_row.rules :]:
        if fits(rule, GradientRule):
            rule.before_step(dictionary)
    for one, entries in zip(by_row.passes, sums, strict=True):
        update_rows(one, entries, state.optimiser)
    if not by_row.all_weights:
        state.optimiser.step()
    for i, rule in enumerate(run.method.rules[by_row.rules :], by_row.rules):
        now = rule.at(state.step, run.steps) if fits(rule, TimedRule) else rule
        state.rules[i] = now.after_step(dictionary, state.rules[i], codes, state.step)
        if fits(rule, Resampling):
            _forget(state.optimiser, rule.forgotten(state.rules[i]))
    state.window = firing.merge(state.window, codes.seen)


def _forget(optimiser: torch.optim.Optimizer, latents: Bool[Tensor, " latents"]) -> None:
    """Clear the optimiser's moments of some latents."""
    if not latents.any():
        return
    for weight, memory in optimiser.state.items():
        if weight.shape[:1] == latents.shape:
            for moment in memory.values():
                if moment.shape == weight.shape:
                    moment[latents] = 0


def train(
    run: Run,
    stream: Stream,
    state: TrainState | None = None,
    *,
    checkpoint: Callable[[TrainState], None] | None = None,
) -> Iterator[Record]:
    """Train, yielding a record every `run.log_every` steps and after the last one.

    Args:
        run: the configuration.
        stream: batches; its position must be the one that belongs to `state`.
        state: where to go on from; None: `start(run, stream)`.
        checkpoint: called with the state every `run.checkpoint_every` steps and after the last one.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is untouched.
    """
    return (record for record in steps(run, stream, state, checkpoint=checkpoint) if record is not None)


def steps(
    run: Run,
    stream: Stream,
    state: TrainState | None = None,
    *,
    checkpoint: Callable[[TrainState], None] | None = None,
) -> Iterator[Record | None]:
    """`train`, one step at a time: a record where there is one, else None. Several runs can so go in lockstep."""
    state = state or start(run, stream)
    began = last = time.perf_counter()
    busy = 0.0
    deal(stream, state.dictionary.world.rows)
    while state.step < run.steps:
        batch = next(stream)
        at = time.perf_counter()
        step_once(run, state, batch)
        busy += time.perf_counter() - at
        record = None
        if state.step % run.log_every == 0 or state.step == run.steps:
            now = time.perf_counter()
            record, last, busy = _record(run, state, batch, now - began, now - last, busy), now, 0.0
        # The record leaves before the checkpoint is written: a resumed run drops records after its checkpoint, so none is
        # lost whatever moment it is killed at.
        yield record
        if checkpoint and (state.step % run.checkpoint_every == 0 or state.step == run.steps):
            _refuse_divergence(run, state)
            state.dictionary.world.check_same([*state.dictionary.parameters()], "weights")
            checkpoint(state)
    state.optimiser.zero_grad()  # a finished dictionary should not carry its last gradients around


@torch.no_grad()
def _record(
    run: Run, state: TrainState, batch: Batch, seconds: float, window_seconds: float, step_seconds: float
) -> Record:
    """Summarise the window and start a new one."""
    window = state.window
    _refuse_divergence(run, state)
    loss = float(state.window_loss) / (int(window.rows) / batch.rows)
    ranks = state.dictionary.world.latents
    first = first_of(batch, state.dictionary.world.rows, EVALUATED_ROWS)
    evaluated = accumulate(state.dictionary, first.x, first.target)
    record = Record(
        step=state.step,
        rows=state.step * batch.rows,
        loss=loss,
        l0=int(ranks.sum(window.fired.sum())) / int(window.rows),
        alive=int(ranks.sum(window.alive.sum())) / run.latents,
        explained_variance=evaluated.explained_variance,
        lr=run.lr_at(state.step),
        seconds=seconds,
        rows_per_s=int(window.rows) / max(window_seconds, 1e-9),
        step_seconds=step_seconds,
    )
    state.window, state.window_loss = firing.empty(len(window.fired)), torch.zeros(())
    return record


def _refuse_divergence(run: Run, state: TrainState) -> None:
    """Raise unless losses and weights are finite; asked before anything of them is written."""
    tensors = (state.window_loss, *state.dictionary.parameters())
    if not all(bool(tensor.detach().isfinite().all()) for tensor in tensors):
        raise FloatingPointError(
            f"loss or weights are no longer finite at step {state.step} (lr={run.lr_at(state.step):g}); lower lr, or look for "
            "extreme rows in the activations. The last checkpoint is from before and untouched"
        )
