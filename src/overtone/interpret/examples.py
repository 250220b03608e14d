"""Where in the text each latent fires: its strongest places and a fair sample of all, in one pass and fixed memory.

The unit is a *stretch*: contexts are cut into stretches of as many rows as a window is wide, and a latent that fires in one has
one example there, its strongest row. An example shows the window of text around that row, with the latent's codes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone import firing
from overtone.data.text_rows import TextRows
from overtone.dictionary import Codes, Dictionary
from overtone.firing import FiringStats
from overtone.interpret.sampling import random_rank
from overtone.interpret.slots import Slots, Windows, codes_between, strength_rank
from overtone.metrics import reconstruction
from overtone.metrics.latents import ReadMoments
from overtone.metrics.reconstruction import ReconstructionStats
from overtone.ops import SparseCodes

Progress = Callable[[int], None]
Watch = Callable[[SparseCodes, TextRows], None]


@dataclass(frozen=True)
class ExamplePlan:
    """How many examples of a latent are kept, and how much text around each.

    Memory is `latents · (top + sample) · (32 + 8 · width)` bytes and `pool · latents`: 400 MB for 16,384 latents, and twice that
    when they are put in order at the end.

    Args:
        top: the strongest examples of each latent.
        sample: a uniform sample of its examples, whatever their strength.
        width: rows of a window, and of a stretch.
        before: how many of them come before the example's strongest row, where the context has so many.
        pool: windows at random places of the text, to show where a latent does not fire.
        seed: of the samples.
    """

    top: int = 16
    sample: int = 64
    width: int = 32
    before: int = 20
    pool: int = 1024
    seed: int = 0

    def __post_init__(self):
        for name in ("top", "sample", "width", "pool"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.before < self.width:
            raise ValueError(f"before={self.before} must be 0 to {self.width - 1}, the width of a window less 1")


class Example(NamedTuple):
    """A window of text, and what a latent does in it.

    Attributes:
        row: its strongest row, counted over the text; of a window without any firing, the middle of its stretch.
        start: the first row of the window.
        context: the first row of the context, which names it.
        token_ids: the window's tokens.
        codes: the latent's code on each of them.
    """

    row: int
    start: int
    context: int
    token_ids: Int[Tensor, " length"]
    codes: Float[Tensor, " length"]


class LatentExamples(NamedTuple):
    """Examples of every latent of a dictionary.

    Attributes:
        top: the strongest, strongest first.
        sample: a uniform sample, strongest first.
        pool: windows at random places, the same for all latents.
        active: whether a latent fires anywhere in a window of the pool.
        stretches: in how many stretches each latent fires.
        seen: how often each fires, and its peak.
        z_score: of each latent, where it was asked for (maths.md eq. 19).
        reconstruction: how well the rows are reconstructed, where it was asked for.
    """

    top: Windows
    sample: Windows
    pool: Windows
    active: Bool[Tensor, "pool latents"]
    stretches: Int[Tensor, " latents"]
    seen: FiringStats
    z_score: Float[Tensor, " latents"] | None = None
    reconstruction: ReconstructionStats | None = None

    def strongest(self, latent: int) -> list[Example]:
        """The strongest examples of a latent, strongest first."""
        return _examples(self.top, latent)

    def sampled(self, latent: int) -> list[Example]:
        """A uniform sample of a latent's examples, strongest first: every part of it is a stratum of their strengths."""
        return _examples(self.sample, latent)

    def silent(self, latent: int, most: int | None = None, among: Bool[Tensor, " pool"] | None = None) -> list[Example]:
        """The first windows of the pool in which a latent does not fire.

        Args:
            latent: the latent.
            most: how many of them; None: all.
            among: which windows of the pool may be taken.
        """
        quiet = (self.pool.row[0] >= 0) & ~self.active[:, latent]
        places = (quiet if among is None else quiet & among).nonzero()[:most, 0]
        return [_example(self.pool, 0, place) for place in places.tolist()]


def _examples(windows: Windows, latent: int) -> list[Example]:
    held = int((windows.row[latent] >= 0).sum())
    return [_example(windows, latent, i) for i in range(held)]


def _example(windows: Windows, latent: int, i: int) -> Example:
    length = int((windows.token_ids[latent, i] >= 0).sum())
    row, start, context = (int(part[latent, i]) for part in (windows.row, windows.start, windows.context))
    return Example(row, start, context, windows.token_ids[latent, i, :length], windows.codes[latent, i, :length])


class Collector:
    """Gathers examples from codes, batch by batch; what is kept does not depend on how rows are batched, nor on their order."""

    def __init__(self, latents: int, plan: ExamplePlan | None = None):
        self.plan = plan = plan or ExamplePlan()
        self.latents = latents
        self.top, self.sample = (Slots(latents, size, plan.width) for size in (plan.top, plan.sample))
        self.pool = Slots(1, plan.pool, plan.width)
        self.active = torch.zeros(plan.pool, latents, dtype=torch.bool)
        self.stretches = torch.zeros(latents, dtype=torch.long)

    def add(self, codes: SparseCodes, text: TextRows) -> None:
        """Codes of the rows of some whole contexts.

        Args:
            codes: of `text`, row by row. Codes of either sign count by their size.
            text: where the rows stand; `x` is not looked at.
        """
        batch = _Coded.of(codes, text, self.plan)
        latent, row, stretch, strength = batch.peaks()
        self.stretches += torch.bincount(latent, minlength=self.latents)
        self.top.offer(latent, strength_rank(strength), row + text.first, lambda i: batch.windows(latent[i], row[i]))
        drawn = random_rank(self.plan.seed, latent, stretch + text.first)
        self.sample.offer(latent, drawn, row + text.first, lambda i: batch.windows(latent[i], row[i]))
        self._add_to_pool(batch, text)

    def _add_to_pool(self, batch: "_Coded", text: TextRows) -> None:
        begins = batch.stretch.unique()
        ends = torch.cat([begins[1:], begins.new_tensor([len(text.token_ids)])])
        middle, nobody = (begins + ends) // 2, torch.zeros_like(begins)
        drawn = random_rank(self.plan.seed, nobody - 1, begins + text.first)
        placed = self.pool.offer(nobody, drawn, middle + text.first, lambda i: batch.windows(nobody[i] - 1, middle[i]))
        for slot, offered in zip(placed.slot.tolist(), placed.offer.tolist(), strict=True):
            self.active[slot] = False
            self.active[slot, batch.active_around(int(middle[offered]))] = True

    def examples(self, seen: FiringStats, z_score: Float[Tensor, " latents"] | None = None) -> LatentExamples:
        """What has been gathered; statistics of the same rows go along."""
        pool, order = self.pool.ordered()
        return LatentExamples(
            self.top.ordered()[0], self.sample.by_strength(), pool, self.active[order[0]], self.stretches, seen, z_score
        )


class _Coded(NamedTuple):
    """Entries of some whole contexts by latent, then by row, all counted from the first row."""

    key: Int[Tensor, " nnz"]  # latent · rows + row, ascending
    values: Float[Tensor, " nnz"]
    by_row: SparseCodes
    stretch: Int[Tensor, " rows"]  # the first row of every row's stretch
    text: TextRows
    bounds: tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]
    plan: ExamplePlan

    @classmethod
    def of(cls, codes: SparseCodes, text: TextRows, plan: ExamplePlan) -> "_Coded":
        entries = codes.nonzero()
        key, order = (entries.latents.cpu() * len(text.token_ids) + entries.rows.cpu()).sort()
        begin, end = text.bounds
        row = torch.arange(len(begin))
        stretch = begin + (row - begin) // plan.width * plan.width
        return cls(key, entries.values.float().cpu()[order], entries, stretch, text, (begin, end), plan)

    def peaks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(latent, row, stretch, strength) of the strongest row, the first of several, of every latent in every stretch."""
        rows = len(self.text.token_ids)
        latent, row = self.key // rows, self.key % rows
        size = self.values.abs()
        groups, of = torch.unique_consecutive(latent * rows + self.stretch[row], return_inverse=True)
        strength = size.new_zeros(len(groups)).scatter_reduce_(0, of, size, "amax")
        strongest = (size == strength[of]).nonzero()[:, 0]
        first = torch.full((len(groups),), len(row)).scatter_reduce_(0, of[strongest], strongest, "amin")
        return groups // rows, row[first], groups % rows, strength

    def windows(self, latent: Int[Tensor, " some"], row: Int[Tensor, " some"]) -> Windows:
        """The window around each row with the codes of one latent each; none of latent −1."""
        width, rows = self.plan.width, len(self.text.token_ids)
        start, end = self._window(row)
        places = start[:, None] + torch.arange(width)
        inside = places < end[:, None]
        tokens = torch.where(inside, self.text.token_ids.long()[places.clamp(max=rows - 1)], -1).int()
        codes = codes_between(self.key, self.values, latent * rows + start, latent * rows + end, width)
        first = self.text.first
        return Windows(row + first, start + first, self.bounds[0][row] + first, tokens, codes)

    def active_around(self, row: int) -> Int[Tensor, " active"]:
        """The latents that fire in the window around a row."""
        edges = self._window(torch.tensor([row]))
        first, last = (int(self.by_row.offsets[edge]) for edge in edges)
        return self.by_row.latents[first:last].unique().cpu()

    def _window(self, row: Int[Tensor, " some"]) -> tuple[Int[Tensor, " some"], Int[Tensor, " some"]]:
        """(first row, the row after the last): as wide as the context allows, shifted at its ends and not cut."""
        begin, end = (edge[row] for edge in self.bounds)
        start = torch.minimum(row - self.plan.before, end - self.plan.width).clamp(min=begin)
        return start, torch.minimum(start + self.plan.width, end)


@torch.no_grad()
def collect_examples(
    dictionary: Dictionary,
    text: Iterable[TextRows],
    plan: ExamplePlan | None = None,
    *,
    z_scores: bool = False,
    measure: bool = False,
    watch: Sequence[Watch] = (),
    progress: Progress | None = None,
) -> LatentExamples:
    """Examples of every latent, in one pass over rows in the order of the text.

    Args:
        dictionary: the dictionary.
        text: from `store_rows` or `activations_rows`.
        plan: how many, and how much text around each.
        z_scores: also each latent's Z-score, which takes the second moments of the rows.
        measure: also how well the rows are reconstructed, by a dictionary that reconstructs what it reads.
        watch: called with the codes of some whole contexts and their text, for what else is to be known from the same pass.
        progress: called with the number of rows done.

    Raises:
        ValueError: no rows.
    """
    collector = Collector(dictionary.latents, plan)
    seen, moments, measured = firing.empty(dictionary.latents), None, None
    for part, codes, normalised in _coded(dictionary, text, (collector.add, *watch), progress):
        seen = firing.merge(seen, FiringStats(*(value.cpu() for value in codes.seen)))
        if z_scores:
            here = ReadMoments.of(normalised)
            moments = here if moments is None else moments.merge(here)
        if measure:
            stats = reconstruction.observe(dictionary, codes, part.x)
            measured = stats if measured is None else reconstruction.merge(measured, stats)
    z = None if moments is None else moments.z_score(dictionary, seen.peak)
    return collector.examples(seen, z)._replace(reconstruction=measured)


@torch.no_grad()
def watch_codes(
    dictionary: Dictionary, text: Iterable[TextRows], watch: Sequence[Watch], progress: Progress | None = None
) -> None:
    """Another pass over the text, for what is known only after the first; arguments as in `collect_examples`."""
    for _ in _coded(dictionary, text, watch, progress):
        pass


def _coded(
    dictionary: Dictionary, text: Iterable[TextRows], watch: Sequence[Watch], progress: Progress | None
) -> Iterator[tuple[TextRows, Codes, Float[Tensor, "rows d"]]]:
    """(some whole contexts, their codes, the rows as the dictionary reads them), after those who watch have seen them."""
    done = 0
    for part in text:
        normalised, norm = dictionary.normalise(part.x.to(dictionary.W_dec.device))
        codes = dictionary.encode_normalised(normalised, norm)
        sparse = codes.entries.sparse()
        for look in watch:
            look(sparse, part)
        yield part, codes, normalised
        done += len(part.x)
        if progress is not None:
            progress(done)
    if not done:
        raise ValueError("no rows to look for examples in")
