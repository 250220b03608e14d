"""Laws that ground truths X = H V are made of: how often features occur, how large coefficients are, where features point."""

from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from overtone.seeds import generator

FrequencyLaw = Literal["equal", "geometric", "zipf"]
CoefficientLaw = Literal["uniform", "constant", "half-normal", "exponential", "log-normal"]
DirectionLaw = Literal["gaussian", "low-coherence", "correlated", "signs", "heavy-tailed"]


def check_law(name: str, value: str, allowed: object) -> None:
    """ValueError unless the value is one of a Literal's."""
    if value not in get_args(allowed):
        raise ValueError(f"{name}={value!r} is not one of {', '.join(get_args(allowed))}")


def relative_frequencies(
    law: FrequencyLaw, n_features: int, *, exponent: float = 0.5, ratio: float = 100.0
) -> Float[Tensor, " features"]:
    """How often features occur, the most frequent first, up to a common factor: shares that sum to 1 (maths.md eq. G1).

    Args:
        law: all equally, falling geometrically, or as rank^−exponent.
        n_features: n.
        exponent: of the Zipf law.
        ratio: of the most frequent feature to the least frequent, of the geometric law.
    """
    check_law("frequencies", law, FrequencyLaw)
    if law == "geometric":
        if ratio < 1:
            raise ValueError(f"frequency_ratio={ratio} must be at least 1, the most frequent feature over the least")
        weight = ratio ** -torch.linspace(0, 1, n_features, dtype=torch.float64)
    else:
        rank = torch.arange(1, n_features + 1, dtype=torch.float64)
        weight = rank**-exponent if law == "zipf" else torch.ones_like(rank)
    return weight / weight.sum()


def check_coefficients(law: str, least: float, spread: float) -> None:
    """ValueError unless these are settings of `coefficients`."""
    check_law("law", law, CoefficientLaw)
    if spread < 0 or (law != "log-normal" and least < 0):
        raise ValueError(f"least={least} and spread={spread} would make magnitudes negative; give numbers ≥ 0")


def coefficients(
    law: CoefficientLaw, shape: tuple[int, ...], generator: torch.Generator, *, least: float = 0.0, spread: float = 1.0
) -> Float[Tensor, "..."]:
    """i.i.d. magnitudes ≥ 0: least + spread · C, C uniform on (0, 1], 1, |N(0, 1)| or Exp(1); log-normal: exp(N(least, spread²)).

    `least` > 0 bounds coefficients away from 0 (condition H2 of arXiv 2506.14002).
    """
    if law == "log-normal":
        return torch.empty(shape).log_normal_(least, spread, generator=generator)
    match law:
        case "constant":
            drawn = torch.ones(shape)
        case "half-normal":
            drawn = torch.randn(shape, generator=generator).abs_()
        case "exponential":
            drawn = torch.empty(shape).exponential_(generator=generator)
        case _:
            # 1 − U: uniform on (0, 1], so that a feature that occurs never has coefficient 0.
            drawn = 1 - torch.rand(shape, generator=generator)
    return drawn if (least, spread) == (0, 1) else drawn.mul_(spread).add_(least)


def directions(
    law: DirectionLaw, n_features: int, d: int, *, seed: int = 0, cosine: float = 0.5
) -> Float[Tensor, "features d"]:
    """Unit rows V (maths.md eq. G2).

    Args:
        law: gaussian – uniform on the sphere; low-coherence – those, pushed apart (`low_coherence`); correlated – each has
            an expected cosine with the next one, which falls geometrically with their distance in the list; signs – entries
            ±1/√d; heavy-tailed – entries of a Student distribution with 3 degrees of freedom: a few coordinates dominate.
        n_features: n.
        d: width of a row.
        seed: seed.
        cosine: of neighbours, where correlated; in [0, 1).
    """
    check_law("directions", law, DirectionLaw)
    if not 0 <= cosine < 1:
        raise ValueError(f"cosine={cosine} must lie in [0, 1)")
    draws = generator(seed, "features")
    drawn = torch.randn(n_features, d, generator=draws)
    match law:
        case "signs":
            drawn = drawn.sign()
        case "heavy-tailed":
            drawn = drawn / torch.randn(n_features, d, 3, generator=draws).square().mean(2).sqrt()
        case "correlated":
            fresh = (1 - cosine**2) ** 0.5
            for before, row in pairwise(drawn):
                row.mul_(fresh).add_(before, alpha=cosine)
        case _:
            pass
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    return low_coherence(unit) if law == "low-coherence" else unit


def low_coherence(
    v: Float[Tensor, "features d"], *, steps: int = 100, lr: float | None = None
) -> Float[Tensor, "features d"]:
    """Unit rows pushed apart: steps of Adam on Σ_{i≠j} ⟨v_i, v_j⟩² + n Σ_i (‖v_i‖² − 1)² (maths.md eq. G3; arXiv 2602.14687).

    The gradient of the n² products needs VᵀV alone, d² numbers: n/d times less work than the products themselves.

    Args:
        v: rows.
        steps: of Adam; the paper's 100 are far from convergence.
        lr: of Adam; None: the paper's 3e-4 at d = 768, in proportion to the size 1/√d of an entry.
    """
    rate = 3e-4 * (768 / v.shape[1]) ** 0.5 if lr is None else lr
    v = normalize(v, dim=1)
    adam = torch.optim.Adam([v], lr=rate)
    for _ in range(steps):
        square = v.square().sum(1, keepdim=True)
        v.grad = 4 * (v @ (v.T @ v) + (len(v) * (square - 1) - square) * v)
        adam.step()
    return normalize(v, dim=1)
