"""Matching pursuit in float32 or narrower, on any device. `reference` says what it computes; this module only says how.

Products with all atoms only choose the next atom and take no part in the gradient, which runs back over the picked atoms
alone: steps are undone one by one, r_{t−1} = r_t + v_t w_t, so that nothing but the last residual and the codes is kept.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from overtone.ops.codes import Encoded, SparseCodes
from overtone.ops.precision import fast_float32

# Products of a piece of rows with all atoms, as in candidates.py: read again from cache by the search for the largest.
_PIECE, _PIECE_ROWS = 2**21, 256


def encode_pursuit(
    x: Float[Tensor, "batch d"],
    W: Float[Tensor, "latents d"],
    steps: int,
    *,
    residual: float = 0.0,
    stop_on_repeat: bool = False,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_pursuit`."""
    values, latents = _Pursue.apply(x, W, centre, steps, residual, stop_on_repeat)  # pyright: ignore[reportGeneralTypeIssues]
    codes = _entries(values, latents, len(W))
    fired = torch.bincount(codes.latents, minlength=len(W))
    peak = torch.zeros(len(W), dtype=codes.values.dtype, device=W.device)
    peak.scatter_reduce_(0, codes.latents, codes.values.detach(), "amax")
    return Encoded(codes, fired, peak)


def _entries(
    values: Float[Tensor, "batch steps"], latents: Int[Tensor, "batch steps"], latents_total: int
) -> SparseCodes:
    """Codes of all steps: what an atom was given in several steps is summed, steps that were not taken are left out."""
    latents, place = torch.where(values > 0, latents, latents_total).sort(dim=1, stable=True)
    values = values.gather(1, place)
    first = (latents < latents_total) & (latents != pad(latents, (1, 0), value=latents_total)[:, :-1])
    entry = first.flatten().cumsum(0) - 1
    taken = (latents < latents_total).flatten().nonzero().squeeze(1)
    # index_put and not index_add: on a GPU it adds in a fixed order.
    summed = values.new_zeros(int(first.sum())).index_put(
        (entry[taken],), values.flatten().index_select(0, taken), accumulate=True
    )
    offsets = pad(first.sum(1).cumsum(0), (1, 0))
    return SparseCodes(summed, latents[first], offsets, latents_total)


class _Pursue(Function):
    """What every step gave to which atom; 0 for a step that a row did not take."""

    @staticmethod
    def forward(
        ctx, x: Tensor, W: Tensor, centre: Tensor | None, steps: int, residual: float, stop_on_repeat: bool
    ) -> tuple[Tensor, Tensor]:
        left = (x.clone() if centre is None else x - centre).to(torch.promote_types(x.dtype, torch.float32))
        values = left.new_zeros(len(x), steps)
        latents = torch.zeros(len(x), steps, dtype=torch.int64, device=x.device)
        size = max(_PIECE // len(W), _PIECE_ROWS)
        for piece in torch.arange(len(x)).split(size):
            rows = slice(int(piece[0]), int(piece[-1]) + 1)
            _pursue(left[rows], W, residual, stop_on_repeat, values[rows], latents[rows])
        left.masked_fill_(values[:, :1] == 0, 0)  # a row that took no step has no gradient, whatever its numbers are
        ctx.save_for_backward(left, W, values, latents)
        ctx.dtype = x.dtype
        ctx.mark_non_differentiable(latents)
        return values.to(x.dtype), latents

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        left, W, values, latents = ctx.saved_tensors
        left, grad = left.clone(), grads[0].to(left.dtype)
        back = torch.zeros_like(left)  # gradient to the residual after a step
        grad_W = torch.zeros_like(W, dtype=left.dtype) if ctx.needs_input_grad[1] else None
        for t in reversed(range(values.shape[1])):
            given, picked = values[:, t, None], latents[:, t]
            atoms = W.index_select(0, picked).to(left.dtype)
            left.addcmul_(given, atoms)
            to_given = (grad[:, t, None] - (back * atoms).sum(1, keepdim=True)) * (given > 0)
            if grad_W is not None:
                _add_rows(grad_W, picked, to_given * left - given * back)
            back.addcmul_(to_given, atoms)
        grad_x = back.to(ctx.dtype)
        grad_centre = -back.sum(0).to(ctx.dtype) if ctx.needs_input_grad[2] else None
        return grad_x, None if grad_W is None else grad_W.to(W.dtype), grad_centre, None, None, None


def _pursue(
    left: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
    residual: float,
    stop_on_repeat: bool,
    values: Float[Tensor, "rows steps"],
    latents: Int[Tensor, "rows steps"],
) -> None:
    """Take the steps of some rows; their residuals, values and latents change in place."""
    going: Bool[Tensor, " rows"] = left.norm(dim=1) >= residual
    for t in range(values.shape[1]):
        if not going.any():
            return
        with fast_float32():
            best = (left.to(W.dtype) @ W.T).argmax(1)
        atoms = W.index_select(0, best).to(left.dtype)
        given = (left * atoms).sum(1)
        going = going & (given > 0)
        given = torch.where(going, given, 0)
        left.addcmul_(given[:, None], atoms, value=-1)
        if stop_on_repeat:
            going = going & ~((latents[:, :t] == best[:, None]) & (values[:, :t] > 0)).any(1)
        values[:, t], latents[:, t] = given, best
        if residual > 0:
            going = going & (left.norm(dim=1) >= residual)


def _add_rows(out: Float[Tensor, "latents d"], index: Int[Tensor, " rows"], rows: Float[Tensor, "rows d"]) -> None:
    """out[index] += rows, in a fixed order on every device."""
    if out.device.type == "cpu":
        out.index_add_(0, index, rows)
    else:
        out.index_put_((index,), rows, accumulate=True)
