"""The operations, slow and obvious: dense, by autograd, in any floating type and on any device."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.ops.codes import AnyCodes, DenseCodes, Encoded, SparseCodes
from overtone.ops.shared import among_largest, among_largest_of_rows
from overtone.parallel import ALONE, Axis, World


def encode_threshold(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    *,
    centre: Float[Tensor, " d"] | None = None,
    threshold: float = 0.0,
    jump: bool = False,
) -> Encoded:
    """See `overtone.ops.encode_threshold`."""
    linear = (x if centre is None else x - centre) @ W_enc.T
    pre = linear + b_enc
    return _encoded(pre, linear if jump else pre, pre > threshold)


def encode_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    ranks: Axis = ALONE,
) -> Encoded:
    """See `overtone.ops.encode_topk`."""
    pre = (x if centre is None else x - centre) @ W_enc.T + b_enc
    kept = pre.argsort(dim=1, descending=True, stable=True)[:, :k]
    selected = torch.zeros_like(pre, dtype=torch.bool).scatter(1, kept, True)
    return _encoded(pre, pre, _of_all(pre, selected & (pre > 0), k, ranks))


def encode_batch_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_batch_topk`."""
    return next(encode_batch_topk_in_parts([x], W_enc, b_enc, k, centre=centre, world=World()))


def encode_batch_topk_in_parts(
    parts: Sequence[Tensor],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    world: World,
) -> Iterator[Encoded]:
    """See `overtone.ops.encode_batch_topk_in_parts`."""

    def pre_activations(x: Tensor) -> Tensor:
        return (x if centre is None else x - centre) @ W_enc.T + b_enc

    pre = torch.cat([pre_activations(x).detach() for x in parts])
    selected = among_largest(pre.flatten(), k * len(pre) * world.rows.size, world.everyone).view_as(pre)
    for x, kept in zip(parts, selected.split([len(x) for x in parts]), strict=True):
        y = pre_activations(x)
        yield _encoded(y, y, kept & (y > 0))


def encode_abs_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    ranks: Axis = ALONE,
) -> Encoded:
    """See `overtone.ops.encode_abs_topk`."""
    pre = (x if centre is None else x - centre) @ W_enc.T + b_enc
    size = pre.abs()
    kept = size.argsort(dim=1, descending=True, stable=True)[:, :k]
    active = torch.zeros_like(pre, dtype=torch.bool).scatter(1, kept, True) & (size > 0)
    active = _of_all(size, active, k, ranks)
    return Encoded(SparseCodes.from_dense(pre, active), *_firing(size, active))


def encode_group_max(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_group_max`."""
    pre = (x if centre is None else x - centre) @ W_enc.T + b_enc
    selected = [
        torch.zeros_like(group, dtype=torch.bool).scatter(1, group.argmax(1, keepdim=True), True)
        for group in pre.tensor_split(k, dim=1)
    ]
    return _encoded(pre, pre, torch.cat(selected, dim=1) & (pre > 0))


def encode_pursuit(
    x: Float[Tensor, "batch d"],
    W: Float[Tensor, "latents d"],
    steps: int,
    *,
    residual: float = 0.0,
    stop_on_repeat: bool = False,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_pursuit`."""
    left = x if centre is None else x - centre
    z = left.new_zeros(len(x), len(W))
    going = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        best = (left @ W.T).argmax(1)
        code = (left * W[best]).sum(1)
        going = going & (code > 0) & (left.norm(dim=1) >= residual)
        code = torch.where(going, code, 0)
        if stop_on_repeat:
            going = going & (z.gather(1, best[:, None]).squeeze(1) == 0)
        z = z.scatter_add(1, best[:, None], code[:, None])
        left = left - code[:, None] * W[best]
    return _encoded(z, z, z > 0)


def encode_with(
    activation: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """See `overtone.ops.encode_with`."""
    pre = (x if centre is None else x - centre) @ W_enc.T + b_enc
    z = activation(pre)
    return Encoded(DenseCodes(z), *_firing(pre, z != 0))


def decode(
    codes: AnyCodes, W_dec: Float[Tensor, "latents d"], b_dec: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "batch d"]:
    """See `overtone.ops.decode`."""
    reconstruction = codes.dense() @ W_dec
    return reconstruction if b_dec is None else reconstruction + b_dec


def decode_groups(
    codes: AnyCodes,
    W_dec: Float[Tensor, "latents d"],
    sizes: Sequence[int],
    b_dec: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "groups batch d"]:
    """See `overtone.ops.decode_groups`."""
    sizes = list(sizes)
    parts = zip(codes.dense().split(sizes, dim=1), W_dec.split(sizes), strict=True)
    explained, prefixes = W_dec.new_zeros(codes.rows_total, W_dec.shape[1]), []
    for z, atoms in reversed(list(parts)):
        prefix = explained + z @ atoms
        prefixes.append(prefix if b_dec is None else prefix + b_dec)
        explained = prefix.detach()
    return torch.stack(prefixes)


def _of_all(size: Tensor, largest: Tensor, k: int, ranks: Axis) -> Tensor:
    """Which of a rank's largest entries of every row are among those of all ranks' latents."""
    rows, latents = largest.nonzero(as_tuple=True)
    kept = among_largest_of_rows(size.detach()[rows, latents], rows, len(size), k, ranks)
    return torch.zeros_like(largest).index_put((rows[kept], latents[kept]), torch.ones_like(kept[kept]))


def _encoded(pre: Tensor, z: Tensor, active: Tensor) -> Encoded:
    return Encoded(SparseCodes.from_dense(z, active), *_firing(pre, active))


@torch.no_grad()
def _firing(pre: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """How often each latent fires, and its peak."""
    fired = active & (pre > 0)
    return fired.sum(0), torch.where(fired, pre, 0).amax(0)
