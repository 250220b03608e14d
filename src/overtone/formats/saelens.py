"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors` (written for 6.x, read from 3.x on).

Its architectures: standard, gated, topk, abstopk, jumprelu, matching_pursuit, transcoder, skip_transcoder, jumprelu_transcoder,
jumprelu_skip_transcoder; batchtopk and matryoshka_batchtopk while training, saved for inference as jumprelu. The temporal one
codes a row by the rows before it, which no overtone dictionary does.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from overtone.formats.about import hook_name, kept
from overtone.formats.plain import FormatError, Plain, recentred
from overtone.formats.reading import checked, setting
from overtone.gating import Gated, LatentThreshold
from overtone.selection import AbsTopK, BatchTopK, MatchingPursuit, ReLU, Selection, TopK

# What configurations are written for. Below 6.0 SAELens rewrites them as old ones and loses their metadata.
VERSION = "6.54.12"
BASE = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_out"), "b_dec": ("d_out",)}
BIAS = {"b_enc": ("d_sae",)}
THRESHOLD = {"threshold": ("d_sae",)}
GATE = {"b_gate": ("d_sae",), "b_mag": ("d_sae",), "r_mag": ("d_sae",)}
SKIP = {"W_skip": ("d_out", "d_in")}
ARCHITECTURES: dict[str, dict[str, tuple[str, ...]]] = {
    "standard": BASE | BIAS,
    "topk": BASE | BIAS,
    "abstopk": BASE | BIAS,
    "jumprelu": BASE | BIAS | THRESHOLD,
    "gated": BASE | GATE,
    "matching_pursuit": {name: BASE[name] for name in ("W_dec", "b_dec")},
    "transcoder": BASE | BIAS,
    "skip_transcoder": BASE | BIAS | SKIP,
    "jumprelu_transcoder": BASE | BIAS | THRESHOLD,
    "jumprelu_skip_transcoder": BASE | BIAS | THRESHOLD | SKIP,
    "batchtopk": BASE | BIAS | {"topk_threshold": ()},
    "matryoshka_batchtopk": BASE | BIAS | {"topk_threshold": ()},
}
# Of earlier versions: a factor per latent of a decoder tuned afterwards; all ones where it was not.
TUNED = ("scaling_factor", "finetuning_scaling_factor")
UNIT = 1e-6  # what rounding makes of a norm of 1 in float32
METADATA = (
    "model_name",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "context_size",
    "prepend_bos",
    "dataset_path",
)


def pack(plain: Plain, info: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration."""
    architecture, extra = _architecture(plain)
    if plain.transcoder:
        plain = recentred(plain, False)
    tensors = {"W_enc": plain.W_enc.T, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    if isinstance(plain.select, Gated):
        tensors["b_gate"] = tensors.pop("b_enc")
        tensors |= plain.own
    elif isinstance(plain.select, MatchingPursuit):
        tensors = {name: tensors[name] for name in ("W_dec", "b_dec")}
    elif isinstance(plain.select, LatentThreshold):
        tensors["threshold"] = plain.own["thresholds"]
    elif isinstance(plain.select, BatchTopK):
        # Its codes are never negative, whatever the threshold.
        tensors["threshold"] = plain.own["threshold"].clamp(min=0).expand_as(plain.b_enc)
    if plain.W_skip is not None:
        tensors["W_skip"] = plain.W_skip
    config = {
        "d_in": plain.W_enc.shape[1],
        "d_sae": len(plain.W_enc),
        "dtype": str(plain.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": plain.centred,
        "normalize_activations": "constant_norm_rescale" if plain.rms else "none",
        "reshape_activations": "none",
        "architecture": architecture,
        **extra,
    }
    if plain.transcoder:
        config["d_out"] = plain.W_dec.shape[1]
    earlier = kept(info, "saelens")
    config = {**earlier, **config, "reshape_activations": earlier.get("reshape_activations", "none")}
    return tensors, config | {"metadata": _metadata(plain, info) | setting(earlier, "metadata", dict, "cfg.json", {})}


def _architecture(plain: Plain) -> tuple[str, dict[str, Any]]:
    """Its name, and the settings that it alone has."""
    select = plain.select
    if plain.transcoder:
        if not isinstance(select, (ReLU, LatentThreshold, BatchTopK)):
            raise FormatError(
                f"SAELens' transcoders select by ReLU or JumpReLU, this one by {select}; export it to sparsify, which has TopK "
                "and GroupMax, or train one with overtone.transcoder(gba())"
            )
        skip = "skip_" if plain.W_skip is not None else ""
        return f"{'' if isinstance(select, ReLU) else 'jumprelu_'}{skip}transcoder", {}
    if isinstance(select, MatchingPursuit):
        settings = {
            "residual_threshold": select.residual or 0.0,
            "max_iterations": select.steps,
            "stop_on_duplicate_support": select.stop_on_repeat,
        }
        return "matching_pursuit", settings
    for kind, name in ((TopK, "topk"), (AbsTopK, "abstopk")):
        if isinstance(select, kind):
            return name, {"k": select.k, "rescale_acts_by_decoder_norm": False}
    for kinds, name in (((ReLU,), "standard"), ((LatentThreshold, BatchTopK), "jumprelu"), ((Gated,), "gated")):
        if isinstance(select, kinds):
            return name, {}
    raise FormatError(
        f"SAELens has no architecture that selects by {select}; export it to sparsify, which has GroupMax"
    )


def _metadata(plain: Plain, info: dict[str, Any]) -> dict[str, Any]:
    sites = plain.sites if any(plain.sites) else tuple(filter(None, (info.get("site"), info.get("target"))))
    named = dict(zip(("hook_name", "hook_name_out"), map(hook_name, sites), strict=False))
    about = {"sae_lens_version": VERSION, "sae_lens_training_version": None, "model_name": info.get("model"), **named}
    about |= {"context_size": info.get("context"), "prepend_bos": info.get("prepend_bos"), "trained_with": "overtone"}
    if isinstance(plain.select, BatchTopK):
        about |= {"training_architecture": "batchtopk", "training_architecture_details": {"k": plain.select.k}}
    return {key: value for key, value in about.items() if value is not None or key.startswith("sae_lens")}


def unpack(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> tuple[Plain, dict[str, Any]]:
    """The plain form, and what the configuration tells besides."""
    architecture, config = _modern(config, where)
    tensors = _untuned(tensors, where)
    tensors, sizes = checked(tensors, where, ARCHITECTURES[architecture])
    transcoder = architecture.endswith("transcoder")
    # An autoencoder, whose d_out has no setting of its own, reconstructs what it reads.
    stated = {"d_in": "d_in", "d_sae": "d_sae", "d_out": "d_out" if transcoder else "d_in"}
    for axis, key in stated.items():
        size = setting(config, key, int, where)
        if sizes.get(axis, size) != size:
            raise FormatError(
                f"{where}: cfg.json says {key}={size}, the tensors have {sizes[axis]}; they are of another SAE"
            )
    centred = setting(config, "apply_b_dec_to_input", bool, where, True)
    if transcoder and centred:
        raise FormatError(
            f"{where}: apply_b_dec_to_input=true, which a transcoder cannot have; set it to false in cfg.json"
        )
    metadata = setting(config, "metadata", dict, where, {})
    rms = _rms(config, where)
    if rms and "W_skip" in tensors:
        raise FormatError(
            f"{where}: normalize_activations={config['normalize_activations']!r} with a linear path, which reads rows that are "
            "not normalised; overtone's reads what its latents read"
        )
    zero = torch.zeros(sizes["d_sae"], dtype=tensors["b_dec"].dtype)
    select, own = _selection(architecture, tensors, config, where)
    plain = Plain(
        W_enc=(tensors["W_enc"].T if "W_enc" in tensors else tensors["W_dec"]).contiguous(),
        b_enc=tensors.get("b_gate", tensors.get("b_enc", zero)),
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        select=select,
        own=own,
        centred=centred,
        rms=rms,
        sites=_sites(metadata) if transcoder else ("",),
        W_skip=tensors.get("W_skip"),
    )
    if isinstance(select, MatchingPursuit) and not centred:
        plain = replace(plain, b_dec=torch.zeros_like(plain.b_dec), centred=True)  # then it is not added either
    if setting(config, "rescale_acts_by_decoder_norm", bool, where, False):
        plain = _rescaled(plain)
    told = {
        ours: metadata[theirs]
        for ours, theirs in (("model", "model_name"), ("site", "hook_name"))
        if metadata.get(theirs)
    }
    return plain, told


def _selection(
    architecture: str, tensors: dict[str, Tensor], config: dict[str, Any], where: str
) -> tuple[Selection, dict[str, Tensor]]:
    if "threshold" in tensors:
        return LatentThreshold(), {"thresholds": tensors["threshold"]}
    if architecture == "gated":
        return Gated(), {name: tensors[name] for name in ("r_mag", "b_mag")}
    if architecture == "matching_pursuit":
        residual = setting(config, "residual_threshold", float, where, 1e-2)
        steps = setting(config, "max_iterations", int, where, tensors["W_dec"].shape[1])
        return MatchingPursuit(
            steps, residual or None, setting(config, "stop_on_duplicate_support", bool, where, True)
        ), {}
    if "topk_threshold" in tensors:
        return BatchTopK(setting(config, "k", int, where)), {"threshold": tensors["topk_threshold"]}
    if architecture in ("topk", "abstopk"):
        return (TopK if architecture == "topk" else AbsTopK)(setting(config, "k", int, where)), {}
    return ReLU(), {}


def _modern(config: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The architecture, and settings by their names of today."""
    config = dict(config)
    architecture = setting(config, "architecture", str, where, "standard")
    activation = setting(config, "activation_fn", str, where, config.get("activation_fn_str") or "relu")
    if activation == "topk" and architecture in ("standard", "topk"):
        options = setting(config, "activation_fn_kwargs", dict, where, {})
        architecture, config["k"] = "topk", config.get("k", options.get("k"))
    elif activation not in ("relu", "topk"):
        raise FormatError(f"{where}: activation_fn={activation!r} is none of relu and topk, which overtone has")
    if architecture == "temporal":
        raise FormatError(
            f"{where}: a temporal SAE codes a row by the rows before it; overtone's dictionaries code each row alone and cannot "
            "hold it. Evaluate it with SAELens"
        )
    if architecture not in ARCHITECTURES:
        raise FormatError(f"{where}: architecture={architecture!r} is none of {', '.join(ARCHITECTURES)}")
    if "metadata" not in config:
        config["metadata"] = {key: config[key] for key in METADATA if key in config}
        config["metadata"] |= {"hook_name": config["hook_point"]} if "hook_point" in config else {}
    return architecture, config


def _untuned(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    for name in TUNED:
        if name in tensors and not bool((tensors[name] == 1).all()):
            raise FormatError(f"{where}: {name} is not 1 everywhere; fold it into W_dec in SAELens and save again")
    return {name: value for name, value in tensors.items() if name not in TUNED}


def _rms(config: dict[str, Any], where: str) -> bool:
    """Whether rows are scaled to norm √d; other ways that a file cannot tell in full are refused."""
    way = config.get("normalize_activations") or "none"
    if way in (True, "expected_average_only_in", "covariance_whitening"):
        fold = "fold_activation_whitening" if way == "covariance_whitening" else "fold_activation_norm_scaling_factor"
        raise FormatError(
            f"{where}: normalize_activations={way!r} stands for numbers measured on the training data that are not in the file; "
            f"in SAELens, call sae.{fold}(…) and save again"
        )
    if way == "layer_norm":
        raise FormatError(
            f"{where}: normalize_activations='layer_norm' subtracts each row's own mean and adds it back; overtone's "
            "dictionaries know a row's norm alone. Evaluate it with SAELens"
        )
    if way not in ("none", "constant_norm_rescale"):
        raise FormatError(
            f"{where}: normalize_activations={way!r} is unknown; known are none and constant_norm_rescale"
        )
    return way == "constant_norm_rescale"


def _rescaled(plain: Plain) -> Plain:
    """rescale_acts_by_decoder_norm: latents compete by y · ‖w‖, and unit atoms decode."""
    norms = plain.W_dec.norm(dim=1)
    if bool(((norms - 1).abs() < UNIT).all()):
        return plain  # SAELens folds the norms itself when a training ends, and leaves the setting
    if not bool((norms > 0).all()):
        raise FormatError(
            "rescale_acts_by_decoder_norm with an atom of norm 0, whose code has no size; remove the atom"
        )
    column = norms[:, None]
    return replace(plain, W_enc=plain.W_enc * column, b_enc=plain.b_enc * norms, W_dec=plain.W_dec / column)


def _sites(metadata: dict[str, Any]) -> tuple[str, str]:
    """Names for what is read and what is reconstructed; a layer may be called the same on both sides."""
    return str(metadata.get("hook_name") or "input"), str(metadata.get("hook_name_out") or "output")
