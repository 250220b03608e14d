"""Codes that are mostly not zero, as a matrix: then products are faster than lists of entries."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from overtone.ops.codes import DenseCodes, Encoded
from overtone.ops.memory import lend
from overtone.ops.precision import fast_float32

# Rows that are looked at before a batch is treated as dense.
_PROBED = 16


def is_better(density: float, d: int) -> bool:
    """Whether codes with this share of entries train faster as a matrix, on one core or two.

    An entry costs its bookkeeping and four passes over d numbers, a place of the matrix four products; the four constants
    are nanoseconds measured on AVX-512 cores. Nothing but speed hangs on them.
    """
    return density * (120 + 0.4 * d) > 5 + 0.08 * d


def probe(x: Float[Tensor, "batch d"], W: Float[Tensor, "latents d"], b: Tensor, threshold: float) -> bool:
    """Whether the batch is better encoded as a matrix, judged by some of its rows."""
    some = x[:: max(1, len(x) // _PROBED)]
    density = torch.count_nonzero(torch.addmm(b, some, W.T) > threshold) / (len(some) * len(W))
    return is_better(float(density), x.shape[1])


def encode_above(x: Tensor, W: Tensor, b: Tensor, centre: Tensor | None, jump: bool, threshold: float) -> Encoded:
    """See `overtone.ops.encode_threshold`."""
    z, fired, peak = _Encode.apply(x, W, b, centre, jump, threshold)  # pyright: ignore[reportGeneralTypeIssues]
    return Encoded(DenseCodes(z), fired, peak)


def decode_groups(
    codes: DenseCodes, W_dec: Float[Tensor, "latents d"], sizes: Sequence[int], b_dec: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "groups batch d"]:
    """See `overtone.ops.decode_groups`."""
    return _Decode.apply(codes.z, W_dec, b_dec, tuple(sizes))  # pyright: ignore[reportReturnType]


# Matrices of codes lie with latents in memory order, so that the latents of a group are contiguous.
class _Encode(Function):
    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, b: Tensor, centre: Tensor | None, jump: bool, threshold: float):
        x = x if centre is None else x - centre
        shape = len(W), len(x)
        with fast_float32():
            pre = torch.addmm(b[:, None], W, x.T, out=_new(x, *shape))
        # As numbers: masks of bytes are several times slower to make and to apply.
        active = torch.gt(pre, threshold, out=_new(x, *shape))
        pre.nan_to_num_(nan=0.0)  # a row that is not a number has no codes
        fired = (active if threshold >= 0 else active * (pre > 0)).sum(1).long()
        peak = (pre * active).amax(1).clamp_(min=0)
        z = (pre.sub_(b[:, None]) if jump else pre).mul_(active)
        ctx.save_for_backward(x, W, active)
        ctx.jump = jump
        ctx.mark_non_differentiable(fired, peak)
        return z.T, fired, peak

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W, active = ctx.saved_tensors
        grad_x = grad_W = grad_b = grad_centre = None
        grad = torch.mul(grads[0].T, active, out=_new(x, *active.shape))
        with fast_float32():
            if ctx.needs_input_grad[0]:
                grad_x = grad.T @ W
            if ctx.needs_input_grad[1]:
                grad_W = torch.mm(grad, x, out=_new(x, *W.shape))
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            per_latent = grad.sum(1)
            grad_b = None if ctx.jump else per_latent
            grad_centre = -(per_latent @ W) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b, grad_centre, None, None


class _Decode(Function):
    """Products of the rarest groups up to each, whose gradient sees its own group alone."""

    @staticmethod
    def forward(ctx, z: Tensor, W: Tensor, b: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
        groups, batch, d = len(sizes), len(z), W.shape[1]
        out = _new(z, groups, batch, d)
        explained = z.new_zeros(d) if b is None else b
        with fast_float32():
            parts = zip(z.split(sizes, dim=1), W.split(sizes), strict=True)
            for i, (z_group, atoms) in enumerate(reversed(list(parts))):
                explained = torch.addmm(explained, z_group, atoms, out=out[i])
        ctx.save_for_backward(z, W)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        z, W = ctx.saved_tensors
        grad_z = _new(z, *z.T.shape) if ctx.needs_input_grad[0] else None
        grad_W = _new(z, *W.shape) if ctx.needs_input_grad[1] else None
        first = 0
        with fast_float32():
            for size, table in zip(ctx.sizes, reversed(grads[0].unbind()), strict=True):
                here = slice(first, first + size)
                if grad_z is not None:
                    torch.mm(W[here], table.T, out=grad_z[here])
                if grad_W is not None:
                    torch.mm(z.T[here], table, out=grad_W[here])
                first += size
        grad_b = grads[0].sum((0, 1)) if ctx.needs_input_grad[2] else None
        return None if grad_z is None else grad_z.T, grad_W, grad_b, None


def _new(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised matrix, from recycled memory where that is kept for it."""
    recycled = like.device.type == "cpu" and like.dtype == torch.float32
    return lend(*shape) if recycled else like.new_empty(shape)
