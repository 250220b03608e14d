"""The GPU's kernels, in Triton: finding entries, sums over segments of entries, dot products per entry.

Matrices are contiguous with rows of their second size, accumulators are float32 whatever the types of the operands, and
sums of floating numbers run in a fixed order: same input, same bits. Programs along the first axis of the grid run
together, so the second axis takes the blocks of columns: what is gathered at a time is a slice of the table that stays in
the level-2 cache, where the whole table would not.
"""

import inspect
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import triton  # pyright: ignore[reportMissingImports] – comes with CUDA builds of torch alone
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor


@runtime_checkable
class Kernel(Protocol):
    """What is launched as kernel[grid](arguments)."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...


def _jit(function: Callable[..., None]) -> Kernel:
    """The kernel; where a checker of types has wrapped its function, of what is inside."""
    return triton.jit(inspect.unwrap(function))


def launch(kernel: Kernel, grid: tuple[int, ...], table: Tensor, *arguments: Tensor | int | None, **sizes: int) -> None:
    """Run a kernel on the device of its first argument."""
    with torch.cuda.device_of(table):
        # Multiplications fused with additions, which every version of Triton does when told to and not every one unasked.
        kernel[grid](table, *arguments, enable_fp_fusion=True, **sizes)


@_jit
def count_entries(
    linear,
    bias,
    limit,
    beyond,
    tied,
    latents_total,
    tiles,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Entries of y = linear + bias above their row's limit, and those equal to it, in every tile of latents of a row.

    Args:
        linear: [rows, latents] float32.
        bias: [latents]; None: 0.
        limit: [rows] float32.
        beyond: [rows, tiles] int32, written: entries above the limit.
        tied: [rows, tiles] int32, written: entries at the limit, where that is positive; None: not counted.
        latents_total: latents.
        tiles: tiles of a row.
        TILES: tiles of a program.
        TILE: latents of a tile.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    latent = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    inside = latent < latents_total
    y = tl.load(linear + row * latents_total + latent, mask=inside, other=float("-inf"))
    if bias is not None:
        y += tl.load(bias + latent, mask=inside, other=0).to(tl.float32)
    floor = tl.load(limit + row)
    place = row * tiles + tile
    tl.store(beyond + place, tl.sum((y > floor).to(tl.int32), 1), mask=tile < tiles)
    if tied is not None:
        tl.store(tied + place, tl.sum(((y == floor) & (y > 0)).to(tl.int32), 1), mask=tile < tiles)


@_jit
def fill_entries(
    linear,
    bias,
    limit,
    counts,
    ends,
    room,
    values,
    latents,
    fired,
    peak,
    latents_total,
    tiles,
    JUMP: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write the entries that `count_entries` counted to where they belong, and what every latent did.

    Tiles without entries, most of them, are not read again. Atomic additions of integers and maxima do not depend on
    their order; a maximum of positive floats is one of the integers with the same bits.

    Args:
        linear, bias, limit, latents_total, tiles, TILES, TILE: as in `count_entries`.
        counts: [rows, tiles] int32: entries of a tile.
        ends: [rows, tiles] int64: entries up to the end of a tile, of all tiles before it too.
        room: [rows, tiles] int32: of a tile's entries at the limit the first so many are active; None: none is.
        values: [entries], written: y, or linear where JUMP.
        latents: [entries] int64, written.
        fired: [latents] int32, increased by the entries with y > 0.
        peak: [latents] int32, raised to the bits of the largest y > 0.
        JUMP: values are without the bias.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    cell = row * tiles + tile
    count = tl.load(counts + cell, mask=tile < tiles, other=0)
    latent = tile[:, None] * TILE + tl.arange(0, TILE)[None, :]
    wanted = (latent < latents_total) & (count > 0)[:, None]
    product = tl.load(linear + row * latents_total + latent, mask=wanted, other=float("-inf"))
    y = product
    if bias is not None:
        y += tl.load(bias + latent, mask=wanted, other=0).to(tl.float32)
    floor = tl.load(limit + row)
    active = y > floor
    if room is not None:
        tied = (y == floor) & (y > 0)
        free = tl.load(room + cell, mask=tile < tiles, other=0)
        active = active | (tied & (tl.cumsum(tied.to(tl.int32), 1) <= free[:, None]))
    begin = tl.load(ends + cell, mask=tile < tiles, other=0) - count
    place = begin[:, None] + tl.cumsum(active.to(tl.int32), 1) - 1
    value = product if JUMP else y
    tl.store(values + place, value, mask=active)
    tl.store(latents + place, latent, mask=active)
    positive = active & (y > 0)
    tl.atomic_add(fired + latent, 1, mask=positive, sem="relaxed")
    tl.atomic_max(peak + latent, y.to(tl.int32, bitcast=True), mask=positive, sem="relaxed")


@_jit
def sum_segments(
    table,
    index,
    values,
    bounds,
    bias,
    out,
    rows,
    width,
    stages,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Running sums, from a row's last segment of entries to its first, of value · table[index].

    Args:
        table: [any, width].
        index: [entries] int64: row of the table.
        values: [entries].
        bounds: [rows · stages + 1] int64: segment s of row r is bounds[r · stages + s] … bounds[r · stages + s + 1] − 1.
        bias: [width], added to every result; None: 0.
        out: [stages, rows, width], written: result i is of the last i + 1 segments.
        rows, width, stages: sizes.
        CHUNK: entries gathered at once.
        BLOCK: columns of a program.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    acc = tl.zeros([CHUNK, BLOCK], dtype=tl.float32)
    for stage in range(stages):
        segment = bounds + row * stages + (stages - 1 - stage)
        end = tl.load(segment + 1)
        for first in range(tl.load(segment), end, CHUNK):
            entry = first + tl.arange(0, CHUNK)
            exists = entry < end
            source = tl.load(index + entry, mask=exists, other=0)
            value = tl.load(values + entry, mask=exists, other=0).to(tl.float32)
            there = exists[:, None] & inside[None, :]
            part = tl.load(table + source[:, None] * width + column[None, :], mask=there, other=0)
            acc += value[:, None] * part.to(tl.float32)
        total = tl.sum(acc, 0)
        if bias is not None:
            total += tl.load(bias + column, mask=inside, other=0).to(tl.float32)
        tl.store(out + (stage * rows + row) * width + column, total, mask=inside)


@_jit
def dot_pairs(
    left,
    right,
    left_index,
    right_index,
    order,
    out,
    entries,
    width,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Dot products left[left_index] · right[right_index] of one pair of rows per entry, stored at out[order].

    Args:
        left, right: [any, width].
        left_index, right_index: [entries] int64.
        order: [entries] int64: a permutation.
        out: [entries], written.
        entries, width: sizes.
        CHUNK: entries of a program.
        BLOCK: columns at a time.
    """
    entry = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    exists = entry < entries
    one = left + tl.load(left_index + entry, mask=exists, other=0)[:, None] * width
    other = right + tl.load(right_index + entry, mask=exists, other=0)[:, None] * width
    acc = tl.zeros([CHUNK, BLOCK], dtype=tl.float32)
    for first in range(0, width, BLOCK):
        column = (first + tl.arange(0, BLOCK))[None, :]
        there = exists[:, None] & (column < width)
        acc += tl.load(one + column, mask=there, other=0).to(tl.float32) * tl.load(
            other + column, mask=there, other=0
        ).to(tl.float32)
    tl.store(out + tl.load(order + entry, mask=exists, other=0), tl.sum(acc, 1), mask=exists)
