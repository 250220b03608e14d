"""Batches of whole contexts, for losses that ask the model what it makes of the reconstructions."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from overtone.data.contexts import Context
from overtone.data.filling import Group, HarvestPlan
from overtone.data.live import TextInBuffers
from overtone.data.models import LanguageModel
from overtone.data.passages import Passage
from overtone.data.stream import Batch, check_rows
from overtone.layout import Block, Layout
from overtone.seeds import generator


class _Shuffled(NamedTuple):
    """Contexts in the order to use them in, and the number of rows up to each one's end."""

    contexts: list[Context]
    ends: Int[Tensor, " contexts"]


class ContextStream(TextInBuffers[_Shuffled]):
    """Rows straight from a model, context by context; every batch knows its text (`Batch.passage`).

    What is shuffled is contexts and not rows: `buffer_rows` rows' worth of text at a time, of which only the tokens are kept.
    Every row is used exactly once per pass over the text; a context that does not fit into a batch goes on in the next one. A
    position is a few integers, and resumption is exact.

    Args:
        lm: a causal model, from load_model(plan.model).
        plan: what to read and how; its held-out documents are left out. Rows are float32, outliers are kept (`drop_first` leaves
            out the tokens that are most likely to be some); `packed` contexts waste nothing on padding.
        batch: rows per batch: all of them go through the model together.
        site: what is read, one of plan.sites; several for a crosscoder. None: the plan's only one.
        target: the site to reconstruct; None: `site` itself.
        buffer_rows: rows in the buffer.
        seed: of the order within the buffer.

    Raises:
        ValueError: a model that predicts no next token; sites that are not the plan's.
    """

    def __init__(
        self,
        lm: LanguageModel,
        plan: HarvestPlan,
        batch: int,
        *,
        site: str | Sequence[str] | None = None,
        target: str | None = None,
        buffer_rows: int = 100_000,
        seed: int = 0,
    ):
        super().__init__(lm, plan, batch, buffer_rows=buffer_rows, seed=seed)
        reads = plan.sites if site is None else (site,) if isinstance(site, str) else tuple(site)
        writes = None if target is None else (target,)
        missing = [name for name in (*reads, *(writes or ())) if name not in self.sites]
        if missing or (site is None and len(reads) > 1):
            raise ValueError(
                f"site={site!r}, target={target!r}: the plan reads {', '.join(plan.sites)}; name one of them as site, or several"
            )
        self.layout = Layout(self._blocks(reads), None if writes is None else self._blocks(writes))
        Passage(lm, self._resolved, [])  # a model that cannot serve says so now

    def _blocks(self, sites: Sequence[str]) -> tuple[Block, ...]:
        return tuple(Block(site, self.sites[site]) for site in sites)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        contexts = [context for content, at in self._take() for context in _between(content, at)]
        passage = Passage(self._lm, self._resolved, contexts, self._plan.compute_dtype)
        where = f"of {self._lm.name!r}"
        rows = {site: check_rows(x, f"{site} {where}", allow_zero=True) for site, x in passage.rows().items()}
        return Batch.of(self.layout, rows)._replace(passage=passage)

    def _read(self, group: Group, epoch: int, number: int) -> tuple[_Shuffled, int, int]:
        order = torch.randperm(
            len(group.contexts), generator=generator(self.seed, f"order of contexts in buffer {number}", epoch)
        )
        contexts = [group.contexts[i] for i in order.tolist()]
        ends = torch.tensor([int(context.keep.sum()) for context in contexts]).cumsum(0)
        return _Shuffled(contexts, ends), int(ends[-1]), int(ends[-1])


def _between(content: _Shuffled, at: slice) -> Iterator[Context]:
    """The contexts that have rows number at.start to at.stop, keeping these rows alone."""
    first, last = (int(i) for i in torch.searchsorted(content.ends, torch.tensor([at.start, at.stop - 1]), right=True))
    for number in range(first, last + 1):
        context = content.contexts[number]
        rank = context.keep.cumsum(0) + (int(content.ends[number - 1]) if number else 0)
        yield context._replace(keep=context.keep & (rank > at.start) & (rank <= at.stop))
