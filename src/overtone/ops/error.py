"""The squared error with one temporary, where autograd would take four."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from overtone.ops.memory import buffer_for


class HalfSquareError(Function):
    """½ ‖s (x̂ − x)‖², averaged over rows; see `overtone.ops.half_square_error`."""

    @staticmethod
    def forward(ctx, x_hat: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
        """The mean; keeps the scaled residual."""
        residual = torch.sub(x_hat, x, out=buffer_for(x_hat))
        if scale is not None:
            residual *= scale
        ctx.save_for_backward(residual, scale)
        ctx.shape = x.shape
        rows = residual.numel() // residual.shape[-1]
        return 0.5 * torch.linalg.vector_norm(residual).square() / rows

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """The scaled residual, scaled."""
        residual, scale = ctx.saved_tensors
        share = grads[0] * residual.shape[-1] / residual.numel()
        grad = torch.mul(residual, share if scale is None else share * scale, out=buffer_for(residual))
        grad_x = -grad.sum_to_size(ctx.shape) if ctx.needs_input_grad[1] else None
        return grad, grad_x, None
