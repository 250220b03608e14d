"""The operations for float32 on the CPU. `reference` says what they compute; this module only says how.

Encoding finds the few entries that may be active, from products in bfloat16 where the CPU has them (overtone.ops.screening)
and else from float32 ones, one piece of rows after the other, selected while in cache: pre-activations of the whole batch
never exist. Decisions fall in float32. Everything after costs O(L0 · d) per row.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from overtone.ops import dense, quantised
from overtone.ops.candidates import (
    Above,
    Largest,
    LargestOfBatch,
    LargestOfGroups,
    LargestSizes,
    Rule,
    active_entries,
    largest_entries,
    largest_entries_of_parts,
    screened_places,
    shifted_by,
)
from overtone.ops.codes import Encoded, SparseCodes
from overtone.ops.deferred import EntrySum, sink_of
from overtone.ops.entries import Entries, Tally
from overtone.ops.loops import weighted_sums
from overtone.ops.memory import lend
from overtone.ops.precision import fast_float32
from overtone.ops.shared import among_largest_of_rows
from overtone.ops.transposed import Transposed, is_dense
from overtone.parallel import ALONE, Axis, World

# Numbers of a decoded piece, summed over its groups while in cache.
_DECODED = 2**20


def encode_threshold(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    *,
    centre: Float[Tensor, " d"] | None = None,
    threshold: float = 0.0,
    jump: bool = False,
) -> Encoded:
    """See `overtone.ops.encode_threshold`."""
    rule, shifted = Above(threshold), shifted_by(x, centre)
    if quantised.is_worthwhile(shifted, W_enc):
        entries = quantised.above(shifted, W_enc, b_enc, threshold)
        if entries is not None:
            return _encode(x, W_enc, b_enc, centre, jump, shifted, entries)
    places = screened_places(shifted, W_enc, b_enc, rule)
    if places is None and dense.probe(shifted, W_enc, b_enc, threshold):
        return dense.encode_above(x, W_enc, b_enc, centre, jump, threshold)
    return _encode(x, W_enc, b_enc, centre, jump, shifted, active_entries(shifted, W_enc, b_enc, rule, places))


def encode_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    ranks: Axis = ALONE,
) -> Encoded:
    """See `overtone.ops.encode_topk`."""
    return _encode_largest(Largest(min(k, len(W_enc))), x, W_enc, b_enc, centre, k, ranks)


def encode_batch_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_batch_topk`."""
    return _encode_largest(LargestOfBatch(k), x, W_enc, b_enc, centre)


def encode_batch_topk_in_parts(
    parts: Sequence[Tensor],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    world: World,
) -> Iterator[Encoded]:
    """See `overtone.ops.encode_batch_topk_in_parts`."""
    if len(parts) == world.size == 1:
        yield encode_batch_topk(parts[0], W_enc, b_enc, k, centre=centre)
        return
    found = largest_entries_of_parts(parts, W_enc, b_enc, centre, k, world)
    for x, entries in zip(parts, found, strict=True):
        yield _encode(x, W_enc, b_enc, centre, False, shifted_by(x, centre), entries)


def encode_abs_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    ranks: Axis = ALONE,
) -> Encoded:
    """See `overtone.ops.encode_abs_topk`."""
    return _encode_largest(LargestSizes(min(k, len(W_enc))), x, W_enc, b_enc, centre, k, ranks)


def encode_group_max(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_group_max`."""
    return _encode_largest(LargestOfGroups(k), x, W_enc, b_enc, centre)


def _encode_largest(
    rule: Rule, x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor | None, k: int = 0, ranks: Axis = ALONE
) -> Encoded:
    """The largest entries by a rule; with k, the k largest of every row where ranks share the latents."""
    shifted = shifted_by(x, centre)
    entries = largest_entries(shifted, W_enc, b_enc, rule)
    if ranks.size > 1:
        size = entries.pre.abs() if rule.signed else entries.pre
        entries = entries.where(among_largest_of_rows(size, entries.rows, len(x), k, ranks))
    return _encode(x, W_enc, b_enc, centre, False, shifted, entries, signed=rule.signed)


def decode(
    codes: SparseCodes, W_dec: Float[Tensor, "latents d"], b_dec: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "batch d"]:
    """See `overtone.ops.decode`."""
    return decode_groups(codes, W_dec, [codes.latents_total], b_dec).squeeze(0)


def decode_groups(
    codes: SparseCodes,
    W_dec: Float[Tensor, "latents d"],
    sizes: Sequence[int],
    b_dec: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "groups batch d"]:
    """See `overtone.ops.decode_groups`."""
    transposed = codes.transposed or Transposed.of(codes.latents, codes.rows, codes.latents_total, codes.order)
    inputs = (codes.values, W_dec, b_dec, codes.latents, codes.offsets, transposed, tuple(sizes), sink_of(W_dec))
    return _Decode.apply(*inputs)  # pyright: ignore[reportReturnType]


def _encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    centre: Tensor | None,
    jump: bool,
    shifted: Tensor,
    entries: Entries,
    *,
    signed: bool = False,
) -> Encoded:
    batch, latents_total = len(x), len(W_enc)
    offsets, fired, peak = entries.tally or _tally(entries, batch, latents_total, signed)
    values = _Values.apply(x, W_enc, b_enc, centre, jump, shifted, entries, offsets, sink_of(W_enc))
    by_row = values, entries.latents, offsets, latents_total
    codes = SparseCodes(*by_row, entries.transposed.order, entries.transposed)  # pyright: ignore[reportArgumentType]
    return Encoded(codes, fired, peak)


def _tally(entries: Entries, batch: int, latents_total: int, signed: bool) -> Tally:
    offsets = torch.searchsorted(entries.rows, torch.arange(batch + 1))
    fired = torch.bincount(entries.latents, minlength=latents_total)
    size = entries.pre.abs() if signed else entries.pre
    peak = torch.zeros(latents_total).scatter_reduce_(0, entries.latents, size, "amax").clamp_(min=0)
    return Tally(offsets, fired, peak)


class _Values(Function):
    """The codes of entries that are found already, and their gradients."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        centre: Tensor | None,
        jump: bool,
        shifted: Tensor,
        entries: Entries,
        offsets: Tensor,
        sink: list[EntrySum] | None,
    ):
        ctx.save_for_backward(shifted, W_enc, entries.latents, offsets, *entries.transposed)
        ctx.jump, ctx.sink = jump, sink
        return entries.pre - b_enc.index_select(0, entries.latents) if jump else entries.pre.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grads[0]
        x, W_enc, latents, offsets, *by_latent = ctx.saved_tensors
        grad_x = grad_W = grad_b = grad_centre = None
        if ctx.needs_input_grad[0]:
            grad_x = weighted_sums(W_enc, latents, offsets, grad)
        if ctx.needs_input_grad[1]:
            grad_W = _sum_or_leave(ctx.sink, EntrySum(Transposed(*by_latent), grad, [x], [len(W_enc)]))
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            per_latent = grad.new_zeros(len(W_enc)).index_add_(0, latents, grad)
            grad_b = None if ctx.jump else per_latent
            # One matrix-vector product: the gradient to the shifted rows would cost a gather per entry.
            grad_centre = -(per_latent @ W_enc) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b, grad_centre, None, None, None, None, None


class _Decode(Function):
    """Sums over the rarest groups up to each, whose gradient sees its own group alone."""

    @staticmethod
    def forward(
        ctx,
        values: Tensor,
        W_dec: Tensor,
        b_dec: Tensor | None,
        latents: Int[Tensor, " nnz"],
        offsets: Int[Tensor, " rows_and_1"],
        transposed: Transposed,
        sizes: tuple[int, ...],
        sink: list[EntrySum] | None,
    ):
        batch, groups = len(offsets) - 1, len(sizes)
        ctx.save_for_backward(values, W_dec, *transposed)
        ctx.sizes, ctx.sink = sizes, sink
        bags, of_dense = offsets, {}
        if groups > 1 or is_dense(len(latents), batch, len(W_dec)):
            # Entries lie in the order of rows, then of latents, so those of one row and group are neighbours.
            group = torch.bucketize(latents, torch.tensor([*accumulate(sizes)]), right=True)
            entries = torch.bincount(group, minlength=groups).tolist()
            matrices = [is_dense(n, batch, size) for n, size in zip(entries, sizes, strict=True)]
            rows = torch.arange(batch).repeat_interleave(offsets.diff(), output_size=len(latents))
            if any(matrices):
                of_dense = _decode_dense(transposed, values, W_dec, sizes, batch, matrices)
                kept = ~torch.tensor(matrices)[group]
                values, latents, rows, group = values[kept], latents[kept], rows[kept], group[kept]
            bags = torch.searchsorted(rows * groups + group, torch.arange(batch * groups + 1))
        out = lend(groups, batch, W_dec.shape[1])
        size = max(1, _DECODED // (groups * W_dec.shape[1]))
        for first in range(0, batch, size):
            piece = slice(first, first + size)
            bounds = bags[first * groups : (first + size) * groups + 1]
            here = slice(int(bounds[0]), int(bounds[-1]))
            parts = weighted_sums(W_dec, latents[here], bounds - here.start, values[here]).unflatten(0, (-1, groups))
            for g, part in of_dense.items():
                parts[:, g] += part[piece]
            explained = b_dec
            for i, g in enumerate(reversed(range(groups))):
                explained = _add(explained, parts[:, g], out[i, piece])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W_dec, *by_latent = ctx.saved_tensors
        # Result i belongs to the (i + 1)-th group from the end.
        tables = [*grads[0].contiguous()][::-1]
        grad_values = grad_W = None
        if any(ctx.needs_input_grad[:2]):
            transposed = Transposed(*by_latent)
            grad_values = transposed.dots(W_dec, tables, ctx.sizes) if ctx.needs_input_grad[0] else None
            if ctx.needs_input_grad[1]:
                grad_W = _sum_or_leave(ctx.sink, EntrySum(transposed, values, tables, ctx.sizes))
        grad_b = grads[0].sum((0, 1)) if ctx.needs_input_grad[2] else None
        return grad_values, grad_W, grad_b, None, None, None, None, None


def _sum_or_leave(sink: list[EntrySum] | None, entries: EntrySum) -> Tensor | None:
    """A gradient, or None where it is left to be summed by somebody else."""
    if sink is None:
        return entries.summed()
    # Values know the operation that made them, and that one its sink: a circle nobody would ever collect.
    sink.append(entries._replace(values=entries.values.detach()))
    return None


def _decode_dense(
    transposed: Transposed, values: Tensor, W_dec: Tensor, sizes: tuple[int, ...], batch: int, matrices: list[bool]
) -> dict[int, Tensor]:
    """What the dense groups add to every row."""
    values = values.index_select(0, transposed.order)
    parts = {}
    for block in transposed.blocks(sizes, max(sizes), batch):
        if matrices[block.group]:
            with fast_float32():
                parts[block.group] = transposed.matrix(block, values, batch).T @ W_dec[block.latents]
    return parts


def _add(a: Tensor | None, b: Tensor, out: Tensor) -> Tensor:
    return out.copy_(b) if a is None else torch.add(a, b, out=out)
