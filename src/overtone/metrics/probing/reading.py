"""Texts through a model and through dictionaries: one row for a text, or one for a token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from overtone.data.contexts import Context, contexts_of
from overtone.data.harvest import Progress, Rows, read_sites
from overtone.data.models import LanguageModel
from overtone.data.sites import resolve_site
from overtone.data.text import Document
from overtone.dictionary import Dictionary
from overtone.metrics.probing.columns import Columns, contributions
from overtone.parametrisation import Parametrisation
from overtone.seeds import generator
from overtone.selection import TopK

Pool = Literal["mean", "max"]


class Read(NamedTuple):
    """What a model has at a site for some texts, or tokens, and what dictionaries make of it.

    Attributes:
        x: the model's own rows; of a text the mean over its tokens, or the largest value of each dimension.
        u: of every dictionary its latents' contributions (maths.md eq. P1), pooled alike.
    """

    x: Float[Tensor, "rows d"]
    u: dict[str, Columns]


def directions(dictionary: Dictionary) -> tuple[Float[Tensor, "latents d_out"], Float[Tensor, " latents"]]:
    """Unit atoms in the units of the data, and the lengths that they had."""
    atoms = dictionary.data_atoms.detach()
    lengths = atoms.norm(dim=1)
    return atoms / lengths.clamp(min=torch.finfo(atoms.dtype).tiny)[:, None], lengths


def random_dictionary(x: Float[Tensor, "rows d"], latents: int, k: int, *, seed: int = 0) -> Dictionary:
    """What a score has to beat: random unit atoms, of which the k with the largest projections of x − mean(x) are active.

    Args:
        x: rows like those that will be encoded; their mean becomes its centre.
        latents: its width.
        k: active latents per row.
        seed: of the atoms.
    """
    own = Parametrisation(scale=False, input_norm="none", centre="fixed")
    found = Dictionary(x.shape[1], latents, TopK(max(1, min(k, latents))), own)
    # Not the dictionary's own start: that of a wider one begins with the same atoms.
    drawn = torch.randn(latents, x.shape[1], generator=generator(seed, f"{latents} random atoms"))
    with torch.no_grad():
        found.W_dec.copy_(normalize(drawn, dim=1))
        found.b_dec.copy_(x.mean(0))
    return found


@torch.no_grad()
def read_texts(
    lm: LanguageModel,
    site: str,
    docs: Sequence[Document],
    dictionaries: Mapping[str, Dictionary],
    *,
    context: int = 128,
    batch: int = 16,
    pool: Pool = "mean",
    progress: Progress | None = None,
) -> Read:
    """One row for every text: its first `context` tokens, pooled. Memory grows with the texts, not with their tokens.

    Args:
        lm: from load_model.
        site: the site that the dictionaries read.
        docs: the texts.
        dictionaries: by name.
        context: tokens of a text that are read, special ones counted.
        batch: full contexts per forward pass.
        pool: "mean" over tokens, or "max".
        progress: called with (texts done, texts in all).

    Raises:
        ValueError: a text without any token; a dictionary that reads another width.
    """
    contexts = _first_contexts(lm, docs, context)
    pooled = torch.zeros(len(docs), 0)
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in dictionaries}
    lengths = {name: directions(dictionary)[1] for name, dictionary in dictionaries.items()}
    text_of, done = Rows.of(contexts).context.long(), 0
    for at, (x,) in read_sites(
        lm, [resolve_site(lm.model, site)], contexts, _names(docs), batch_tokens=batch * context
    ):
        texts, inverse = text_of[at].unique(return_inverse=True)
        if not pooled.shape[1]:
            pooled = torch.zeros(len(docs), x.shape[1])
        pooled[texts] = _pooled(x, inverse, len(texts), pool)
        tokens = torch.bincount(inverse)
        for name, dictionary in dictionaries.items():
            rows, latents, u = contributions(dictionary, x, lengths[name])
            keys, place = (inverse[rows] * dictionary.latents + latents).unique(return_inverse=True)
            local, value = keys // dictionary.latents, _pooled(u, place, len(keys), "max" if pool == "max" else "sum")
            value = value if pool == "max" else value / tokens[local]
            parts[name].append((texts[local], keys % dictionary.latents, value))
        done += len(texts)
        if progress is not None:
            progress(done, len(docs))
    shapes = {name: (len(docs), dictionary.latents) for name, dictionary in dictionaries.items()}
    return Read(pooled, {name: Columns.of_entries(found, shapes[name]) for name, found in parts.items()})


def _pooled(values: Tensor, groups: Int[Tensor, " rows"], count: int, how: str) -> Tensor:
    """The values of every group summed, or their mean or largest."""
    index = groups if values.ndim == 1 else groups[:, None].expand_as(values)
    reduce = {"max": "amax"}.get(how, how)
    return values.new_zeros(count, *values.shape[1:]).scatter_reduce_(0, index, values, reduce, include_self=False)


def _first_contexts(lm: LanguageModel, docs: Sequence[Document], context: int) -> list[Context]:
    """Of every text its first context."""
    first: dict[int, Context] = {}
    for piece in contexts_of(lm, docs, context=context):
        if piece.keep.any():
            first.setdefault(piece.doc, piece)
    empty = next((doc.name for number, doc in enumerate(docs) if number not in first), None)
    if empty is not None:
        raise ValueError(f"the text {empty!r} holds no token for model {lm.name!r}; remove it")
    return [first[number] for number in range(len(docs))]


def _names(docs: Sequence[Document]) -> dict[int, str]:
    return {number: doc.name for number, doc in enumerate(docs)}


@torch.no_grad()
def encode_rows(
    x: Float[Tensor, "rows d"],
    dictionaries: Mapping[str, Dictionary],
    *,
    rows_at_a_time: int = 1024,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Columns]:
    """The contributions (maths.md eq. P1) of every dictionary's latents to rows, not pooled.

    Args:
        x: rows.
        dictionaries: by name.
        rows_at_a_time: that are encoded together.
        progress: called with the rows done since the last time, of each dictionary.
    """
    found = {}
    for name, dictionary in dictionaries.items():
        lengths = directions(dictionary)[1]
        parts = []
        for start, block in zip(range(0, len(x), rows_at_a_time), x.split(rows_at_a_time), strict=True):
            rows, latents, u = contributions(dictionary, block, lengths)
            parts.append((rows + start, latents, u))
            if progress is not None:
                progress(len(block))
        found[name] = Columns.of_entries(parts, (len(x), dictionary.latents))
    return found
