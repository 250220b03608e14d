"""Linear probes of rows: what is there to be read along one direction, the ceiling of what any latent can say of it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

ITERATIONS = 100


def logistic(
    x: Float[Tensor, "rows d"], occurs: Bool[Tensor, "rows features"], *, l2: float = 1e-4, balanced: bool = False
) -> Float[Tensor, "d_and_1 features"]:
    """Weights, the constant last, of one logistic regression per feature on standardised rows; `apply` them.

    Args:
        x: rows.
        occurs: whether each feature occurs.
        l2: penalty on the square of the weights, beside the mean loss of a row.
        balanced: weigh rows so that those with a feature count as much, all together, as those without.
    """
    rows, back = _standardised(x)
    wanted = occurs.double()
    weight = balance(occurs) if balanced else None
    weights = torch.zeros(rows.shape[1], occurs.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(rows @ weights, wanted, weight, reduction="none").mean(0).sum()
        value = value + l2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    return back @ weights.detach()


def balance(occurs: Bool[Tensor, "rows features"]) -> Float[Tensor, "rows features"]:
    """Weights of mean 1 that give rows with a feature as much weight, all together, as those without."""
    share = occurs.double().mean(0).clamp(1 / (2 * len(occurs)), 1 - 1 / (2 * len(occurs)))
    return torch.where(occurs, 1 / (2 * share), 1 / (2 * (1 - share)))


def least_squares(
    x: Float[Tensor, "rows d"], values: Float[Tensor, "rows features"], *, l2: float = 1e-4
) -> Float[Tensor, "d_and_1 features"]:
    """As `logistic`, of linear regressions on quantities."""
    rows, back = _standardised(x)
    penalty = l2 * torch.ones(rows.shape[1], dtype=torch.float64)
    penalty[-1] = 0
    covariance = rows.T @ rows / len(rows) + penalty.diag()
    return back @ torch.linalg.solve(covariance, rows.T @ values.double() / len(rows))


def apply(weights: Float[Tensor, "d_and_1 features"], x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows features"]:
    """What probes say of rows."""
    return x.double() @ weights[:-1] + weights[-1]


def best_threshold(
    said: Float[Tensor, "rows features"], occurs: Bool[Tensor, "rows features"]
) -> Float[Tensor, " features"]:
    """For every feature, the number above which what a probe says has to lie for the largest F1."""
    ordered, order = said.sort(dim=0, descending=True)
    hits = occurs.gather(0, order).cumsum(0)
    fired = torch.arange(1, len(said) + 1)[:, None]
    best = (2 * hits / (fired + occurs.sum(0))).argmax(0, keepdim=True)
    # Half-way to the next lower one.
    lower = ordered.gather(0, (best + 1).clamp(max=len(said) - 1))
    return ((ordered.gather(0, best) + lower) / 2).squeeze(0)


def _standardised(x: Float[Tensor, "rows d"]) -> tuple[Float[Tensor, "rows d_and_1"], Float[Tensor, "d_and_1 d_and_1"]]:
    """Standardised rows with a constant column, and what takes weights for them back to weights for rows as they are."""
    rows = x.double()
    mean, scale = rows.mean(0), rows.std(0).clamp(min=1e-12)
    ones = rows.new_ones(len(rows), 1)
    back = torch.diag(torch.cat([1 / scale, ones[0]]))
    back[-1, :-1] = -mean / scale
    return torch.cat([(rows - mean) / scale, ones], dim=1), back
