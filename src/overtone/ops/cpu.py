"""The operations for float32 on the CPU. `reference` says what they compute; this module only says how.

Encoding is one dense product per piece of rows, selected at once while it is in cache: pre-activations of the whole batch
never exist. Everything after costs O(L0 · d) per row.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from overtone.ops import select
from overtone.ops.codes import Encoded, SparseCodes
from overtone.ops.memory import lend
from overtone.ops.precision import fast_float32
from overtone.ops.transposed import Transposed, weighted_sums

# A piece of pre-activations stays in cache (8 MiB) unless that makes it so short that streaming the weights dominates.
_PIECE, _PIECE_ROWS = 2**21, 256
# Numbers of a decoded piece, summed over its groups while in cache.
_DECODED = 2**20

Select = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
    return _encode(x, W_enc, b_enc, centre, jump, partial(select.above, threshold=threshold))


def encode_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_topk`."""
    return _encode(x, W_enc, b_enc, centre, False, partial(select.largest, k=k))


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
    return _Decode.apply(codes.values, W_dec, b_dec, codes.latents, codes.offsets, tuple(sizes))  # pyright: ignore[reportReturnType]


def _encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor | None, jump: bool, choose: Select) -> Encoded:
    values, latents, offsets, fired, peak = _Encode.apply(x, W_enc, b_enc, centre, jump, choose)  # pyright: ignore[reportGeneralTypeIssues]
    return Encoded(SparseCodes(values, latents, offsets, len(W_enc)), fired, peak)


class _Encode(Function):
    @staticmethod
    def forward(ctx, x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor | None, jump: bool, choose: Select):
        x = x if centre is None else x - centre
        places, pre, peak = _scan(x, W_enc, b_enc, choose)
        rows = places // len(W_enc)
        latents = places - rows * len(W_enc)
        offsets = torch.searchsorted(places, torch.arange(len(x) + 1) * len(W_enc))
        fired = torch.bincount(latents, minlength=len(W_enc))
        ctx.save_for_backward(x, W_enc, latents, rows, offsets)
        ctx.jump = jump
        ctx.mark_non_differentiable(latents, offsets, fired, peak)
        return pre - b_enc.index_select(0, latents) if jump else pre, latents, offsets, fired, peak

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grads[0]  # of the values; nothing else has one
        x, W_enc, latents, rows, offsets = ctx.saved_tensors
        grad_x = grad_W = grad_b = grad_centre = None
        if ctx.needs_input_grad[0]:
            grad_x = weighted_sums(W_enc, latents, offsets, grad)
        if ctx.needs_input_grad[1]:
            grad_W = Transposed.of(latents, rows, len(W_enc)).sums(grad, x)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            per_latent = grad.new_zeros(len(W_enc)).index_add_(0, latents, grad)
            grad_b = None if ctx.jump else per_latent
            # One matrix-vector product: the gradient to the shifted rows would cost a gather per entry.
            grad_centre = -(per_latent @ W_enc) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b, grad_centre, None, None


def _scan(x: Tensor, W_enc: Tensor, b_enc: Tensor, choose: Select) -> tuple[Tensor, Tensor, Tensor]:
    """Flat places of the active entries, their pre-activations, and every latent's peak."""
    latents = len(W_enc)
    size = min(len(x), max(_PIECE // latents, _PIECE_ROWS))
    buffer, mask = lend(size, latents), lend(size, latents, dtype=np.bool_).numpy()
    places, found, peak = [], [], torch.zeros(latents)
    for first in range(0, len(x), size):
        piece = x[first : first + size]
        pre = buffer[: len(piece)]
        with fast_float32():
            torch.addmm(b_enc, piece, W_enc.T, out=pre)
        torch.maximum(peak, pre.amax(0), out=peak)
        here = torch.from_numpy(choose(pre.numpy(), mask[: len(piece)]))
        found.append(pre.view(-1).index_select(0, here))
        places.append(here + first * latents)
    return torch.cat(places), torch.cat(found), peak


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
        sizes: tuple[int, ...],
    ):
        batch, groups = len(offsets) - 1, len(sizes)
        rows = torch.arange(batch).repeat_interleave(offsets.diff(), output_size=len(latents))
        # Entries lie in the order of rows, then of latents, so those of one row and group are neighbours.
        group = torch.bucketize(latents, torch.tensor([*accumulate(sizes)]), right=True)
        bags = torch.searchsorted(rows * groups + group, torch.arange(batch * groups + 1))
        out = lend(groups, batch, W_dec.shape[1])
        size = max(1, _DECODED // (groups * W_dec.shape[1]))
        for first in range(0, batch, size):
            bounds = bags[first * groups : (first + size) * groups + 1]
            entries = slice(int(bounds[0]), int(bounds[-1]))
            parts = weighted_sums(W_dec, latents[entries], bounds - entries.start, values[entries])
            parts = parts.unflatten(0, (-1, groups)).flip(1)
            if b_dec is not None:
                parts[:, 0] += b_dec
            torch.cumsum(parts.transpose(0, 1), 0, out=out[:, first : first + size])
        ctx.save_for_backward(values, W_dec, latents, (groups - 1 - group) * batch + rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W_dec, latents, rows = ctx.saved_tensors
        table = grads[0].flatten(0, 1).contiguous()
        transposed = Transposed.of(latents, rows, len(W_dec)) if any(ctx.needs_input_grad[:2]) else None
        grad_values = transposed.dots(W_dec, table) if transposed and ctx.needs_input_grad[0] else None
        grad_W = transposed.sums(values, table) if transposed and ctx.needs_input_grad[1] else None
        return grad_values, grad_W, table.sum(0) if ctx.needs_input_grad[2] else None, None, None, None
