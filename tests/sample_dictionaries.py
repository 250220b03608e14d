"""Dictionaries of every kind, with weights that no rounding could have made."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from overtone import (
    AbsTopK,
    BatchTopK,
    Block,
    Dictionary,
    Gated,
    GroupMax,
    JumpReLU,
    LatentThreshold,
    Layout,
    MatchingPursuit,
    Parametrisation,
    ReLU,
    Selection,
    Threshold,
    ThresholdJumpReLU,
    TopK,
)


class Size(NamedTuple):
    d: int
    d_out: int
    latents: int


SMALL = Size(12, 10, 24)
TRAINED = Parametrisation(tied=False, scale=False, bias="trained", input_norm="none")


def transcoder(size: Size) -> Layout:
    return Layout((Block("mlp_in.3", size.d),), (Block("mlp_out.3", size.d_out),))


def square(size: Size) -> Layout:
    return transcoder(size._replace(d_out=size.d))


def made(
    size: Size,
    select: Selection,
    parametrisation: Parametrisation = TRAINED,
    layout: Layout | None = None,
    dtype=torch.float32,
) -> Dictionary:
    """A dictionary with random weights, some latents of which fire on rows of norm 1 to 10."""
    dictionary = Dictionary(layout or size.d, size.latents, select, parametrisation)
    generator = torch.Generator().manual_seed(0)
    steered = isinstance(select, (JumpReLU, Threshold))
    with torch.no_grad():
        for name, value in dictionary.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name in ("b_enc", "b_mag"):
                value.copy_(-0.1 * noise.abs() if steered else 0.1 * noise)
            elif name in ("threshold", "thresholds", "scale", "read_scale", "write_scale"):
                value.copy_(0.05 + noise.abs() * (0.1 if "threshold" in name else 1.0))
            elif name == "log_threshold":
                value.copy_(noise - 2)
            elif name in ("b_dec", "r_mag") or (name == "centre" and dictionary.parametrisation.centre != "none"):
                value.copy_(0.1 * noise)
            elif name in ("W_enc", "W_skip"):
                value.copy_(noise / size.d**0.5)
    return dictionary.to(dtype)


def with_(**changes) -> Parametrisation:
    return replace(TRAINED, **changes)


ROW = with_(input_norm="row")
KINDS: dict[str, Callable[[Size], Dictionary]] = {
    "gba": lambda n: made(n, JumpReLU(), Parametrisation(centre="fixed")),
    "gba, rows as they are": lambda n: made(n, JumpReLU(), Parametrisation(input_norm="none")),
    "gba, one scale": lambda n: made(n, JumpReLU(), Parametrisation(input_norm="site")),
    "gba, roots": lambda n: made(n, JumpReLU(), Parametrisation(input_norm="root")),
    "gba untied": lambda n: made(n, JumpReLU(), Parametrisation(tied=False)),
    "relu": lambda n: made(n, ReLU()),
    "relu, uncentred": lambda n: made(n, ReLU(), with_(centre="none")),
    "relu, rms": lambda n: made(n, ReLU(), with_(input_norm="rms")),
    "relu, tied": lambda n: made(n, ReLU(), with_(tied=True)),
    "topk, tied": lambda n: made(n, TopK(3), with_(tied=True)),
    "relu, double": lambda n: made(n, ReLU(), dtype=torch.float64),
    "l1, rows": lambda n: made(n, ReLU(), with_(input_norm="row", scale=True)),
    "jumprelu": lambda n: made(n, ThresholdJumpReLU()),
    "jumprelu, rows": lambda n: made(n, ThresholdJumpReLU(), ROW),
    "thresholds": lambda n: made(n, LatentThreshold()),
    "thresholds, uncentred": lambda n: made(n, LatentThreshold(), with_(centre="none")),
    "threshold": lambda n: made(n, Threshold(0.1)),
    "topk": lambda n: made(n, TopK(3)),
    "topk, uncentred": lambda n: made(n, TopK(3), with_(centre="none")),
    "topk, rows": lambda n: made(n, TopK(3), ROW),
    "abstopk": lambda n: made(n, AbsTopK(3)),
    "groupmax": lambda n: made(n, GroupMax(4)),
    "batchtopk": lambda n: made(n, BatchTopK(3)),
    "gated": lambda n: made(n, Gated()),
    "gated, rows": lambda n: made(n, Gated(), ROW),
    "gated, uncentred": lambda n: made(n, Gated(), with_(centre="none")),
    "pursuit": lambda n: made(n, MatchingPursuit(4, 0.5), Parametrisation(scale=False, input_norm="none")),
    "pursuit, rows": lambda n: made(n, MatchingPursuit(4, 0.5, True), Parametrisation(scale=False)),
    "transcoder": lambda n: made(n, ReLU(), with_(input_norm="site"), transcoder(n)),
    "gba transcoder": lambda n: made(n, JumpReLU(), Parametrisation(tied=False, input_norm="site"), transcoder(n)),
    "row transcoder": lambda n: made(n, ThresholdJumpReLU(), ROW, transcoder(n)),
    "skip transcoder": lambda n: made(n, ReLU(), with_(input_norm="site", skip=True), square(n)),
    "gba skip transcoder": lambda n: made(
        n, JumpReLU(), Parametrisation(tied=False, input_norm="site", skip=True), square(n)
    ),
    "topk skip transcoder": lambda n: made(n, TopK(3), with_(skip=True, input_norm="site"), square(n)),
    "groupmax transcoder": lambda n: made(n, GroupMax(4), with_(centre="none"), square(n)),
}
S, DL, SP, G1, G2, CT = "saelens", "dictionary_learning", "sparsify", "gemma_scope_1", "gemma_scope_2", "circuit_tracer"
JUMPS = (S, DL, G1, G2)
FITS: dict[str, tuple[str, ...]] = {
    "gba, roots": (),
    **dict.fromkeys(("gba", "gba untied", "relu, rms", "l1, rows", "jumprelu, rows", "topk, rows"), (S,)),
    **dict.fromkeys(("gated, rows", "abstopk", "pursuit", "pursuit, rows", "row transcoder"), (S,)),
    **dict.fromkeys(
        ("gba, rows as they are", "gba, one scale", "relu", "relu, uncentred", "relu, tied", "relu, double"), JUMPS
    ),
    **dict.fromkeys(("jumprelu", "thresholds", "thresholds, uncentred", "threshold", "batchtopk"), JUMPS),
    **dict.fromkeys(("topk", "topk, uncentred", "topk, tied"), (S, DL, SP)),
    **dict.fromkeys(("gated", "gated, uncentred"), (S, DL)),
    **dict.fromkeys(("groupmax", "topk skip transcoder", "groupmax transcoder"), (SP,)),
    **dict.fromkeys(("transcoder", "gba transcoder"), (S, G1, G2, CT)),
    **dict.fromkeys(("skip transcoder", "gba skip transcoder"), (S, G2, CT)),
}


def scale(dictionary: Dictionary) -> float:
    """How many times overtone's codes another tool's are (maths.md eq. F2)."""
    p = dictionary.parametrisation
    if p.input_norm == "site":
        assert dictionary.read_scale is not None
        return float(dictionary.read_scale[0])
    return dictionary.d**0.5 if p.input_norm == "row" else 1.0
