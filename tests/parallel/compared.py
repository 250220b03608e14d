"""What ranks found against what one process did: equal but for the order in which float32 numbers are added."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from parallel.work import Coded, Trained


def close(a: Tensor, b: Tensor, what: str) -> None:
    if a.is_floating_point():
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=lambda text: f"{what}: {text}")
    else:
        assert torch.equal(a, b), what


def same_training(found: Trained, one: Trained, name: str) -> None:
    """Losses, L0 and share alive of the records, weights, and what rules keep."""
    for mine, wanted in zip(found.records, one.records, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5), name
    assert found.weights.keys() == one.weights.keys() and found.moments.keys() == one.moments.keys()
    for key in one.weights:
        close(found.weights[key], one.weights[key], f"{name} {key}")
    for mine, wanted in zip(found.rules, one.rules, strict=True):
        for key in wanted:
            close(mine[key], wanted[key], f"{name} rule {key}")


def same_codes(parts: Sequence[Coded], one: Coded, name: str) -> None:
    """Which latents are active, in a batch and alone, and how often they fire, exactly; codes and peaks closely."""
    for mine, wanted in (([part.z for part in parts], one.z), ([part.alone for part in parts], one.alone)):
        z = torch.cat(mine)
        assert torch.equal(z != 0, wanted != 0), name
        close(z, wanted, name)
    for part in parts:
        assert torch.equal(part.fired, one.fired), name
        close(part.peak, one.peak, name)
