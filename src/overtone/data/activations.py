"""Activations of one site in memory, with the tokens they belong to."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Activations:
    """Activations of one site, row by row in the order of the text.

    Attributes:
        x: the activations, float32, in the model's units.
        token_ids: the token at each row.
        doc_ids: the row's document, an index into `names`.
        position: the token's position in its context, the special tokens counted.
        context: the running number of the context; rows of one context are neighbours in the text.
        names: the documents' names.
        source: where it all came from (model, site, text, tokens, context, dtypes); JSON-able.
    """

    x: Float[Tensor, "rows d"]
    token_ids: Int[Tensor, " rows"]
    doc_ids: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    context: Int[Tensor, " rows"]
    names: tuple[str, ...]
    source: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of rows (tokens)."""
        return self.x.shape[0]

    @property
    def d(self) -> int:
        """Width of the site."""
        return self.x.shape[1]

    def snippet(self, row: int, tokenizer: Any, before: int = 8, after: int = 6) -> tuple[str, str, str]:
        """(left text, the row's token, right text), from the neighbouring rows of the same context.

        The three, joined, read as the text does. Raises IndexError when there is no such row.
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} is out of range; there are rows 0 to {self.rows - 1}")
        first, last = max(row - before, 0), min(row + after + 1, self.rows)
        near = range(first, last)
        same = [i for i in near if self.context[i] == self.context[row]]
        ids = self.token_ids[same].tolist()
        here = same.index(row)
        ends = [decode(tokenizer, ids[:n]) for n in (here, here + 1, len(ids))]
        token = added(ends[0], ends[1]) or decode(tokenizer, ids[here : here + 1])
        return ends[0], token, added(ends[1], ends[2])


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of some tokens."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def added(start: str, whole: str) -> str:
    """What `whole` adds to `start`; a character of several tokens is decoded only once it is whole."""
    same = (a == b for a, b in zip(start, whole, strict=False))
    return whole[next((i for i, equal in enumerate(same) if not equal), len(start)) :]
