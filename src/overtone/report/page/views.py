"""What a page shows of a dictionary, and how it is written down."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.interpret.alongside import Passage
from overtone.interpret.slots import Windows
from overtone.report.page.packing import codes_json, entries_json, fullest, narrowest, packed
from overtone.report.page.text import PageText

WIDEST = 255  # tokens of a window
WORDS = 12  # that stand for a latent in lists

Near = tuple[Int[Tensor, "latents k"], Float[Tensor, "latents k"]]


class Likeness(NamedTuple):
    """A latent of another dictionary for each latent, and how alike the two are.

    Attributes:
        latent: which.
        cosine: of their atoms; nan between spaces of different widths.
        phi: the correlation of their firing; nan where they were not seen on the same rows.
        codes: of that latent in the windows of each, the strongest before the sampled ones; None: not seen there.
    """

    latent: Int[Tensor, " latents"]
    cosine: Float[Tensor, " latents"]
    phi: Float[Tensor, " latents"]
    codes: Float[Tensor, "latents slots width"] | None = None


class Counterparts(NamedTuple):
    """What stands for each latent in another dictionary on the page.

    Attributes:
        run: its number on the page.
        by_direction: the latent with the nearest atom; None: the atoms are of other spaces.
        by_firing: the latent that fires most as it does; None: not seen on the same rows.
    """

    run: int
    by_direction: Likeness | None
    by_firing: Likeness | None = None


class TruthView(NamedTuple):
    """Latents beside the features that their rows are known to be made of.

    Attributes:
        feature: the one that each latent's atom is nearest to, in either direction.
        cosine: with it; below 0 where the atom points the other way.
        f1: of the latent as a detector of it (maths.md eq. R5).
        frequency: share of rows that each feature occurs in.
        best: the largest cosine of each feature with any atom, as its recovery is counted (maths.md eq. 17).
        latent: the latent whose atom is nearest to each feature.
        best_random: as `best`, of as many random atoms.
    """

    feature: Int[Tensor, " latents"]
    cosine: Float[Tensor, " latents"]
    f1: Float[Tensor, " latents"]
    frequency: Float[Tensor, " features"]
    best: Float[Tensor, " features"]
    latent: Int[Tensor, " features"]
    best_random: Float[Tensor, " features"]

    def to_json(self) -> dict[str, Any]:
        """For the page's script."""
        numbers = {name: narrowest(getattr(self, name).numpy()) for name in ("feature", "latent")}
        shares = ("cosine", "f1", "frequency", "best", "best_random")
        return numbers | {name: packed(getattr(self, name).numpy(), "f32") for name in shares}


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
        passages: some of the text with all codes; the same passages in dictionaries that share it.
        truth: the known features beside them, where there are any.
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
    passages: Sequence[Passage] = ()
    truth: TruthView | None = None

    @property
    def windows(self) -> Windows:
        """The strongest, then the sampled ones."""
        return Windows(*(torch.cat(parts, dim=1) for parts in zip(self.strongest, self.sampled, strict=True)))

    def to_json(self, text: PageText) -> dict[str, Any]:
        """For the page's script: what lists, searches and charts need of all latents."""
        data: dict[str, Any] = {"latents": len(self.frequency)}
        for name in ("frequency", "peak", "z_score"):
            data[name] = packed(getattr(self, name).numpy(), "f32")
        data["full"] = packed(fullest(self.windows.codes).numpy(), "f32")
        data["words"] = _words(self.windows, text)
        data["counterparts"] = [
            {"run": c.run, "by_direction": _likeness(c.by_direction), "by_firing": _likeness(c.by_firing)}
            for c in self.counterparts
        ]
        data["passages"] = _passages(self.passages, text) if self.passages else None
        data["labels"] = {str(latent): words for latent, words in (self.labels or {}).items()}
        data["detection"] = None if self.detection is None else packed(self.detection.numpy(), "f32")
        data["truth"] = None if self.truth is None else self.truth.to_json()
        return data

    def part_json(self, latents: slice, text: PageText) -> dict[str, Any]:
        """For the page's script: what is shown of some latents alone, when one of them is looked at."""
        strongest, windows = (Windows(*(part[latents] for part in w)) for w in (self.strongest, self.windows))
        data: dict[str, Any] = {"bin_width": packed(self.bin_width[latents].numpy(), "f32")}
        data["histogram"] = packed(self.histogram[latents].numpy(), "u32") | {"bins": self.histogram.shape[1]}
        data["examples"] = _examples(strongest, windows, text)
        for name in ("by_direction", "fired_together"):
            latent, nearness = (near[latents] for near in getattr(self, name))
            nearest = {"latent": packed(latent.numpy(), "u32"), "nearness": packed(nearness.numpy(), "f32")}
            data[name] = nearest | {"k": latent.shape[1]}
        held = windows.row >= 0
        data["counterparts"] = [
            {
                name: None if found is None or found.codes is None else entries_json(found.codes[latents], held)
                for name, found in (("by_direction", c.by_direction), ("by_firing", c.by_firing))
            }
            for c in self.counterparts
        ]
        data["lens"] = None if self.lens is None else [list(both) for both in self.lens[latents]]
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
        data: dict[str, Any] = {"name": self.name, "key": self.key, "text": text, "targets": None}
        data["method"] = self.about.get("method")
        data["metrics"] = {name: self.metrics.get(name) for name in ("l0", "explained_variance")}
        if self.targets is not None:
            data["targets"] = packed(self.targets.numpy(), "f32")
        curves = {"tokens": "rows", "l0": "l0", "loss": "loss", "explained_variance": "explained_variance"}
        data["records"] = {name: [record[key] for record in self.records] for name, key in curves.items()}
        return data | self.latents.to_json(text=self.text)


def _passages(passages: Sequence[Passage], text: PageText) -> dict[str, Any]:
    """All of them laid end to end."""
    first = torch.tensor([passage.row for passage in passages])
    parts = [codes_json(passage.codes) for passage in passages]
    length = [len(passage.token_ids) for passage in passages]
    return {"start": packed(text.places(first), "u32"), "length": length, "codes": parts}


def _examples(strongest: Windows, both: Windows, text: PageText) -> dict[str, Any]:
    """Windows of each latent one after the other, the strongest first, and the codes in them that are not 0."""
    width = both.token_ids.shape[-1]
    if width > WIDEST:
        raise ValueError(
            f"windows of {width} tokens are wider than {WIDEST}, the widest that a page shows; lower width"
        )
    held = both.row >= 0
    return {
        "windows": packed(held.sum(1).numpy(), "u8"),
        "strongest": packed((strongest.row >= 0).sum(1).numpy(), "u8"),
        "start": packed(text.places(both.start[held]), "u32"),
        "length": packed((both.token_ids[held] >= 0).sum(1).numpy(), "u8"),
        "peak": packed((both.row - both.start)[held].numpy(), "u8"),
        **entries_json(both.codes, held),
    }


def _likeness(found: Likeness | None) -> dict[str, Any] | None:
    if found is None:
        return None
    data: dict[str, Any] = {"latent": narrowest(found.latent.numpy())}
    return data | {name: packed(getattr(found, name).numpy(), "f32") for name in ("cosine", "phi")}


def _words(windows: Windows, text: PageText) -> dict[str, Any]:
    """The tokens that each latent fires on most, by the sum of its codes where its windows are strongest; white space aside."""
    latent, slot = (windows.row >= 0).nonzero(as_tuple=True)
    row = windows.row[latent, slot]
    code = windows.codes[latent, slot, row - windows.start[latent, slot]].abs().double()
    bare: dict[str, int] = {}
    first = [bare.setdefault(string.strip(), number) for number, string in enumerate(text.strings)]
    token = np.asarray(first, dtype=np.int64)[text.tokens[text.places(row)]]
    pair, begin, of = np.unique(latent.numpy() * (1 + len(first)) + token, return_index=True, return_inverse=True)
    owner, word = pair // (1 + len(first)), pair % (1 + len(first))
    order = np.lexsort((begin, -np.bincount(of, code.numpy(), len(pair)), owner))
    counts = np.bincount(owner, minlength=len(windows.row))
    rank = np.arange(len(order)) - (counts.cumsum() - counts)[owner[order]]
    return {
        "count": packed(counts.clip(max=WORDS), "u8"),
        "word": narrowest(word[order][rank < WORDS]),
    }
