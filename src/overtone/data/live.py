"""Training without a store: the model is read while a dictionary is trained, through a shuffle buffer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.contexts import Place
from overtone.data.filling import Group, HarvestPlan, groups, read_group, site_widths, usable
from overtone.data.harvest import Rows
from overtone.data.models import LanguageModel, fingerprint
from overtone.data.sites import resolve_site
from overtone.data.store import TRAIN
from overtone.seeds import generator


class Mixing(NamedTuple):
    """How well a shuffle buffer mixes.

    Attributes:
        rows: rows in the buffer.
        documents: documents that they come from.
        per_batch: mean number of different documents in a batch.
        perfect: the same, if the batch were drawn from the whole buffer's text in one perfect shuffle.
    """

    rows: int
    documents: int
    per_batch: float
    perfect: float


Content = TypeVar("Content")


class TextInBuffers(ABC, Generic[Content]):
    """Text in buffers: filled, shuffled, used up, filled again; the position is a few integers and resumes exactly.

    Args:
        lm: from load_model(plan.model).
        plan: what to read and how; its held-out documents are left out.
        batch: rows per batch.
        buffer_rows: rows in the buffer (at most one context fewer).
        seed: of the order within the buffer.
    """

    def __init__(self, lm: LanguageModel, plan: HarvestPlan, batch: int, *, buffer_rows: int, seed: int = 0):
        if not 1 <= batch <= buffer_rows:
            raise ValueError(f"batch={batch} must be from 1 to buffer_rows={buffer_rows}")
        if buffer_rows < plan.context:
            raise ValueError(f"buffer_rows={buffer_rows} must hold at least one context of {plan.context} tokens")
        self.batch, self.seed, self.buffer_rows = batch, seed, buffer_rows
        self._lm, self._plan = lm, plan
        self._resolved = [resolve_site(lm.model, name) for name in plan.sites]
        self.sites = site_widths(lm, self._resolved, plan)
        self._identity = {"fingerprint": fingerprint(lm.model), "buffer_rows": buffer_rows, "seed": seed}
        self._place = {"epoch": 0, "buffer": 0, "begin": [0, 0], "tokens": 0, "position": 0}
        self._groups = self._from(self._place)
        self._held: tuple[Any, _Buffer[Content]] | None = None

    @abstractmethod
    def _read(self, group: Group, epoch: int, number: int) -> tuple[Content, int, int]:
        """(what a buffer holds, how many rows of it are used, how many rows of text it took)."""

    def _take(self) -> Iterator[tuple[Content, slice]]:
        """The next batch's rows: what a buffer holds, and which rows of it; a batch may end one buffer and begin another."""
        missing = self.batch
        while missing:
            buffer = self._buffer()
            at = slice(self._place["position"], min(self._place["position"] + missing, buffer.rows))
            missing -= at.stop - at.start
            self._place = {**self._place, "position": at.stop}
            if at.stop == buffer.rows:
                self._place = self._after(buffer)
            yield buffer.content, at

    def state_dict(self) -> dict[str, Any]:
        """Where in the text the buffer begins, and how much of it has been used."""
        return {**self._place, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position; the buffer is read from the model again."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the stream of {self._plan.model} has {name}={value}, the saved position was of {name}={state.get(name)}; "
                    "resume with the same model, buffer and seed"
                )
        self._place = {name: state[name] for name in self._place}
        self._groups = self._from(self._place)
        if self._held is not None and self._held[0] == (state["epoch"], state["buffer"]):
            next(self._groups)  # the buffer is here already: its text is behind us
        else:
            self._held = None

    def _from(self, place: dict[str, Any]) -> Iterator[Group]:
        progress = {TRAIN: place["begin"], "tokens": {TRAIN: place["tokens"]}}
        return groups(self._lm, replace(self._plan, splits=(TRAIN,)), self.buffer_rows, progress)

    def _after(self, buffer: "_Buffer[Content]") -> dict[str, Any]:
        """The place after a buffer has been used up."""
        place = self._place
        tokens = place["tokens"] + buffer.tokens
        return {**place, "buffer": place["buffer"] + 1, "begin": list(buffer.end), "tokens": tokens, "position": 0}

    def _buffer(self) -> "_Buffer[Content]":
        """The current buffer, read unless it is there already."""
        key = (self._place["epoch"], self._place["buffer"])
        if self._held is None or self._held[0] != key:
            self._held = None  # frees the old buffer before the new one is read
            group = next(self._groups, None)
            if group is None:
                if key[1] == 0:
                    raise ValueError(f"the text {', '.join(self._plan.text)} holds no token; give another text")
                self._place = {"epoch": key[0] + 1, "buffer": 0, "begin": [0, 0], "tokens": 0, "position": 0}
                self._groups = self._from(self._place)
                return self._buffer()
            content, rows, tokens = self._read(group, *key)
            self._held = key, _Buffer(content, rows, group.end, tokens)
        return self._held[1]


class _Buffer(NamedTuple, Generic[Content]):
    """What is held, its number of rows, where the text goes on, and how much of it was taken."""

    content: Content
    rows: int
    end: Place
    tokens: int


class _Rows(NamedTuple):
    """Rows in the order of the text, the order to use them in, and their documents."""

    rows: dict[str, Tensor]
    order: Int[Tensor, " rows"]
    docs: Int[Tensor, " all"]


class HarvestStream(TextInBuffers[_Rows]):
    """Rows straight from a model: the buffer is filled with `buffer_rows` rows, shuffled, used up, filled again.

    Every row is used exactly once per pass over the text, and only rows that were in the buffer together are mixed: a
    store shuffles better and is read faster; this is for models whose activations outgrow the disk. Exact resume reads the
    buffer's rows again. Rows are kept in the plan's dtype. Arguments are those of `TextInBuffers`.
    """

    def next_rows(self) -> dict[str, Float[Tensor, "batch _"]]:
        """Site → the next batch of its rows; row i is of the same token at every site."""
        parts: dict[str, list[Tensor]] = {site: [] for site in self.sites}
        for held, at in self._take():
            for site in self.sites:
                parts[site].append(held.rows[site].index_select(0, held.order[at]).float())
        return {site: torch.cat(pieces) for site, pieces in parts.items()}

    def mixing(self) -> Mixing:
        """How well the first buffer mixes (reads it)."""
        held = self._buffer().content
        docs = held.docs[held.order]
        batches = [part for part in docs.split(self.batch) if len(part) == self.batch]
        share = docs.unique(return_counts=True)[1] / len(docs)
        return Mixing(
            rows=len(docs),
            documents=len(share),
            per_batch=sum(len(part.unique()) for part in batches) / max(1, len(batches)),
            perfect=float((1 - (1 - share.double()) ** self.batch).sum()),
        )

    def _read(self, group: Group, epoch: int, number: int) -> tuple[_Rows, int, int]:
        where = Rows.of(group.contexts)
        rows, norms = read_group(self._lm, self._plan, self._resolved, group, len(where.context), lambda _: None)
        keep, _ = usable(norms, self._plan)
        kept = keep.nonzero().flatten()
        order = torch.randperm(len(kept), generator=generator(self.seed, f"order of buffer {number}", epoch))
        return _Rows(rows, kept[order], where.doc_ids), len(kept), len(keep)
