"""Which latents of a piece of pre-activations are active, on the CPU: one pass, never a sort over all latents.

numpy and not torch: its comparison and its search for true entries are five times as fast on one core.
"""

import numpy as np

# Blocks per wanted entry: more of them let fewer unwanted candidates through, fewer are searched faster.
_BLOCKS_PER_K = 16
# pre ≥ this is pre > 0.
_ABOVE_ZERO = np.nextafter(np.float32(0), np.float32(1))


def above(pre: np.ndarray, mask: np.ndarray, threshold: float) -> np.ndarray:
    """Flat indices, ascending, of the entries of pre [rows, latents] above the threshold. `mask` is scratch of its shape."""
    return np.flatnonzero(np.greater(pre, np.float32(threshold), out=mask))


def at_least_kth(pre: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    """Flat indices, ascending, of few positive entries of pre [rows, latents], the k largest of every row among them."""
    floor = np.maximum(kth_largest_at_least(pre, k), _ABOVE_ZERO)
    return np.flatnonzero(np.greater_equal(pre, floor[:, None], out=mask))


def at_least_kth_of_all(pre: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    """As `at_least_kth`, for the k largest of all rows together."""
    floor = max(kth_largest_at_least(pre.reshape(1, -1), k)[0], _ABOVE_ZERO)
    return np.flatnonzero(np.greater_equal(pre, floor, out=mask))


def largest_of_groups(pre: np.ndarray, k: int) -> np.ndarray:
    """Flat indices, ascending, of the largest entry of each of k groups of neighbouring latents in every row of pre.

    Of equal entries the first wins. The first groups have one latent more where k does not divide their number.
    """
    rows, latents = pre.shape
    size, larger = divmod(latents, k)
    split = larger * (size + 1)
    first = pre[:, :split].reshape(rows, larger, size + 1).argmax(2) + np.arange(larger) * (size + 1)
    rest = pre[:, split:].reshape(rows, k - larger, size).argmax(2) + split + np.arange(k - larger) * size
    return (np.concatenate([first, rest], axis=1) + np.arange(rows)[:, None] * latents).reshape(-1)


def largest(values: np.ndarray, row: np.ndarray, rows: int, k: int) -> np.ndarray:
    """Which of some entries, given in the order of rows, are among the k largest of their row.

    Of equal entries the first wins.
    """
    starts = np.searchsorted(row, np.arange(rows + 1))
    kth = _kth_largest_of_segments(values, row, starts, k)
    beyond, tied = values > kth[row], values == kth[row]
    # Running counts before each entry, less those before its row: its rank among the ties of the row.
    ties_before = np.concatenate(([0], np.cumsum(tied)))
    rank = ties_before[:-1] - ties_before[starts[row]]
    room = k - np.bincount(row[beyond], minlength=rows)
    return beyond | (tied & (rank < room[row]))


def kth_largest_at_least(pre: np.ndarray, k: int) -> np.ndarray:
    """A lower bound [rows] of every row's k-th largest entry: that of the maxima of blocks of latents.

    k blocks have a maximum that large, so k entries are. A block takes every blocks-th latent: maxima of contiguous
    vectors, and neighbours in the dictionary, often active together, fall in different blocks.
    """
    rows, latents = pre.shape
    blocks = _BLOCKS_PER_K * k
    depth = latents // blocks
    if depth < 2:
        return np.partition(pre, latents - k, axis=1)[:, latents - k]
    maxima = pre[:, : depth * blocks].reshape(rows, depth, blocks).max(axis=1)
    rest = pre[:, depth * blocks :]
    np.maximum(maxima[:, : rest.shape[1]], rest, out=maxima[:, : rest.shape[1]])
    return np.partition(maxima, blocks - k, axis=1)[:, blocks - k]


def _kth_largest_of_segments(values: np.ndarray, segment: np.ndarray, starts: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest value of every segment, −∞ for segments of fewer than k."""
    width = max(int(np.diff(starts).max()), k)
    padded = np.full((len(starts) - 1, width), -np.inf, values.dtype)
    padded[segment, np.arange(len(values)) - starts[segment]] = values
    return np.partition(padded, width - k, axis=1)[:, width - k]
