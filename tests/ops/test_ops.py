"""The fast operations against the slow ones, and the laws that both obey."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overtone import ops
from overtone.ops import cpu, dense, loops, pursuit, reference

B, D, M = 37, 12, 50


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def loops_by(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every law with loops that are compiled and with torch's."""
    if request.param == "compiled" and not loops.are_compiled():
        pytest.skip("numba is not installed (extra `fast`)")
    with patch.object(loops, "are_compiled", lambda: request.param == "compiled"):
        yield


class Kept:
    """The fast operations, with codes kept as entries or as a matrix whatever would be faster."""

    encode_topk = staticmethod(cpu.encode_topk)
    encode_batch_topk = staticmethod(cpu.encode_batch_topk)
    encode_abs_topk = staticmethod(cpu.encode_abs_topk)
    encode_group_max = staticmethod(cpu.encode_group_max)
    encode_pursuit = staticmethod(pursuit.encode_pursuit)
    decode = staticmethod(ops.decode)
    decode_groups = staticmethod(ops.decode_groups)

    def __init__(self, as_matrix: bool):
        self.as_matrix = as_matrix

    def encode_threshold(self, *args: Any, **options: Any) -> ops.Encoded:
        with patch.object(dense, "probe", lambda *_: self.as_matrix):
            return cpu.encode_threshold(*args, **options)


ENTRIES, MATRIX = Kept(as_matrix=False), Kept(as_matrix=True)
IMPLEMENTATIONS = [
    pytest.param(reference, id="reference"),
    pytest.param(ENTRIES, id="entries"),
    pytest.param(MATRIX, id="matrix"),
]
FAST = IMPLEMENTATIONS[1:]
ENCODERS = [
    *("relu", "jump", "threshold", "topk1", "topk", "topkM", "abs_topk", "group_max", "pursuit", "pursuit_stop"),
    "batch_topk",
]


class Weights(NamedTuple):
    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    centre: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def to(self, dtype: torch.dtype) -> "Weights":
        return Weights(*(t.detach().to(dtype).requires_grad_() for t in self))


def weights(batch: int = B, latents: int = M, seed: int = 0, shift: float = -0.8) -> Weights:
    g = torch.Generator().manual_seed(seed)
    x, W_enc, W_dec = (torch.randn(n, D, generator=g) for n in (batch, latents, latents))
    b_enc, centre, b_dec = (
        torch.rand(latents, generator=g) + shift,
        torch.randn(D, generator=g),
        torch.randn(D, generator=g),
    )
    return Weights(x, W_enc / D**0.5, b_enc, 0.3 * centre, W_dec, b_dec).to(torch.float32)


def encode(run: Any, kind: str, w: Weights) -> ops.Encoded:
    if kind == "batch_topk":
        return run.encode_batch_topk(w.x, w.W_enc, w.b_enc, 7, centre=w.centre)
    if kind == "abs_topk":
        return run.encode_abs_topk(w.x, w.W_enc, w.b_enc, 7, centre=w.centre)
    if kind == "group_max":
        return run.encode_group_max(w.x, w.W_enc, w.b_enc, 7, centre=w.centre)
    if kind.startswith("pursuit"):
        residual = 1.2 if kind == "pursuit_stop" else 0.0
        return run.encode_pursuit(w.x, w.W_enc, 9, residual=residual, centre=w.centre)
    if kind.startswith("topk"):
        k = {"topk1": 1, "topk": 7, "topkM": len(w.W_enc)}[kind]
        return run.encode_topk(w.x, w.W_enc, w.b_enc, k, centre=w.centre)
    threshold = 0.4 if kind == "threshold" else 0.0
    return run.encode_threshold(w.x, w.W_enc, w.b_enc, centre=w.centre, threshold=threshold, jump=kind == "jump")


def assert_same(fast: ops.Encoded, slow: ops.Encoded, **tolerance: float):
    for name in ("latents", "offsets", "latents_total"):
        a, b = getattr(fast.codes.sparse(), name), getattr(slow.codes.sparse(), name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, name
    assert torch.equal(fast.fired, slow.fired)
    for a, b in ((fast.codes.sparse().values, slow.codes.sparse().values), (fast.peak, slow.peak)):
        torch.testing.assert_close(a.to(b.dtype), b, **tolerance)


def objective(run: Any, kind: str, w: Weights, sizes: list[int] | None = None) -> Tensor:
    codes = encode(run, kind, w).codes
    decode = run.decode if sizes is None else partial(run.decode_groups, sizes=sizes)
    x_hat = decode(codes, w.W_dec, b_dec=w.b_dec)
    return (x_hat - w.x).square().sum(-1).mean() + codes.values.pow(3).sum() / B


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("latents", [M, 700])
def test_encoding_equals_the_reference_in_float64(fast: Any, kind: str, latents: int):
    w = weights(latents=latents)
    quick, slow = encode(fast, kind, w), encode(reference, kind, w.to(torch.float64))
    assert 0 < len(slow.codes.values) <= B * latents
    assert_same(quick, slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("sizes", [None, [M], [10, 1, 39], [1] * M], ids=["whole", "one", "three", "singles"])
def test_every_gradient_equals_the_reference_in_float64(fast: Any, kind: str, sizes: list[int] | None):
    quick, slow = weights(), weights().to(torch.float64)
    objective(fast, kind, quick, sizes).backward()
    objective(reference, kind, slow, sizes).backward()
    for name, a, b in zip(Weights._fields, quick, slow, strict=True):
        if kind in ("jump", "pursuit", "pursuit_stop") and name == "b_enc":
            assert a.grad is b.grad is None, "a bias that only gates, or that is not there, has no gradient"
            continue
        assert a.grad is not None and b.grad is not None, name
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5 * float(b.grad.abs().max()), msg=name)


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("sizes", [[M], [20, 30]])
def test_the_gradient_of_values_and_scale_equals_the_reference(fast: Any, sizes: list[int]):
    gradients = []
    for run, dtype in ((fast, torch.float32), (reference, torch.float64)):
        w, scale = weights().to(dtype), torch.linspace(0.5, 2, M, dtype=dtype, requires_grad=True)
        codes = encode(run, "relu", w).codes
        active = codes.dense() != 0
        values = codes.values.detach().requires_grad_()
        x_hat = run.decode_groups(codes.with_values(values).scaled(scale), w.W_dec, sizes, w.b_dec)
        x_hat.square().sum().backward()
        gradients.append((codes.with_values(values.grad).dense()[active], scale.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_references_gradients_equal_finite_differences(kind: str):
    w = weights(batch=5, latents=9).to(torch.float64)
    objective(reference, kind, w).backward()
    step = 1e-7
    for name, t in zip(Weights._fields, w, strict=True):
        flat, gradient = t.data.view(-1), torch.zeros_like(t) if t.grad is None else t.grad
        for i in range(0, flat.numel(), 3):
            kept, sides = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = kept + sign * step
                sides.append(objective(reference, kind, w).item())
            flat[i] = kept
            numeric = (sides[0] - sides[1]) / (2 * step)
            assert gradient.view(-1)[i].item() == pytest.approx(numeric, rel=1e-5, abs=1e-6), (name, i)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_codes_are_the_formulas(run: Any):
    """maths.md eq. 3 and 4, and the k largest, from dense pre-activations."""
    w = weights()
    pre = ((w.x - w.centre) @ w.W_enc.T + w.b_enc).detach()
    expected = {"relu": pre.relu(), "jump": torch.where(pre > 0, pre - w.b_enc, 0.0)}
    for kind, k in (("topk1", 1), ("topk", 7), ("topkM", M)):
        kept = pre.topk(k, dim=1)
        expected[kind] = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    kept = pre.abs().topk(7, dim=1).indices
    expected["abs_topk"] = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept))
    groups = [group.relu() * (group == group.amax(1, keepdim=True)) for group in pre.tensor_split(7, dim=1)]
    expected["group_max"] = torch.cat(groups, dim=1)
    kept = pre.flatten().topk(7 * B)
    expected["batch_topk"] = torch.zeros(B * M).scatter(0, kept.indices, kept.values.relu()).view(B, M)
    for kind, z in expected.items():
        torch.testing.assert_close(encode(run, kind, w).codes.dense(), z, atol=1e-6, rtol=1e-5)


def test_any_activation_can_select():
    """Entries where the code is not zero, firing where also the pre-activation is positive."""
    w = weights()
    pre = ((w.x - w.centre) @ w.W_enc.T + w.b_enc).detach()
    activation = partial(torch.nn.functional.leaky_relu, negative_slope=0.1)
    encoded = ops.encode_with(activation, w.x, w.W_enc, w.b_enc, centre=w.centre)
    torch.testing.assert_close(encoded.codes.dense(), activation(pre), atol=1e-6, rtol=1e-5)
    assert torch.equal(encoded.fired, (pre > 0).sum(0))
    torch.testing.assert_close(encoded.peak, pre.amax(0).clamp(min=0))
    relu, own = ops.encode_with(torch.relu, w.x, w.W_enc, w.b_enc, centre=w.centre), encode(reference, "relu", w)
    assert_same(relu, own)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_a_tied_matrix_gathers_both_gradients(run: Any):
    w = weights()
    tied = w._replace(W_enc=w.W_dec * 0.25)
    objective(run, "jump", tied).backward()
    apart = weights()
    apart = apart._replace(W_enc=(apart.W_dec.detach() * 0.25).requires_grad_())
    objective(run, "jump", apart).backward()
    torch.testing.assert_close(w.W_dec.grad, apart.W_dec.grad + 0.25 * apart.W_enc.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_groups_stop_the_gradient_between_stages(run: Any):
    """As RarestFirst has it: result i holds the last i + 1 groups, and group g learns from the result it enters alone."""
    w, sizes = weights(), [10, 15, 25]
    codes = encode(run, "relu", w).codes
    prefixes = run.decode_groups(codes, w.W_dec, sizes, w.b_dec)
    starts = [0, 10, 25, 50]
    for i, start in enumerate(reversed(starts[:-1])):
        z = codes.dense().detach().clone()
        z[:, :start] = 0
        torch.testing.assert_close(prefixes[i], z @ w.W_dec + w.b_dec, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prefixes[-1], run.decode(codes, w.W_dec, w.b_dec), rtol=1e-5, atol=1e-5)
    for i, (start, stop) in enumerate(reversed(list(pairwise(starts)))):
        (gradient,) = torch.autograd.grad(prefixes[i].sum(), w.W_dec, retain_graph=True)
        outside = torch.ones(M, dtype=torch.bool)
        outside[start:stop] = False
        assert not gradient[outside].any() and gradient[start:stop].any()


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_permuting_latents_permutes_codes(run: Any, kind: str):
    w, g = weights(), torch.Generator().manual_seed(1)
    groups = torch.arange(M).tensor_split(7 if kind == "group_max" else 1)  # GroupMax: within its groups
    order = torch.cat([group[torch.randperm(len(group), generator=g)] for group in groups])
    other = w._replace(W_enc=w.W_enc[order], b_enc=w.b_enc[order], W_dec=w.W_dec[order])
    one, two = encode(run, kind, w), encode(run, kind, other)
    moved = ops.Encoded(one.codes.permuted(order), one.fired[order], one.peak[order])
    assert_same(two, moved, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run.decode(two.codes, other.W_dec), run.decode(one.codes, w.W_dec), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ENCODERS[:-1])  # batch top-k couples rows
def test_a_batch_in_parts_equals_the_whole(run: Any, kind: str):
    w = weights()
    parts = [encode(run, kind, w._replace(x=x)) for x in w.x.split([1, 20, 16])]
    joined = ops.Encoded(
        ops.concatenate([part.codes.sparse() for part in parts]),
        torch.stack([part.fired for part in parts]).sum(0),
        torch.stack([part.peak for part in parts]).amax(0),
    )
    assert_same(joined, encode(run, kind, w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("kind", ENCODERS)
def test_pieces_of_the_scan_equal_one_piece(fast: Any, kind: str, monkeypatch: pytest.MonkeyPatch):
    whole = weights()
    objective(fast, kind, whole, [20, 30]).backward()
    for name, value in (("candidates._PIECE", 1), ("candidates._PIECE_ROWS", 5), ("cpu._DECODED", 7 * D)):
        monkeypatch.setattr(f"overtone.ops.{name}", value)
    monkeypatch.setattr("overtone.ops.transposed.BLOCK", 3 * D)
    pieces = weights()
    objective(fast, kind, pieces, [20, 30]).backward()
    assert_same(encode(fast, kind, pieces), encode(reference, kind, whole), rtol=1e-5, atol=1e-6)
    for name, a, b in zip(Weights._fields, pieces, whole, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_rows_without_active_latents_decode_to_the_bias(run: Any):
    w = weights(shift=-100.0)
    for kind in ("relu", "topk"):
        encoded = encode(run, kind, w)
        assert len(encoded.codes.sparse().values) == 0 and not encoded.fired.any() and not encoded.peak.any()
        x_hat = run.decode(encoded.codes, w.W_dec, w.b_dec)
        assert torch.equal(x_hat, w.b_dec.expand(B, D))
        gradients = torch.autograd.grad(x_hat.sum(), [w.W_dec, w.b_dec, w.W_enc, w.b_enc, w.centre, w.x])
        assert not any(gradient.any() for gradient in (gradients[0], *gradients[2:]))
        assert torch.equal(gradients[1], torch.full((D,), float(B)))
    mixed = w._replace(b_enc=torch.cat([torch.zeros(1), torch.full((M - 1,), -100.0)]))
    assert 0 in encode(run, "relu", mixed).codes.l0() and encode(run, "relu", mixed).codes.l0().any()


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_rows_with_every_latent_active_are_the_dense_product(run: Any):
    w = weights(shift=100.0)
    pre = (w.x - w.centre) @ w.W_enc.T + w.b_enc
    for kind in ("relu", "topkM"):
        codes = encode(run, kind, w).codes
        assert (codes.l0() == M).all()
        torch.testing.assert_close(codes.dense(), pre)
        torch.testing.assert_close(run.decode(codes, w.W_dec), pre @ w.W_dec, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
@pytest.mark.parametrize("latents", [8, 300])
def test_of_equal_entries_the_lower_latent_wins(run: Any, latents: int):
    b_enc = torch.ones(latents)
    b_enc[[5, 7]] = 2.0
    zeros = torch.zeros
    codes = run.encode_topk(zeros(3, D), zeros(latents, D), b_enc, 4).codes
    assert codes.latents.view(3, 4).tolist() == [[0, 1, 5, 7]] * 3
    assert codes.values.view(3, 4).tolist() == [[1.0, 1.0, 2.0, 2.0]] * 3


@given(
    st.integers(1, 6), st.integers(1, 90), st.integers(1, 4), st.sampled_from([0.0, 0.5, 50.0]), st.integers(0, 2**31)
)
def test_topk_is_exact_whatever_the_pre_activations(batch: int, latents: int, spread: int, share: float, seed: int):
    """Few distinct values, thus many ties, and rows whose largest entries all fall into one block of latents."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-spread, spread + 1, (batch, D), generator=g).float()
    W = torch.randint(-1, 2, (latents, D), generator=g).float()
    b = share * (torch.arange(latents) % 16 == 3)
    for k in {1, min(2, latents), min(5, latents), latents}:
        for name in ("encode_topk", "encode_abs_topk", "encode_group_max"):
            assert_same(getattr(cpu, name)(x, W, b, k), getattr(reference, name)(x, W, b, k), rtol=0, atol=0)
        assert_same(cpu.encode_batch_topk(x, W, b, k), reference.encode_batch_topk(x, W, b, k), rtol=0, atol=0)


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("kind", ENCODERS)
def test_strided_tensors_are_as_good_as_contiguous_ones(fast: Any, kind: str):
    plain = weights()
    strided = Weights(*(t.detach().T.contiguous().T if t.ndim == 2 else t.detach() for t in plain))
    strided = Weights(*(t.requires_grad_() for t in strided))
    assert not strided.x.is_contiguous() and not strided.W_dec.is_contiguous()
    objective(fast, kind, plain, [20, 30]).backward()
    objective(fast, kind, strided, [20, 30]).backward()
    for name, a, b in zip(Weights._fields, strided, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_rows_that_are_not_numbers_have_no_codes_and_leave_the_others_alone(run: Any):
    w = weights()
    spoilt = w.x.detach().clone()
    spoilt[3] = torch.nan
    for kind in ("relu", "topk", "abs_topk", "group_max", "pursuit", "pursuit_stop"):
        expected = encode(run, kind, w).codes.dense().detach().clone()
        expected[3] = 0
        torch.testing.assert_close(encode(run, kind, w._replace(x=spoilt)).codes.dense(), expected)


@pytest.mark.parametrize("run", IMPLEMENTATIONS)
def test_opposite_rows_have_opposite_codes_where_size_selects(run: Any):
    w = weights()
    plus, minus = (run.encode_abs_topk(sign * w.x, w.W_enc, 0 * w.b_enc, 7) for sign in (1, -1))
    assert (plus.codes.values < 0).any() and (plus.codes.l0() == 7).all()
    assert_same(minus._replace(codes=minus.codes.with_values(-minus.codes.values)), plus, rtol=0, atol=0)
    assert plus.fired.sum() == 7 * B, "a latent fires with either sign"


def test_float64_goes_to_the_reference_and_nobody_notices():
    w = weights()
    for dtype in (torch.float32, torch.float64):
        v = w.to(dtype)
        encoded = ops.encode_threshold(v.x, v.W_enc, v.b_enc, centre=v.centre, jump=True)
        assert encoded.codes.values.dtype == encoded.peak.dtype == dtype
        assert ops.decode(encoded.codes, v.W_dec, v.b_dec).dtype == dtype
        assert ops.decode_groups(encoded.codes, v.W_dec, [M - 3, 3], v.b_dec).shape == (2, B, D)
    assert ops.encode_topk(w.x, w.W_enc, w.b_enc, 3).codes.l0().max() == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: ops.encode_threshold(w.x[:0], w.W_enc, w.b_enc), "x has no rows"),
        (lambda w: ops.encode_topk(w.x[:0], w.W_enc, w.b_enc, 3), "x has no rows"),
        (lambda w: ops.encode_topk(w.x, w.W_enc, w.b_enc, 51), "k=51 is not in 1 … latents=50"),
        (lambda w: ops.encode_topk(w.x, w.W_enc, w.b_enc, 0), "k=0 is not in 1"),
        (lambda w: ops.encode_abs_topk(w.x, w.W_enc, w.b_enc, 51), "k=51 is not in 1 … latents=50"),
        (lambda w: ops.encode_group_max(w.x, w.W_enc, w.b_enc, 51), "k=51 is not in 1 … latents=50"),
        (lambda w: ops.encode_pursuit(w.x, w.W_enc, 0), "steps=0 must be at least 1"),
        (lambda w: ops.decode(encode(ops, "relu", w).codes, w.W_dec[1:]), "latents=50 cannot be decoded by 49 atoms"),
        (lambda w: ops.decode_groups(encode(ops, "relu", w).codes, w.W_dec, [9, 9]), "sum to latents=50"),
    ],
)
def test_bad_input_is_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make(weights())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (4, 5, 3)])
def test_half_square_error_and_its_gradients(shape: tuple[int, ...], scaled: bool, generator: torch.Generator):
    """Against the formula in float64, the target and the rows' scales shared by all leading axes."""
    x_hat = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(5, 1, generator=generator, dtype=torch.float64) if scaled else None
    expected = 0.5 * ((x_hat - x) * (1 if scale is None else scale)).square().sum(-1).mean()
    wanted = torch.autograd.grad(3 * expected, (x_hat, x))
    error = ops.half_square_error(x_hat, x, scale)
    torch.testing.assert_close(error, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * error, (x_hat, x)), wanted)


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [[40], [10, 30]])
def test_dense_and_sparse_groups_alike(density: float, sizes: list[int], generator: torch.Generator):
    """A frequent group before a rare one: some blocks are matrices, some sums of rows, none is told apart."""
    g, batch, d, m = generator, 64, 6, 40
    active = torch.rand(batch, m, generator=g) < density * torch.linspace(2, 0.1, m)
    z = torch.where(active, torch.rand(batch, m, generator=g) + 0.1, 0.0)
    gradients = []
    for run, dtype in ((cpu, torch.float32), (reference, torch.float64)):
        W, b = (torch.linspace(-1, 1, n).sin().to(dtype).requires_grad_() for n in (m * d, d))
        codes = ops.SparseCodes.from_dense(z.to(dtype), torch.ones_like(active) if density == 1 else active)
        values = codes.values.requires_grad_()
        out = run.decode_groups(codes.with_values(values), W.view(m, d), sizes, b)
        (out * torch.arange(out.numel(), dtype=dtype).cos().view_as(out)).sum().backward()
        gradients.append((out, values.grad, W.grad, b.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
