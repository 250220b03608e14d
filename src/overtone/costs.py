"""What a training step costs before it is run: time, memory and messages of every rank, for any sizes and any mesh.

The equations are those of docs/distributed.md (C1–C4): the time of a step is linear in its products, latents and rows, at one
width and L0; its coefficients are measured here by steps of the method itself that are small enough to take moments. Memory and
messages are counted.
"""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from overtone.data.stream import Batch
from overtone.layout import Layout
from overtone.losses import Matryoshka, RarestFirst, SampledMatryoshka
from overtone.method import Method
from overtone.optimiser import plan as passes_of
from overtone.parallel import Axis, World
from overtone.ranks import check_ranks, goes_by_seen
from overtone.schedules import resolved
from overtone.selection import AbsTopK, BatchTopK, TopK
from overtone.steering import LATENTS_PER_BLOCK, BiasAdaptation
from overtone.training import SAMPLE_ROWS, Run, begin, step_once

FLOAT = 4  # bytes
# Rows and latents of the steps that are measured: enough for the ways of encoding that larger ones take.
CALIBRATED = ((256, 2048), (256, 6144), (512, 2048), (512, 6144), (1024, 2048), (1024, 6144))
# Rows, latents and parts, where a step's rows are worked through in parts.
IN_PARTS = (*((2 * rows, latents, 2) for rows, latents in CALIBRATED[:4]), (1024, 2048, 4), (1024, 6144, 4))
REPEATED = 5
# Bytes of the messages that a mesh's speed is measured with.
MESSAGES = (2**10, 2**22)


class Share(NamedTuple):
    """What one rank has of a step.

    Attributes:
        rows: b, of the batch.
        latents: m.
        batch: B, rows of all ranks.
        parts: N, that its rows are worked through in.
    """

    rows: int
    latents: int
    batch: int
    parts: int = 1

    @classmethod
    def of(cls, run: Run, rows: int, latents: int) -> "Share":
        """The largest share, where ranks share the rows and the latents."""
        return cls(run.batch // rows, -(-run.latents // latents), run.batch, run.accumulate)


@dataclass(frozen=True)
class Speed:
    """Seconds of a step: fixed · N + per_product · b m + per_latent · m + per_gradient · N m + per_row · b (C1).

    At one width and L0.

    Attributes:
        fixed: of any part of a step.
        per_product: of a row and a latent: finding the active ones.
        per_latent: of a latent: the optimiser's pass over its weights.
        per_row: of a row: its entries' codes, decoding and gradients.
        l0: mean number of active latents in the steps that were measured.
        spread: largest relative error over these steps.
        per_gradient: of a latent: adding a part's gradients to those of the others. 0 where there is one part.
    """

    fixed: float
    per_product: float
    per_latent: float
    per_row: float
    l0: float
    spread: float
    per_gradient: float = 0.0

    def parts(self, share: Share) -> dict[str, float]:
        """Seconds by what takes them."""
        return {
            "finding active latents": self.per_product * share.rows * share.latents,
            "codes, decoding, gradients": self.per_row * share.rows,
            "optimiser": self.per_latent * share.latents,
            "fixed": self.fixed * share.parts,
        } | ({"adding up parts": self.per_gradient * share.parts * share.latents} if share.parts > 1 else {})


class Message(NamedTuple):
    """Something that every rank of an axis says in every step.

    Attributes:
        what: it is.
        axis: "rows", "latents" or "everyone": who.
        kind: "sum" – all get the sum; "gather" – all get all.
        bytes: of one rank's part.
    """

    what: str
    axis: str
    kind: str
    bytes: int

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends, by a ring: a sum is 2 (R − 1)/R of it, what all get to know (R − 1) times (C3)."""
        return self.bytes * ((ranks - 1) if self.kind == "gather" else 2 * (ranks - 1) / ranks)


class Link(NamedTuple):
    """Ranks' connection: seconds of a message, and bytes per second and rank."""

    latency: float
    bandwidth: float

    def seconds(self, message: Message, ranks: int) -> float:
        """Of a message."""
        return self.latency + message.sent(ranks) / self.bandwidth


def calibrate(
    method: Method, layout: Layout, *, in_parts: bool = False, sizes: Sequence[tuple[int, int]] = CALIBRATED
) -> Speed:
    """Measure small steps of a method on rows of this layout, with the threads that this process has.

    Where the method decides L0 it is that, else what it starts with. The fastest of a few repetitions counts: others wait for
    other processes.

    Args:
        method: what is trained.
        layout: of the rows.
        in_parts: whether a step's rows are to be worked through in parts, and so are those that are measured.
        sizes: rows and latents of steps in one piece.
    """
    steps = [Share(rows, latents, rows, n) for rows, latents, n in (IN_PARTS if in_parts else [(*s, 1) for s in sizes])]
    measured = [_seconds_of_step(method, layout, step) for step in steps]
    features = np.array([[s.parts, s.rows * s.latents, s.latents, s.rows, s.parts * s.latents] for s in steps], float)
    features = features if in_parts else features[:, :-1]
    seconds = np.array([found[0] for found in measured])
    # Relative errors count, and no part can take less than no time.
    scale = np.abs(features).max(0)
    found, _ = nnls(features / scale / seconds[:, None], np.ones(len(steps)))
    fixed, per_product, per_latent, per_row, *per_gradient = (found / scale).tolist()
    errors = features @ (found / scale) / seconds - 1
    l0 = float(np.mean([l0 for _, l0 in measured]))
    return Speed(fixed, per_product, per_latent, per_row, l0, float(np.abs(errors).max()), *per_gradient)


def _seconds_of_step(method: Method, layout: Layout, step: Share) -> tuple[float, float]:
    """The fastest of some steps, and their mean L0."""
    run = Run(method, step.latents, batch=step.rows, accumulate=step.parts)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(step.rows, 512), layout.d, generator=generator)
    target = x if layout.onto_itself else torch.randn(len(x), layout.d_out, generator=generator)
    state = begin(run, layout, Batch(x, target))
    rows = x[: step.rows]
    batch = Batch(rows, rows if target is x else target[: step.rows])
    times = []
    for _ in range(REPEATED + 1):
        start = time.perf_counter()
        step_once(run, state, batch)
        times.append(time.perf_counter() - start)
    return min(times[1:]), float(state.window.fired.sum() / state.window.rows)


def messages(run: Run, layout: Layout, rows: int, latents: int, l0: float) -> list[Message]:
    """What a step says on a mesh of `rows` × `latents` ranks, where codes are sparse (C3).

    Args:
        run: the configuration.
        layout: of the rows.
        rows, latents: ranks that share them.
        l0: mean number of active latents per row.
    """
    share, said = Share.of(run, rows, latents), []
    if rows > 1:
        said += _of_rows(run, layout, share, l0 / latents, latents)
    if latents > 1:
        said += _of_latents(run, layout, share)
    if isinstance(run.method.select, BatchTopK) and rows * latents > 1:
        wanted = -(-run.method.select.k * share.batch // (rows * latents))
        said += [Message("candidates of the batch", "everyone", "gather", round(1.15 * wanted) * FLOAT)]
    return said


def ranks_of(rows: int, latents: int) -> dict[str, int]:
    """How many ranks an axis of messages has."""
    return {"rows": rows, "latents": latents, "everyone": rows * latents}


def _of_rows(run: Run, layout: Layout, share: Share, l0: float, latents: int) -> list[Message]:
    """Statistics, and gradients: as entries where these are less to send than matrices."""
    tied = run.method.parametrisation.tied and layout.onto_itself
    groups = _most_groups(_groups(run.method, run.latents), run.latents, latents)
    sums = {"W_dec": [(groups, layout.d_out)]}
    if tied:
        sums["W_dec"].append((1, layout.d))
    else:
        sums["W_enc"] = [(1, layout.d)]
    said = [
        Message("how often latents fire", "rows", "sum", 8 * (1 + share.latents)),
        Message("peaks", "rows", "sum", FLOAT * share.latents),
    ]
    dense = {"W_dec"} if any(type(term).__name__ in _DENSE for term in _terms(run.method)) else set()
    for weight, of_weight in sums.items():
        width = of_weight[0][1]
        few = all(t * share.batch < 2 * share.latents for t, _ in of_weight)
        joined = few and share.parts == 1 and _by_rows(run, layout)
        if not joined or weight in dense:
            said.append(Message(f"gradient of {weight}", "rows", "sum", FLOAT * share.latents * width))
        if joined:
            entries = round(l0 * share.rows) * 3 * FLOAT
            for tables, d in of_weight:
                rows_sent = tables * share.rows * d * FLOAT
                said.append(Message(f"entries of {weight}'s gradient", "rows", "gather", entries + rows_sent))
    p = run.method.parametrisation
    vectors = share.latents * (p.scale + (p.bias == "trained")) + layout.d_out * (p.centre != "fixed")
    return [*said, Message("gradients of vectors", "rows", "sum", FLOAT * vectors)] if vectors else said


# Terms that weigh by the atoms' norms, or look at atoms alone: their gradient is a matrix.
_DENSE = ("L1", "Lp", "Tanh", "PreActivation", "GateL1", "Orthogonality", "Anchoring", "AuxK")


def _of_latents(run: Run, layout: Layout, share: Share) -> list[Message]:
    """Parts of reconstructions, and of what selections compare."""
    method, groups = run.method, len(_groups(run.method, run.latents))
    said = [Message("reconstructions", "latents", "sum", FLOAT * groups * share.rows * layout.d_out)]
    if method.parametrisation.centre == "trained" and layout.onto_itself:
        said.append(Message("gradient of the centre", "latents", "sum", FLOAT * layout.d))
    if isinstance(method.select, TopK | AbsTopK):
        said.append(Message("largest of every row", "latents", "gather", FLOAT * share.rows * method.select.k))
    return said


def _terms(method: Method) -> list[object]:
    return [resolved(term, 1, 1) for term in method.losses]


def _groups(method: Method, latents: int) -> list[int]:
    """Sizes of the groups of latents whose reconstructions the losses look at one by one."""
    found = [[latents]]
    for term in _terms(method):
        if isinstance(term, RarestFirst):
            found.append(term.stages(latents))
        elif isinstance(term, Matryoshka | SampledMatryoshka):
            found.append(term.sizes(latents))
    return max(found, key=len)


def _most_groups(sizes: list[int], latents: int, ranks: int) -> int:
    """How many of these groups the rank with the most has latents of."""
    ends = [0, *accumulate(sizes)]
    parts = [Axis(rank, ranks).part(latents) for rank in range(ranks)]
    return max(sum(a < part.stop and b > part.start for a, b in pairwise(ends)) for part in parts)


def _by_rows(run: Run, layout: Layout) -> bool:
    """Whether the optimiser goes over the rows of matrices, and so takes gradients as entries."""
    small = min(run.latents, 1024)
    run = replace(run, latents=small) if small >= 64 else run
    ones = Batch(torch.ones(2, layout.d), torch.ones(2, layout.d_out))
    return bool(passes_of(run.method, begin(run, layout, ones).dictionary).passes)


def memory(run: Run, layout: Layout, rows: int, latents: int, l0: float) -> dict[str, int]:
    """Bytes of one rank at the step's peak, by what they hold, without those of the program itself (C4)."""
    share, method = Share.of(run, rows, latents), run.method
    at_once = share.rows // share.parts
    tied = method.parametrisation.tied and layout.onto_itself
    matrices = FLOAT * share.latents * (layout.d_out + (0 if tied else layout.d))
    said = [message for message in messages(run, layout, rows, latents, l0) if message.axis == "rows"]
    sparse, groups = _by_rows(run, layout), len(_groups(method, run.latents))
    gradients = sum(m.bytes for m in said if m.what.startswith("gradient of")) if rows > 1 or not sparse else 0
    if share.parts > 1:  # those of all parts so far, and those of a matrix as one part makes them
        gradients = 3 * FLOAT * share.latents * layout.d_out
    joined = rows * sum(m.bytes for m in said if m.what.startswith("entries"))
    wide = layout.d + layout.d_out
    in_batch = FLOAT * share.rows * (layout.d if layout.onto_itself else wide)
    codes = 3 * FLOAT * at_once * layout.d + (3 + 2 * (groups > 1)) * FLOAT * groups * at_once * layout.d_out
    entries = round(96 * at_once * l0 / latents)
    if share.parts > 1:
        # Normalised rows, and what is kept of the parts' codes: for rules, and while a budget is dealt out.
        codes += FLOAT * share.rows * layout.d
        kept = 12 * (not all(map(goes_by_seen, method.rules))) + 51 * isinstance(method.select, BatchTopK)
        entries += round(kept * share.rows * l0 / latents)
    scratch = share.latents * layout.d + 2**24
    return {
        "weights": matrices,
        "optimiser": 2 * matrices if method.optimiser == "adam" else 0,
        "gradients": max(gradients, 0 if sparse else matrices) + joined,
        "batch": in_batch,
        "codes and reconstructions": codes + entries,
        "search": scratch,
        # Of latents in parts, checkpoints go to the file at once.
        "checkpoint": matrices * (3 if method.optimiser == "adam" else 1) if latents == 1 else 0,
    }


def memory_at_start(run: Run, layout: Layout, latents: int) -> int:
    """Bytes of one rank while a run starts: weights being drawn, and what is looked at of the first rows."""
    share = Share.of(run, 1, latents)
    tied = run.method.parametrisation.tied and layout.onto_itself
    matrices = FLOAT * share.latents * (layout.d_out + (0 if tied else layout.d))
    sample = FLOAT * max(SAMPLE_ROWS, run.batch) * layout.d
    rules = [getattr(rule, "adaptation", rule) for rule in run.method.rules]
    if any(isinstance(rule, BiasAdaptation) and rule.start == "quantile" for rule in rules):
        # Rows as columns, and a block of latents' projections on all of them, sorted.
        return matrices + round(5.5 * sample) + 4 * FLOAT * LATENTS_PER_BLOCK * SAMPLE_ROWS
    return matrices + max(2 * FLOAT * share.latents * layout.d, 3 * sample)


def program(method: Method, layout: Layout) -> int:
    """Bytes that the program itself takes: what this process holds once it has done a tiny step."""
    _seconds_of_step(method, Layout.of(16) if layout.onto_itself else layout, Share(32, CALIBRATED[0][1], 32))
    return resident()


def resident() -> int:
    """Bytes that this process holds now."""
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Forecast(NamedTuple):
    """What a step on a mesh will take, of the rank with the largest share.

    Attributes:
        seconds: by what takes them.
        bytes: by what they hold.
        messages: what is said.
        l0: mean number of active latents that this is for.
        spread: largest relative error of the measured steps.
    """

    seconds: dict[str, float]
    bytes: dict[str, int]
    messages: list[Message]
    l0: float
    spread: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.bytes.values())

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])


def forecast(
    run: Run,
    layout: Layout,
    speed: Speed,
    *,
    rows: int = 1,
    latents: int = 1,
    link: Link | None = None,
    program: int = 0,
) -> Forecast:
    """Time, memory and messages of a step (C1–C4).

    Args:
        run: the configuration.
        layout: of the rows.
        speed: of steps of its method, from `calibrate`.
        rows, latents: ranks that share them.
        link: the ranks' connection; may be left out for one rank.
        program: bytes that the program itself takes, from the function of that name.

    Raises:
        ValueError: these ranks cannot train that together, or their connection is missing.
    """
    world = World(Axis(0, rows), Axis(0, latents), Axis(0, rows * latents))
    check_ranks(run.method, run.latents, run.batch, world, run.accumulate)
    said = messages(run, layout, rows, latents, speed.l0)
    seconds = speed.parts(Share.of(run, rows, latents))
    if rows * latents > 1:
        if link is None:
            raise ValueError(
                f"a mesh of {rows} × {latents} ranks talks, and link is missing; give what `measure_link` found"
            )
        sizes = ranks_of(rows, latents)
        seconds["messages"] = sum(link.seconds(message, sizes[message.axis]) for message in said)
    step, start = memory(run, layout, rows, latents, speed.l0), memory_at_start(run, layout, latents)
    more = max(0, start - sum(step.values()))
    held = {"program": program, **step} | ({"start": more} if more else {})
    return Forecast(seconds, held, said, speed.l0, speed.spread)


def measure_link(axis: Axis) -> Link:
    """The connection of an axis' ranks, from sums of a short and of a long tensor; all of them have to ask."""
    seconds = []
    for size in MESSAGES:
        tensor, times = torch.zeros(size // FLOAT), []
        for _ in range(REPEATED + 1):
            start = time.perf_counter()
            axis.add_up([tensor])
            times.append(time.perf_counter() - start)
        seconds.append(float(axis.max(torch.tensor(float(np.median(times[1:]))))))
    sent = [Message("", "", "sum", size).sent(axis.size) for size in MESSAGES]
    bandwidth = (sent[1] - sent[0]) / max(seconds[1] - seconds[0], 1e-9)
    return Link(max(seconds[0] - sent[0] / bandwidth, 1e-6), bandwidth)
