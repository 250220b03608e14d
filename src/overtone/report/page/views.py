"""What a page shows of a dictionary, and how it is written down: small whole numbers instead of text where there are many."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from overtone.interpret.slots import Windows
from overtone.report.page.text import PageText

FULL = 32767  # a latent's largest code shown, as a whole number
WIDEST = 255  # tokens of a window
KINDS = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "i16": "<i2", "f32": "<f4"}

Near = tuple[Int[Tensor, "latents k"], Float[Tensor, "latents k"]]


class Counterparts(NamedTuple):
    """The nearest atoms of another dictionary on the page.

    Attributes:
        run: its number on the page.
        latent: the latent of it that is nearest to each latent.
        cosine: their cosine.
    """

    run: int
    latent: Int[Tensor, " latents"]
    cosine: Float[Tensor, " latents"]


class LatentsView(NamedTuple):
    """Every latent of a dictionary.

    Attributes:
        frequency, peak, z_score: as in `LatentExamples`.
        strongest, sampled: windows around their strongest places and a uniform sample of all, both strongest first.
        histogram: how many codes are of which size, in bins that begin at 0.
        bin_width: how wide each latent's bins are.
        by_direction, fired_together: (the nearest latents, how near they are).
        counterparts: in the other dictionaries.
        lens: (promoted, suppressed) tokens of each; None: the model has no logits, or it was not asked for.
        labels: words about latents, from a scorer.
        detection: how well those tell where they fire; nan where that was not measured.
    """

    frequency: Float[Tensor, " latents"]
    peak: Float[Tensor, " latents"]
    z_score: Float[Tensor, " latents"]
    strongest: Windows
    sampled: Windows
    histogram: Int[Tensor, "latents bins"]
    bin_width: Float[Tensor, " latents"]
    by_direction: Near
    fired_together: Near
    counterparts: Sequence[Counterparts] = ()
    lens: Sequence[tuple[list[str], list[str]]] | None = None
    labels: Mapping[int, str] | None = None
    detection: Float[Tensor, " latents"] | None = None

    def to_json(self, text: PageText) -> dict[str, Any]:
        """For the page's script, which unpacks it."""
        data: dict[str, Any] = {"latents": len(self.frequency)}
        for name in ("frequency", "peak", "z_score", "bin_width"):
            data[name] = packed(getattr(self, name).numpy(), "f32")
        data["histogram"] = packed(self.histogram.numpy(), "u32") | {"bins": self.histogram.shape[1]}
        data["examples"] = _examples(self.strongest, self.sampled, text)
        for name in ("by_direction", "fired_together"):
            latent, nearness = getattr(self, name)
            nearest = {"latent": packed(latent.numpy(), "u32"), "nearness": packed(nearness.numpy(), "f32")}
            data[name] = nearest | {"k": latent.shape[1]}
        data["counterparts"] = [
            {"run": c.run, "latent": packed(c.latent.numpy(), "u32"), "cosine": packed(c.cosine.numpy(), "f32")}
            for c in self.counterparts
        ]
        data["lens"] = None if self.lens is None else [list(both) for both in self.lens]
        data["labels"] = {str(latent): words for latent, words in (self.labels or {}).items()}
        data["detection"] = None if self.detection is None else packed(self.detection.numpy(), "f32")
        return data


class RunView(NamedTuple):
    """A dictionary on the page.

    Attributes:
        name: how the page calls it.
        key: of its weights: notes belong to it.
        about: what was trained on what, in words.
        metrics: by name, as in `report.tables.COLUMNS`.
        records: those of its training, in order; none of another tool's dictionary.
        targets: target frequency of every latent, of a method that has any.
        latents: its latents.
        text: what they are shown in; the same object for dictionaries that share it.
    """

    name: str
    key: str
    about: Mapping[str, str]
    metrics: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    targets: Float[Tensor, " latents"] | None
    latents: LatentsView
    text: PageText

    def to_json(self, text: int) -> dict[str, Any]:
        """For the page's script; `text`: the number of the text on the page."""
        data = {"name": self.name, "key": self.key, "text": text, "targets": None}
        if self.targets is not None:
            data["targets"] = packed(self.targets.numpy(), "f32")
        curves = {"tokens": "rows", "l0": "l0", "loss": "loss", "explained_variance": "explained_variance"}
        data["records"] = {name: [record[key] for record in self.records] for name, key in curves.items()}
        return data | self.latents.to_json(text=self.text)


def packed(values: Shaped[np.ndarray, "*shape"], kind: str) -> dict[str, Any]:
    """Numbers as little-endian bytes in base64.

    Raises:
        ValueError: whole numbers that the kind has no room for.
    """
    into = np.dtype(KINDS[kind])
    if into.kind in "iu" and values.size:
        limits = np.iinfo(into)
        if values.min() < limits.min or values.max() > limits.max:
            raise ValueError(
                f"{values.min()} … {values.max()} do not fit {kind}, which ends at {limits.max}; show fewer latents or rows"
            )
    return {"kind": kind, "base64": base64.b64encode(np.ascontiguousarray(values, dtype=into).tobytes()).decode()}


def narrowest(values: Shaped[np.ndarray, "*shape"]) -> dict[str, Any]:
    """`packed` as 16-bit numbers where they fit, and else 32-bit ones."""
    return packed(values, "u16" if not values.size or values.max() < 2**16 else "u32")


def _examples(strongest: Windows, sampled: Windows, text: PageText) -> dict[str, Any]:
    """Windows of each latent one after the other, the strongest first, and the codes in them that are not 0.

    Codes are whole numbers of 1/32767 of the largest in any of a latent's windows, so that they are off by half of that at most.
    """
    both = Windows(*(torch.cat(parts, dim=1) for parts in zip(strongest, sampled, strict=True)))
    width = both.token_ids.shape[-1]
    if width > WIDEST:
        raise ValueError(
            f"windows of {width} tokens are wider than {WIDEST}, the widest that a page shows; lower width"
        )
    full = both.codes.abs().amax(dim=(1, 2))
    held = both.row >= 0
    share = both.codes.double() / full.double().clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    codes = (share * FULL).round()[held]
    # What rounds to 0 is shown as the least code there is: it fires.
    least = both.codes[held].double().sign()
    codes = torch.where((codes == 0) & (least != 0), least, codes)
    entries = codes != 0
    return {
        "windows": packed(held.sum(1).numpy(), "u8"),
        "strongest": packed((strongest.row >= 0).sum(1).numpy(), "u8"),
        "start": packed(text.places(both.start[held]), "u32"),
        "length": packed((both.token_ids[held] >= 0).sum(1).numpy(), "u8"),
        "peak": packed((both.row - both.start)[held].numpy(), "u8"),
        "entries": packed(entries.sum(1).numpy(), "u8"),
        "place": packed(entries.nonzero()[:, 1].numpy(), "u8"),
        "code": packed(codes[entries].numpy().astype(np.int64), "i16"),
        "full": packed(full.numpy(), "f32"),
    }
