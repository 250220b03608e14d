"""dictionary_learning (saprmarks): a folder with `ae.pt`, a state dict, and `config.json`."""

from typing import Any

import torch
from torch import Tensor

from overtone.formats.about import hook_name, kept, layer_of
from overtone.formats.plain import FormatError, Plain, recentred
from overtone.formats.reading import checked, setting
from overtone.gating import Gated, LatentThreshold
from overtone.selection import BatchTopK, ReLU, Selection, TopK

ENCODER, DECODER = {"encoder.weight": ("M", "d")}, {"decoder.weight": ("d", "M")}
LINEAR = ENCODER | DECODER | {"encoder.bias": ("M",)}
MATRICES = {"W_enc": ("d", "M"), "b_enc": ("M",), "W_dec": ("M", "d"), "b_dec": ("d",)}
LEARNT = {"threshold": ()}
CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "AutoEncoder": LINEAR | {"bias": ("d",)},
    "AutoEncoderNew": LINEAR | {"decoder.bias": ("d",)},
    "AutoEncoderTopK": LINEAR | LEARNT | {"b_dec": ("d",)},
    "BatchTopKSAE": LINEAR | LEARNT | {"b_dec": ("d",)},
    "MatryoshkaBatchTopKSAE": MATRICES | LEARNT,
    "JumpReluAutoEncoder": MATRICES | {"threshold": ("M",)},
    "GatedAutoEncoder": ENCODER
    | DECODER
    | {"decoder_bias": ("d",), "r_mag": ("M",), "gate_bias": ("M",), "mag_bias": ("M",)},
}
# Written before thresholds were learnt, or added to the state dict.
OPTIONAL = {"AutoEncoderTopK": LEARNT}
COUNTS = ("k", "group_sizes")  # whole numbers
UNSET = -1.0  # a threshold that was never learnt
BIASES = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}


def pack(plain: Plain, info: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration."""
    if plain.transcoder:
        raise FormatError("dictionary_learning has no transcoders; export to saelens, sparsify or circuit_tracer")
    if plain.rms:
        raise no_row_norms("dictionary_learning")
    name, groups = _class(plain, info)
    plain = recentred(plain, name not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    if "W_enc" in CLASSES[name]:
        tensors = {"W_enc": plain.W_enc.T, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    else:
        tensors = {"encoder.weight": plain.W_enc, "encoder.bias": plain.b_enc, "decoder.weight": plain.W_dec.T}
        tensors[BIASES.get(name, "b_dec")] = plain.b_dec
    if isinstance(plain.select, Gated):
        tensors |= {
            "gate_bias": tensors.pop("encoder.bias"),
            "mag_bias": plain.own["b_mag"],
            "r_mag": plain.own["r_mag"],
        }
    elif isinstance(plain.select, LatentThreshold):
        tensors["threshold"] = plain.own["thresholds"]
    if isinstance(plain.select, (TopK, BatchTopK)):
        learnt = plain.own.get("threshold", torch.tensor(float(info.get("threshold", UNSET))))
        tensors |= {"k": torch.tensor(plain.select.k, dtype=torch.int32), "threshold": learnt.float()}
    if groups:
        tensors["group_sizes"] = torch.tensor(groups)
    return tensors, _config(plain, name, info)


def no_row_norms(tool: str) -> FormatError:
    """The error of tools that take rows as they are."""
    return FormatError(
        f"this dictionary divides every row by its own norm, which {tool} cannot: its dictionaries take rows as they are. Export "
        "to saelens, which can; or train with rows divided by one number for all: "
        "Parametrisation(input_norm='site')"
    )


def _class(plain: Plain, info: dict[str, Any]) -> tuple[str, list[int]]:
    """The class that holds it, and the sizes of nested groups where they are known."""
    select = plain.select
    if isinstance(select, BatchTopK):
        groups = [int(size) for size in info.get("group_sizes") or ()]
        if groups and (sum(groups) != len(plain.W_enc) or min(groups) < 1):
            raise FormatError(f"group_sizes={groups} are not positive sizes with sum latents={len(plain.W_enc)}")
        return ("MatryoshkaBatchTopKSAE" if groups else "BatchTopKSAE"), groups
    if isinstance(select, ReLU):
        return ("AutoEncoder" if plain.centred else "AutoEncoderNew"), []
    for kind, name in (
        (TopK, "AutoEncoderTopK"),
        (LatentThreshold, "JumpReluAutoEncoder"),
        (Gated, "GatedAutoEncoder"),
    ):
        if isinstance(select, kind):
            return name, []
    raise FormatError(
        f"dictionary_learning has no dictionary that selects by {select}; export it to saelens or sparsify, which have more"
    )


def _config(plain: Plain, name: str, info: dict[str, Any]) -> dict[str, Any]:
    earlier = kept(info, "dictionary_learning")
    site = plain.sites[0] or str(info.get("site") or "")
    about = {"layer": layer_of(site), "lm_name": info.get("model"), "submodule_name": hook_name(site) or None}
    trainer = about | setting(earlier, "trainer", dict, "config.json", {})
    trainer |= {"dict_class": name, "activation_dim": plain.W_enc.shape[1], "dict_size": len(plain.W_enc)}
    if isinstance(plain.select, (TopK, BatchTopK)):
        trainer["k"] = plain.select.k
    return {**earlier, "trainer": trainer, "buffer": earlier.get("buffer") or {"ctx_len": info.get("context")}}


def unpack(tensors: dict[str, Tensor], config: dict[str, Any], where: str) -> tuple[Plain, dict[str, Any]]:
    """The plain form, and what the file tells besides."""
    trainer = setting(config, "trainer", dict, where)
    name = setting(trainer, "dict_class", str, where)
    if name not in CLASSES:
        raise FormatError(f"{where}: dict_class={name!r} is none of {', '.join(CLASSES)}")
    told: dict[str, Any] = {"model": trainer.get("lm_name"), "site": trainer.get("submodule_name")}
    counts = {key: tensors[key] for key in COUNTS if key in tensors}
    required, optional = CLASSES[name], OPTIONAL.get(name, {})
    floats, sizes = checked(
        {key: value for key, value in tensors.items() if key not in counts},
        where,
        {key: axes for key, axes in required.items() if key not in optional},
        optional,
    )
    for key, axis in (("activation_dim", "d"), ("dict_size", "M")):
        if setting(trainer, key, int, where) != sizes[axis]:
            raise FormatError(f"{where}: config.json says {key}={trainer[key]}, the tensors have {sizes[axis]}")
    select, own = _selection(name, floats, _k(counts, trainer, name, where))
    if name == "AutoEncoderTopK" and float(floats.get("threshold", torch.tensor(UNSET))) != UNSET:
        told["threshold"] = float(floats["threshold"])
    if name == "MatryoshkaBatchTopKSAE":
        told["group_sizes"] = _groups(counts, sizes["M"], where)
    matrices = "W_enc" in floats
    plain = Plain(
        W_enc=floats["W_enc"].T.contiguous() if matrices else floats["encoder.weight"],
        b_enc=floats[next(key for key in ("b_enc", "encoder.bias", "gate_bias") if key in floats)],
        W_dec=floats["W_dec"] if matrices else floats["decoder.weight"].T.contiguous(),
        b_dec=floats[BIASES.get(name, "b_dec")],
        select=select,
        own=own,
        centred=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
    )
    return plain, {key: value for key, value in told.items() if value is not None}


def _k(counts: dict[str, Tensor], trainer: dict[str, Any], name: str, where: str) -> int:
    if not name.endswith(("TopK", "TopKSAE")):
        return 0
    if "k" not in counts:
        return setting(trainer, "k", int, where)
    if counts["k"].ndim or counts["k"].is_floating_point() or trainer.get("k", int(counts["k"])) != int(counts["k"]):
        raise FormatError(f"{where}: k is {counts['k'].tolist()} in ae.pt and {trainer.get('k')} in config.json")
    return int(counts["k"])


def _groups(counts: dict[str, Tensor], latents: int, where: str) -> list[int]:
    sizes = counts.get("group_sizes")
    if (
        sizes is None
        or sizes.ndim != 1
        or sizes.is_floating_point()
        or sum(sizes.tolist()) != latents
        or sizes.min() < 1
    ):
        raise FormatError(f"{where}: group_sizes are not positive whole numbers with sum {latents}")
    return list(map(int, sizes.tolist()))


def _selection(name: str, tensors: dict[str, Tensor], k: int) -> tuple[Selection, dict[str, Tensor]]:
    if name == "GatedAutoEncoder":
        return Gated(), {"r_mag": tensors["r_mag"], "b_mag": tensors["mag_bias"]}
    if name == "JumpReluAutoEncoder":
        return LatentThreshold(), {"thresholds": tensors["threshold"]}
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        return BatchTopK(k), {"threshold": tensors["threshold"]}
    return (TopK(k) if k else ReLU()), {}
