"""Compiled loops that find entries among products of 8-bit integers; only where the extra `fast` is installed."""

import math

import numpy as np
from numba import prange

from overtone.ops.compiled import PARTS, compile_loop, dot, four_dots, part_at

_LEVELS = np.float32(127)
# All bits of a float32 but its sign; without it, larger numbers have larger bits, which are compared sixteen at a time.
_SIZE = np.int32(2**31 - 1)
# Blocks per wanted entry of a row: the largest of each are what its k-th largest is guessed from.
_BLOCKS_PER_K = 16
# What float32 makes of a bias or threshold that is added, as a share of it.
_SLACK = np.float32(2.0**-20)
# Neighbouring tests of a row of products are looked at together: most have no candidate.
_TOGETHER = 8


@compile_loop()
def _largest_size(row):
    """max |row|; not-a-number where one is."""
    bits, largest = row.view(np.int32), np.zeros(1, np.int32)
    found = np.int32(0)
    for j in range(bits.shape[0]):
        found = max(found, bits[j] & _SIZE)
    largest[0] = found
    return largest.view(np.float32)[0]


@compile_loop()
def _quantise(row, levels):
    largest = _largest_size(row)
    step = largest / _LEVELS
    inverse = _LEVELS / largest if largest > 0 else np.float32(0)
    squares, rounded = np.float32(0), np.float32(0)
    for j in range(row.shape[0]):
        level = np.rint(row[j] * inverse)
        levels[j] = np.int8(level)
        left = row[j] - level * step
        squares += row[j] * row[j]
        rounded += left * left
    return step, math.sqrt(squares), math.sqrt(rounded)


@compile_loop(parallel=True)
def quantise(table, levels, scale, norm, error):
    """Rows of a table as integers times a scale; their norms, and the norms of what was rounded off."""
    for i in prange(table.shape[0]):
        scale[i], norm[i], error[i] = _quantise(table[i], levels[i])


@compile_loop()
def _places(may, blocks, place):
    """Where `may` is true; how many."""
    found = 0
    for block in range(blocks.shape[0]):
        if blocks[block] != 0:
            for r in range(block * _TOGETHER, (block + 1) * _TOGETHER):
                place[found] = r
                found += may[r]
    return found


@compile_loop()
def _dots(atom, x, place, found, out):
    """atom · x[place] of so many places."""
    whole = found // 4 * 4
    for c in range(0, whole, 4):
        rows = x[place[c]], x[place[c + 1]], x[place[c + 2]], x[place[c + 3]]
        out[c], out[c + 1], out[c + 2], out[c + 3] = four_dots(atom, rows[0], rows[1], rows[2], rows[3])
    for c in range(whole, found):
        out[c] = dot(atom, x[place[c]])


@compile_loop()
def _find_above(first, last, products, latent, row, x, atoms, limit, bias, rows_scale, rows_error, rows_size,
                atoms_scale, atoms_norm, atoms_error, threshold, rows, latents, values, fired, peak):  # fmt: skip
    batch, found = products.shape[1], 0
    may = np.zeros((batch + _TOGETHER - 1) // _TOGETHER * _TOGETHER, np.uint8)
    blocks, place = may.view(np.uint64), np.empty(len(may) + 1, np.int64)
    value = np.empty(len(may), np.float32)
    for i in range(first, last):
        m = latent + i
        scale, norm, error, least = atoms_scale[m], atoms_norm[m], atoms_error[m], limit[m]
        for r in range(batch):
            bound = np.float32(products[i, r]) * (scale * rows_scale[r]) + rows_error[r] * norm + rows_size[r] * error
            may[r] = bound >= least
        candidates = _places(may, blocks, place)
        if found + candidates > rows.shape[0]:
            return -1
        _dots(atoms[m], x, place, candidates, value)
        before, largest = found, np.float32(0)
        for c in range(candidates):
            above = value[c] + bias[m]
            rows[found], latents[found], values[found] = row + place[c], m, above
            if above > threshold:
                found += 1
                largest = max(largest, above)
        fired[m] += found - before
        peak[m] = max(peak[m], largest)
    return found


@compile_loop(parallel=True)
def find_above(products, latent, row, x, atoms, limit, bias, rows_scale, rows_error, rows_size,
               atoms_scale, atoms_norm, atoms_error, threshold, rows, latents, values, fired, peak, found):  # fmt: skip
    """Entries above the threshold among products [latents, rows] from a latent and a row on, latent by latent.

    A product that may lie above its latent's limit is computed again from x, these rows alone, and atoms. Every part of the
    latents writes its entries to lines of its own, and to `found` how many there are, −1 where they do not fit; number and
    largest of each latent are added to `fired` and `peak`.
    """
    total = products.shape[0]
    for turn in prange(PARTS):
        part = part_at(turn)
        found[part] = _find_above(
            total * part // PARTS, total * (part + 1) // PARTS, products, latent, row, x, atoms, limit, bias, rows_scale,
            rows_error, rows_size, atoms_scale, atoms_norm, atoms_error, threshold, rows[part], latents[part], values[part],
            fired, peak,
        )  # fmt: skip


@compile_loop()
def append(rows, latents, values, found, all_rows, all_latents, all_values, total):
    """Entries of all parts behind the `total` that there are; how many there are then, −1 where they do not fit."""
    for part in range(found.shape[0]):
        n = found[part]
        if n < 0 or total + n > all_rows.shape[0]:
            return -1
        for e in range(n):
            all_rows[total + e], all_latents[total + e] = rows[part, e], latents[part, e]
            all_values[total + e] = values[part, e]
        total += n
    return total


@compile_loop()
def sort_both(rows, latents, values, row_offsets, latent_offsets, by_row, by_row_values, order, by_latent):
    """Entries by row and by latent, that come such that the latents of a row ascend, and so do the rows of a latent.

    `row_offsets` and `latent_offsets` are zeros and become where each starts; `by_row` [2, entries] is row and latent in the one
    order, `by_latent` [2, entries] latent and row in the other, and `order` says where the entry there lies in the first.
    """
    for e in range(rows.shape[0]):
        row_offsets[rows[e] + 1] += 1
        latent_offsets[latents[e] + 1] += 1
    for r in range(row_offsets.shape[0] - 1):
        row_offsets[r + 1] += row_offsets[r]
    for m in range(latent_offsets.shape[0] - 1):
        latent_offsets[m + 1] += latent_offsets[m]
    row_end, latent_end = row_offsets[:-1].copy(), latent_offsets[:-1].copy()
    for e in range(rows.shape[0]):
        r, m = rows[e], latents[e]
        at, place = row_end[r], latent_end[m]
        row_end[r], latent_end[m] = at + 1, place + 1
        by_row[0, at], by_row[1, at], by_row_values[at] = r, m, values[e]
        by_latent[0, place], by_latent[1, place], order[place] = m, r, at


@compile_loop()
def _approximate(products, scale, atoms_scale, bias, signed, out):
    """What integers say of a row's pre-activations, or of their sizes."""
    for m in range(products.shape[0]):
        about = np.float32(products[m]) * (scale * atoms_scale[m]) + bias[m]
        out[m] = abs(about) if signed else about


@compile_loop(parallel=True)
def approximate(products, rows_scale, atoms_scale, bias, out):
    """What products [rows, latents] of integers say of the pre-activations."""
    for r in prange(products.shape[0]):
        _approximate(products[r], rows_scale[r], atoms_scale, bias, False, out[r])


@compile_loop()
def _kth_largest_at_least(about, k, maxima):
    """A lower bound of the k-th largest, from the maxima of blocks that take every so manyth entry."""
    blocks = maxima.shape[0]
    maxima[:] = -np.inf
    for start in range(0, about.shape[0], blocks):
        block = about[start : start + blocks]
        for j in range(block.shape[0]):
            maxima[j] = block[j] if block[j] > maxima[j] else maxima[j]
    return np.partition(maxima, blocks - k)[blocks - k]


@compile_loop()
def _values_at(row, atoms, bias, place, total, out):
    _dots(row, atoms, place, total, out)
    for c in range(total):
        out[c] += bias[place[c]]


@compile_loop()
def _kth_size(values, total, k, signed):
    sizes = np.abs(values[:total]) if signed else values[:total].copy()
    return np.partition(sizes, total - k)[total - k]


@compile_loop()
def _merge(place, total, known, known_values, knowns, values, missing):
    """Values of places that are known; where the others are. Places and known ones ascend."""
    at, unknown = 0, 0
    for c in range(total):
        while at < knowns and known[at] < place[c]:
            at += 1
        if at < knowns and known[at] == place[c]:
            values[c] = known_values[at]
        else:
            missing[unknown] = c
            unknown += 1
    return unknown


@compile_loop()
def _take_largest(values, place, total, k, signed, latents, taken):
    """The k largest of a row, where they are not zero or, unless signed, less; of equal ones the first. How many."""
    kth = _kth_size(values, total, k, signed) if total > k else np.float32(-np.inf)
    beyond, found = 0, 0
    for c in range(total):
        beyond += (abs(values[c]) if signed else values[c]) > kth
    room = k - beyond
    for c in range(total):
        size = abs(values[c]) if signed else values[c]
        tied = size == kth
        if (size > kth or (tied and room > 0)) and size > 0:
            latents[found], taken[found] = place[c], values[c]
            found += 1
        room -= tied
    return found


@compile_loop()
def _find_largest(products, row, atoms, bias, scale, row_error, row_size, atoms_scale, atoms_norm, atoms_error,
                  k, signed, latents, taken, about, may, place, value, known, known_value, missing):  # fmt: skip
    width = products.shape[0]
    blocks = may.view(np.uint64)
    _approximate(products, scale, atoms_scale, bias, signed, about)
    maxima = np.empty(min(width, _BLOCKS_PER_K * k), np.float32)
    guess = _kth_largest_at_least(about, k, maxima)
    for m in range(width):
        may[m] = about[m] >= guess
    knowns = _places(may, blocks, known)
    _values_at(row, atoms, bias, known, knowns, known_value)
    # So many entries are at least this; what cannot reach it is not among the largest.
    least = max(_kth_size(known_value, knowns, k, signed), np.float32(0))
    slack = _SLACK * least
    for m in range(width):
        bound = about[m] + row_error * atoms_norm[m] + row_size * atoms_error[m] + _SLACK * abs(bias[m])
        may[m] = bound + slack >= least
    total = _places(may, blocks, place)
    unknown = _merge(place, total, known, known_value, knowns, value, missing)
    for c in range(unknown):
        known[c] = place[missing[c]]
    _values_at(row, atoms, bias, known, unknown, known_value)
    for c in range(unknown):
        value[missing[c]] = known_value[c]
    return _take_largest(value, place, total, k, signed, latents, taken), total


@compile_loop(parallel=True)
def find_largest(products, x, atoms, bias, rows_scale, rows_error, rows_size, atoms_scale, atoms_norm, atoms_error,
                 k, signed, latents, values, found, asked):  # fmt: skip
    """The k largest entries of some rows, from products [rows, latents] of integers.

    Those that the products say are largest are computed in float32; what cannot reach the k-th of these, whatever was rounded
    off, is not asked. `latents` and `values` [rows, k] get them in the order of latents, `found` how many, `asked` how many
    entries were computed.
    """
    rows, width = products.shape
    padded = (width + _TOGETHER - 1) // _TOGETHER * _TOGETHER
    for part in prange(PARTS):
        about, may = np.empty(width, np.float32), np.zeros(padded, np.uint8)
        place, known, missing = (
            np.empty(padded + 1, np.int64),
            np.empty(padded + 1, np.int64),
            np.empty(padded, np.int64),
        )
        value, known_value = np.empty(padded, np.float32), np.empty(padded, np.float32)
        for r in range(rows * part // PARTS, rows * (part + 1) // PARTS):
            found[r], asked[r] = _find_largest(
                products[r], x[r], atoms, bias, rows_scale[r], rows_error[r], rows_size[r], atoms_scale, atoms_norm, atoms_error,
                k, signed, latents[r], values[r], about, may, place, value, known, known_value, missing,
            )  # fmt: skip
