"""What the fast operations borrow they give back: memory, the precision switch, threads."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from overtone import ops
from overtone.ops import memory, precision


@pytest.fixture(autouse=True)
def fresh():
    memory.release()
    yield
    memory.release()


def step(seed: int, latents: int = 2048, d: int = 256) -> list[torch.Tensor]:
    """A step large enough that its buffers are lent: what it returns, gradients included."""
    g = torch.Generator().manual_seed(seed)
    x, W = torch.randn(600, d, generator=g), (torch.randn(latents, d, generator=g) / d**0.5).requires_grad_()
    W_dec = W.detach().clone().requires_grad_()
    encoded = ops.encode_threshold(x, W, torch.full((latents,), -1.5), jump=True)
    x_hat = ops.decode_groups(encoded.codes, W_dec, [latents // 2] * 2)
    (x_hat - x).square().mean().backward()
    assert W.grad is not None and W_dec.grad is not None
    return [encoded.codes.values, encoded.peak, x_hat, W.grad, W_dec.grad]


def test_results_are_not_overwritten_by_later_calls_nor_leak_into_them():
    first = step(0)
    copies = [t.detach().clone() for t in first]
    other = step(1)
    again = step(0)
    for kept, copy, repeated in zip(first, copies, again, strict=True):
        assert torch.equal(kept, copy) and torch.equal(repeated, copy)
    del first, other, again
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(step(0), copies, strict=True))


def test_memory_is_reused_once_nothing_refers_to_it():
    a = memory.lend(1024, 512)
    address, view = a.data_ptr(), a[3:5].T
    del a
    b = memory.lend(1024, 512)
    assert b.data_ptr() != address, "a view keeps its block"
    del view
    assert memory.lend(1024, 512).data_ptr() == address
    assert memory.lend(512, 1024, dtype=np.int32).data_ptr() == address, "by size, whatever the shape"
    assert address % 64 == 0


def test_memory_kept_is_bounded():
    lent = [memory.lend(memory.SMALLEST_BYTES + i, dtype=np.uint8) for i in range(2 * memory.BLOCKS_KEPT)]
    assert len(memory._kept) == memory.BLOCKS_KEPT
    for i, block in enumerate(lent):
        block.fill_(i)
    assert [int(block[-1]) for block in lent] == list(range(len(lent)))
    memory.lend(10)
    assert len(memory._kept) == memory.BLOCKS_KEPT, "small blocks are left to malloc"
    memory.release()
    assert not memory._kept and int(lent[3][0]) == 3


def test_the_second_step_of_a_kind_takes_no_new_memory():
    step(0)
    blocks = {block.ctypes.data for block, _ in memory._kept}
    step(1)
    assert {block.ctypes.data for block, _ in memory._kept} == blocks


def switch() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


def test_the_matmul_precision_is_restored_even_on_errors(monkeypatch: pytest.MonkeyPatch):
    outside = switch(), torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision
    step(0)
    with pytest.raises(ZeroDivisionError), precision.fast_float32(), precision.fast_float32():
        raise ZeroDivisionError
    monkeypatch.setattr(torch, "addmm", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ops.encode_threshold(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4))
    assert (switch(), torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision) == outside


def test_overlapping_scopes_of_two_threads_restore_what_was_there_before_both():
    outside, inside, leave = switch(), threading.Event(), threading.Event()

    def other():
        with precision._allowed():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with precision._allowed():
        thread.start()
        assert inside.wait(10)
    assert switch() == "bf16", "the other thread is still inside"
    leave.set()
    thread.join()
    assert switch() == outside


def test_products_inside_the_scope_are_float32(generator: torch.Generator):
    a, b = torch.randn(300, 512, generator=generator), torch.randn(1000, 512, generator=generator)
    with precision.fast_float32():
        fast = a @ b.T
    exact = a.double() @ b.double().T
    assert (fast - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_an_inaccurate_cpu_keeps_its_products(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "TOLERANCE", 0.0)
    precision.is_accurate.cache_clear()
    outside = switch()
    with precision.fast_float32():
        assert switch() == outside
    monkeypatch.undo()
    precision.is_accurate.cache_clear()


def test_threads_are_the_callers():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = step(0)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        two = step(0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_threads_are_the_callers_in_a_fresh_process():
    """Whoever starts its threads first must not set everybody's number."""
    program = """
import torch
torch.set_num_threads(1)
from overtone import ops
W = torch.randn(600, 256).requires_grad_()
ops.decode(ops.encode_threshold(torch.randn(900, 256), W, torch.full((600,), -40.0)).codes, W).sum().backward()
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
