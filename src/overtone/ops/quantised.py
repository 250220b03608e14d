"""Finding the entries that can be active from products of 8-bit integers, at twice the rate of bfloat16 ones.

Rows and atoms are rounded to 127 levels of their largest entry: x = x̂ + e, w = ŵ + f. Integers multiply exactly, and what
was rounded off is measured, so

    |w·x − ŵ·x̂| = |w·e + f·x̂| ≤ ‖e‖ ‖w‖ + ‖f‖ (‖x‖ + ‖e‖)

by Cauchy and Schwarz. What may so be active is computed again in float32, where the decision falls, as in
overtone.ops.screening. The bound is four times as wide as bfloat16's, but latents that seldom fire have thresholds far above it.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from overtone.ops import loops
from overtone.ops.entries import Entries, Tally
from overtone.ops.memory import lend

# Numbers of a piece of products, kept in cache (8 MiB), and rows below which the product itself is slow.
_PIECE, _FEWEST = 2**21, 64
# Where more than this share of all entries is active, other ways are faster.
_MOST_ENTRIES = 1 / 24
# Below this many products there is nothing to save.
_SMALLEST = 2**27
# What float32 does to d sums of the bound and of the decision, as shares of ‖x‖ ‖w‖; a few terms are of the bound itself.
_ROUNDING, _TERMS = 2.0**-23, 16


class Quantised(NamedTuple):
    """A matrix as integers times a scale per row; norms of its rows, and of what rounding took from them."""

    levels: Tensor
    scale: np.ndarray
    norm: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, table: Tensor) -> "Quantised":
        """A matrix, rounded."""
        from overtone.ops import compiled

        levels = lend(*table.shape, dtype=np.int8)
        scale, norm, error = np.empty((3, len(table)), np.float32)
        compiled.as_torch()
        compiled.quantise(table.numpy(), levels.numpy(), scale, norm, error)
        return cls(levels, scale, norm, error)

    def bounds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of rows x: scale, what ‖w‖ is multiplied by in the bound, and what ‖f‖ is."""
        rounding = np.float32(_ROUNDING * (self.levels.shape[1] + _TERMS))
        return self.scale, self.error + rounding * self.norm, self.norm + self.error


@cache
def is_available() -> bool:
    """Whether the loops can be compiled, and the CPU multiplies 8-bit integers fast and right."""
    if not loops.are_compiled() or not hasattr(torch, "_int_mm"):
        return False
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return supported is not None and supported() and _is_exact()


def _is_exact() -> bool:
    """Whether sums of the largest products do not saturate on their way."""
    a = torch.full((32, 256), 127, dtype=torch.int8)
    a[::2, ::3] = -127
    exact = a.double() @ a.double().T
    return bool((torch._int_mm(a, a.T) == exact).all())  # pyright: ignore[reportPrivateImportUsage]


def is_worthwhile(x: Tensor, W: Tensor) -> bool:
    """Whether this way can pay for these sizes on this CPU."""
    return x.shape[0] * W.shape[0] * W.shape[1] >= _SMALLEST and is_available()


@torch.no_grad()
def above(x: Tensor, W: Tensor, b: Tensor, threshold: float) -> Entries | None:
    """The entries of x Wᵀ + b above the threshold; None: there are many, other ways are faster."""
    from overtone.ops import compiled

    x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
    batch, latents = len(x), len(W)
    rows = Quantised.of(x)
    bounds = rows.bounds()
    limit = (threshold - b - 2.0**-20 * (b.abs() + abs(threshold))).numpy()
    # A threshold within the bound of 0 lets half of the rows through.
    if (limit <= 2 * bounds[1].max()).mean() > _MOST_ENTRIES or not np.isfinite(rows.norm).all():
        return None
    atoms = Quantised.of(W)
    fired, peak = np.empty(latents, np.int64), np.empty(latents, np.float32)
    size = min(max(_FEWEST, _PIECE // batch), latents)
    products = lend(size, batch, dtype=np.int32)
    threads = compiled.as_torch()
    room = round(_MOST_ENTRIES * size * batch / threads) + batch
    of_row, value = np.empty((threads, room), np.int64), np.empty((threads, room), np.float32)
    counts, found = np.zeros(threads, np.int64), []
    for start in range(0, latents, size):
        piece = atoms.levels[start : start + size]
        here = products[: len(piece)]
        torch._int_mm(piece, rows.levels.T, out=here)  # pyright: ignore[reportPrivateImportUsage]
        compiled.find_above(
            here.numpy(), start, x.numpy(), W.numpy(), limit, b.numpy(), *bounds, atoms.scale, atoms.norm, atoms.error,
            np.float32(threshold), of_row, value, fired, peak, counts,
        )  # fmt: skip
        if counts.min() < 0:
            return None
        found += [(of_row[t, :n].copy(), value[t, :n].copy()) for t, n in enumerate(counts)]
    return _in_order_of_rows(found, fired, peak, batch)


def _in_order_of_rows(
    found: list[tuple[np.ndarray, np.ndarray]], fired: np.ndarray, peak: np.ndarray, batch: int
) -> Entries:
    """Rows and values of the entries of one latent after the other, sorted by row."""
    from overtone.ops import compiled

    row, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    offsets = np.zeros(batch + 1, np.int64)
    rows, latents, order = np.empty((3, len(row)), np.int64)
    values = np.empty(len(row), np.float32)
    compiled.by_row(row, value, fired, offsets, rows, latents, values, order)
    tally = Tally(*map(torch.from_numpy, (offsets, fired, peak)))
    places = (torch.from_numpy(array) for array in (rows, latents, order))
    return Entries(torch.from_numpy(values), *places, tally=tally)
