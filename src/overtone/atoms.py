"""Atoms in whitened space, after *atoms theory* (arXiv 2509.20784): the inner product of rows is the one that whitens them."""

import torch
from jaxtyping import Float
from torch import Tensor


def inverse_second_moment(x: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """S̃ = (E[x xᵀ])⁻¹, the metric in which rows are white: the mean of x S̃ xᵀ over them is d.

    Args:
        x: rows, centred or not; they have to span all d dimensions.

    Raises:
        ValueError: rows that do not span the space, as far as their type can tell.
    """
    moment = x.double().T @ x.double() / len(x)
    values, vectors = torch.linalg.eigh(moment)
    if not bool(values[0] > torch.finfo(x.dtype).eps * values[-1]):
        raise ValueError(
            f"{len(x)} rows do not span their d={x.shape[1]} dimensions: the smallest second moment is {float(values[0]):.3g}, "
            f"the largest {float(values[-1]):.3g}; give more rows, or drop the dimensions that never vary"
        )
    return ((vectors / values) @ vectors.T).to(x.dtype)


def unit_atoms(atoms: Float[Tensor, "latents d"], metric: Float[Tensor, "d d"]) -> Float[Tensor, "latents d"]:
    """Atoms scaled to ⟨w, w⟩ = wᵀ S̃ w = 1."""
    norm = ((atoms @ metric) * atoms).sum(1, keepdim=True).clamp(min=0).sqrt()
    return atoms / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def coherence(atoms: Float[Tensor, "latents d"], metric: Float[Tensor, "d d"]) -> float:
    """ε, the largest |⟨w_i, w_j⟩| of two different atoms scaled to unit norm. Invariant to permuting and rescaling atoms."""
    unit = unit_atoms(atoms, metric)
    gram = unit @ metric @ unit.T
    return float(gram.fill_diagonal_(0).abs().max())


def support_interval(
    atoms: Float[Tensor, "latents d"], metric: Float[Tensor, "d d"], active: int, smallest: float, largest: float
) -> tuple[float, float]:
    """The thresholds τ with which W_enc = W_dec S̃ finds the exact support of every sparse row (maths.md eq. 32).

    Args:
        atoms: unit in the metric (`unit_atoms`).
        metric: S̃.
        active: K, the most atoms of a row.
        smallest, largest: bounds δ_min and δ_max of their coefficients, both positive.

    Returns:
        The lower and the upper bound, both exclusive; no threshold is guaranteed to do where they cross.
    """
    if not 0 < smallest <= largest:
        raise ValueError(f"smallest={smallest} and largest={largest} must be positive and in this order")
    if not 1 <= active <= len(atoms):
        raise ValueError(f"active={active} is not in 1 … latents={len(atoms)}")
    epsilon = coherence(atoms, metric)
    return epsilon * active * largest, smallest - epsilon * (active - 1) * largest
