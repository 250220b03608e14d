"""Samples that depend on what is sampled alone: not on its order, nor on how it comes in batches."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def fixed_uniform(seed: int, a: Int[Tensor, " some"], b: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
    """A number in [0, 1) for each pair, always the same: to sample without regard to the order of what is sampled."""
    with np.errstate(over="ignore"):
        mixed = np.full(len(a), seed % 2**64, dtype=np.uint64)
        for part in (a, b):
            mixed = _mix(mixed + part.numpy().astype(np.uint64))
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def random_rank(seed: int, a: Int[Tensor, " some"], b: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
    """`fixed_uniform` as a rank of `Slots`: 0 to 2³¹ − 1."""
    return (fixed_uniform(seed, a, b) * 2.0**31).long()


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
