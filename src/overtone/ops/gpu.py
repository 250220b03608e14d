"""The operations for float32, bfloat16 and float16 on a GPU. `reference` says what they compute; this module only says how.

The encoder's product is cuBLAS's, in TensorFloat-32 where the caller allows it, and kept in float32 whatever the type of its
operands: decisions fall there. It takes 4·B·M bytes, the one large intermediate. Two kernels then find the entries: one
counts them in every tile of a row, one writes them to where a prefix sum of the counts says. How many there are in all
decides what is allocated, so the host waits for that number **once per encoding**; nothing else here waits.

Everything after costs O(L0 · d) per row. Sums run in a fixed order, weight gradients over entries sorted by latent and not
by atomic additions: the same call gives the same bits.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from overtone.ops import kernels
from overtone.ops.codes import Encoded, SparseCodes
from overtone.ops.compact import Above, Largest, Rule, blocks, compact, product

# Entries gathered at once and columns of a program: 32 numbers a thread, and an atom's piece is whole cache lines.
_CHUNK, _BLOCK = 32, 128


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
    return _encode(x, W_enc, b_enc, centre, Above(threshold, jump))


def encode_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_topk`."""
    return _encode(x, W_enc, b_enc, centre, Largest(k))


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
    inputs = (codes.values, W_dec, b_dec, codes.latents, codes.offsets, codes.order, tuple(sizes))
    return _Decode.apply(*inputs)  # pyright: ignore[reportReturnType]


def _encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor | None, rule: Rule) -> Encoded:
    # Sorting pays where a weight's gradient will need it, and inside `forward` gradients are always off.
    ordered = torch.is_grad_enabled() and W_enc.requires_grad
    values, latents, offsets, order, fired, peak = _Encode.apply(x, W_enc, b_enc, centre, rule, ordered)  # pyright: ignore[reportGeneralTypeIssues]
    return Encoded(SparseCodes(values, latents, offsets, len(W_enc), order), fired, peak)


class _Encode(Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor | None, rule: Rule, ordered: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        x = x if centre is None else x - centre
        found = rule.find(product(x, W_enc), b_enc.contiguous())
        values, latents, offsets, fired, peak = compact(found, rule.jump, x.dtype)
        order = _order(latents) if ordered else None
        ctx.save_for_backward(x, W_enc, latents, offsets, order)
        ctx.jump = rule.jump
        ctx.mark_non_differentiable(*(t for t in (latents, offsets, order, fired, peak) if t is not None))
        ctx.set_materialize_grads(False)  # zeros as large as all of these
        return values, latents, offsets, order, fired, peak

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grads[0]  # of the values; nothing else has one
        if grad is None:
            return (None,) * 6
        x, W_enc, latents, offsets, order = ctx.saved_tensors
        grad_x = grad_W = grad_b = grad_centre = None
        if ctx.needs_input_grad[0]:
            grad_x = _sums(W_enc, latents, grad, offsets).squeeze(0)
        if not any(ctx.needs_input_grad[1:4]):
            return grad_x, None, None, None, None, None
        by_latent = _ByLatent.of(latents, _rows(latents, offsets), len(W_enc), order)
        if ctx.needs_input_grad[1]:
            grad_W = by_latent.sums(grad, x)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            # A sum is one of products with ones; index_add_ would add in whatever order threads come.
            per_latent = by_latent.sums(grad, x.new_ones(len(x), 1, dtype=torch.float32)).squeeze(1)
            grad_b = None if ctx.jump else per_latent.to(grad.dtype)
            # One matrix-vector product: the gradient to the shifted rows would cost a gather per entry.
            grad_centre = -(per_latent @ W_enc.float()).to(grad.dtype) if ctx.needs_input_grad[3] else None
        return grad_x, grad_W, grad_b, grad_centre, None, None


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
        order: Int[Tensor, " nnz"] | None,
        sizes: tuple[int, ...],
    ):
        batch, groups = len(offsets) - 1, len(sizes)
        rows, bounds = _rows(latents, offsets), offsets
        if groups > 1:
            # Entries lie in the order of rows, then of latents, so those of one row and group are neighbours.
            group = torch.bucketize(latents, _ends(sizes, latents.device), right=True)
            bags = torch.arange(batch * groups + 1, device=latents.device)
            bounds = torch.searchsorted(rows * groups + group, bags)
            rows = (groups - 1 - group) * batch + rows
        ctx.save_for_backward(values, W_dec, latents, rows, order)
        return _sums(W_dec, latents, values, bounds, groups, b_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W_dec, latents, rows, order = ctx.saved_tensors
        table = grads[0].flatten(0, 1).contiguous()
        grad_values = grad_W = None
        if any(ctx.needs_input_grad[:2]):
            by_latent = _ByLatent.of(latents, rows, len(W_dec), order)
            grad_values = by_latent.dots(W_dec, table).to(values.dtype) if ctx.needs_input_grad[0] else None
            grad_W = by_latent.sums(values, table) if ctx.needs_input_grad[1] else None
        return grad_values, grad_W, table.sum(0) if ctx.needs_input_grad[2] else None, None, None, None, None


class _ByLatent(NamedTuple):
    """The entries in the order of latents, then of rows: there every sum for an atom is one program's.

    Attributes:
        order: entry of the codes at every place.
        latents: latent at every place, ascending.
        rows: row at every place.
        offsets: places of latent m are offsets[m] … offsets[m + 1] − 1.
    """

    order: Int[Tensor, " nnz"]
    latents: Int[Tensor, " nnz"]
    rows: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " latents_and_1"]

    @classmethod
    def of(
        cls,
        latents: Int[Tensor, " nnz"],
        rows: Int[Tensor, " nnz"],
        latents_total: int,
        order: Int[Tensor, " nnz"] | None,
    ) -> "_ByLatent":
        order = _order(latents) if order is None else order
        latents = latents.index_select(0, order)
        # A search and not a count: the host would wait for what bincount finds.
        offsets = torch.searchsorted(latents, torch.arange(latents_total + 1, device=latents.device))
        return cls(order, latents, rows.index_select(0, order), offsets)

    def sums(self, values: Float[Tensor, " nnz"], table: Float[Tensor, "rows d"]) -> Float[Tensor, "latents d"]:
        """Σ over a latent's entries of value · table[row]; `values` in the order of the codes."""
        return _sums(table, self.rows, values.index_select(0, self.order), self.offsets).squeeze(0)

    def dots(self, atoms: Float[Tensor, "latents d"], table: Float[Tensor, "rows d"]) -> Float[Tensor, " nnz"]:
        """atoms[latent] · table[row] for every entry, in the order of the codes."""
        out = torch.empty(len(self.order), device=table.device)
        width = table.shape[1]
        arguments = (self.latents, self.rows, self.order, out, len(out), width)
        grid = (blocks(len(out), _CHUNK),)
        kernels.launch(kernels.dot_pairs, grid, atoms.contiguous(), table.contiguous(), *arguments, **_chunks(width))
        return out


def _sums(
    table: Float[Tensor, "any d"],
    index: Int[Tensor, " nnz"],
    values: Float[Tensor, " nnz"],
    bounds: Int[Tensor, " bounds"],
    stages: int = 1,
    bias: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "stages segments d"]:
    """Running sums of value · table[index] over `stages` neighbouring segments each, from the last to the first."""
    rows, width = (len(bounds) - 1) // stages, table.shape[1]
    out = table.new_empty(stages, rows, width)
    bias = None if bias is None else bias.contiguous()
    arguments = (index, values.contiguous(), bounds, bias, out, rows, width, stages)
    grid = (rows, blocks(width, _BLOCK))
    kernels.launch(kernels.sum_segments, grid, table.contiguous(), *arguments, **_chunks(width))
    return out


def _order(latents: Int[Tensor, " nnz"]) -> Int[Tensor, " nnz"]:
    """The permutation that sorts by latent and keeps the order of rows; narrow keys take half the passes."""
    return latents.to(torch.int32).sort(stable=True).indices


def _rows(latents: Int[Tensor, " nnz"], offsets: Int[Tensor, " rows_and_1"]) -> Int[Tensor, " nnz"]:
    """The row of every entry."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff(), output_size=len(latents))


@cache
def _ends(sizes: tuple[int, ...], device: torch.device) -> Int[Tensor, " groups"]:
    """Where groups end, kept: sending it to the device makes the host wait."""
    return torch.tensor([*accumulate(sizes)], device=device)


def _chunks(width: int) -> dict[str, int]:
    """Entries gathered at once, and columns of a program: a power of two, no wider than rows need."""
    return {"CHUNK": _CHUNK, "BLOCK": min(_BLOCK, 1 << (width - 1).bit_length())}
