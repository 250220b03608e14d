"""Selections with weights of their own, and penalties, against slow twins in float64: values and every gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import twins
from overtone import (
    L0,
    L1,
    Anchoring,
    AuxK,
    Codes,
    CountIdle,
    Dictionary,
    Gated,
    GateL1,
    GateReconstruction,
    LossTerm,
    Lp,
    NormalisedMSE,
    Orthogonality,
    Parametrisation,
    PreActivation,
    Reconstruction,
    ReLU,
    Selection,
    Tanh,
    ThresholdJumpReLU,
)
from overtone.ops import DenseCodes, SparseCodes

D, LATENTS, WIDTH = 10, 24, 0.2
JUMP, GATED = ThresholdJumpReLU(start=0.15, bandwidth=WIDTH), Gated()


def make(select: Selection, *, bias: float = 0.0, latents: int = LATENTS, d: int = D, scale: bool = True) -> Dictionary:
    """Every weight has a value that matters."""
    generator = torch.Generator().manual_seed(5)
    dictionary = Dictionary(d, latents, select, Parametrisation(False, scale, "trained", counts_idle=True)).double()
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            if weight.requires_grad and name != "W_enc":
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
        dictionary.b_enc.add_(bias)
        dictionary.idle.copy_(torch.arange(latents) * 10)
    return dictionary


def rows_of(dictionary: Dictionary, batch: int = 40) -> Tensor:
    x = torch.randn(batch, dictionary.d, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return normalize(x, dim=1)


def encoded(dictionary: Dictionary, x: Tensor) -> Codes:
    return dictionary.encode_batch(x, torch.ones_like(x[:, :1]))


def twin_codes(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(dictionary.select, ThresholdJumpReLU):
        return twins.jump(dictionary, x, dictionary.select.bandwidth)
    if isinstance(dictionary.select, Gated):
        return twins.gated(dictionary, x)
    y = twins.pre_activations(dictionary, x)
    return y.relu(), y


def norms(dictionary: Dictionary) -> Tensor:
    return dictionary.effective_atoms.norm(dim=1)


def half_square(error: Tensor) -> Tensor:
    return 0.5 * error.square().sum(1).mean()


def per_row(values: Tensor) -> Tensor:
    return values.sum(1).mean()


def lp(dictionary: Dictionary, z: Tensor) -> Tensor:
    sizes = z.abs() * norms(dictionary)
    raised = (sizes + 1e-3) ** 0.5 - 1e-3**0.5
    return 0.3 * per_row(raised) * (sizes.sum() / raised.sum()).detach()


def aux_k(dictionary: Dictionary, z: Tensor, x: Tensor) -> Tensor:
    left = (x - twins.decode(dictionary, z)).detach()
    y = twins.pre_activations(dictionary, x).relu().masked_fill(dictionary.idle < 100, -1)
    woken = torch.zeros_like(y).scatter(1, y.topk(3, dim=1).indices, 1) * y
    return half_square(left - woken @ dictionary.effective_atoms) / left.square().sum(1).mean() / 8


def orthogonality(dictionary: Dictionary) -> Tensor:
    atoms = normalize(dictionary.W_dec, dim=1)
    overlap = (atoms @ atoms.T).square() * (1 - torch.eye(len(atoms), dtype=atoms.dtype))
    return 0.25 * overlap.amax(1).mean()


def gate_reconstruction(dictionary: Dictionary, gate: Tensor, x: Tensor) -> Tensor:
    return half_square(gate @ dictionary.effective_atoms.detach() + dictionary.b_dec.detach() - x)


def pulled(dictionary: Dictionary, x: Tensor) -> Tensor:
    threshold = dictionary.get_parameter("log_threshold").exp()
    return per_row((threshold - twins.pre_activations(dictionary, x)).relu() * norms(dictionary))


ANCHORS = torch.randn(3, D, generator=torch.Generator().manual_seed(2))
Twin = Callable[[Dictionary, Tensor, Tensor, Tensor], Tensor]
CASES: dict[str, tuple[Selection, LossTerm, Twin]] = {
    "jump-reconstruction": (JUMP, Reconstruction(), lambda d, z, g, x: half_square(twins.decode(d, z) - x)),
    "jump-l0": (JUMP, L0(0.3), lambda d, z, g, x: 0.3 * per_row(g)),
    "jump-l0-target": (JUMP, L0(0.3, 2.0), lambda d, z, g, x: 0.3 * (per_row(g) / 2 - 1).square()),
    "jump-tanh": (JUMP, Tanh(0.3, 4.0), lambda d, z, g, x: 0.3 * per_row(torch.tanh(4 * z * norms(d)))),
    "jump-pull": (JUMP, PreActivation(0.3), lambda d, z, g, x: 0.3 * pulled(d, x)),
    "gated-reconstruction": (GATED, Reconstruction(), lambda d, z, g, x: half_square(twins.decode(d, z) - x)),
    "gated-l1": (GATED, GateL1(0.3), lambda d, z, g, x: 0.3 * per_row(g * norms(d))),
    "gated-aux": (GATED, GateReconstruction(), lambda d, z, g, x: gate_reconstruction(d, g, x)),
    "lp": (ReLU(), Lp(0.3, 0.5), lambda d, z, g, x: lp(d, z)),
    "lp-1": (ReLU(), Lp(0.3), lambda d, z, g, x: 0.3 * per_row(z.abs() * norms(d))),
    "aux-k": (ReLU(), AuxK(1 / 8, k=3, after=100), lambda d, z, g, x: aux_k(d, z, x)),
    "orthogonality": (ReLU(), Orthogonality(), lambda d, z, g, x: orthogonality(d)),
    "anchoring": (
        ReLU(),
        Anchoring.of(ANCHORS, 0.3),
        lambda d, z, g, x: 0.3 * sum((w[:3] - ANCHORS.double()).square().sum() for w in (d.W_enc, d.W_dec)),
    ),
}


def value_and_gradients(dictionary: Dictionary, loss: Tensor) -> list[Tensor]:
    dictionary.zero_grad()
    loss.backward()
    weights = [w for w in dictionary.parameters() if w.requires_grad]
    return [loss.detach(), *(torch.zeros_like(w) if w.grad is None else w.grad for w in weights)]


@pytest.mark.parametrize("case", CASES)
def test_values_and_every_gradient(case: str):
    select, term, twin = CASES[case]
    dictionary = make(select)
    x = rows_of(dictionary)
    own = value_and_gradients(dictionary, term(dictionary, encoded(dictionary, x), x))
    slow = value_and_gradients(dictionary, twin(dictionary, *twin_codes(dictionary, x), x))
    assert slow[0] > 0 and any(g.abs().sum() > 0 for g in slow[1:])
    for a, b in zip(own, slow, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("select", [JUMP, GATED], ids=["jump", "gated"])
@pytest.mark.parametrize(("bias", "layout"), [(0.3, DenseCodes), (-0.75, SparseCodes)])
def test_fast_codes_of_both_layouts_equal_the_twin(select: Selection, bias: float, layout: type):
    """In float32, where the CPU keeps dense codes as a matrix: codes, gates and the gradients through both."""
    slow = make(select, bias=bias, latents=96, d=32)
    x = rows_of(slow, 64)
    fast = make(select, bias=bias, latents=96, d=32).float()
    codes = encoded(fast, x.float())
    assert codes.gate is not None and isinstance(codes.gate, layout)
    z, gate = twin_codes(slow, x)
    for own, twin in ((codes.z, z), (codes.gate.dense(), gate)):
        torch.testing.assert_close(own, twin.float(), atol=1e-5, rtol=1e-4)
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = value_and_gradients(fast, ((codes.z + codes.gate.dense()) * weight.float()).sum())
    expected = value_and_gradients(slow, ((z + gate) * weight).sum())
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b.float(), atol=2e-3, rtol=2e-3)
    assert torch.equal(codes.seen.fired, (codes.z > 0).sum(0))


def test_entries_below_the_threshold_are_zero_and_do_not_fire():
    dictionary = make(JUMP)
    x = rows_of(dictionary)
    codes, alone = encoded(dictionary, x), dictionary.encode(x)
    y, threshold = twins.pre_activations(dictionary, x), dictionary.get_parameter("log_threshold").exp()
    assert int(codes.entries.l0().sum()) == int((y > threshold - WIDTH / 2).sum())
    assert int(alone.entries.l0().sum()) == int((y > threshold).sum()) < int(codes.entries.l0().sum())
    torch.testing.assert_close(codes.z, alone.z)
    for seen in (codes.seen, alone.seen):
        assert torch.equal(seen.fired, (y > threshold).sum(0))
        torch.testing.assert_close(seen.peak, torch.where(y > threshold, y, 0).amax(0).float())


def test_gated_entries_have_a_code():
    """A gate may be open where the magnitude is 0; that is no entry, and does not fire."""
    dictionary = make(GATED)
    with torch.no_grad():
        dictionary.get_parameter("b_mag").sub_(0.2)
    codes = encoded(dictionary, rows_of(dictionary))
    assert codes.gate is not None
    assert (codes.entries.values > 0).all()
    assert 0 < int(codes.entries.l0().sum()) < int((codes.gate.values > 0).sum())
    assert torch.equal(codes.seen.fired, (codes.z > 0).sum(0))


@pytest.mark.parametrize("term", [Lp(0.1, 0.5), L1(0.1), Tanh(0.1, 4.0)])
def test_sparsity_is_blind_to_scale_moving_between_codes_and_atoms(term: LossTerm):
    dictionary = make(ReLU())
    codes = encoded(dictionary, x := rows_of(dictionary))
    before = term(dictionary, codes, x)
    with torch.no_grad():
        dictionary.W_dec.mul_(4)
    torch.testing.assert_close(term(dictionary, codes.with_z(codes.z / 4), x), before)


def test_normalised_error_is_half_the_nmse_of_any_target():
    dictionary = make(ReLU())
    codes = encoded(dictionary, x := rows_of(dictionary))
    target = 3 * x + 1
    own = value_and_gradients(dictionary, NormalisedMSE()(dictionary, codes, target))
    error = twins.decode(dictionary, twins.pre_activations(dictionary, x).relu()) - target
    slow = value_and_gradients(dictionary, 0.5 * error.square().sum() / target.square().sum())
    for a, b in zip(own, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_aux_k_is_nothing_while_no_latent_is_dead():
    dictionary = make(ReLU())
    x = rows_of(dictionary)
    assert float(AuxK(after=1000)(dictionary, encoded(dictionary, x), x)) == 0
    with torch.no_grad():
        dictionary.idle.fill_(1000)
    assert float(AuxK(k=99, after=1000)(dictionary, encoded(dictionary, x[:1]), x[:1]).detach()) > 0


def test_pulling_dead_latents_alone():
    dictionary = make(JUMP)
    x = rows_of(dictionary)
    own = value_and_gradients(dictionary, PreActivation(1.0, after=100)(dictionary, encoded(dictionary, x), x))
    dead = (dictionary.idle >= 100).double()
    threshold = dictionary.get_parameter("log_threshold").exp()
    y = twins.pre_activations(dictionary, x)
    slow = value_and_gradients(dictionary, per_row((threshold - y).relu() * norms(dictionary) * dead))
    for a, b in zip(own, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_every_latent_is_compared_once_whatever_the_chunks():
    """Chunks see fewer pairs, so the largest cosines can only fall; another step draws others; a lone latent counts 0."""
    dictionary = make(ReLU(), latents=25)
    x = rows_of(dictionary)
    codes = encoded(dictionary, x)
    whole = float(Orthogonality(chunk=25)(dictionary, codes, x).detach())
    parts = [float(Orthogonality(chunk=8).at(step, 9)(dictionary, codes, x).detach()) for step in (1, 2, 2)]
    assert parts[0] != parts[1] == parts[2]
    assert 0 < max(parts) <= whole


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: ThresholdJumpReLU(start=0.0), r"start=0\.0 must be positive"),
        (lambda: ThresholdJumpReLU(bandwidth=-1.0), r"bandwidth=-1\.0 must be positive"),
        (lambda: L0(-1.0), r"coefficient=-1\.0"),
        (lambda: L0(1.0, 0.0), r"target=0\.0 is a number of active latents"),
        (lambda: Lp(1.0, 0.0), r"p=0\.0 must lie in"),
        (lambda: Lp(1.0, floor=0.0), r"floor=0\.0 must be positive"),
        (lambda: Tanh(1.0, 0.0), r"scale=0\.0 must be positive"),
        (lambda: AuxK(k=0), "k=0 must be at least 1"),
        (lambda: AuxK(after=0), "after=0 rows"),
        (lambda: Orthogonality(chunk=1), "chunk=1 must hold at least 2"),
        (lambda: Anchoring(((1.0, 0.0), (1.0,))), "all of one width"),
    ],
)
def test_bad_parts_are_refused(make_it, message: str):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_terms_say_what_they_miss():
    plain = Dictionary(D, 8, ReLU())
    x = rows_of(plain).float()
    codes = encoded(plain, x)
    for term, message in (
        (L0(1.0), "gave no gates"),
        (PreActivation(1.0), "no trained threshold"),
        (AuxK(), "does not know its dead latents"),
        (Anchoring.of(ANCHORS[:, :4]), "cannot anchor a dictionary of latents=8, d=10"),
    ):
        with pytest.raises(ValueError, match=message):
            term(plain, codes, x)
    with pytest.raises(ValueError, match="does not know its dead latents"):
        CountIdle().begin(plain, x)
    jump = make(JUMP).float()
    with pytest.raises(ValueError, match="do not know their rows"):
        PreActivation(1.0)(jump, jump.encode(x), x)


def test_a_weight_may_not_take_the_name_of_another():
    class Greedy(Gated):
        def weights(self, latents: int, d: int):
            return {"W_enc": super().weights(latents, d)["r_mag"]}

    with pytest.raises(ValueError, match="calls a weight 'W_enc'"):
        Dictionary(D, 8, Greedy())
