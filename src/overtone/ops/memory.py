"""Large buffers lent again and again: fresh memory costs more in page faults than the kernels that fill it.

A block is free once nothing in the process refers to the tensor lent, any view of it included. A caller may therefore
keep what it was lent, a gradient for instance, and never sees it change: reuse follows lifetime, not a schedule.
"""

import math
import threading
import weakref

import numpy as np
import torch
from torch import Tensor

# Two weight gradients, rounded weights, a piece of pre-activations, a shifted and a decoded batch, its error and gradient:
# what one step lends, and room for a second dictionary trained beside. The oldest block is given up for a new one.
BLOCKS_KEPT = 16
# Below this, malloc keeps freed memory by itself.
SMALLEST_BYTES = 2**20
_CACHE_LINE = 64

_lock = threading.Lock()
_kept: list[tuple[np.ndarray, "weakref.ref[np.ndarray]"]] = []


def lend(*shape: int, dtype: type[np.generic] = np.float32) -> Tensor:
    """An uninitialised CPU tensor, recycled where one of the same size is free."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < SMALLEST_BYTES:
        return torch.from_numpy(np.empty(shape, dtype))
    with _lock:
        free = next((i for i, (block, lent) in enumerate(_kept) if block.nbytes == size and lent() is None), None)
        block = _aligned(size) if free is None else _kept.pop(free)[0]
        # The tensor's storage owns this view; when it goes, so does the view, and the block is known to be free. The view
        # has the final type and shape: a tensor's view would count as a second user, and autograd add gradients elsewhere.
        view = block.view(dtype).reshape(shape)
        _kept.append((block, weakref.ref(view)))
        del _kept[:-BLOCKS_KEPT]
    return torch.from_numpy(view)


def buffer_for(like: Tensor) -> Tensor:
    """An uninitialised tensor like this one; lent where it is of the kind that is."""
    if like.device.type == "cpu" and like.dtype == torch.float32:
        return lend(*like.shape)
    return torch.empty_like(like)


def release() -> None:
    """Give free blocks back to the system; those still in use follow when their tensors go."""
    with _lock:
        _kept.clear()


def _aligned(size: int) -> np.ndarray:
    """Bytes that start on a cache line, which vector stores want."""
    raw = np.empty(size + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size]
