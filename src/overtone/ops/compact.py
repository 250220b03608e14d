"""Which entries are active, on a GPU: counted in tiles, then written one after the other. In between the host waits once.

How many entries there are in all decides how much is allocated for them. A bound instead of the number would spare the
wait, but then codes had entries that are none, and everything after would have to know.
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from overtone.ops import kernels

# Latents of a tile, the unit of counting and of reading again, and tiles of a program: 16 numbers a thread.
_TILE, _TILES = 256, 8


class Found(NamedTuple):
    """Which entries of linear + bias are active, counted by tile.

    Attributes:
        linear: products, in float32.
        bias: what is added to them; None: it already is.
        limit: what entries of a row have to exceed.
        counts: active entries of a row's tiles.
        room: how many of a tile's entries at the limit, from the first, are active; None: none is.
    """

    linear: Float[Tensor, "batch latents"]
    bias: Float[Tensor, " latents"] | None
    limit: Float[Tensor, " batch"]
    counts: Int[Tensor, "batch tiles"]
    room: Int[Tensor, "batch tiles"] | None


@dataclass(frozen=True)
class Above:
    """All entries above the threshold."""

    threshold: float
    jump: bool

    def find(self, linear: Tensor, bias: Tensor) -> Found:
        """Entries of linear + bias."""
        limit = linear.new_full((len(linear),), self.threshold)
        counts, _ = _count(linear, bias, limit, ties=False)
        return Found(linear, bias, limit, counts, None)


@dataclass(frozen=True)
class Largest:
    """The k largest entries of every row, where they are positive."""

    k: int
    jump: bool = False

    def find(self, linear: Tensor, bias: Tensor) -> Found:
        """Entries of linear + bias; overwrites `linear`."""
        y = linear.add_(bias)
        # Which of equal entries topk takes is not specified, so only its values are used.
        largest = y.topk(self.k, dim=1, sorted=False).values
        spoilt = largest.isnan()  # counted among the largest, and never active
        limit = largest.masked_fill(spoilt, inf).amin(1).clamp(min=0)
        beyond, tied = _count(y, None, limit, ties=True)
        room = self.k - (spoilt.sum(1) + beyond.sum(1))[:, None] - (tied.cumsum(1) - tied)
        room = room.clamp(min=0).to(torch.int32)
        return Found(y, None, limit, beyond + torch.minimum(tied, room), room)


Rule = Above | Largest


def product(x: Float[Tensor, "batch d"], W: Float[Tensor, "latents d"]) -> Float[Tensor, "batch latents"]:
    """x Wᵀ in float32, of factors in the type that autocast asks for, if it does."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, W = (t.to(torch.get_autocast_dtype(device)) for t in (x, W))
    with torch.autocast(device, enabled=False):
        if x.is_cuda and x.dtype != torch.float32 and "dtype" in torch.ops.aten.mm.overloads():
            return torch.mm(x, W.T, out_dtype=torch.float32)  # pyright: ignore[reportCallIssue]
        # torch < 2.8 rounds to the factors' type; float32, and TensorFloat-32 too, holds their products as they are.
        return x.float() @ W.float().T


def _count(
    linear: Float[Tensor, "batch latents"],
    bias: Float[Tensor, " latents"] | None,
    limit: Float[Tensor, " batch"],
    ties: bool,
) -> tuple[Int[Tensor, "batch tiles"], Int[Tensor, "batch tiles"]]:
    """Entries above their row's limit in every tile of a row, and those at it (zeros unless `ties`)."""
    batch, latents = linear.shape
    tiles = blocks(latents, _TILE)
    beyond, tied = torch.zeros(2, batch, tiles, dtype=torch.int32, device=linear.device)
    arguments = (linear, bias, limit, beyond, tied if ties else None, latents, tiles)
    kernels.launch(kernels.count_entries, (batch, blocks(tiles, _TILES)), *arguments, TILES=_TILES, TILE=_TILE)
    return beyond, tied


def compact(found: Found, jump: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Values, latents and offsets of the entries, and how often each latent fired, and its peak."""
    linear, bias, limit, counts, room = found
    (batch, tiles), latents_total = counts.shape, linear.shape[1]
    ends = counts.flatten().cumsum(0).view(batch, tiles)
    entries = int(ends[-1, -1])  # the one number the host waits for
    values = torch.empty(entries, dtype=dtype, device=linear.device)
    latents = torch.empty(entries, dtype=torch.int64, device=linear.device)
    fired, peak = torch.zeros(2, latents_total, dtype=torch.int32, device=linear.device)
    grid = (batch, blocks(tiles, _TILES))
    arguments = (linear, bias, limit, counts, ends, room, values, latents, fired, peak, latents_total, tiles)
    kernels.launch(kernels.fill_entries, grid, *arguments, JUMP=jump, TILES=_TILES, TILE=_TILE)
    return values, latents, pad(ends[:, -1], (1, 0)), fired.long(), peak.view(torch.float32).to(dtype)


def blocks(total: int, size: int) -> int:
    """How many blocks of this size cover the total."""
    return -(-total // size)
