"""Float32 matrix products through oneDNN, inside a scope, on CPUs where they are as accurate as MKL's.

torch sends float32 products to oneDNN only where they are allowed to use bfloat16. CPUs without matrix tiles do not: they
compute in float32, on AMD up to twice as fast as MKL. Others would round to three digits, so the first use looks.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# Of the largest entry. Float32 sums of 256 terms err by 3e-7, TensorFloat by 4e-4, bfloat16 by 3e-3.
TOLERANCE = 1e-6

_lock = threading.Lock()
_depth, _outside = 0, "none"


@contextmanager
def fast_float32() -> Iterator[None]:
    """Products inside may run through oneDNN; the switch is put back on the way out, whatever happens.

    It is torch.backends.mkldnn.matmul.fp32_precision: the CPU's alone, accelerators do not see it. Scopes nest and may
    overlap between threads: the last one out restores what the first one found.
    """
    if not is_accurate():
        yield
        return
    with _allowed():
        yield


@cache
def is_accurate() -> bool:
    """Whether oneDNN's float32 product is one, asked once per process: error against float64 within TOLERANCE."""
    # torch < 2.9 can only switch CPU and accelerators together; there products stay with MKL.
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 256, generator=generator), torch.randn(1024, 256, generator=generator)
    exact = a.double() @ b.double().T
    with _allowed():
        error = (a @ b.T - exact).abs().max()
    return bool(error <= TOLERANCE * exact.abs().max())


@contextmanager
def _allowed() -> Iterator[None]:
    """The switch itself, counted over nested and concurrent scopes."""
    global _depth, _outside
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    with _lock:
        if _depth == 0:
            _outside = matmul.fp32_precision
            matmul.fp32_precision = "bf16"
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                matmul.fp32_precision = _outside
