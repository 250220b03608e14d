"""Every test runs with overtone's signatures checked: shapes by jaxtyping, types by beartype."""

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("overtone", "typechecked.check")

import torch  # noqa: E402 – the hook has to be in place before overtone is imported

# Shared machines are slow at times and examples must not change from run to run.
settings.register_profile("overtone", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("overtone")

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rows(generator: torch.Generator) -> torch.Tensor:
    """Rows with structure: sparse mixtures of 24 features in 12 dimensions, not normalised."""
    features = torch.randn(24, 12, generator=generator)
    weights = torch.rand(600, 24, generator=generator) * (torch.rand(600, 24, generator=generator) < 0.15)
    return weights @ features + 0.05 * torch.randn(600, 12, generator=generator)
