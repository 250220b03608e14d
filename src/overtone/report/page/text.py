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
    """

    rows: Shaped[np.ndarray, " rows"]
    tokens: Shaped[np.ndarray, " rows"]
    strings: list[str]

    def places(self, rows: Int[Tensor, " some"]) -> Shaped[np.ndarray, " some"]:
        """Where rows of windows that the text was made from stand in it; the rows of a window stand side by side."""
        return np.searchsorted(self.rows, rows.numpy())


def page_text(windows: Sequence[Windows], words: Words) -> PageText:
    """The text of some windows.

    Args:
        windows: of one text, any number of times the same row.
        words: of the ids of tokens that follow one another, the text that each adds (`TokenText.words`).
    """
    parts = [_tokens(w) for w in windows]
    rows, first = np.unique(np.concatenate([p[0] for p in parts]), return_index=True)
    ids, contexts = (np.concatenate([p[i] for p in parts])[first] for i in (1, 2))
    before = np.full(len(rows), -1)
    follows = (np.diff(rows) == 1) & (rows[1:] != contexts[1:])
    before[1:][follows] = ids[:-1][follows]
    pairs, of = np.unique(np.stack([before, ids], axis=1), axis=0, return_inverse=True)
    table: dict[str, int] = {}
    numbers = []
    for earlier, token in pairs.tolist():
        word = words([token] if earlier < 0 else [earlier, token])[-1]
        numbers.append(table.setdefault(word, len(table)))
    return PageText(rows, np.asarray(numbers, dtype=np.int64)[of.reshape(-1)], list(table))


def _tokens(windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, id, first row of its context) of every token in some windows."""
    shown = windows.token_ids >= 0
    rows = windows.start[..., None] + torch.arange(windows.token_ids.shape[-1])
    contexts = windows.context[..., None].expand_as(rows)
    return rows[shown].numpy(), windows.token_ids[shown].long().numpy(), contexts[shown].numpy()
