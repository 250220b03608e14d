"""The model card of an export: what the Hugging Face Hub shows of it."""

import re
from typing import Any

from overtone.dictionary import Dictionary
from overtone.formats.plain import _scales
from overtone.formats.table import Format
from overtone.version import __version__

HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
USE = {
    "saelens": 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("FOLDER")',
    "dictionary_learning": "from dictionary_learning.utils import load_dictionary\n\n"
    'dictionary, config = load_dictionary("FOLDER", device="cpu")',
    "sparsify": 'from sparsify import SparseCoder\n\ncoder = SparseCoder.load_from_disk("FOLDER")',
}


def model_card(dictionary: Dictionary, entry: Format, info: dict[str, Any]) -> str:
    """Front matter for the Hub, what the dictionary is, and how to load it. Text from outside is quoted."""
    model, site = (str(info.get(key) or "") for key in ("model", "site"))
    tags = ["sparse-autoencoder", "mechanistic-interpretability", "overtone", entry.name]
    head = {"library_name": "saelens" if entry.name == "saelens" else "overtone", "tags": tags}
    if HUB_NAME.fullmatch(model):
        head["base_model"] = model
    rows = {
        "model": model or "unknown",
        "site": site or "unknown",
        "width of rows": f"{dictionary.layout}",
        "latents": f"{dictionary.latents:,}",
        "selection": str(dictionary.select),
        "parametrisation": str(dictionary.parametrisation),
        "format": entry.what,
        "written by": f"overtone {__version__}",
    }
    scale = _scales(dictionary)[0]
    lines = ["---", *(f"{key}: {_yaml(value)}" for key, value in head.items()), "---", "", "# Sparse dictionary", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {_code(value)} |" for key, value in rows.items()), ""]
    if scale != 1:
        lines += [f"Codes in {entry.what} are {scale:.6g} times those in overtone; reconstructions are the same.", ""]
    lines += ["```python", 'import overtone as ot\n\ndictionary = ot.load("FOLDER")', "```", ""]
    lines += ["```python", USE[entry.name], "```", ""] if entry.name in USE else []
    return "\n".join(lines)


def _yaml(value: str | list[str]) -> str:
    """A quoted scalar, or a list of them: nothing in a text can end it, or be read as anything but text."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    escaped = (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in value)
    return f'"{"".join(escaped)}"'


def _code(text: str) -> str:
    """Inline code in a table's cell: one line, without what would end the code or the cell."""
    plain = "".join(c if c.isprintable() else " " for c in text).replace("`", "'").replace("|", "\\|").strip()
    return f"`{plain or ' '}`"
