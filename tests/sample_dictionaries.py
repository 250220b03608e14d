"""Dictionaries of every kind, with weights that no rounding could have made."""

from collections.abc import Callable

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

D, D_OUT, M = 12, 10, 24
TRAINED = Parametrisation(tied=False, scale=False, bias="trained", input_norm="none")
TRANSCODER = Layout((Block("mlp_in.3", D),), (Block("mlp_out.3", D_OUT),))
SQUARE = Layout((Block("mlp_in.3", D),), (Block("mlp_out.3", D),))


def made(
    select: Selection, parametrisation: Parametrisation = TRAINED, layout: Layout | int = D, dtype=torch.float32, seed=0
) -> Dictionary:
    """A dictionary with random weights, some latents of which fire on rows of norm 1 to 10."""
    dictionary = Dictionary(layout, M, select, parametrisation, seed=seed)
    generator = torch.Generator().manual_seed(seed)
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
                value.copy_(noise / D**0.5)
    return dictionary.to(dtype)


def with_(**changes) -> Parametrisation:
    from dataclasses import replace

    return replace(TRAINED, **changes)


ROW = with_(input_norm="row")
KINDS: dict[str, Callable[[], Dictionary]] = {
    "gba": lambda: made(JumpReLU(), Parametrisation(centre="fixed")),
    "gba, rows as they are": lambda: made(JumpReLU(), Parametrisation(input_norm="none")),
    "gba, one scale": lambda: made(JumpReLU(), Parametrisation(input_norm="site")),
    "gba untied": lambda: made(JumpReLU(), Parametrisation(tied=False)),
    "relu": lambda: made(ReLU()),
    "relu, uncentred": lambda: made(ReLU(), with_(centre="none")),
    "relu, rms": lambda: made(ReLU(), with_(input_norm="rms")),
    "relu, double": lambda: made(ReLU(), dtype=torch.float64),
    "l1, rows": lambda: made(ReLU(), with_(input_norm="row", scale=True)),
    "jumprelu": lambda: made(ThresholdJumpReLU()),
    "jumprelu, rows": lambda: made(ThresholdJumpReLU(), ROW),
    "thresholds": lambda: made(LatentThreshold()),
    "thresholds, uncentred": lambda: made(LatentThreshold(), with_(centre="none")),
    "threshold": lambda: made(Threshold(0.1)),
    "topk": lambda: made(TopK(3)),
    "topk, uncentred": lambda: made(TopK(3), with_(centre="none")),
    "topk, rows": lambda: made(TopK(3), ROW),
    "abstopk": lambda: made(AbsTopK(3)),
    "groupmax": lambda: made(GroupMax(4)),
    "batchtopk": lambda: made(BatchTopK(3)),
    "gated": lambda: made(Gated()),
    "gated, rows": lambda: made(Gated(), ROW),
    "gated, uncentred": lambda: made(Gated(), with_(centre="none")),
    "pursuit": lambda: made(MatchingPursuit(4, 0.5), Parametrisation(scale=False, input_norm="none")),
    "pursuit, rows": lambda: made(MatchingPursuit(4, 0.5, True), Parametrisation(scale=False)),
    "transcoder": lambda: made(ReLU(), with_(input_norm="site"), TRANSCODER),
    "gba transcoder": lambda: made(JumpReLU(), Parametrisation(tied=False, input_norm="site"), TRANSCODER),
    "row transcoder": lambda: made(ThresholdJumpReLU(), ROW, TRANSCODER),
    "skip transcoder": lambda: made(ReLU(), with_(input_norm="site", skip=True), SQUARE),
    "gba skip transcoder": lambda: made(
        JumpReLU(), Parametrisation(tied=False, input_norm="site", skip=True), SQUARE
    ),
    "topk skip transcoder": lambda: made(TopK(3), with_(skip=True, input_norm="site"), SQUARE),
    "groupmax transcoder": lambda: made(GroupMax(4), with_(centre="none"), SQUARE),
}
S, DL, SP, G1, G2, CT = "saelens", "dictionary_learning", "sparsify", "gemma_scope_1", "gemma_scope_2", "circuit_tracer"
JUMPS = (S, DL, G1, G2)
FITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gba", "gba untied", "relu, rms", "l1, rows", "jumprelu, rows", "topk, rows"), (S,)),
    **dict.fromkeys(("gated, rows", "abstopk", "pursuit", "pursuit, rows", "row transcoder"), (S,)),
    **dict.fromkeys(("gba, rows as they are", "gba, one scale", "relu", "relu, uncentred", "relu, double"), JUMPS),
    **dict.fromkeys(("jumprelu", "thresholds", "thresholds, uncentred", "threshold", "batchtopk"), JUMPS),
    **dict.fromkeys(("topk", "topk, uncentred"), (S, DL, SP)),
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
