"""Firing statistics of given pre-activations."""

import torch

from overtone import FiringStats, ReLU, Selection, firing


def seen(pre: torch.Tensor, select: Selection | None = None) -> FiringStats:
    """Encoded by the identity, which reproduces the pre-activations exactly."""
    m = pre.shape[1]
    encoded = (select or ReLU()).encode(pre, torch.eye(m), torch.zeros(m), torch.zeros(m))
    return firing.observe(encoded)
