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
from overtone.ops.select import kth_largest_at_least
from overtone.ops.transposed import Transposed

# Numbers of a piece of products, kept in cache (8 MiB), and its rows: so few that they stay in cache beside.
_PIECE, _PIECE_ROWS = 2**21, 512
# Rows of a piece that has to have all latents, where the product gets slow below.
_FEWEST_ROWS = 128
# How many more entries of a batch are looked for than are wanted.
_MARGIN = 1.15
# How much more than its share of entries a part of a piece may have.
_UNEVEN = 4
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
        from overtone.ops import compiled, search

        levels = lend(*table.shape, dtype=np.int8)
        scale, norm, error = np.empty((3, len(table)), np.float32)
        compiled.as_torch()
        search.quantise(table.numpy(), levels.numpy(), scale, norm, error)
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
    from overtone.ops import compiled, search

    x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
    batch, latents = len(x), len(W)
    rows = Quantised.of(x)
    bounds, bias = rows.bounds(), b.numpy()
    limit = threshold - bias - np.float32(2.0**-20) * (np.abs(bias) + np.float32(abs(threshold)))
    # A threshold within the bound of 0 lets half of the rows through.
    if (limit <= 2 * bounds[1].max()).mean() > _MOST_ENTRIES or not np.isfinite(rows.norm).all():
        return None
    atoms = Quantised.of(W)
    of_atoms = atoms.scale, atoms.norm, atoms.error
    short = min(batch, _PIECE_ROWS)
    size = min(_PIECE // short, latents)
    products = lend(size * short, dtype=np.int32)
    found, most = np.empty(compiled.PARTS, np.int64), round(_MOST_ENTRIES * latents * batch) + batch
    line = round(_UNEVEN * _MOST_ENTRIES * size * short / compiled.PARTS) + short
    lines = [np.empty((compiled.PARTS, line), dtype) for dtype in (np.int32, np.int32, np.float32)]
    entries = [np.empty(most, dtype) for dtype in (np.int32, np.int32, np.float32)]
    tally, total = (np.zeros(latents, np.int64), np.zeros(latents, np.float32)), 0
    compiled.as_torch()
    for latent in range(0, latents, size):
        levels = atoms.levels[latent : latent + size]
        for row in range(0, batch, short):
            piece = slice(row, row + short)
            part = rows.levels[piece]
            here = products[: len(levels) * len(part)].view(len(levels), len(part))
            torch._int_mm(levels, part.T, out=here)  # pyright: ignore[reportPrivateImportUsage]
            search.find_above(
                here.numpy(), latent, row, x[piece].numpy(), W.numpy(), limit, bias, *(bound[piece] for bound in bounds),
                *of_atoms, np.float32(threshold), *lines, *tally, found,
            )  # fmt: skip
            total = search.append(*lines, found, *entries, total)
            if total < 0:
                return None
    return _in_both_orders([part[:total] for part in entries], tally, batch)


@torch.no_grad()
def largest(x: Tensor, W: Tensor, b: Tensor, k: int, *, signed: bool = False) -> Entries | None:
    """The k largest entries of every row of x Wᵀ + b, where they are positive, or in size; None: others are faster."""
    from overtone.ops import compiled, search

    x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
    batch, total = len(x), len(W)
    rows, atoms = Quantised.of(x), Quantised.of(W)
    if not (np.isfinite(rows.norm).all() and np.isfinite(atoms.norm).all()):
        return None
    bounds, of_atoms = rows.bounds(), (atoms.scale, atoms.norm, atoms.error)
    size = min(batch, max(_FEWEST_ROWS, _PIECE // total))
    products = lend(size * total, dtype=np.int32)
    latents, values = np.empty((batch, k), np.int64), np.empty((batch, k), np.float32)
    found, asked = np.empty((2, batch), np.int64)
    compiled.as_torch()
    for row in range(0, batch, size):
        piece = slice(row, row + size)
        part = rows.levels[piece]
        here = products[: len(part) * total].view(len(part), total)
        torch._int_mm(part, atoms.levels.T, out=here)  # pyright: ignore[reportPrivateImportUsage]
        search.find_largest(
            here.numpy(), x[piece].numpy(), W.numpy(), b.numpy(), *(bound[piece] for bound in bounds), *of_atoms,
            k, signed, latents[piece], values[piece], found[piece], asked[piece],
        )  # fmt: skip
        if asked[piece].mean() > _MOST_ENTRIES * total:
            return None
    kept = np.arange(k) < found[:, None]
    of_row, of_latent = torch.from_numpy(np.arange(batch).repeat(found)), torch.from_numpy(latents[kept])
    return Entries(torch.from_numpy(values[kept]), of_row, of_latent, Transposed.of(of_latent, of_row, total))


@torch.no_grad()
def largest_of_batch(x: Tensor, W: Tensor, b: Tensor, k: int) -> Entries | None:
    """The k · batch largest entries of x Wᵀ + b, where they are positive; None: others are faster.

    Some of the rows say about where the smallest of them lies. Entries above a little less are found; are they enough, the
    largest are among them.
    """
    from overtone.ops import compiled, search

    some = x[:: max(1, len(x) // _FEWEST_ROWS)].contiguous()
    rows, atoms = Quantised.of(some), Quantised.of(W.contiguous())
    products, about = lend(len(some), len(W), dtype=np.int32), lend(len(some), len(W)).numpy()
    torch._int_mm(rows.levels, atoms.levels.T, out=products)  # pyright: ignore[reportPrivateImportUsage]
    compiled.as_torch()
    search.approximate(products.numpy(), rows.scale, atoms.scale, b.contiguous().numpy(), about)
    rank = min(round(_MARGIN * k * len(some)), about.size)
    threshold = max(0.0, float(kth_largest_at_least(about.reshape(1, -1), rank)[0]))
    entries = above(x, W, b, threshold)
    if entries is None or (len(entries.pre) < k * len(x) and threshold > 0):
        return None
    return entries


def _in_both_orders(entries: list[np.ndarray], tally: tuple[np.ndarray, np.ndarray], batch: int) -> Entries:
    """Rows, latents and values of entries, sorted by row and by latent."""
    from overtone.ops import search

    (fired, peak), total = tally, len(entries[0])
    row_offsets, latent_offsets = np.zeros(batch + 1, np.int64), np.zeros(len(fired) + 1, np.int64)
    by_row, by_latent = np.empty((2, 2, total), np.int64)
    order, values = np.empty(total, np.int64), np.empty(total, np.float32)
    search.sort_both(*entries, row_offsets, latent_offsets, by_row, values, order, by_latent)
    transposed = Transposed(*map(torch.from_numpy, (order, *by_latent, latent_offsets)))
    counted = Tally(*map(torch.from_numpy, (row_offsets, fired, peak)))
    of_row, of_latent = map(torch.from_numpy, by_row)
    return Entries(torch.from_numpy(values), of_row, of_latent, transposed, counted)
