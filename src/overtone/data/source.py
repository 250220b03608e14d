"""Where a run's rows come from, as a value: a model read over text, or a file of activations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overtone.data.activations import Activations
from overtone.data.harvest import Progress, harvest
from overtone.data.models import LanguageModel
from overtone.data.stream import check_rows
from overtone.data.text import Document, load_documents, split_documents

CHARACTERS_PER_TOKEN = 8  # more than any usual tokenizer's: reading a little too much costs little


class Split(NamedTuple):
    """Rows to train on and rows never trained on."""

    train: Float[Tensor, "rows d"]
    held_out: Float[Tensor, "rows d"]


class Harvested(NamedTuple):
    """Activations of the documents to train on and of documents never trained on."""

    train: Activations
    held_out: Activations


@dataclass(frozen=True)
class ModelSource:
    """Activations of a Hugging Face model at one site over a text.

    Args:
        model: "minilm" (the all-MiniLM-L6-v2 of the extra `demo`), a local folder or a Hub name.
        site: "resid.3", "mlp_out.3", "attn_out.3" or any module path.
        text: "stdlib-docs", "stdlib-source", a file, a directory, or "hub:NAME[:CONFIG]".
        tokens: how many tokens to train on; None: all of the text.
        held_out: share of the documents kept for evaluation.
        context: tokens per context, special tokens included.
        text_field: the key of the text in JSON and Hub data.
        compute_dtype: of the model's matrix products; "bfloat16" is about twice as fast where the processor has it.
    """

    model: str
    site: str
    text: str
    tokens: int | None = None
    held_out: float = 0.1
    context: int = 128
    text_field: str | None = None
    compute_dtype: str = "float32"

    def documents(self) -> tuple[list[Document], list[Document]]:
        """(documents to train on, documents held out). Of a Hub data set only as much as the tokens need is read."""
        limit = None
        if self.tokens is not None and self.text.startswith("hub:"):
            limit = round(CHARACTERS_PER_TOKEN * self.tokens / (1 - self.held_out))
        documents = load_documents(self.text, text_field=self.text_field, limit_chars=limit)
        return split_documents(documents, held_out=self.held_out)

    def width(self, lm: LanguageModel) -> int:
        """d of the site, from one short text."""
        return harvest(lm, self.site, [Document("probe", "How wide is this site?")], context=self.context).d

    def harvest(self, lm: LanguageModel, progress: Progress | None = None) -> Harvested:
        """Read the text with the model; documents are split, so no held-out token has been trained on."""
        training, held_out = self.documents()
        limit = None if self.tokens is None else max(1, round(self.tokens * self.held_out / (1 - self.held_out)))
        options: dict[str, Any] = {
            "context": self.context,
            "compute_dtype": self.compute_dtype,
            "text_source": self.text,
            "progress": progress,
        }
        return Harvested(
            harvest(lm, self.site, training, tokens=self.tokens, **options),
            harvest(lm, self.site, held_out, tokens=limit, **options),
        )


@dataclass(frozen=True)
class FileSource:
    """Activations in a file: .npy (rows, d) or .safetensors.

    Args:
        path: the file.
        tensor: which tensor of a safetensors file; None: its only one.
        held_out: share of the rows, at the end of the file, kept for evaluation. The end and not a random choice, because
            files are written in the order of the text and neighbouring rows resemble each other.
    """

    path: str
    tensor: str | None = None
    held_out: float = 0.1

    def split(self) -> Split:
        """The rows, checked."""
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} is a share and must lie between 0 and 1 (exclusive)")
        x = check_rows(read_matrix(Path(self.path), self.tensor), self.path)
        cut = len(x) - max(1, round(len(x) * self.held_out))
        if cut < 1:
            raise ValueError(f"{self.path} has {len(x)} rows, too few to train on and to hold some out; give more rows")
        return Split(x[:cut], x[cut:])


def read_matrix(path: Path, tensor: str | None = None) -> Float[Tensor, "rows d"]:
    """A float32 matrix from .npy or .safetensors. Pickled files are refused, never opened."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of activations at {path}")
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} is truncated or not a plain .npy array ({error})") from error
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path} holds {array.dtype}, not numbers")
        return torch.from_numpy(np.ascontiguousarray(array)).float()
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: activations are read from .npy or .safetensors, not {path.suffix or 'a file without ending'}; "
            "pickled files (.pt, .pth, .pkl) can run code and are never opened – save the tensor as .safetensors"
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if tensor is None and "x" in names:
                tensor = "x"
            if tensor is None and len(names) == 1:
                tensor = names[0]
            if tensor not in names:
                raise ValueError(f"{path} holds the tensors {', '.join(names)}; say which one with --tensor")
            return file.get_tensor(tensor).float()
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from error
