"""The hot operations of sparse dictionaries: encode and select, decode, on codes that are sparse in memory too.

Each has one signature and several implementations; which one runs depends on device and type of the weights and is
nobody else's business. `reference` says what they compute. The same call with the same tensors gives the same result,
and nothing returned is ever overwritten, though large buffers are recycled (overtone.ops.memory).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.ops import cpu, dense, pursuit, reference
from overtone.ops.codes import AnyCodes, DenseCodes, Encoded, SparseCodes, concatenate
from overtone.ops.deferred import EntrySum, deferring
from overtone.ops.error import HalfSquareError
from overtone.ops.memory import release
from overtone.ops.row_update import AdamStep, Rows, can_update_rows, update_rows
from overtone.ops.shared import is_better_joined, join
from overtone.parallel import ALONE, Axis, World

__all__ = [
    "AdamStep",
    "AnyCodes",
    "DenseCodes",
    "Encoded",
    "EntrySum",
    "Rows",
    "SparseCodes",
    "can_update_rows",
    "concatenate",
    "decode",
    "decode_groups",
    "deferring",
    "encode_abs_topk",
    "encode_batch_topk",
    "encode_batch_topk_in_parts",
    "encode_group_max",
    "encode_pursuit",
    "encode_threshold",
    "encode_topk",
    "encode_with",
    "half_square_error",
    "is_better_joined",
    "join",
    "release",
    "update_rows",
]

_GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def encode_threshold(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    *,
    centre: Float[Tensor, " d"] | None = None,
    threshold: float = 0.0,
    jump: bool = False,
) -> Encoded:
    """Codes of the entries with y = W_enc (x − centre) + b_enc above the threshold, and each latent's firing and peak.

    Gradients reach x, W_enc, b_enc and centre through the values; the gate has none.

    Args:
        x: rows.
        W_enc: encoder rows.
        b_enc: encoder bias, part of what is compared.
        centre: what is subtracted from every row; None: 0. Cheaper, and with a cheaper gradient, than outside.
        threshold: entries at it are not active.
        jump: values are y − b_enc, the magnitude that does not depend on the bias (JumpReLU; b_enc gets no gradient);
            otherwise y (ReLU).

    Invariances: permuting latents permutes codes; a row is coded alone.

    Raises:
        ValueError: no rows.
    """
    _check_rows(x)
    run = _implementation(x, W_enc, b_enc).encode_threshold
    return run(x, W_enc, b_enc, centre=centre, threshold=threshold, jump=jump)


def encode_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    ranks: Axis = ALONE,
) -> Encoded:
    """Codes max(y, 0) of the k largest y = W_enc (x − centre) + b_enc of every row; zeros among them are no entries.

    Exact; of equal entries the lower latent wins. Gradients and invariances as in `encode_threshold`, but for ties.

    Args:
        x, W_enc, b_enc, centre: as in `encode_threshold`.
        k: active latents per row.
        ranks: who have the latents, in order; W_enc are this one's, and so are the codes.

    Raises:
        ValueError: k not in 1 … latents, or no rows.
    """
    _check_rows(x)
    if ranks.size == 1:
        _check_k(k, W_enc)
    return _implementation(x, W_enc, b_enc).encode_topk(x, W_enc, b_enc, k, centre=centre, ranks=ranks)


def encode_batch_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """Codes max(y, 0) of the k · batch largest y = W_enc (x − centre) + b_enc of the whole batch (BatchTopK).

    Exact; of equal entries the earlier row, then the lower latent wins. Rows are not coded alone. Takes B·M numbers of
    memory, of 16 bits where the CPU multiplies bfloat16. Gradients as in `encode_threshold`.

    Args:
        x, W_enc, b_enc, centre: as in `encode_threshold`.
        k: mean number of active latents.

    Raises:
        ValueError: k not in 1 … latents, or no rows.
    """
    _check_rows(x)
    _check_k(k, W_enc)
    return _cpu_or_reference(x, W_enc, b_enc).encode_batch_topk(x, W_enc, b_enc, k, centre=centre)


def encode_batch_topk_in_parts(
    parts: Sequence[Tensor],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    world: World,
) -> Iterator[Encoded]:
    """`encode_batch_topk` of a batch in parts: codes of one after the other, as they are asked for.

    All parts are looked at before the first has codes. What is kept of the others meanwhile is which entries are active, 44 bytes
    for each; on the GPU it is what one part would take, times the parts.

    Args:
        parts: rows, in order.
        W_enc, b_enc, k, centre: as in `encode_batch_topk`.
        world: ranks that share the rows of the batch, each with as many, or the latents: parts and W_enc are this one's, and so
            are the codes. Of entries that are equal, that of the earlier rank wins.

    Raises:
        ValueError: no rows.
    """
    for x in parts:
        _check_rows(x)
    run = _cpu_or_reference(*parts, W_enc, b_enc).encode_batch_topk_in_parts
    return run(parts, W_enc, b_enc, k, centre=centre, world=world)


def encode_abs_topk(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
    ranks: Axis = ALONE,
) -> Encoded:
    """Codes y of the k entries of every row that are largest in size |y|, of either sign (AbsTopK).

    Exact; of equal sizes the lower latent wins; zeros are no entries. A latent fires where it is active, and its peak is the
    largest |y|. Gradients and invariances as in `encode_topk`; −x has the codes −z where nothing shifts it.

    Args:
        x, W_enc, b_enc, centre: as in `encode_threshold`.
        k: active latents per row.
        ranks: who have the latents, in order; W_enc are this one's, and so are the codes.

    Raises:
        ValueError: k not in 1 … latents, or no rows.
    """
    _check_rows(x)
    if ranks.size == 1:
        _check_k(k, W_enc)
    return _cpu_or_reference(x, W_enc, b_enc).encode_abs_topk(x, W_enc, b_enc, k, centre=centre, ranks=ranks)


def encode_group_max(
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """Codes max(y, 0) of the largest y = W_enc (x − centre) + b_enc of each of k groups of neighbouring latents (GroupMax).

    Group sizes differ by at most one, larger ones first. Exact; of equal entries the lower latent wins. Gradients as in
    `encode_threshold`; permuting latents within groups permutes codes.

    Raises:
        ValueError: k not in 1 … latents, or no rows.
    """
    _check_rows(x)
    _check_k(k, W_enc)
    return _cpu_or_reference(x, W_enc, b_enc).encode_group_max(x, W_enc, b_enc, k, centre=centre)


def encode_pursuit(
    x: Float[Tensor, "batch d"],
    W: Float[Tensor, "latents d"],
    steps: int,
    *,
    residual: float = 0.0,
    stop_on_repeat: bool = False,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """Codes of at most `steps` steps of matching pursuit on the atoms W, meant to be unit rows (maths.md eq. 30).

    A row stops where its residual's norm is under `residual`, or no atom has a positive product with it: codes are ≥ 0. A latent
    picked again adds to its code and stays one entry; with `stop_on_repeat` its row then stops. A latent fires where its code is
    positive; its peak is its largest code. Of equal products the lower latent is picked. Gradients reach x, W and centre through
    all steps' products; which atoms were picked has none. Memory is that of the codes and a few numbers per coordinate of x.

    Raises:
        ValueError: no step, or no rows.
    """
    _check_rows(x)
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    run = reference if _implementation(x, W) is reference else pursuit
    return run.encode_pursuit(x, W, steps, residual=residual, stop_on_repeat=stop_on_repeat, centre=centre)


def encode_with(
    activation: Callable[[Tensor], Tensor],
    x: Float[Tensor, "batch d"],
    W_enc: Float[Tensor, "latents d"],
    b_enc: Float[Tensor, " latents"],
    *,
    centre: Float[Tensor, " d"] | None = None,
) -> Encoded:
    """Codes z = activation(y) of y = W_enc (x − centre) + b_enc, for activations that have no operation of their own.

    Takes some B·M numbers of memory. Gradients are autograd's. Entries are where z ≠ 0; a latent fires where also y > 0.

    Args:
        activation: pre-activations [batch, latents] → codes of that shape.
        x, W_enc, b_enc, centre: as in `encode_threshold`.

    Raises:
        ValueError: no rows, or codes of another shape.
    """
    _check_rows(x)
    return reference.encode_with(activation, x, W_enc, b_enc, centre=centre)


def decode(
    codes: AnyCodes, W_dec: Float[Tensor, "latents d"], b_dec: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "batch d"]:
    """Σ over a row's entries of value · W_dec[latent], + b_dec. Gradients reach the values, W_dec and b_dec.

    Invariant to permuting latents of codes and atoms together; affine in the values.

    Raises:
        ValueError: atoms that are not one per latent.
    """
    _check_atoms(codes, W_dec)
    if isinstance(codes, DenseCodes):
        return dense.decode_groups(codes, W_dec, [codes.latents_total], b_dec).squeeze(0)
    return _implementation(codes.values, W_dec).decode(codes, W_dec, b_dec)


def decode_groups(
    codes: AnyCodes,
    W_dec: Float[Tensor, "latents d"],
    sizes: Sequence[int],
    b_dec: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "groups batch d"]:
    """Reconstructions from the last group of latents, the last two, … all of them, the gradient stopped between groups.

    Result i is Σ over the last i + 1 groups of value · W_dec[latent], + b_dec; its gradient reaches the values and atoms
    of the first of these groups alone, and b_dec (maths.md eq. 14 with groups from the most frequent to the rarest).

    Args:
        codes: of latents in the order of the groups.
        W_dec: atoms.
        sizes: latents per group.
        b_dec: what every reconstruction starts from; None: 0.

    Raises:
        ValueError: atoms that are not one per latent, or sizes that do not sum to the latents.
    """
    _check_atoms(codes, W_dec)
    if sum(sizes) != codes.latents_total or min(sizes) < 1:
        raise ValueError(f"sizes={list(sizes)} must be positive and sum to latents={codes.latents_total}")
    if isinstance(codes, DenseCodes):
        return dense.decode_groups(codes, W_dec, sizes, b_dec)
    return _implementation(codes.values, W_dec).decode_groups(codes, W_dec, sizes, b_dec)


def half_square_error(
    x_hat: Float[Tensor, "*batch d"], x: Float[Tensor, "*#batch d"], scale: Float[Tensor, "*#batch 1"] | None = None
) -> Float[Tensor, ""]:
    """½ s² ‖x̂ − x‖², averaged over all leading axes; `x` may lack some of them, and so may s, `scale`, a number for every row.

    Gradients reach x̂ and x. None: s = 1.
    """
    return HalfSquareError.apply(x_hat, x, scale)  # pyright: ignore[reportReturnType]


def _implementation(*tensors: Tensor) -> ModuleType:
    """The fast one where all tensors are what it is made for."""
    (device, dtype), *others = {(t.device.type, t.dtype) for t in tensors}
    if not others and device == "cpu" and dtype == torch.float32:
        return cpu
    if not others and device == "cuda" and dtype in _GPU_TYPES and _has_triton():
        # Imported here: Triton is slow to load, and only CUDA builds of torch bring it along.
        from overtone.ops import gpu

        return gpu
    return reference


def _cpu_or_reference(*tensors: Tensor) -> ModuleType:
    """For what has no kernels on the GPU."""
    return cpu if _implementation(*tensors) is cpu else reference


@cache
def _has_triton() -> bool:
    """Whether the GPU's kernels can be compiled."""
    return find_spec("triton") is not None


def _check_rows(x: Tensor) -> None:
    """Refuse a batch that has no peak."""
    if len(x) == 0:
        raise ValueError("x has no rows; pass at least one")


def _check_k(k: int, W_enc: Tensor) -> None:
    """Refuse to select more latents than there are."""
    if not 1 <= k <= len(W_enc):
        raise ValueError(f"k={k} is not in 1 … latents={len(W_enc)}; lower k or widen the dictionary")


def _check_atoms(codes: AnyCodes, W_dec: Tensor) -> None:
    """Refuse atoms of another dictionary."""
    if codes.latents_total != len(W_dec):
        raise ValueError(f"codes over latents={codes.latents_total} cannot be decoded by {len(W_dec)} atoms")
