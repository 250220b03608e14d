"""Finding the entries that can be active from products in bfloat16, at twice the rate of float32 ones.

Rounding errors of a product are bounded, so no active entry is missed: what may lie above its threshold is a candidate,
and candidates are computed again in float32, where the decision falls. With u = 2⁻⁹, the rounding of bfloat16, rows x and
atoms w, and the product ŷ as it is stored,

    |ŷ − (w·x + b)| ≤ E + 2u |ŷ|,   E = (2u + u² + d·2⁻²³) ‖x‖ ‖w‖ + u |b|:

both factors are rounded, by at most u each, Cauchy and Schwarz bound what that does to their product; d sums in float32
round as often; the bias and the result are rounded once more.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from overtone.ops import select
from overtone.ops.memory import lend

_U = 2.0**-9
# Numbers of a piece of products, kept in cache (8 MiB), and rows below which streaming the weights dominates.
_PIECE, _PIECE_ROWS = 2**22, 256
# Numbers of a piece of weights while it is converted.
_CONVERTED = 2**18
# Where more than this share of all entries are candidates, computing them one by one costs more than it saves.
_MOST_CANDIDATES = 1 / 24
# Below this many products there is nothing to save.
_SMALLEST = 2**27
# All bits but the sign.
_SIZE = np.int16(2**15 - 1)
# No bfloat16 compares below this: every entry is a candidate.
_ALL = np.int16(-(2**15))


# Stored products of some rows and scratch of their shape → that scratch, true where an entry is a candidate; None: give up.
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray | None]


class Screen(NamedTuple):
    """Rows and atoms in bfloat16, and the bound on what that does to their products (not counting 2u |ŷ|)."""

    x: Tensor
    W: Tensor
    error: Tensor  # per atom: E for the longest row
    row_error: Tensor  # per row: E for the longest atom, b included


@cache
def is_native() -> bool:
    """Whether the CPU multiplies bfloat16 itself; where it is emulated, float32 is faster."""
    supported = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(ask is not None and ask() for ask in supported)


def is_worthwhile(x: Tensor, W: Tensor) -> bool:
    """Whether screening can pay for these sizes on this CPU."""
    return is_native() and x.shape[0] * W.shape[0] * W.shape[1] >= _SMALLEST


def above(x: Tensor, W: Tensor, b: Tensor, threshold: float) -> Tensor | None:
    """Flat places, ascending, of a superset of the entries of x Wᵀ + b above the threshold; None: too many."""
    screen = _screen(x, W, None)
    lower = ((threshold - b) - screen.error - 2**-20 * b.abs()) / (1 + 2 * _U)
    keys = _keys_below(lower)
    if int((keys == _ALL).sum()) > _MOST_CANDIDATES * len(keys):
        return None
    return _collect(screen, None, lambda products, mask: np.greater_equal(products, keys, out=mask))


def largest(x: Tensor, W: Tensor, b: Tensor, k: int, *, signed: bool = False) -> Tensor | None:
    """Flat places, ascending, of a superset of the k largest entries of every row of x Wᵀ + b; None: too many.

    `signed`: of the k largest in size. | |ŷ| − |y| | ≤ |ŷ − y|, so the bound is the same.
    """
    screen = _screen(x, W, b)
    done = 0

    def choose(products: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        nonlocal done
        error = screen.row_error[done : done + len(products)]
        done += len(products)
        if signed:
            products = products & _SIZE
        keys = _keys_of_kth(select.kth_largest_at_least(products, k), error)
        return None if (keys == _ALL).any() else np.greater_equal(products, keys[:, None], out=mask)

    return _collect(screen, b.bfloat16(), choose)


def largest_of_all(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor | None:
    """As `largest`, for the k largest entries of all rows together."""
    screen = _screen(x, W, b)

    def choose(products: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        keys = _keys_of_kth(select.kth_largest_at_least(products.reshape(1, -1), k), screen.row_error.max())
        return None if keys[0] == _ALL else np.greater_equal(products, keys[0], out=mask)

    return _collect(screen, b.bfloat16(), choose, in_pieces=False)


def _keys_of_kth(bound: np.ndarray, error: Tensor) -> np.ndarray:
    """Integers that the stored k largest entries reach, where k of the stored ones reach `bound`.

    Those k are at least `kth` in truth; so are the k largest, and none of them is stored as much less.
    """
    stored = torch.from_numpy(bound).view(torch.bfloat16).float()
    kth = stored - 2 * _U * stored.abs() - error
    return _keys_below((kth - error) / (1 + 2 * _U))


def _screen(x: Tensor, W: Tensor, b: Tensor | None) -> Screen:
    (short_x, rows), (short_W, atoms) = _shortened(x), _shortened(W)
    share = 2 * _U + _U**2 + W.shape[1] * 2.0**-23
    bias = 0.0 if b is None else _U * b.abs().max()
    return Screen(short_x, short_W, share * rows.max() * atoms, share * atoms.max() * rows + bias)


def _shortened(t: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in bfloat16, and the norms of its rows."""
    short = lend(*t.shape, dtype=np.int16).view(torch.bfloat16)
    norms = torch.empty(len(t))
    size = max(1, _CONVERTED // t.shape[1])
    for first in range(0, len(t), size):  # in pieces that are still in cache when they are read again
        piece = slice(first, first + size)
        short[piece].copy_(t[piece])
        torch.linalg.vector_norm(t[piece], dim=1, out=norms[piece])
    return short, norms


def _collect(screen: Screen, b: Tensor | None, choose: Choose, in_pieces: bool = True) -> Tensor | None:
    """Places where `choose` marks the stored products, as ordered integers, of one piece of rows after the other."""
    latents = len(screen.W)
    size = min(len(screen.x), max(_PIECE // latents, _PIECE_ROWS)) if in_pieces else len(screen.x)
    products, mask = lend(size, latents, dtype=np.int16), lend(size, latents, dtype=np.bool_).numpy()
    stored = products.view(torch.bfloat16)
    places = []
    for first in range(0, len(screen.x), size):
        piece = screen.x[first : first + size]
        out, rows = stored[: len(piece)], len(piece)
        if b is None:
            torch.mm(piece, screen.W.T, out=out)
        else:
            torch.addmm(b, piece, screen.W.T, out=out)
        marked = choose(products.numpy()[:rows], mask[:rows])
        if marked is None:
            return None
        here = np.flatnonzero(marked)
        if len(here) > _MOST_CANDIDATES * rows * latents:
            return None
        here += first * latents
        places.append(torch.from_numpy(here))
    return torch.cat(places)


def _keys_below(lower: Tensor) -> np.ndarray:
    """Integers that a stored bfloat16 reaches, read as an integer, where it reaches `lower`; _ALL where lower ≤ 0.

    Positive numbers in bfloat16 are ordered as the integers of the same bits, and all negative ones are below.
    """
    bits = lower.float().view(torch.int32) >> 16  # rounded towards 0: downwards
    return torch.where(lower > 0, bits, int(_ALL)).to(torch.int16).numpy()
