"""One pass over the rows of a matrix: their gradients summed from entries, Adam's step, and back to the sphere.

Apart, these are a dozen passes over matrices that fit in no cache; together each row is read and written once.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overtone.ops import loops
from overtone.ops.deferred import EntrySum
from overtone.ops.memory import lend
from overtone.ops.precision import fast_float32
from overtone.ops.transposed import BLOCK, Block, is_dense

# Sums over few entries that a pass takes as they are; an encoder's and a decoder's are two.
_SUMS = 2


class AdamStep(NamedTuple):
    """A step of Adam (Kingma & Ba, arXiv 1412.6980), without weight decay.

    Attributes:
        lr: learning rate.
        betas: of the two moments.
        eps: ε.
        step: its number, from 1.
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    step: int

    def numbers(self) -> np.ndarray:
        """What a row needs of it: 1 − β₁, β₂, 1 − β₂, the rate with the first moment's correction, 1 / √ of the second's, ε."""
        first, second = self.betas
        rate, root = self.lr / (1 - first**self.step), math.sqrt(1 - second**self.step)
        return np.array([1 - first, second, 1 - second, rate, 1 / root, self.eps], np.float32)


class Rows(NamedTuple):
    """A matrix that a pass updates in place.

    Attributes:
        weight: the rows.
        mean, square: Adam's moments.
        tangent: whether what is parallel to a row is taken out of its gradient first.
        unit: whether rows go back to the unit sphere.
    """

    weight: Float[Tensor, "latents d"]
    mean: Float[Tensor, "latents d"]
    square: Float[Tensor, "latents d"]
    tangent: bool
    unit: bool


def can_update_rows(weight: Tensor) -> bool:
    """Whether rows of this matrix can be updated in one pass."""
    kind = weight.device.type, weight.dtype
    return kind == ("cpu", torch.float32) and weight.is_contiguous() and loops.are_compiled()


@torch.no_grad()
def update_rows(
    rows: Rows, gradient: Float[Tensor, "latents d"] | None, sums: Sequence[EntrySum], adam: AdamStep
) -> None:
    """A step with the sums' gradients and, where there is one, a matrix beside. Rows do not depend on each other."""
    from overtone.ops import compiled

    for extra in sums[_SUMS:]:
        gradient = extra.summed() if gradient is None else gradient + extra.summed()
    sums, numbers, d = sums[:_SUMS], adam.numbers(), rows.weight.shape[1]
    sorted_values = [one.values.index_select(0, one.transposed.order) for one in sums]
    compiled.as_torch()
    for latents in _blocks(len(rows.weight), sums, max(1, BLOCK // d)):
        given = None if gradient is None else gradient[latents]
        few: list[np.ndarray] = []
        for one, values in zip(sums, sorted_values, strict=True):
            table, bounds = one.table_of(latents.start), one.transposed.offsets[latents.start : latents.stop + 1]
            entries = slice(int(bounds[0]), int(bounds[-1]))
            if is_dense(entries.stop - entries.start, len(table), latents.stop - latents.start):
                given = _added(given, one, Block(0, latents, entries, True), values, table)
            else:
                parts = table, one.transposed.rows[entries], bounds - entries.start, values[entries]
                few += [part.contiguous().numpy() for part in parts]
        dense = np.empty((0, d), np.float32) if given is None else given.contiguous().numpy()
        none = [np.empty((0, d), np.float32), np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.float32)]
        few += none * (_SUMS - len(few) // len(none))
        matrices = (matrix[latents].numpy() for matrix in rows[:3])
        compiled.update_rows(*matrices, dense, *few, numbers, rows.tangent, rows.unit)
    torch.autograd.graph.increment_version(rows.weight)


def _blocks(latents: int, sums: Sequence[EntrySum], width: int) -> Iterator[slice]:
    """Neighbouring latents of one group of every sum: at most so many, or any number that are dense in none."""
    ends = {latents}
    for one in sums:
        ends.update(accumulate(one.sizes))
    first = 0
    for end in sorted(ends):
        cuts = [*range(first, end, width), end]
        entries = [(one.transposed.offsets[cuts].tolist(), len(one.tables[0])) for one in sums]
        for i, (start, stop) in enumerate(pairwise(cuts)):
            if any(is_dense(at[i + 1] - at[i], batch, stop - start) for at, batch in entries):
                if first < start:
                    yield slice(first, start)
                yield slice(start, stop)
                first = stop
        if first < end:
            yield slice(first, end)
        first = end


def _added(given: Tensor | None, one: EntrySum, block: Block, values: Tensor, table: Tensor) -> Tensor:
    """A block's gradient and the sums of latents that fire so often that a product of matrices makes them."""
    codes = one.transposed.matrix(block, values, len(table))
    with fast_float32():
        made = torch.mm(codes, table, out=lend(block.width, table.shape[1]))
    return made if given is None else made.add_(given)
