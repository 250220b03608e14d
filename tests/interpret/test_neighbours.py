"""Sizes of codes and nearest latents: against a brute-force pass, whatever the batches."""

import numpy as np
import pytest
import torch

from overtone.interpret.histograms import BINS, CodeHistograms
from overtone.interpret.neighbours import FiredTogether, Neighbours, by_direction
from overtone.ops import SparseCodes

LATENTS = 9


@pytest.fixture
def z(generator: torch.Generator) -> torch.Tensor:
    """Codes over many powers of two, of either sign; latent 0 never fires, latents 1 and 2 always together."""
    z = torch.randn(400, LATENTS, generator=generator).mul(3).exp() * torch.randn(400, LATENTS, generator=generator)
    fires = torch.rand(400, LATENTS, generator=generator) < torch.linspace(0, 0.5, LATENTS)
    fires[:, 2] = fires[:, 1]
    return z * fires


def histograms(parts: list[torch.Tensor]) -> CodeHistograms:
    found = CodeHistograms(LATENTS)
    for part in parts:
        found.add(SparseCodes.from_dense(part))
    return found


def test_histograms_count_every_code(z: torch.Tensor):
    found = histograms([z])
    for m in range(1, LATENTS):
        size = z[:, m].abs().numpy()
        edges = np.arange(BINS + 1) * float(found.width[m])
        assert np.array_equal(found.counts[m].numpy(), np.histogram(size[size > 0], edges)[0])
        assert edges[BINS // 2] <= size.max() < edges[BINS], "the largest is in the upper half"
    assert not found.counts[0].any()


def test_histograms_do_not_depend_on_batches_or_their_order(z: torch.Tensor, generator: torch.Generator):
    whole = histograms([z])
    for parts in (z.split(1), z.flip(0).split(7), z[torch.randperm(400, generator=generator)].split(50)):
        again = histograms(list(parts))
        assert torch.equal(again.counts, whole.counts) and torch.equal(again.width, whole.width)


def test_doubled_codes_have_doubled_bins(z: torch.Tensor):
    one, other = histograms([z]), histograms([2 * z])
    assert torch.equal(one.counts, other.counts) and torch.equal(2 * one.width[1:], other.width[1:])


def together(parts: list[torch.Tensor], k: int = 3, share: float = 1.0) -> Neighbours:
    found, first = FiredTogether(LATENTS, share), 0
    for part in parts:
        found.add(SparseCodes.from_dense(part), first)
        first += len(part)
    return found.neighbours(k)


def test_latents_that_fire_together_correlate(z: torch.Tensor):
    phi = np.corrcoef((z[:, 1:] != 0).double().T.numpy())
    np.fill_diagonal(phi, -np.inf)
    found = together([z])
    best = -np.sort(-np.c_[phi, np.zeros(LATENTS - 1)], axis=1)[:, :3]  # the zeros: with the latent that never fires
    assert found.nearness[1:].numpy() == pytest.approx(best, abs=1e-5)
    assert found.latent[1, 0] == 2 and found.latent[2, 0] == 1 and float(found.nearness[1, 0]) == pytest.approx(1)
    assert not found.nearness[0].any(), "what never fires is near nothing"
    assert not (found.latent == torch.arange(LATENTS)[:, None]).any()


def test_a_sample_of_rows_does_not_depend_on_batches(z: torch.Tensor):
    one, other = together([z], share=0.4), together(list(z.split(33)), share=0.4)
    assert torch.equal(one.latent, other.latent) and torch.equal(one.nearness, other.nearness)
    assert not torch.equal(one.nearness, together([z]).nearness)
    with pytest.raises(ValueError, match="share=0 of the rows must be above 0"):
        FiredTogether(LATENTS, 0)


@pytest.mark.parametrize("signed", [True, False])
def test_nearest_by_direction(signed: bool, generator: torch.Generator):
    atoms = torch.randn(600, 5, generator=generator)
    unit = torch.nn.functional.normalize(atoms, dim=1).double()
    cosine = unit @ unit.T if signed else (unit @ unit.T).abs()
    cosine.fill_diagonal_(-torch.inf)
    found = by_direction(atoms * torch.rand(600, 1, generator=generator).add(0.1), 4, signed=signed)
    assert found.nearness.numpy() == pytest.approx(cosine.topk(4).values.float().numpy(), abs=1e-5)
    assert cosine.gather(1, found.latent).float().numpy() == pytest.approx(found.nearness.numpy(), abs=1e-5)
    assert by_direction(atoms[:1], 4).latent.shape == (1, 0)
