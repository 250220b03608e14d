"""Slow twins of selections with weights of their own: dense, by autograd, in any floating type; estimators by their formulas."""

import torch
from torch import Tensor
from torch.autograd import Function

from overtone import Dictionary


def pre_activations(dictionary: Dictionary, x: Tensor) -> Tensor:
    return (x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc


def decode(dictionary: Dictionary, z: Tensor) -> Tensor:
    return z @ dictionary.effective_atoms + dictionary.b_dec


class _Estimator(Function):
    """Something of y and θ with these derivatives in them."""

    @staticmethod
    def forward(ctx, y: Tensor, threshold: Tensor, value: Tensor, by_y: Tensor, by_threshold: Tensor):
        ctx.save_for_backward(by_y, by_threshold)
        return value.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        by_y, by_threshold = ctx.saved_tensors
        return grads[0] * by_y, (grads[0] * by_threshold).sum(0), None, None, None


def jump(dictionary: Dictionary, x: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Codes and steps (maths.md eq. 20 and 21)."""
    y, threshold = pre_activations(dictionary, x), dictionary.get_parameter("log_threshold").exp()
    with torch.no_grad():
        step = (y > threshold).to(y.dtype)
        kernel = (((y - threshold) / width).abs() < 0.5).to(y.dtype)
    z = _Estimator.apply(y, threshold, y * step, step, -threshold / width * kernel)
    return z, _Estimator.apply(y, threshold, step, 0 * step, -kernel / width)


def gated(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and max(π, 0) (maths.md eq. 24)."""
    pi = pre_activations(dictionary, x)
    linear = pi - dictionary.b_enc
    magnitude = linear * dictionary.get_parameter("r_mag").exp() + dictionary.get_parameter("b_mag")
    return (pi > 0).to(pi.dtype) * magnitude.relu(), pi.relu()
