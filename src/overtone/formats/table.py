"""The formats by name: which files they have, and how these are read and written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone.files import write_tensors
from overtone.formats import dictionary_learning, gemma_scope, saelens, sparsify
from overtone.formats.plain import FormatError, Plain
from overtone.formats.reading import read_npz, read_safetensors
from overtone.formats.torch_zip import read_state_dict

Pack = Callable[[Plain, dict[str, Any]], tuple[dict[str, Tensor], dict[str, Any]]]
Unpack = Callable[[dict[str, Tensor], dict[str, Any], str], tuple[Plain, dict[str, Any]]]


def _write_state_dict(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)


def _write_npz(path: Path, tensors: dict[str, Tensor]) -> None:
    if any(value.dtype == torch.bfloat16 for value in tensors.values()):
        raise FormatError(
            "params.npz cannot hold bfloat16, which numpy does not know; convert first: dictionary.float()"
        )
    with path.open("wb") as file:
        arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
        np.savez(file, **arrays)


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        name: on the command line.
        what: one line.
        weights: the file with the tensors.
        config: the file with the settings; None where there is none.
        pack, unpack: to and from the plain form.
        read, write: the file with the tensors.
    """

    name: str
    what: str
    weights: str
    config: str | None
    pack: Pack
    unpack: Unpack
    read: Callable[[Path], dict[str, Tensor]] = read_safetensors
    write: Callable[[Path, dict[str, Tensor]], None] = write_tensors


FORMATS = {
    entry.name: entry
    for entry in (
        Format("saelens", "SAELens", "sae_weights.safetensors", "cfg.json", saelens.pack, saelens.unpack),
        Format(
            *("dictionary_learning", "dictionary_learning", "ae.pt", "config.json"),
            *(dictionary_learning.pack, dictionary_learning.unpack, read_state_dict, _write_state_dict),
        ),
        Format("sparsify", "EleutherAI's sparsify", "sae.safetensors", "cfg.json", sparsify.pack, sparsify.unpack),
        Format(
            *("gemma_scope_1", "Gemma Scope 1", "params.npz", None),
            *(gemma_scope.pack_1, gemma_scope.unpack_1, read_npz, _write_npz),
        ),
        Format(
            *("gemma_scope_2", "Gemma Scope 2", "params.safetensors", "config.json"),
            *(gemma_scope.pack_2, gemma_scope.unpack_2),
        ),
        Format(
            *("circuit_tracer", "circuit-tracer's transcoders", "layer_0.safetensors", None),
            *(gemma_scope.pack_circuit, gemma_scope.unpack_circuit),
        ),
    )
}


def named(name: str) -> Format:
    """A format by its name."""
    if name not in FORMATS:
        raise FormatError(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def recognise(path: Path) -> tuple[Format, Path] | None:
    """The format of a folder, or of a file with weights, and that file; None where it is of none."""
    if path.is_dir():
        for entry in FORMATS.values():
            if (path / entry.weights).is_file():
                return entry, path / entry.weights
        layers = sorted(path.glob("layer_*.safetensors"))
        return (FORMATS["circuit_tracer"], layers[0]) if len(layers) == 1 and _is_circuit(layers[0]) else None
    for entry in FORMATS.values():
        if path.name == entry.weights and path.is_file():
            return entry, path
    if path.suffix == ".npz" and path.is_file():
        return FORMATS["gemma_scope_1"], path
    return (FORMATS["circuit_tracer"], path) if path.suffix == ".safetensors" and _is_circuit(path) else None


def _is_circuit(path: Path) -> bool:
    """Files of circuit-tracer go by any name, and are told by their tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return gemma_scope.CIRCUIT.keys() <= set(file.keys())
    except (SafetensorError, OSError):
        return False
