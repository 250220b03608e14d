"""What theory says exactly, number for number: a spurious minimum, matching pursuit's identities, the support of atoms."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overtone import (
    ArrayStream,
    Dictionary,
    MatchingPursuit,
    Method,
    Parametrisation,
    Reconstruction,
    Run,
    Threshold,
    TopK,
    WhitenedEncoder,
    ops,
    train,
)
from overtone.atoms import coherence, inverse_second_moment, support_interval, unit_atoms
from overtone.training import start


def test_a_latent_between_two_features_is_a_spurious_minimum():
    """arXiv 2512.05534, example 3.5: Σ‖x̂ − x‖² over both features is 1, no gradient leads away, and 0 is possible."""
    plain = Parametrisation(tied=False, scale=False, bias="trained", centre="fixed", input_norm="none")
    dictionary, x = Dictionary(2, 2, TopK(1), plain), torch.eye(2)

    def loss() -> torch.Tensor:
        """Ours is half of it, averaged over the two rows."""
        codes = dictionary.encode(x)
        return 4 * Reconstruction()(dictionary, codes, x)

    with torch.no_grad():
        dictionary.W_enc.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        dictionary.W_dec.copy_(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    assert loss().item() == 1.0
    loss().backward()
    assert dictionary.W_enc.grad is not None and not dictionary.W_enc.grad.any()
    assert dictionary.W_dec.grad is not None and not dictionary.W_dec.grad.any()
    with torch.no_grad():
        dictionary.W_enc.copy_(x)
        dictionary.W_dec.copy_(x)
    assert loss().item() == 0.0


@pytest.fixture
def atoms(generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(40, 12, generator=generator), dim=1)


def residuals(x: torch.Tensor, atoms: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """x less what 0, 1, … steps explain."""
    codes = [ops.encode_pursuit(x, atoms, t).codes for t in range(1, steps + 1)]
    return [x, *(x - ops.decode(c, atoms) for c in codes)]


def test_every_step_of_matching_pursuit_is_a_projection(atoms: torch.Tensor, generator: torch.Generator):
    """The residual is orthogonal to the last atom, and ‖r_{t+1}‖² = ‖r_t‖² − v², for codes v = max_j w_j·r_t."""
    x = torch.randn(50, 12, generator=generator)
    left = residuals(x, atoms, 8)
    for before, after in pairwise(left):
        v, j = (before @ atoms.T).max(dim=1)
        assert (v > 0).all()
        torch.testing.assert_close(after, before - v[:, None] * atoms[j], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((after * atoms[j]).sum(1), torch.zeros(50), rtol=0, atol=2e-6)
        torch.testing.assert_close(after.square().sum(1), before.square().sum(1) - v.square(), rtol=1e-4, atol=1e-5)


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_orthonormal_atoms_are_found_in_as_many_steps_as_there_are(active: int, seed: int):
    """And more steps find nothing else, where they stop at the residual that rounding leaves."""
    g = torch.Generator().manual_seed(seed)
    atoms = torch.linalg.qr(torch.randn(12, 12, generator=g)).Q
    support = torch.rand(20, 12, generator=g).argsort(1) < active
    z = support * (0.1 + torch.rand(20, 12, generator=g))
    x = z @ atoms
    exact = ops.encode_pursuit(x, atoms, active).codes.dense()
    assert torch.equal(exact > 0, support)
    torch.testing.assert_close(exact, z, rtol=1e-5, atol=1e-5)
    stopped = ops.encode_pursuit(x, atoms, 12, residual=1e-3).codes.dense()
    assert torch.equal(stopped > 0, support)


def test_an_atom_picked_again_adds_to_its_code():
    """Two atoms at 120° take turns; what is left shrinks to a quarter, squared, with every step."""
    atoms = torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5]])
    x = torch.tensor([[0.2, 0.9]])
    left, z = x.clone(), torch.zeros(1, 2)
    for _ in range(6):
        v, j = (left @ atoms.T).max(dim=1)
        z[0, j] += v
        left = left - v * atoms[j]
    encoded = ops.encode_pursuit(x, atoms, 6)
    assert encoded.codes.l0().tolist() == [2] and encoded.fired.tolist() == [1, 1]
    torch.testing.assert_close(encoded.codes.dense(), z)
    torch.testing.assert_close(encoded.peak, z[0])
    torch.testing.assert_close(ops.decode(encoded.codes, atoms), x, rtol=0, atol=2e-2)


def test_a_pursuit_stops_at_its_residual_and_where_nothing_points_its_way():
    x = torch.tensor([[3.0, 1.0, 0.1], [0.0, 0.05, 0.0], [-1.0, -1.0, -1.0], [torch.nan, 1.0, 1.0]])
    atoms = torch.eye(3, requires_grad=True)
    encoded = ops.encode_pursuit(x, atoms, 3, residual=0.2)
    assert torch.equal(encoded.codes.dense(), torch.tensor([[3.0, 1.0, 0.0], *[[0.0, 0.0, 0.0]] * 3]))
    encoded.codes.values.sum().backward()
    assert atoms.grad is not None and atoms.grad.isfinite().all(), "a row that is not a number spoils no atom"
    longer = ops.encode_pursuit(x, atoms, 50, residual=0.2)
    assert torch.equal(longer.codes.dense(), encoded.codes.dense())


def test_pursuit_needs_no_more_memory_than_its_codes(generator: torch.Generator):
    """What autograd keeps: the residual, W itself and the codes; no products with all atoms."""
    x, W = torch.randn(64, 8, generator=generator), torch.randn(5000, 8, generator=generator).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ops.encode_pursuit(x, W, 5)
    assert max(kept) == W.numel() and sum(kept) - W.numel() < 64 * 5000 / 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_weights_pursue_as_float64_does(dtype: torch.dtype, generator: torch.Generator):
    """Well separated atoms, so that rounding picks no other."""
    from overtone.ops import pursuit, reference

    W = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q.to(dtype)
    x = (torch.rand(30, 16, generator=generator) @ torch.diag(2.0 ** torch.arange(16)) @ W.float()).to(dtype)
    fast, slow = pursuit.encode_pursuit(x, W, 3), reference.encode_pursuit(x.double(), W.double(), 3)
    assert fast.codes.values.dtype == dtype and torch.equal(fast.codes.latents, slow.codes.latents)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(fast.codes.values.double(), slow.codes.values, rtol=tolerance, atol=tolerance)


@pytest.fixture
def anisotropic(generator: torch.Generator) -> torch.Tensor:
    """Rows whose directions have very different variances, and some that are correlated."""
    return torch.randn(4000, 64, generator=generator) @ torch.randn(64, 64, generator=generator) / 8


def test_the_inverse_second_moment_whitens(anisotropic: torch.Tensor):
    metric = inverse_second_moment(anisotropic)
    torch.testing.assert_close(metric @ (anisotropic.T @ anisotropic / 4000), torch.eye(64), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="3 rows do not span their d=64 dimensions"):
        inverse_second_moment(anisotropic[:3])


@pytest.mark.parametrize("active", [1, 2, 3])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_atoms_are_recovered_at_every_threshold_of_the_interval(
    anisotropic: torch.Tensor, generator: torch.Generator, active: int, share: float
):
    """z = x̃·1{x̃ > τ} with W_enc = W_dec S̃: exact support for εKδ_max < τ < δ_min − ε(K−1)δ_max (arXiv 2509.20784)."""
    metric = inverse_second_moment(anisotropic).double()
    # Orthonormal in the metric, then tilted a little: few enough atoms for a coherence that leaves an interval.
    root = torch.linalg.cholesky(torch.linalg.inv(metric))
    white = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q
    atoms = unit_atoms((white + 0.003 * torch.randn(64, 64, generator=generator)) @ root.T, metric)
    epsilon = coherence(atoms, metric)
    assert 0.01 < epsilon < 0.05
    low, high = support_interval(atoms, metric, active, 0.8, 1.2)
    assert low == pytest.approx(epsilon * active * 1.2) and high == pytest.approx(0.8 - epsilon * (active - 1) * 1.2)
    assert low < high
    support = torch.rand(500, 64, generator=generator).argsort(1) < active
    z = support * (0.8 + 0.4 * torch.rand(500, 64, generator=generator, dtype=torch.float64))
    tau = low + share * (high - low)
    encoded = Threshold(tau).encode(z @ atoms, atoms @ metric, torch.ones(64).double(), torch.zeros(64).double())
    assert torch.equal(encoded.codes.dense() > 0, support)
    assert (encoded.codes.dense() - z).abs().max() <= epsilon * active * 1.2 + 1e-9


def test_the_coherence_does_not_see_the_order_or_the_length_of_atoms(anisotropic: torch.Tensor):
    metric, atoms = inverse_second_moment(anisotropic.double()), anisotropic[:20].double()
    other = atoms[torch.arange(20).flip(0)] * torch.linspace(0.5, 3, 20)[:, None]
    assert coherence(other, metric) == pytest.approx(coherence(atoms, metric), rel=1e-9)
    for active, smallest, message in ((0, 0.5, "active=0"), (21, 0.5, "active=21"), (2, 2.0, "smallest=2.0 and")):
        with pytest.raises(ValueError, match=message):
            support_interval(atoms, metric, active, smallest, 1.0)


def test_a_whitened_encoder_follows_its_atoms(rows: torch.Tensor):
    untied = Parametrisation(tied=False, scale=False, centre="fixed", input_norm="none")
    method = Method("whitened", Threshold(0.5), (Reconstruction(),), (WhitenedEncoder(),), untied)
    run, stream = Run(method=method, latents=30, steps=25, lr=0.02), ArrayStream(rows, 64)
    state = start(run, stream)
    before = state.dictionary.W_dec.detach().clone()
    list(train(run, stream, state))
    metric, atoms = state.rules[0]["metric"], state.dictionary.W_dec.detach()
    assert (atoms - before).abs().max() > 0.01
    torch.testing.assert_close(state.dictionary.W_enc.detach(), atoms @ metric)
    torch.testing.assert_close((atoms @ metric * atoms).sum(1), torch.ones(30))
    tied = Dictionary(12, 8, MatchingPursuit(2), Parametrisation(scale=False))
    with pytest.raises(ValueError, match="use Parametrisation"):
        WhitenedEncoder().begin(tied, rows)
