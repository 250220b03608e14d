"""Gemma Scope 1 (`params.npz`, also its transcoders) and 2 (`params.safetensors`, `config.json`); circuit-tracer's transcoders.

All of them have JumpReLU (circuit-tracer ReLU as well) on rows as they are, from which nothing is subtracted.
"""

from typing import Any

import torch
from torch import Tensor

from overtone.formats.about import hook_name, kept
from overtone.formats.dictionary_learning import no_row_norms
from overtone.formats.plain import FormatError, Plain, recentred
from overtone.formats.reading import checked, setting
from overtone.gating import LatentThreshold
from overtone.selection import BatchTopK, ReLU

SHAPES = {"w_enc": ("d_in", "M"), "b_enc": ("M",), "w_dec": ("M", "d_out"), "b_dec": ("d_out",), "threshold": ("M",)}
UPPER = {"w_enc": "W_enc", "w_dec": "W_dec"}
SKIP = {"affine_skip_connection": ("d_in", "d_out")}
CIRCUIT = {"W_enc": ("M", "d_in"), "b_enc": ("M",), "W_dec": ("M", "d_out"), "b_dec": ("d_out",)}
CIRCUIT_MORE = {"activation_function.threshold": ("M",), "W_skip": ("d_out", "d_in")}


def _thresholds(plain: Plain, tool: str) -> Tensor | None:
    """One per latent; None: ReLU, which has none."""
    if isinstance(plain.select, LatentThreshold):
        return plain.own["thresholds"]
    if isinstance(plain.select, BatchTopK):
        return plain.own["threshold"].clamp(min=0).expand_as(plain.b_enc)
    if isinstance(plain.select, ReLU):
        return None
    raise FormatError(
        f"{tool} selects by thresholds (JumpReLU), this dictionary by {plain.select}; export it to saelens, or to sparsify"
    )


def _lower(plain: Plain, tool: str) -> dict[str, Tensor]:
    if plain.rms:
        raise no_row_norms(tool)
    threshold = _thresholds(plain, tool)
    plain = recentred(plain, False)
    threshold = torch.zeros_like(plain.b_enc) if threshold is None else threshold
    tensors = {"w_enc": plain.W_enc.T, "b_enc": plain.b_enc, "w_dec": plain.W_dec, "b_dec": plain.b_dec}
    return tensors | {"threshold": threshold}


def _plain(tensors: dict[str, Tensor], sites: tuple[str, ...], skip: Tensor | None = None) -> Plain:
    return Plain(
        W_enc=tensors["w_enc"].T.contiguous(),
        b_enc=tensors["b_enc"],
        W_dec=tensors["w_dec"],
        b_dec=tensors["b_dec"],
        select=LatentThreshold(),
        own={"thresholds": tensors["threshold"]},
        centred=False,
        sites=sites,
        W_skip=skip,
    )


def pack_1(plain: Plain, info: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays; there is no configuration. What tells a transcoder is that its matrices are spelt W_enc and W_dec."""
    if plain.W_skip is not None:
        raise FormatError(
            "params.npz has no linear path; export this skip transcoder to gemma_scope_2, saelens or circuit_tracer"
        )
    tensors = _lower(plain, "Gemma Scope")
    return ({UPPER.get(name, name): value for name, value in tensors.items()} if plain.transcoder else tensors), {}


def unpack_1(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> tuple[Plain, dict[str, Any]]:
    """The plain form."""
    transcoder = "W_enc" in tensors
    spelt = {UPPER.get(name, name) if transcoder else name: axes for name, axes in SHAPES.items()}
    tensors, sizes = checked(tensors, where, spelt)
    if not transcoder and sizes["d_in"] != sizes["d_out"]:
        raise FormatError(f"{where}: reads {sizes['d_in']} numbers and writes {sizes['d_out']}; it is no autoencoder")
    lower = {name: tensors[UPPER.get(name, name) if transcoder else name] for name in SHAPES}
    return _plain(lower, ("input", "output") if transcoder else ("",)), {}


def pack_2(plain: Plain, info: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration."""
    tensors = _lower(plain, "Gemma Scope 2")
    if plain.W_skip is not None:
        tensors["affine_skip_connection"] = plain.W_skip.T
    sites = [hook_name(site) for site in plain.sites if site] or [str(info.get("site") or "")]
    config: dict[str, Any] = {"model_name": info.get("model"), "hf_hook_point_in": sites[0]}
    config |= {"hf_hook_point_out": sites[-1]} | kept(info, "gemma_scope_2")
    if plain.transcoder:
        config["affine_connection"] = plain.W_skip is not None
    return tensors, config | {"architecture": "jump_relu", "width": len(plain.W_enc)}


def unpack_2(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> tuple[Plain, dict[str, Any]]:
    """The plain form, and what the configuration tells besides."""
    if config.get("architecture") != "jump_relu":
        raise FormatError(f"{where}: architecture={config.get('architecture')!r}; that of Gemma Scope 2 is 'jump_relu'")
    if "w_dec" in tensors and tensors["w_dec"].ndim == 3:
        raise FormatError(
            f"{where}: a cross-layer transcoder writes to several layers; overtone reads transcoders of one. Use circuit-tracer"
        )
    tensors, sizes = checked(tensors, where, SHAPES, SKIP)
    skip = tensors.get("affine_skip_connection")
    reads, writes = (str(config.get(f"hf_hook_point_{way}") or "") for way in ("in", "out"))
    # An autoencoder names no other place to write to, and no linear path, not even one that is absent.
    transcoder = "affine_connection" in config or skip is not None or bool(writes and writes != reads)
    if not transcoder and sizes["d_in"] != sizes["d_out"]:
        raise FormatError(
            f"{where}: reads {sizes['d_in']} numbers and writes {sizes['d_out']}, but is called no transcoder"
        )
    sites = (reads or "input", writes or "output") if transcoder else ("",)
    plain = _plain(tensors, sites, None if skip is None else skip.T.contiguous())
    told = {"model": setting(config, "model_name", str, where, ""), "site": reads}
    return plain, {key: value for key, value in told.items() if value}


def pack_circuit(plain: Plain, info: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors; there is no configuration."""
    if not plain.transcoder:
        raise FormatError("circuit-tracer holds transcoders, this is an autoencoder; export it to saelens")
    if plain.rms:
        raise no_row_norms("circuit-tracer")
    threshold = _thresholds(plain, "circuit-tracer")
    plain = recentred(plain, False)
    tensors = {"W_enc": plain.W_enc, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    tensors |= {} if threshold is None else {"activation_function.threshold": threshold}
    return tensors | ({} if plain.W_skip is None else {"W_skip": plain.W_skip}), {}


def unpack_circuit(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> tuple[Plain, dict[str, Any]]:
    """The plain form."""
    tensors, _ = checked(tensors, where, CIRCUIT, CIRCUIT_MORE)
    threshold = tensors.get("activation_function.threshold")
    plain = Plain(
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        select=ReLU() if threshold is None else LatentThreshold(),
        own={} if threshold is None else {"thresholds": threshold},
        centred=False,
        sites=("input", "output"),
        W_skip=tensors.get("W_skip"),
    )
    return plain, {}
