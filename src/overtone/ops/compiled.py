"""Loops over entries, compiled by numba on first use and kept on disk; only where the extra `fast` is installed.

Sums may be reassociated, which lets them run in vector registers; nothing else is relaxed: not-a-number stays itself.
Threads are OpenMP's, as torch's are, and as many: `as_torch` says so before every call of a kernel with threads.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange

# Segments are cut into so many parts, and threads get every few of them: neighbours fire about equally often.
PARTS, _STRIDE = 64, 8
_TINY = np.float32(np.finfo(np.float32).tiny)


def compile_loop(parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function; where a checker of types has wrapped it, what is inside."""
    options: dict[str, Any] = {"parallel": parallel, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        inner = inspect.unwrap(function)
        try:
            return njit(cache=True, **options)(inner)
        except RuntimeError:  # nowhere to write: compiled again in every process
            return njit(**options)(inner)

    return compiled


def as_torch() -> int:
    """Let kernels use as many threads as torch does; how many that is."""
    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
    numba.set_num_threads(threads)
    # The first call starts numba's threads, and tells the OpenMP that torch shares with it to use all cores.
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    return threads


@compile_loop()
def part_at(turn):
    """Which part is the next: threads take neighbouring turns, whose parts lie apart."""
    return turn % _STRIDE * (PARTS // _STRIDE) + turn // _STRIDE


@compile_loop()
def dot(a, b):
    """a · b."""
    total = np.float32(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@compile_loop()
def four_dots(a, p, q, r, s):
    """a · p, a · q, a · r and a · s, each as `dot` adds it."""
    first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(a.shape[0]):
        first += a[j] * p[j]
        second += a[j] * q[j]
        third += a[j] * r[j]
        fourth += a[j] * s[j]
    return first, second, third, fourth


@compile_loop()
def _add_up(table, index, values, first, last, out):
    """Four entries at a time: the sum is loaded and stored a quarter as often."""
    whole = first + (last - first) // 4 * 4
    for e in range(first, whole, 4):
        a, b, c, d = table[index[e]], table[index[e + 1]], table[index[e + 2]], table[index[e + 3]]
        za, zb, zc, zd = values[e], values[e + 1], values[e + 2], values[e + 3]
        for j in range(out.shape[0]):
            out[j] += (za * a[j] + zb * b[j]) + (zc * c[j] + zd * d[j])
    for e in range(whole, last):
        row, z = table[index[e]], values[e]
        for j in range(out.shape[0]):
            out[j] += z * row[j]


@compile_loop(parallel=True)
def segment_sums(table, index, offsets, values, out):
    """out[s] = Σ value · table[index] over the entries offsets[s] … offsets[s + 1] of every segment."""
    segments = out.shape[0]
    for turn in prange(PARTS):
        part = part_at(turn)
        for s in range(segments * part // PARTS, segments * (part + 1) // PARTS):
            out[s] = 0
            _add_up(table, index, values, offsets[s], offsets[s + 1], out[s])


@compile_loop()
def _dots_with(atom, table, index, first, last, out):
    """Four at a time: the atom is loaded a quarter as often, and their rows come from memory together."""
    whole = first + (last - first) // 4 * 4
    for e in range(first, whole, 4):
        out[e], out[e + 1], out[e + 2], out[e + 3] = four_dots(
            atom, table[index[e]], table[index[e + 1]], table[index[e + 2]], table[index[e + 3]]
        )
    for e in range(whole, last):
        out[e] = dot(atom, table[index[e]])


@compile_loop(parallel=True)
def segment_dots(atoms, table, index, offsets, out):
    """out[entry] = atoms[s] · table[index[entry]] for every entry of every segment."""
    segments = atoms.shape[0]
    for turn in prange(PARTS):
        part = part_at(turn)
        for s in range(segments * part // PARTS, segments * (part + 1) // PARTS):
            _dots_with(atoms[s], table, index, offsets[s], offsets[s + 1], out)


@compile_loop()
def sort_by_latent(latents, rows, offsets, order, by_latent, by_latent_rows):
    """Entries by latent, in their order where latents are equal; `offsets` are zeros and become where each latent's start."""
    for m in latents:
        offsets[m + 1] += 1
    for m in range(offsets.shape[0] - 1):
        offsets[m + 1] += offsets[m]
    end = offsets[:-1].copy()
    for e in range(latents.shape[0]):
        m = latents[e]
        place = end[m]
        end[m] = place + 1
        order[place], by_latent[place], by_latent_rows[place] = e, m, rows[e]


@compile_loop()
def _without_parallel(gradient, row):
    along, square = np.float32(0), _TINY
    for j in range(row.shape[0]):
        along += gradient[j] * row[j]
        square += row[j] * row[j]
    share = along / square
    for j in range(row.shape[0]):
        gradient[j] -= share * row[j]


@compile_loop()
def _adam(gradient, row, mean, square, numbers):
    """torch's arithmetic; the squared norm of the new row."""
    fresh, kept, added, rate, share, eps = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    total = np.float32(0)
    for j in range(row.shape[0]):
        g = gradient[j]
        m = mean[j] + fresh * (g - mean[j])
        v = kept * square[j] + added * g * g
        w = row[j] - rate * m / (np.sqrt(v) * share + eps)
        mean[j], square[j], row[j] = m, v, w
        total += w * w
    return total


@compile_loop(parallel=True)
def update_rows(weight, mean, square, dense, table, index, offsets, values,
                other_table, other_index, other_offsets, other_values, numbers, tangent, unit):  # fmt: skip
    """Adam's step on every row with its gradient: `dense`, where not empty, and two `segment_sums`, where not empty.

    With `tangent` the gradient's part along the row is left out, with `unit` the row is scaled to norm 1 in the end.
    """
    rows, d = weight.shape
    for turn in prange(PARTS):
        part = part_at(turn)
        gradient = np.empty(d, np.float32)
        for i in range(rows * part // PARTS, rows * (part + 1) // PARTS):
            if len(dense):
                gradient[:] = dense[i]
            else:
                gradient[:] = np.float32(0)
            if len(index):
                _add_up(table, index, values, offsets[i], offsets[i + 1], gradient)
            if len(other_index):
                _add_up(other_table, other_index, other_values, other_offsets[i], other_offsets[i + 1], gradient)
            if tangent:
                _without_parallel(gradient, weight[i])
            norm = np.sqrt(_adam(gradient, weight[i], mean[i], square[i], numbers))
            if unit:
                norm = max(norm, _TINY)
                for j in range(d):
                    weight[i, j] /= norm
