"""What an export rounds or forgets, kept beside it in `overtone.safetensors`, so that reading it back is bit for bit.

Output scales, scales of rows and trained thresholds are folded into the weights that another tool reads, and folding rounds.
Where that loses anything, the file beside holds what cannot be found in the other tool's file, and where to find the rest. Other
tools do not look at it. It counts only as long as folding what it describes gives the other file's tensors bit for bit.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone import checkpoint
from overtone.dictionary import Dictionary
from overtone.files import write_tensors
from overtone.formats.plain import FormatError, Plain, fold, unfold
from overtone.formats.reading import read_safetensors, setting
from overtone.formats.table import Format

FILE, NOTE = "overtone.safetensors", "overtone"


def write(
    dictionary: Dictionary, entry: Format, tensors: dict[str, Tensor], config: dict[str, Any], folder: Path
) -> None:
    """Write the file beside an export, unless the export alone gives the dictionary back."""
    described = checkpoint.describe(dictionary, {})
    again = unfold(entry.unpack(dict(tensors), config, "export")[0])
    if checkpoint.describe(again, {}) == described and _same(again.state_dict(), dictionary.state_dict()):
        return
    found, missing = {}, {}
    for name, value in dictionary.state_dict().items():
        place = next((p for p, t in _places(tensors).items() if _equal(t, value)), None)
        found |= {name: place} if place else {}
        missing |= {} if place else {name: value}
    note = json.dumps({"dictionary": described, "found": found})
    # A file of no tensors would be a file of no shape: safetensors reads it, and so do we.
    write_tensors(folder / FILE, missing, {NOTE: note})


def read(entry: Format, tensors: dict[str, Tensor], read_alone: Plain, folder: Path) -> Dictionary | None:
    """The dictionary as it was exported; None where there is no file beside.

    Args:
        entry: the format.
        tensors: of the other tool's file.
        read_alone: the plain form of that file.
        folder: where both are.

    Raises:
        FormatError: the file beside is damaged or belongs to other weights.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    remedy = f"remove {FILE} to read {entry.weights} alone"
    missing = read_safetensors(path)
    try:
        note = json.loads(checkpoint.read_note(path).get(NOTE, "{}"))
        described, found = setting(note, "dictionary", dict, path), setting(note, "found", dict, path)
        if described.get("latents") != len(read_alone.W_enc) or len(read_alone.W_enc) < 1:
            raise FormatError(f"it is of {described.get('latents')} latents")
        layout = checkpoint.layout_of(described)
        if (layout.d, layout.d_out) != (read_alone.W_enc.shape[1], read_alone.W_dec.shape[1]):
            raise FormatError(f"it is of rows {layout}")
        places = _places(tensors)
        dictionary = checkpoint.build(described)
        state = missing | {name: places[place] for name, place in found.items()}
        dictionary.to(read_alone.W_dec.dtype)
        checkpoint.load_into(dictionary, state, path)
        exported, config = entry.pack(fold(dictionary), {})
        same = _same_plain(entry.unpack(exported, config, str(path))[0], read_alone)
    except (ValueError, TypeError, KeyError, RuntimeError, RecursionError, AttributeError) as error:
        raise FormatError(f"{path} is damaged ({error}); {remedy}") from error
    if not same:
        raise FormatError(f"{path} belongs to other weights than {entry.weights}, which was changed since; {remedy}")
    return dictionary


def _places(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where a tensor may be found: a name, or a name with ᵀ."""
    turned = {f"{name}ᵀ": value.T for name, value in tensors.items() if value.ndim == 2}
    return dict(tensors) | turned


def _equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: 0 and −0 differ."""
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)


def _same_plain(a: Plain, b: Plain) -> bool:
    ways = ((p.select, p.centred, p.rms, p.transcoder) for p in (a, b))
    return len(set(ways)) == 1 and _same(a.tensors(), b.tensors())
