"""Logistic regressions with an L1 penalty on very many, mostly silent columns."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.special import expit
from torch import Tensor

from overtone.metrics.probes import balance
from overtone.metrics.probing.columns import Columns

STEPS = 300


def lasso_logistic(
    u: Columns, occurs: Bool[Tensor, "rows features"], *, l1: float = 0.01, steps: int = STEPS
) -> Float[Tensor, "columns features"]:
    """Weights, of columns divided by their standard deviation, of one regression per feature (maths.md eq. P6).

    Rows with a feature have as much weight, all together, as those without. Proximal gradient descent with Nesterov's momentum
    (FISTA); the constant has no penalty. Invariant to rescaling columns.

    Args:
        u: what each column says of each row.
        occurs: whether each feature occurs.
        l1: penalty on the size of the weights, beside the mean loss of a row.
        steps: of the descent.
    """
    rows, width = u.shape
    mean = np.asarray(u.matrix.mean(0)).ravel()
    square = np.asarray(u.matrix.multiply(u.matrix).mean(0)).ravel()
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    # With a column of ones, whose weight is the constant.
    matrix = sparse.csr_array(sparse.hstack([u.matrix @ sparse.diags_array(scale), np.ones((rows, 1))]))
    transposed = sparse.csr_array(matrix.T)
    wanted, weight = occurs.double().numpy(), balance(occurs).numpy()
    weights = before = np.zeros((width + 1, wanted.shape[1]))
    pace, momentum = l1 * np.append(np.ones(len(scale)), 0)[:, None], 1.0
    rate = 4 * rows / _largest(matrix, transposed, weight)
    for _ in range(steps):
        ahead = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        at = weights + (momentum - 1) / ahead * (weights - before)
        before, momentum = weights, ahead
        moved = at - rate * (transposed @ (weight * (expit(matrix @ at) - wanted))) / rows
        weights = np.sign(moved) * np.maximum(np.abs(moved) - rate * pace, 0)
    return torch.from_numpy(weights[:-1])


def _largest(matrix: sparse.csr_array, transposed: sparse.csr_array, weight: np.ndarray) -> np.ndarray:
    """The largest eigenvalue of AᵀWA for each feature's weights W, from above: by power iteration, with a little to spare."""
    vectors = transposed @ weight
    size = np.ones(weight.shape[1])
    for _ in range(30):
        vectors = transposed @ (weight * (matrix @ vectors))
        size = np.linalg.norm(vectors, axis=0)
        vectors /= size
    return 1.05 * size
