"""From documents to what a model sees: contexts of tokens, batches of contexts. Every token knows where it stands."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from overtone.data.models import LanguageModel, device_of
from overtone.data.text import Document

SMALL_BATCH = 512  # tokens; below it a forward pass costs more for being small than for its padding
TOKENISED_TOGETHER = 64  # documents; a fast tokenizer works on many in parallel
ADDED = -1  # place of a token that the tokenizer added


class Place(NamedTuple):
    """A place in the text: before token number `token` of document number `doc`."""

    doc: int
    token: int


class Context(NamedTuple):
    """A piece of text as the model sees it.

    Attributes:
        ids: the tokens.
        docs: every token's document.
        places: every token's number in its document; ADDED for special tokens around the text.
        keep: the tokens that become rows.
    """

    ids: Int[Tensor, " length"]
    docs: Int[Tensor, " length"]
    places: Int[Tensor, " length"]
    keep: Bool[Tensor, " length"]

    @property
    def doc(self) -> int:
        """The document that the context begins in."""
        return int(self.docs[0])

    @property
    def end(self) -> Place:
        """Where the text goes on after the context."""
        last = int((self.places != ADDED).nonzero()[-1])
        return Place(int(self.docs[last]), int(self.places[last]) + 1)

    def first(self, rows: int) -> tuple["Context", Place]:
        """(the context with its first `rows` ≥ 1 rows only, the place after the last of them)."""
        last = int(self.keep.nonzero()[min(rows, int(self.keep.sum())) - 1])
        keep = self.keep & (torch.arange(len(self.ids)) <= last)
        return self._replace(keep=keep), Place(int(self.docs[last]), int(self.places[last]) + 1)


class Batch(NamedTuple):
    """Contexts padded on the right to one length; `members` says which ones."""

    members: list[int]
    ids: Int[Tensor, "batch length"]
    mask: Int[Tensor, "batch length"]
    keep: Bool[Tensor, "batch length"]


class Cutter:
    """Cuts tokenised documents, fed one after the other, into contexts.

    Args:
        lm: its tokenizer says which special tokens stand around a text, its configuration how long a context may be.
        context: tokens per context, special ones counted.
        packed: fill every context, with several documents where they are short (separated by the end-of-text token, if
            the tokenizer has one); else every document begins a context and its last one may be short.
        drop_first: so many tokens of text at the start of every context give no rows (they draw attention sinks).

    Special tokens are never kept, be they added or written in the text (an unknown token is kept: it stands for text).

    Raises:
        ValueError: `context` beyond the model's positions, or too short for a token between the special ones.
    """

    def __init__(self, lm: LanguageModel, context: int, *, packed: bool = False, drop_first: int = 0):
        self.left, self.right, self.special = _special_tokens(lm.tokenizer)
        self.body = context - len(self.left) - len(self.right)
        limits = (_positions(lm), lm.tokenizer.model_max_length)
        limit = min(int(n) for n in limits if n)
        least = 1 + context - self.body + drop_first
        if context < least or context > limit:
            raise ValueError(f"context={context} must be {least} to {limit} tokens, the most {lm.name!r} takes")
        if drop_first < 0:
            raise ValueError(f"drop_first={drop_first} must be at least 0")
        self.packed, self.drop_first = packed, drop_first
        end = lm.tokenizer.eos_token_id
        self._separator = [] if end is None or not packed else [end]
        self._waiting = torch.empty(3, 0, dtype=torch.long)  # tokens, documents, places of a context not yet full

    def feed(self, doc: int, ids: Sequence[int], begin: int = 0) -> Iterator[Context]:
        """The contexts that the tokens ids[begin:] of a document complete."""
        # The separator's place is the document's length: a context that ends with it goes on with the next document.
        body = [*ids, *self._separator][begin:]
        places = torch.arange(begin, begin + len(body))
        new = torch.stack([torch.tensor(body, dtype=torch.long), torch.full_like(places, doc), places])
        text = torch.cat([self._waiting, new], 1)
        full = text.shape[1] - text.shape[1] % self.body if self.packed else text.shape[1]
        self._waiting = text[:, full:].clone()
        for piece in text[:, :full].split(self.body, dim=1) if full else ():
            yield self._context(piece)

    def finish(self) -> Iterator[Context]:
        """The last context of packed documents, which may be short."""
        if self._waiting.shape[1]:
            yield self._context(self._waiting)
            self._waiting = self._waiting[:, :0]

    def _context(self, text: Int[Tensor, "3 body"]) -> Context:
        def around(ids: list[int], document: Tensor) -> Tensor:
            return torch.tensor([[i, int(document), ADDED] for i in ids], dtype=torch.long).reshape(-1, 3).T

        text = torch.cat([around(self.left, text[1, 0]), text, around(self.right, text[1, -1])], 1)
        ids, docs, places = text.contiguous()
        keep = (places != ADDED) & ~torch.isin(ids, self.special)
        keep[: len(self.left) + self.drop_first] = False
        return Context(ids.int(), docs, places.int(), keep)


def contexts_of(
    lm: LanguageModel, docs: Sequence[Document], *, context: int, tokens: int | None = None
) -> Iterator[Context]:
    """Contexts of `context` tokens of documents in memory; see Cutter.

    Ends when `tokens` tokens are kept; the last context then keeps its first ones only.
    """
    cutter, todo = Cutter(lm, context), tokens
    for doc, ids in tokenised(lm.tokenizer, enumerate(docs)):
        for piece in cutter.feed(doc, ids):
            rows = int(piece.keep.sum())
            if todo is not None:
                if todo <= 0:
                    return
                if rows > todo:
                    piece, _ = piece.first(todo)
                todo -= rows
            yield piece


def tokenised(tokenizer: Any, docs: Iterable[tuple[int, Document]]) -> Iterator[tuple[int, list[int]]]:
    """(number, token ids without special tokens) of numbered documents."""
    together: list[tuple[int, Document]] = []

    def ids() -> Iterator[tuple[int, list[int]]]:
        texts = [doc.text for _, doc in together]
        found = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        yield from zip((number for number, _ in together), found, strict=True)

    for numbered in docs:
        together.append(numbered)
        if len(together) == TOKENISED_TOGETHER:
            yield from ids()
            together.clear()
    if together:
        yield from ids()


def _positions(lm: LanguageModel) -> int | None:
    return getattr(getattr(lm.model, "config", None), "max_position_embeddings", None)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int], Int[Tensor, " special"]]:
    """(ids put before a text, ids put after it, all special ids that stand for no text)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(full) + 1) if full[i : i + len(plain)] == plain)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return full[:at], full[at + len(plain) :], torch.tensor(sorted(special))


def batches_of(contexts: Sequence[Context], *, tokens: int, pad: int) -> Iterator[Batch]:
    """Batches of up to `tokens` tokens, longest contexts first: neighbours in length need little padding.

    A batch ends early when more than a tenth of it would be padding, unless it is still small.
    """
    lengths = [len(c.ids) for c in contexts]
    order = sorted(range(len(contexts)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        length, end, real = lengths[order[start]], start, 0
        while end < len(order):
            full, real = (end + 1 - start) * length, real + lengths[order[end]]
            if end > start and (full > tokens or (full > SMALL_BATCH and real < 0.9 * full)):
                break
            end += 1
        members, start = order[start:end], end
        yield padded(contexts, members, pad)


def padded(contexts: Sequence[Context], members: Sequence[int], pad: int) -> Batch:
    """Some of the contexts as one batch."""
    length = max((len(contexts[i].ids) for i in members), default=0)
    ids = torch.full((len(members), length), pad)
    mask, keep = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, i in enumerate(members):
        n = len(contexts[i].ids)
        ids[row, :n], keep[row, :n], mask[row, :n] = contexts[i].ids, contexts[i].keep, 1
    return Batch([*members], ids, mask, keep)


def model_inputs(lm: LanguageModel, batch: Batch) -> dict[str, Any]:
    """What the model is called with: ids and mask on its device; no key-value cache, unused here."""
    device = device_of(lm.model)
    inputs: dict[str, Any] = {"input_ids": batch.ids.to(device), "attention_mask": batch.mask.to(device)}
    if "use_cache" in inspect.signature(lm.model.forward).parameters:
        inputs["use_cache"] = False
    return inputs


def pad_id(tokenizer: Any) -> int:
    """Any id will do where there is no padding token: padding is masked and never becomes a row."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
