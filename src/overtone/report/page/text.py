"""The text that a page shows: every token that some window shows, once, as a number into a table of strings."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from overtone.interpret.slots import Windows

Words = Callable[[list[int]], Sequence[str]]


class PageText(NamedTuple):
    """Tokens at some rows of a text, in its order.

    Attributes:
        rows: which rows, ascending.
        tokens: the string of each, by its number.
        strings: the table of them, all different.
        unit: what a row is called: tokens, or where there is no text, rows.
    """

    rows: Shaped[np.ndarray, " rows"]
    tokens: Shaped[np.ndarray, " rows"]
    strings: list[str]
    unit: str = "tokens"

    def places(self, rows: Int[Tensor, " some"]) -> Shaped[np.ndarray, " some"]:
        """Where rows of windows that the text was made from stand in it; the rows of a window stand side by side."""
        return np.searchsorted(self.rows, rows.numpy())


def page_text(windows: Sequence[Windows], words: Words, unit: str = "tokens") -> PageText:
    """The text of some windows.

    Args:
        windows: of one text, any number of times the same row.
        words: of the ids of tokens that follow one another, the text that each adds (`TokenText.words`).
        unit: what a row is called.
    """
    # By row and not by sorting: windows overlap so much that together they are many times the text.
    length = 1 + max((int(w.start.max()) + w.token_ids.shape[-1] for w in windows), default=0)
    every_id, every_context = np.full(length, -1), np.zeros(length, dtype=np.int64)
    for some in windows:
        at, ids, contexts = _tokens(some)
        every_id[at], every_context[at] = ids, contexts
    rows = np.flatnonzero(every_id >= 0)
    ids = every_id[rows]
    before = np.full(len(rows), -1)
    follows = (np.diff(rows) == 1) & (rows[1:] != every_context[rows[1:]])
    before[1:][follows] = ids[:-1][follows]
    kinds = 1 + int(ids.max(initial=0))
    pairs, of = np.unique((before + 1) * kinds + ids, return_inverse=True)
    table: dict[str, int] = {}
    numbers = []
    for pair in pairs.tolist():
        earlier, token = pair // kinds - 1, pair % kinds
        word = words([token] if earlier < 0 else [earlier, token])[-1]
        numbers.append(table.setdefault(word, len(table)))
    return PageText(rows, np.asarray(numbers, dtype=np.int64)[of], list(table), unit)


def _tokens(windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, id, first row of its context) of every token in some windows."""
    shown = windows.token_ids >= 0
    rows = windows.start[..., None] + torch.arange(windows.token_ids.shape[-1])
    contexts = windows.context[..., None].expand_as(rows)
    return rows[shown].numpy(), windows.token_ids[shown].long().numpy(), contexts[shown].numpy()
