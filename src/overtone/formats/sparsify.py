"""sparsify (EleutherAI): a folder with `cfg.json` and `sae.safetensors`, TopK or GroupMax, autoencoders and transcoders."""

from typing import Any

from torch import Tensor

from overtone.formats.about import kept
from overtone.formats.dictionary_learning import no_row_norms
from overtone.formats.plain import FormatError, Plain, recentred
from overtone.formats.reading import checked, setting
from overtone.selection import GroupMax, TopK

SHAPES = {"encoder.weight": ("M", "d_in"), "encoder.bias": ("M",), "W_dec": ("M", "d_in"), "b_dec": ("d_in",)}
SKIP = {"W_skip": ("d_in", "d_in")}
SELECTIONS = {"topk": TopK, "groupmax": GroupMax}


def pack(plain: Plain, info: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration."""
    select, (latents, d) = plain.select, plain.W_enc.shape
    if not isinstance(select, (TopK, GroupMax)):
        raise FormatError(
            f"sparsify selects by TopK or GroupMax, this dictionary by {select}; export it to saelens, or to dictionary_learning"
        )
    if isinstance(select, GroupMax) and latents % select.k:
        raise FormatError(
            f"sparsify's groups are of one size, but latents={latents} are no multiple of k={select.k}; train with such numbers"
        )
    if plain.rms:
        raise no_row_norms("sparsify")
    if plain.W_dec.shape[1] != d:
        raise FormatError(
            f"sparsify's transcoders write as many numbers as they read, this one reads {d} and writes {plain.W_dec.shape[1]}; "
            "export it to saelens, whose transcoders select by ReLU or JumpReLU"
        )
    plain = recentred(plain, not plain.transcoder)
    tensors = {"encoder.weight": plain.W_enc, "encoder.bias": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    if plain.W_skip is not None:
        tensors["W_skip"] = plain.W_skip
    config = {
        "activation": "topk" if isinstance(select, TopK) else "groupmax",
        "num_latents": latents,
        "k": select.k,
        "skip_connection": plain.W_skip is not None,
        "transcode": plain.transcoder,
        "d_in": d,
    }
    # These two say how training began and what it minimised, and change nothing afterwards.
    trained = {"expansion_factor": max(1, latents // d), "normalize_decoder": True, "multi_topk": False}
    return tensors, trained | kept(info, "sparsify") | config


def unpack(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> tuple[Plain, dict[str, Any]]:
    """The plain form; a configuration tells nothing besides."""
    activation = setting(config, "activation", str, where, "topk")
    if activation not in SELECTIONS:
        raise FormatError(f"{where}: activation={activation!r} is none of {', '.join(SELECTIONS)}")
    skip = setting(config, "skip_connection", bool, where, False)
    transcoder = setting(config, "transcode", bool, where, False)
    if skip and not transcoder:
        raise FormatError(
            f"{where}: a linear path (skip_connection) from a site to itself, which overtone refuses: it can copy what it reads"
        )
    tensors, sizes = checked(tensors, where, SHAPES | (SKIP if skip else {}))
    k, d, latents = setting(config, "k", int, where, 32), setting(config, "d_in", int, where), sizes["M"]
    stated = setting(config, "num_latents", int, where, 0) or d * setting(config, "expansion_factor", int, where, 32)
    if (stated, d) != (latents, sizes["d_in"]):
        raise FormatError(
            f"{where}: cfg.json says {stated} latents of d_in={d}, the tensors have {latents} of {sizes['d_in']}"
        )
    if activation == "groupmax" and (k < 1 or latents % k):
        raise FormatError(f"{where}: {latents} latents do not fall into k={k} groups of one size")
    plain = Plain(
        W_enc=tensors["encoder.weight"],
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        select=SELECTIONS[activation](k),
        centred=not transcoder,
        sites=("input", "output") if transcoder else ("",),
        W_skip=tensors.get("W_skip"),
    )
    return plain, {}
