"""Laws that hold for every dictionary, whatever its method."""

from dataclasses import replace

import pytest
import torch

from overtone import (
    AbsTopK,
    Codes,
    Dictionary,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    Method,
    Parametrisation,
    RarestFirst,
    Reconstruction,
    ReLU,
    Run,
    Threshold,
    TopK,
    WhitenedEncoder,
    anchored,
    frozen_decoder,
    gba,
    jumprelu,
    matching_pursuit,
    matryoshka,
    soft_frozen_decoder,
    topk,
)
from overtone.losses import total
from overtone.training import start
from small_methods import SMALL


def whitened() -> Method:
    """The threshold autoencoder of atoms."""
    return Method(
        name="whitened",
        select=Threshold(0.6),
        losses=(Reconstruction(),),
        rules=(WhitenedEncoder(),),
        parametrisation=Parametrisation(tied=False, scale=False, centre="fixed"),
    )


# Their gradients are estimates, or stopped, on purpose: test_penalties.py compares them with what they should be.
ESTIMATED = ("jumprelu", "tanh-jumprelu", "gba-jumprelu", "gated", "p-anneal")
DIFFERENTIABLE = [
    *(method for name, method in SMALL.items() if name not in ESTIMATED),
    gba(groups=4, activation="relu"),
    replace(matching_pursuit(6, residual=0.4), name="matching-pursuit-stop"),
    whitened(),
    anchored(topk(4), torch.eye(12)[:3]),
    frozen_decoder(topk(4)),
    soft_frozen_decoder(gba(groups=4)),
    replace(matryoshka(3, sampled=3), name="matryoshka-sampled"),
]
METHODS = [
    *DIFFERENTIABLE,
    *(SMALL[name] for name in ESTIMATED),
    jumprelu(4, start=0.2, bandwidth=0.1),
    topk(4, aux_after=200),
]


def trained_a_little(method: Method, rows: torch.Tensor, latents: int = 20) -> Dictionary:
    """Not at its start: biases, scales and centre have values that matter."""
    from overtone import ArrayStream, train

    run, stream = Run(method=method, latents=latents, steps=30, lr=0.02), ArrayStream(rows, 64)
    state = start(run, stream)
    list(train(run, stream, state))
    return state.dictionary


@pytest.fixture(params=METHODS, ids=lambda m: f"{m.name}-{type(m.select).__name__.lower()}-{len(m.losses)}")
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture
def dictionary(method: Method, rows: torch.Tensor) -> Dictionary:
    return trained_a_little(method, rows)


def permuted(dictionary: Dictionary, order: torch.Tensor) -> Dictionary:
    other = Dictionary(dictionary.d, dictionary.latents, dictionary.select, dictionary.parametrisation)
    state = {k: v[order] if v.shape[:1] == (20,) else v for k, v in dictionary.state_dict().items()}
    other.load_state_dict(state)
    return other


def test_shapes(dictionary: Dictionary, rows: torch.Tensor):
    codes = dictionary.encode(rows)
    assert isinstance(codes, Codes)
    assert dictionary.pre_activations(rows).shape == codes.z.shape == (600, 20)
    assert dictionary(rows).shape == rows.shape
    sequence = rows.reshape(20, 30, 12)
    torch.testing.assert_close(dictionary(sequence), dictionary(rows).reshape(20, 30, 12))
    torch.testing.assert_close(dictionary.encode(rows[0]).z, codes.z[0])


def test_codes_are_the_formula(rows: torch.Tensor):
    """JumpReLU, tied, by the book: z = w·(x̃ − b_dec) where that exceeds −b."""
    dictionary = trained_a_little(gba(groups=4), rows)
    unit = rows / rows.norm(dim=1, keepdim=True)
    linear = (unit - dictionary.b_dec) @ dictionary.W_dec.T
    z = torch.where(linear > -dictionary.b_enc, linear, 0.0)
    x_hat = ((dictionary.scale * z) @ dictionary.W_dec + dictionary.b_dec) * rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(dictionary.encode(rows).z, z, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(dictionary(rows), x_hat, atol=1e-5, rtol=1e-5)


def test_rows_divided_by_the_root_of_their_norm_are_between_unit_rows_and_rows_as_they_are(rows: torch.Tensor):
    """(2b) A typical row has norm 1; one of four times its norm has 2, and is given back as it was."""
    dictionary = Dictionary(12, 20, parametrisation=Parametrisation(input_norm="root"))
    dictionary.measure_sites(rows, rows)
    typical = rows.norm(dim=1).median()
    x = torch.nn.functional.normalize(rows[:5], dim=1) * typical * torch.tensor([1.0, 4.0, 0.25, 9.0, 0.0])[:, None]
    normalised, norm = dictionary.normalise(x)
    torch.testing.assert_close(normalised.norm(dim=1), torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0]))
    torch.testing.assert_close(normalised * norm * typical, x)
    with torch.no_grad():
        dictionary.b_dec.copy_(rows[0])
        codes = dictionary.encode_normalised(normalised, norm)
        wanted = dictionary.decode_normalised(codes.entries) * norm * typical
    torch.testing.assert_close(dictionary.reconstruct(x), wanted)
    assert not dictionary.reconstruct(x)[4].any()


def test_permuting_latents_permutes_codes(dictionary: Dictionary, rows: torch.Tensor, generator: torch.Generator):
    groups = dictionary.select.k if isinstance(dictionary.select, GroupMax) else 1  # which permutes within groups
    order = torch.cat([g[torch.randperm(len(g), generator=generator)] for g in torch.arange(20).tensor_split(groups)])
    other = permuted(dictionary, order)
    torch.testing.assert_close(other.encode(rows).z, dictionary.encode(rows).z[:, order])
    torch.testing.assert_close(other(rows), dictionary(rows), atol=1e-5, rtol=1e-5)


def test_scaling_the_input_scales_the_reconstruction(dictionary: Dictionary, rows: torch.Tensor):
    """Of unit rows as they are; of rows divided by the root of their norm together with what a typical norm is."""
    z, x_hat = dictionary.encode(rows).z, dictionary(rows)
    if dictionary.read_scale is not None:
        dictionary.read_scale *= 32.0
    # A power of two rounds nothing: with another factor a row next to a gate may fall on its other side.
    torch.testing.assert_close(dictionary(rows * 32.0), x_hat * 32.0, rtol=1e-6, atol=0)
    torch.testing.assert_close(dictionary.encode(rows * 32.0).z, z, rtol=1e-6, atol=0)


def test_decode_is_affine_in_the_codes(dictionary: Dictionary, rows: torch.Tensor):
    one, two = dictionary.encode(rows[:50]), dictionary.encode(rows[50:100])
    mixed = dictionary.decode_normalised(one.with_z(0.3 * one.z + 0.7 * two.z).entries)
    parts = 0.3 * dictionary.decode_normalised(one.entries) + 0.7 * dictionary.decode_normalised(two.entries)
    torch.testing.assert_close(mixed, parts)


def test_a_row_is_coded_alone(dictionary: Dictionary, rows: torch.Tensor):
    """Codes of a row do not depend on its neighbours in the batch."""
    torch.testing.assert_close(dictionary.encode(rows[7:8]).z, dictionary.encode(rows).z[7:8], atol=1e-6, rtol=1e-5)


def test_a_zero_row_is_reconstructed_as_zero(dictionary: Dictionary):
    assert torch.equal(dictionary(torch.zeros(2, 12)), torch.zeros(2, 12))


def test_loss_is_invariant_to_repeating_the_batch(method: Method, dictionary: Dictionary, rows: torch.Tensor):
    def loss(x: torch.Tensor) -> torch.Tensor:
        normalised, norm = dictionary.normalise(x)
        return total(method.losses, dictionary, dictionary.encode_batch(normalised, norm), normalised)

    torch.testing.assert_close(loss(rows.repeat(3, 1)), loss(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", DIFFERENTIABLE, ids=lambda m: m.name, indirect=True)
def test_gradients_equal_finite_differences(method: Method, dictionary: Dictionary, rows: torch.Tensor):
    """Float64, central differences, every parameter that learns; the step stays clear of gates that would flip."""
    dictionary = dictionary.double()
    x = rows[:40].double()
    normalised, norm = dictionary.normalise(x)
    # Gradients that are stopped on purpose are no derivative of the loss; test_losses.py checks where they stop.
    terms = tuple(Reconstruction() if isinstance(term, RarestFirst) else term for term in method.losses)

    def loss() -> torch.Tensor:
        return total(terms, dictionary, dictionary.encode_batch(normalised, norm), normalised)

    loss().backward()
    step, generator = 1e-7, torch.Generator().manual_seed(3)
    for name, parameter in dictionary.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, f"{name} is moved by rules alone"
            continue
        flat = parameter.data.view(-1)
        assert parameter.grad is not None
        for index in torch.randperm(flat.numel(), generator=generator)[:12].tolist():
            kept = flat[index].item()
            sides = []
            for sign in (1, -1):
                flat[index] = kept + sign * step
                sides.append(loss().item())
            flat[index] = kept
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert parameter.grad.view(-1)[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8), (name, index)


def test_the_steered_bias_gets_no_gradient_and_the_trained_one_does():
    assert not Dictionary(4, 8).b_enc.requires_grad
    assert Dictionary(4, 8, TopK(2), Parametrisation(bias="trained")).b_enc.requires_grad


def test_topk_keeps_the_k_largest(rows: torch.Tensor):
    dictionary = Dictionary(12, 20, TopK(3), Parametrisation(tied=False))
    codes = dictionary.encode(rows)
    kept = dictionary.pre_activations(rows).topk(3, dim=1).values
    assert ((codes.z > 0).sum(1) <= 3).all()
    torch.testing.assert_close(codes.z.sum(1), kept.relu().sum(1))


def test_jumprelu_magnitude_does_not_depend_on_the_bias(generator: torch.Generator):
    linear, identity = torch.randn(50, 8, generator=generator), torch.eye(8)
    for bias in (torch.zeros(8), torch.full((8,), -0.4)):
        z = JumpReLU().encode(linear, identity, bias, torch.zeros(8)).codes.dense()
        torch.testing.assert_close(z, torch.where(linear > -bias, linear, 0.0))
    z = ReLU().encode(linear, identity, torch.full((8,), -0.4), torch.zeros(8)).codes.dense()
    torch.testing.assert_close(z, (linear - 0.4).relu())


def test_codes_can_be_edited(dictionary: Dictionary, rows: torch.Tensor):
    """Steering: one latent set to 2 adds twice its atom in the data's units where it was silent, times the row's norm."""
    codes = dictionary.encode(rows.reshape(20, 30, 12))
    z = codes.z.clone()
    was = z[..., 3].clone()
    z[..., 3] = 2
    moved = (dictionary.decode(codes.with_z(z)) - dictionary.decode(codes)) / codes.norm
    expected = (2 - was)[..., None] * dictionary.data_atoms[3]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"z has shape \(600, 20\); these codes are \(20, 30, 20\)"):
        codes.with_z(z.reshape(600, 20))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dictionary(12, 4, TopK(5)), "k=5 exceeds latents=4"),
        (lambda: Dictionary(0, 4), "d=0 and latents=4"),
        (lambda: TopK(0), "k=0 must be at least 1"),
        (lambda: AbsTopK(0), "k=0 must be at least 1"),
        (lambda: GroupMax(0), "k=0 must be at least 1"),
        (lambda: Dictionary(12, 4, GroupMax(5)), "k=5 exceeds latents=4"),
        (lambda: MatchingPursuit(0), "steps=0 must be at least 1"),
        (lambda: MatchingPursuit(3, residual=0.0), "residual=0.0 is a norm and must be positive"),
        (lambda: Threshold(-1.0), "tau=-1.0 must be finite and not negative"),
        (
            lambda: replace(matching_pursuit(3), parametrisation=Parametrisation(tied=False)).check(8),
            "pursues with other atoms than it decodes with",
        ),
        (lambda: replace(gba(), select=MatchingPursuit(3)).check(64), "or has a bias to train or steer"),
        (lambda: Dictionary(12, 4)(torch.zeros(3, 11)), "width 11, the dictionary was made for d=12"),
    ],
)
def test_bad_input_is_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
