"""Loops over entries, compiled by numba on first use and kept on disk; only where the extra `fast` is installed.

Sums may be reassociated, which lets them run in vector registers; nothing else is relaxed: not-a-number stays itself.
Threads are OpenMP's, as torch's are, and as many: `as_torch` says so before every call of a kernel with threads.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange

_LEVELS = np.float32(127)
# Neighbouring tests of a row of products are looked at together: most have no candidate.
_TOGETHER = 8
# Of rows to update, so many that threads have the same to do though neighbours fire about equally often.
_PARTS = 64
_TINY = np.float32(np.finfo(np.float32).tiny)


def _compile(parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
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


@_compile()
def _dot(a, b):
    total = np.float32(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@_compile(parallel=True)
def quantise(table, levels, scale, norm, error):
    """Rows of a table as integers times a scale; their norms, and the norms of what was rounded off."""
    for i in prange(table.shape[0]):
        row, largest = table[i], np.float32(0)
        for j in range(row.shape[0]):
            largest = max(largest, abs(row[j]))
        step = largest / _LEVELS
        inverse = _LEVELS / largest if largest > 0 else np.float32(0)
        squares, rounded = np.float32(0), np.float32(0)
        for j in range(row.shape[0]):
            level = np.rint(row[j] * inverse)
            levels[i, j] = np.int8(level)
            left = row[j] - level * step
            squares += row[j] * row[j]
            rounded += left * left
        scale[i], norm[i], error[i] = step, math.sqrt(squares), math.sqrt(rounded)


@_compile()
def _find_above(first, last, products, start, x, atoms, limit, bias, rows_scale, rows_error, rows_size,
                atoms_scale, atoms_norm, atoms_error, threshold, rows, values, fired, peak):  # fmt: skip
    batch, found = products.shape[1], 0
    may = np.zeros((batch + _TOGETHER - 1) // _TOGETHER * _TOGETHER, np.uint8)
    blocks = may.view(np.uint64)
    for i in range(first, last):
        m = start + i
        scale, norm, error, least = atoms_scale[m], atoms_norm[m], atoms_error[m], limit[m]
        for r in range(batch):
            bound = np.float32(products[i, r]) * (scale * rows_scale[r]) + rows_error[r] * norm + rows_size[r] * error
            may[r] = bound >= least
        before, largest = found, np.float32(0)
        for block in range(blocks.shape[0]):
            if blocks[block] == 0:
                continue
            for r in range(block * _TOGETHER, (block + 1) * _TOGETHER):
                if may[r] == 0:
                    continue
                value = _dot(x[r], atoms[m]) + bias[m]
                if value > threshold:
                    if found == rows.shape[0]:
                        return -1
                    rows[found], values[found] = r, value
                    found += 1
                    largest = max(largest, value)
        fired[m], peak[m] = found - before, largest
    return found


@_compile(parallel=True)
def find_above(products, start, x, atoms, limit, bias, rows_scale, rows_error, rows_size,
               atoms_scale, atoms_norm, atoms_error, threshold, rows, values, fired, peak, found):  # fmt: skip
    """Entries above the threshold among products [latents, batch] of the latents from `start` on, latent by latent.

    A product that may lie above its latent's limit is computed again from x and atoms. Every part of the latents writes
    rows and values of its entries to lines of its own, and to `found` how many there are, −1 where they do not fit;
    `fired` and `peak` get number and largest of each latent.
    """
    parts, latents = rows.shape[0], products.shape[0]
    for part in prange(parts):
        found[part] = _find_above(
            latents * part // parts, latents * (part + 1) // parts, products, start, x, atoms, limit, bias, rows_scale,
            rows_error, rows_size, atoms_scale, atoms_norm, atoms_error, threshold, rows[part], values[part], fired, peak,
        )  # fmt: skip


@_compile()
def by_row(rows, values, per_latent, offsets, of_rows, of_latents, of_values, order):
    """Entries sorted by latent, then row, sorted by row, then latent; `order` says where each went."""
    for r in rows:
        offsets[r + 1] += 1
    for r in range(offsets.shape[0] - 1):
        offsets[r + 1] += offsets[r]
    place = offsets[:-1].copy()
    entry = 0
    for m in range(per_latent.shape[0]):
        for _ in range(per_latent[m]):
            r = rows[entry]
            to = place[r]
            place[r] += 1
            of_rows[to], of_latents[to], of_values[to], order[entry] = r, m, values[entry], to
            entry += 1


@_compile()
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


@_compile(parallel=True)
def segment_sums(table, index, offsets, values, out):
    """out[s] = Σ value · table[index] over the entries offsets[s] … offsets[s + 1] of every segment."""
    for s in prange(out.shape[0]):
        out[s] = 0
        _add_up(table, index, values, offsets[s], offsets[s + 1], out[s])


@_compile(parallel=True)
def segment_dots(atoms, table, index, offsets, out):
    """out[entry] = atoms[s] · table[index[entry]] for every entry of every segment."""
    for s in prange(atoms.shape[0]):
        for e in range(offsets[s], offsets[s + 1]):
            out[e] = _dot(atoms[s], table[index[e]])


@_compile()
def _without_parallel(gradient, row):
    along, square = np.float32(0), _TINY
    for j in range(row.shape[0]):
        along += gradient[j] * row[j]
        square += row[j] * row[j]
    share = along / square
    for j in range(row.shape[0]):
        gradient[j] -= share * row[j]


@_compile()
def _adam(gradient, row, mean, square, numbers):
    """torch's arithmetic; the squared norm of the new row."""
    fresh, kept, added, rate, root, eps = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    total = np.float32(0)
    for j in range(row.shape[0]):
        g = gradient[j]
        m = mean[j] + fresh * (g - mean[j])
        v = kept * square[j] + added * g * g
        w = row[j] - rate * m / (np.sqrt(v) / root + eps)
        mean[j], square[j], row[j] = m, v, w
        total += w * w
    return total


@_compile(parallel=True)
def update_rows(weight, mean, square, dense, table, index, offsets, values,
                other_table, other_index, other_offsets, other_values, numbers, tangent, unit):  # fmt: skip
    """Adam's step on every row with its gradient: `dense`, where not empty, and two `segment_sums`, where not empty.

    With `tangent` the gradient's part along the row is left out, with `unit` the row is scaled to norm 1 in the end.
    """
    rows, d = weight.shape
    parts = min(rows, _PARTS)
    for part in prange(parts):
        gradient = np.empty(d, np.float32)
        for i in range(rows * part // parts, rows * (part + 1) // parts):
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
