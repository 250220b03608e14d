"""The GPU's kernels against the reference: compiled where there is a GPU, else run by Triton's interpreter on the CPU."""

import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from overtone import ops
from overtone.ops import cpu, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu"
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # read while Triton is imported
# Interpreters before 3.7 stumble over numpy 2.4.
pytest.importorskip(
    "triton",
    minversion="3.7" if INTERPRETED else None,
    reason="no triton (≥ 3.7 without a GPU); CUDA builds of torch bring it along, elsewhere, on Linux: pip install triton",
)

from overtone.ops import compact, gpu  # noqa: E402 – after the switch

B, D, M = 5, 11, 13
ENCODERS = ["relu", "jump", "threshold", "topk1", "topk", "topkM"]
# Of the largest entry: sums of products in float32, results rounded to bfloat16.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Weights(NamedTuple):
    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    centre: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def to(self, dtype: torch.dtype, device: str = DEVICE) -> "Weights":
        return Weights(*(t.detach().to(device, dtype).requires_grad_() for t in self))


def weights(batch: int = B, latents: int = M, d: int = D, shift: float = -0.8) -> Weights:
    """In eighths, few enough bits that bfloat16 holds them, and x − centre too."""
    g = torch.Generator().manual_seed(0)
    x, W_enc, W_dec = (torch.randn(n, d, generator=g) for n in (batch, latents, latents))
    b_enc, centre, b_dec = torch.rand(latents, generator=g) + shift, *torch.randn(2, d, generator=g)
    drawn = (x, W_enc / d**0.5, b_enc, 0.3 * centre, W_dec, b_dec)
    return Weights(*((8 * t).round() / 8 for t in drawn)).to(torch.float32)


def encode(run: ModuleType, kind: str, w: Weights) -> ops.Encoded:
    if kind.startswith("topk"):
        k = {"topk1": 1, "topk": 5, "topkM": len(w.W_enc)}[kind]
        return run.encode_topk(w.x, w.W_enc, w.b_enc, k, centre=w.centre)
    threshold = 0.4 if kind == "threshold" else 0.0
    return run.encode_threshold(w.x, w.W_enc, w.b_enc, centre=w.centre, threshold=threshold, jump=kind == "jump")


def assert_close(fast: Tensor, slow: Tensor, message: str = ""):
    """Equal up to the rounding of the fast one's type."""
    scale = float(slow.detach().abs().max()) if slow.numel() else 0.0
    tolerance = TOLERANCE[fast.dtype]
    torch.testing.assert_close(
        fast.to(slow), slow, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=lambda m: f"{message} {m}"
    )


def assert_same(fast: ops.Encoded, slow: ops.Encoded):
    for name in ("latents", "offsets"):
        a, b = getattr(fast.codes, name), getattr(slow.codes, name)
        assert a.dtype == torch.int64 and torch.equal(a, b), name
    assert fast.codes.latents_total == slow.codes.latents_total and fast.fired.dtype == torch.int64
    assert torch.equal(fast.fired, slow.fired)
    assert_close(fast.codes.values, slow.codes.values)
    assert_close(fast.peak, slow.peak)


def objective(run: ModuleType, kind: str, w: Weights, sizes: list[int] | None = None) -> Tensor:
    codes = encode(run, kind, w).codes
    x_hat = run.decode(codes, w.W_dec, w.b_dec) if sizes is None else run.decode_groups(codes, w.W_dec, sizes, w.b_dec)
    return (x_hat - w.x).square().sum(-1).mean() + codes.values.pow(3).sum() / B


def assert_gradients(fast: Weights, slow: Weights):
    for name, a, b in zip(Weights._fields, fast, slow, strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            assert_close(a.grad, b.grad, name)


@pytest.fixture(autouse=True)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several blocks of everything, the last of each cut short, at sizes that an interpreter gets through."""
    if "gpu" not in request.keywords:
        for module, name, size in (
            (compact, "_TILE", 4),
            (compact, "_TILES", 2),
            (gpu, "_CHUNK", 4),
            (gpu, "_BLOCK", 8),
        ):
            monkeypatch.setattr(module, name, size)
    yield


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoding_equals_the_reference_in_float64(kind: str, dtype: torch.dtype):
    w = weights().to(dtype)
    fast, slow = encode(gpu, kind, w), encode(reference, kind, w.to(torch.float64))
    assert len(slow.codes.values) > 0 and fast.codes.values.dtype == fast.peak.dtype == dtype
    assert_same(fast, slow)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("sizes", [None, [4, 1, 8]], ids=["whole", "three"])
def test_every_gradient_equals_the_reference_in_float64(kind: str, sizes: list[int] | None):
    fast, slow = weights(), weights().to(torch.float64)
    objective(gpu, kind, fast, sizes).backward()
    objective(reference, kind, slow, sizes).backward()
    assert (fast.b_enc.grad is None) == (kind == "jump"), "a bias that only gates has no gradient"
    assert_gradients(fast, slow)


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_gradients_in_bfloat16_equal_the_reference_in_float64(kind: str):
    """Each operation apart: between them, values are rounded."""
    w = weights().to(torch.bfloat16)
    exact = w.to(torch.float64)
    fast, slow = encode(gpu, kind, w).codes, encode(reference, kind, exact).codes
    grad = torch.linspace(-1, 1, len(fast.values), dtype=torch.bfloat16, device=DEVICE)
    fast.values.backward(grad)
    slow.values.backward(grad.double())
    values = fast.values.detach().requires_grad_(), fast.values.detach().double().requires_grad_()
    grad = weights(batch=3 * B, latents=1).x.detach().view(3, B, D).to(DEVICE, torch.bfloat16)
    x_hat = gpu.decode_groups(fast.with_values(values[0]), w.W_dec, [4, 1, 8], w.b_dec)
    same = reference.decode_groups(slow.with_values(values[1]), exact.W_dec, [4, 1, 8], exact.b_dec)
    assert_close(x_hat, same)
    x_hat.backward(grad)
    same.backward(grad.double())
    assert values[0].grad is not None and values[1].grad is not None
    assert_close(values[0].grad, values[1].grad, "values")
    assert_gradients(w, exact)


@pytest.mark.parametrize("sizes", [[M], [1] * M], ids=["one", "singles"])
def test_prefixes_and_the_gradient_of_values_equal_the_reference(sizes: list[int]):
    results = []
    for run, dtype in ((gpu, torch.float32), (reference, torch.float64)):
        w, scale = weights().to(dtype), torch.linspace(0.5, 2, M, dtype=dtype, device=DEVICE).requires_grad_()
        codes = encode(run, "relu", w).codes
        values = codes.values.detach().requires_grad_()
        x_hat = run.decode_groups(codes.with_values(values).scaled(scale), w.W_dec, sizes)
        x_hat.square().sum().backward()
        results.append((x_hat, values.grad, scale.grad, w.W_dec.grad))
    for fast, slow in zip(*results, strict=True):
        assert_close(fast, slow)


@pytest.mark.parametrize(
    ("batch", "latents", "d", "shift"),
    [(1, M, D, -0.8), (B, M, D, 90.0), (B, M, D, -90.0), (2, 3, 1, 0.5), (3, 1, 8, 1)],
)
def test_one_row_one_latent_one_column_none_active_and_all_active(batch: int, latents: int, d: int, shift: float):
    for kind in ("jump", "topkM"):
        fast = weights(batch, latents, d, shift)
        slow = fast.to(torch.float64)
        encoded = encode(gpu, kind, fast)
        assert_same(encoded, encode(reference, kind, slow))
        if abs(shift) == 90:
            assert (encoded.codes.l0() == (M if shift > 0 else 0)).all()
        objective(gpu, kind, fast).backward()
        objective(reference, kind, slow).backward()
        assert_gradients(fast, slow)


def test_the_blocks_of_a_real_gpu_equal_the_small_ones(monkeypatch: pytest.MonkeyPatch):
    small = weights()
    objective(gpu, "topk", small, [4, 9]).backward()
    monkeypatch.undo()
    assert compact._TILE > M and gpu._BLOCK > D
    large = weights()
    objective(gpu, "topk", large, [4, 9]).backward()
    assert_gradients(large, small)


@pytest.mark.parametrize("latents", [8, 30])
def test_of_equal_entries_the_lower_latent_wins(latents: int):
    b_enc = torch.ones(latents, device=DEVICE)
    b_enc[[5, 7]] = 2.0
    x, W = torch.zeros(3, D, device=DEVICE), torch.zeros(latents, D, device=DEVICE)
    codes = gpu.encode_topk(x, W, b_enc, 4).codes
    assert codes.latents.view(3, 4).tolist() == [[0, 1, 5, 7]] * 3
    assert codes.values.view(3, 4).tolist() == [[1.0, 1.0, 2.0, 2.0]] * 3


@pytest.mark.parametrize("seed", range(4))
def test_topk_is_exact_whatever_the_pre_activations(seed: int):
    """Few distinct values, thus many ties, across tiles and at zero."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-1 - seed, 2 + seed, (5, D), generator=g).float().to(DEVICE)
    W = torch.randint(-1, 2, (M, D), generator=g).float().to(DEVICE)
    b = (seed % 2) * 9.0 * (torch.arange(M, device=DEVICE) % 8 == 3)
    for k in (1, 2, 5, M - 1, M):
        fast, slow = gpu.encode_topk(x, W, b, k), reference.encode_topk(x, W, b, k)
        assert_same(fast, slow)
        assert torch.equal(fast.codes.values, slow.codes.values)


def test_a_negative_threshold_admits_entries_that_do_not_fire():
    w = weights()
    fast, slow = (run.encode_threshold(w.x, w.W_enc, w.b_enc, threshold=-0.7) for run in (gpu, reference))
    assert (slow.codes.values < 0).any() and slow.fired.sum() < len(slow.codes.values)
    assert_same(fast, slow)


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_what_is_not_a_number_is_no_entry_and_leaves_the_others_alone(kind: str):
    for place in ("row", "latent"):
        w = weights().to(torch.float32)
        spoilt = w.x if place == "row" else w.W_enc
        spoilt.data[3] = torch.nan
        fast, slow = encode(gpu, kind, w), encode(reference, kind, w)
        assert fast.codes.l0()[0] > 0
        assert_same(fast, slow)


def test_strided_tensors_are_as_good_as_contiguous_ones():
    plain = weights()
    spread = (torch.stack([t.detach(), torch.zeros_like(t)], -1)[..., 0].requires_grad_() for t in plain)
    strided = Weights(*spread)
    assert not any(t.is_contiguous() for t in strided)
    objective(gpu, "topk", plain, [4, 9]).backward()
    objective(gpu, "topk", strided, [4, 9]).backward()
    assert_gradients(strided, plain)


@pytest.mark.parametrize("name", ["x", "centre", "b_enc"])
def test_a_gradient_may_be_wanted_alone(name: str):
    gradients = []
    for run, dtype in ((gpu, torch.float32), (reference, torch.float64)):
        w = Weights(*(t.detach() for t in weights().to(dtype)))
        wanted = getattr(w, name).requires_grad_()
        encode(run, "relu", w).codes.values.square().sum().backward()
        gradients.append(wanted.grad)
    assert_close(*gradients)


def test_entries_are_sorted_by_latent_only_where_a_weight_learns():
    w = weights()
    codes = encode(gpu, "relu", w).codes
    assert codes.order is not None and torch.equal(codes.order, codes.latents.sort(stable=True).indices)
    with torch.no_grad():
        assert encode(gpu, "relu", w).codes.order is None
    assert encode(gpu, "relu", w._replace(W_enc=w.W_enc.detach())).codes.order is None


def test_autocast_decides_by_products_that_are_not_rounded():
    """Factors in bfloat16, which holds these, and sums in float32, where autocast alone would round those too."""
    w = weights()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        encoded = encode(gpu, "topk", w)
    assert_same(encoded, encode(reference, "topk", w))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_on_a_gpu_take_the_kernels_where_there_is_triton(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    with FakeTensorMode():
        there, here = (torch.empty(2, dtype=dtype, device=device) for device in ("cuda", "cpu"))
    assert ops._implementation(there, there) is (reference if dtype == torch.float64 else gpu)
    assert ops._implementation(there, here) is reference
    monkeypatch.setattr(ops, "_has_triton", lambda: False)
    assert ops._implementation(there, there) is reference


def exact_weights(d: int = 384, latents: int = 5000, batch: int = 300) -> Weights:
    """Small integers: every order of summation gives the same pre-activations, and many of them are equal."""
    g = torch.Generator().manual_seed(0)

    def integers(largest: int, *shape: int) -> Tensor:
        return torch.randint(-largest, largest + 1, shape, generator=g).float()

    rows, b_enc, centre = integers(2, batch, d), integers(2, latents) - 30, integers(1, d)
    return Weights(rows, integers(1, latents, d), b_enc, centre, integers(1, latents, d), integers(1, d)).to(
        torch.float32
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["relu", "jump", "topk1", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_on_the_gpu_are_those_on_the_cpu(kind: str, dtype: torch.dtype):
    w = exact_weights()
    there, here = encode(ops, kind, w.to(dtype)), encode(cpu, kind, w.to(torch.float32, "cpu"))
    for a, b in ((there.codes.latents, here.codes.latents), (there.fired, here.fired)):
        assert torch.equal(a.cpu(), b)
    for a, b in ((there.codes.values, here.codes.values), (there.peak, here.peak)):
        assert torch.equal(a.cpu(), b.to(dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["relu", "topk"])
@pytest.mark.parametrize("sizes", [None, [500, 1500, 3000]], ids=["whole", "three"])
def test_gradients_on_the_gpu_are_those_on_the_cpu_and_the_same_every_time(kind: str, sizes: list[int] | None):
    w, again, here = exact_weights(), exact_weights(), exact_weights().to(torch.float32, "cpu")
    objective(ops, kind, w, sizes).backward()
    objective(ops, kind, again, sizes).backward()
    objective(cpu, kind, here, sizes).backward()
    for name, a, b, c in zip(Weights._fields, w, again, here, strict=True):
        assert a.grad is not None and b.grad is not None and c.grad is not None
        assert torch.equal(a.grad, b.grad), name
        assert_close(a.grad.cpu(), c.grad, name)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_waits_once_per_encoding_and_never_after():
    w, sizes = exact_weights(), [500, 1500, 3000]
    objective(ops, "relu", w, sizes).backward()  # kernels are compiled, and ends of groups sent, at first use
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            codes = encode(ops, "relu", w).codes
        assert len(waits) == 1
        torch.cuda.set_sync_debug_mode("error")
        (ops.decode_groups(codes, w.W_dec, sizes, w.b_dec) - w.x).square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
