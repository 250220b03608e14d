"""Dictionaries beside each other on the same text: one's codes where another's fire, and all of theirs on some passages."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.text_rows import TextRows
from overtone.interpret.sampling import fixed_uniform
from overtone.interpret.slots import Windows, codes_between
from overtone.ops import SparseCodes

SHORTEST = 8  # tokens of a passage


class Alongside:
    """Codes of a dictionary in windows that belong to the latents of another, a latent of its own for each of those.

    Watches a pass of the dictionary over the text that the windows are of (`watch_codes`).

    Args:
        windows: latent by latent of the other dictionary.
        latent: whose codes are wanted in the windows of each of its latents; −1: nobody's.
    """

    def __init__(self, windows: Windows, latent: Int[Tensor, " latents"]):
        held = ((windows.row >= 0) & (latent >= 0)[:, None]).nonzero()
        start = windows.start[held[:, 0], held[:, 1]]
        order = start.argsort()
        self._owner, self._slot, self._start = held[order, 0], held[order, 1], start[order]
        self._length = (windows.token_ids >= 0).sum(-1)[self._owner, self._slot]
        self._latent = latent[self._owner]
        self.codes: Float[Tensor, "latents slots width"] = torch.zeros(windows.codes.shape)

    def add(self, codes: SparseCodes, text: TextRows) -> None:
        """Codes of some whole contexts; no window reaches beyond its own."""
        rows = len(text.token_ids)
        edges = torch.searchsorted(self._start, torch.tensor([text.first, text.first + rows]))
        here = slice(*edges.tolist())
        if here.start == here.stop:
            return
        key, order = (codes.latents.cpu() * rows + codes.rows.cpu()).sort()
        begin = self._latent[here] * rows + self._start[here] - text.first
        values = codes.values.detach().float().cpu()[order]
        found = codes_between(key, values, begin, begin + self._length[here], self.codes.shape[-1])
        self.codes[self._owner[here], self._slot[here]] = found


class Passage(NamedTuple):
    """Some tokens of a text in its order, and every active latent on each of them.

    Attributes:
        row: number of its first row, counted over the text.
        context: the first row of its context.
        token_ids: its tokens.
        codes: of a dictionary, row by row.
    """

    row: int
    context: int
    token_ids: Int[Tensor, " length"]
    codes: SparseCodes

    def window(self) -> Windows:
        """Its tokens alone, as what holds one window does."""
        row, context = torch.tensor([self.row]), torch.tensor([self.context])
        return Windows(row, row, context, self.token_ids[None].int(), torch.zeros(1, len(self.token_ids)))


class Passages:
    """Keeps a fixed sample of passages: the same ones for every dictionary that reads the text.

    Args:
        count: how many.
        width: tokens of each, at most; contexts are cut into so many.
        seed: of the sample.
    """

    def __init__(self, count: int, width: int, seed: int = 0):
        self.count, self.width, self.seed = count, width, seed
        self._kept: list[tuple[float, Passage]] = []

    def add(self, codes: SparseCodes, text: TextRows) -> None:
        """Codes of some whole contexts."""
        begin, end = text.bounds
        row = torch.arange(len(begin))
        starts = row[(row - begin) % self.width == 0]
        stops = torch.minimum(starts + self.width, end[starts])
        # A passage of a few tokens says little.
        long = stops - starts >= min(self.width, SHORTEST)
        starts, stops = starts[long], stops[long]
        drawn = fixed_uniform(self.seed, torch.full_like(starts, -3), starts + text.first)
        for i in drawn.argsort()[: self.count].tolist():
            first, last, context = int(starts[i]), int(stops[i]), int(begin[starts[i]])
            ids = text.token_ids[first:last].clone()
            kept = Passage(first + text.first, context + text.first, ids, part_of(codes, first, last))
            self._kept.append((float(drawn[i]), kept))
        self._kept = sorted(self._kept, key=lambda kept: kept[0])[: self.count]

    def passages(self) -> list[Passage]:
        """In the order of the text."""
        return sorted((passage for _, passage in self._kept), key=lambda passage: passage.row)


def part_of(codes: SparseCodes, first: int, last: int) -> SparseCodes:
    """Codes of the rows from `first` to below `last`, on the CPU and without gradients."""
    offsets = codes.offsets[first : last + 1].cpu()
    low, high = int(offsets[0]), int(offsets[-1])
    values = codes.values[low:high].detach().float().cpu().clone()
    return SparseCodes(values, codes.latents[low:high].cpu().clone(), offsets - low, codes.latents_total)
