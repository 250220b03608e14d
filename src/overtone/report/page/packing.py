"""Numbers as a page's script takes them: small whole numbers, as bytes in base64, instead of text where there are many."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from overtone.ops import SparseCodes

FULL = 32767  # a latent's largest code shown, as a whole number
KINDS = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "i16": "<i2", "f32": "<f4"}


def packed(values: Shaped[np.ndarray, "*shape"], kind: str) -> dict[str, Any]:
    """Numbers as little-endian bytes in base64.

    Raises:
        ValueError: whole numbers that the kind has no room for.
    """
    into = np.dtype(KINDS[kind])
    if into.kind in "iu" and values.size:
        limits = np.iinfo(into)
        if values.min() < limits.min or values.max() > limits.max:
            raise ValueError(
                f"{values.min()} … {values.max()} do not fit {kind}, which ends at {limits.max}; show fewer latents or rows"
            )
    return {"kind": kind, "base64": base64.b64encode(np.ascontiguousarray(values, dtype=into).tobytes()).decode()}


def narrowest(values: Shaped[np.ndarray, "*shape"]) -> dict[str, Any]:
    """`packed` as 16-bit numbers where they fit, and else 32-bit ones."""
    return packed(values, "u16" if not values.size or values.max() < 2**16 else "u32")


def reading_json(words: Sequence[str], codes: Sequence[SparseCodes]) -> dict[str, Any]:
    """A text for the page's script: its tokens, and for every dictionary on the page all of its codes."""
    # Lone surrogates, which tokenisers may leave behind, have no bytes.
    tokens = [word.encode("utf-8", "replace").decode() for word in words]
    return {"tokens": tokens, "runs": [codes_json(one) for one in codes]}


def codes_json(codes: SparseCodes) -> dict[str, Any]:
    """Every active latent of some rows, with its code as float32."""
    return {
        "active": packed(codes.l0().numpy(), "u32"),
        "latent": narrowest(codes.latents.numpy()),
        "code": packed(codes.values.numpy(), "f32"),
    }


def fullest(codes: Float[Tensor, "latents slots width"]) -> Float[Tensor, " latents"]:
    """The largest code of each latent in any of its windows, by size."""
    return codes.abs().amax(dim=(1, 2))


def entries_json(codes: Float[Tensor, "latents slots width"], held: Bool[Tensor, "latents slots"]) -> dict[str, Any]:
    """The codes in windows that are not 0.

    They are whole numbers of 1/32767 of the largest in any of a latent's windows, so that they are off by half of that at most.
    """
    full = fullest(codes)
    latent, slot, place = codes.nonzero(as_tuple=True)
    value = codes[latent, slot, place]
    share = value.double() / full.double().clamp(min=torch.finfo(torch.float32).tiny)[latent]
    whole = (share * FULL).round()
    # What rounds to 0 is shown as the least code there is: it fires.
    whole = torch.where(whole == 0, value.double().sign(), whole)
    return {
        "entries": packed((codes != 0).sum(2)[held].numpy(), "u8"),
        "place": packed(place.numpy(), "u8"),
        "code": packed(whole.numpy().astype(np.int64), "i16"),
        "full": packed(full.numpy(), "f32"),
    }
