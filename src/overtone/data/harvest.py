"""Harvest: text through a language model, the activations at one site out, each row with where it came from."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overtone.data.activations import Activations
from overtone.data.models import DTYPES, LanguageModel
from overtone.data.sites import capture, resolve_site
from overtone.data.text import Document

Progress = Callable[[int, int | None], None]


SMALL_BATCH = 512  # tokens; below it a forward pass costs more for being small than for its padding


class Context(NamedTuple):
    """A piece of one document as the model sees it; `keep` marks the tokens that become rows."""

    doc: int
    ids: Int[Tensor, " length"]
    keep: Bool[Tensor, " length"]


class Batch(NamedTuple):
    """Contexts padded on the right to one length; `members` says which ones."""

    members: list[int]
    ids: Int[Tensor, "batch length"]
    mask: Int[Tensor, "batch length"]
    keep: Bool[Tensor, "batch length"]


def contexts_of(
    lm: LanguageModel, docs: Sequence[Document], *, context: int, tokens: int | None = None
) -> Iterator[Context]:
    """Cut documents into contexts of `context` tokens, each with the tokenizer's special tokens around it.

    Special tokens are never kept, be they added or written in the text (an unknown token is kept: it stands
    for text). Ends when `tokens` tokens are kept; the last context then keeps its first ones. ValueError:
    `context` beyond the model's positions, or too short for a token between the special ones.
    """
    left, right, special = _special_tokens(lm.tokenizer)
    config = getattr(lm.model, "config", None)
    limits = (getattr(config, "max_position_embeddings", None), lm.tokenizer.model_max_length)
    limit = min(int(n) for n in limits if n)
    body = context - len(left) - len(right)
    if body < 1 or context > limit:
        raise ValueError(
            f"context={context} must be {1 + context - body} to {limit} tokens, the most {lm.name!r} takes"
        )
    todo = tokens
    for doc, ids in enumerate(_tokenised(lm.tokenizer, docs)):
        for start in range(0, len(ids), body):
            if todo is not None and todo <= 0:
                return
            whole = torch.tensor(left + ids[start : start + body] + right, dtype=torch.int32)
            keep = ~torch.isin(whole, special)
            keep[: len(left)] = False
            keep[len(whole) - len(right) :] = False
            if todo is not None:
                keep &= keep.cumsum(0) <= todo
                todo -= int(keep.sum())
            yield Context(doc, whole, keep)


def _tokenised(tokenizer: Any, docs: Sequence[Document]) -> Iterator[list[int]]:
    """Token ids per document; 64 documents at a time, since a fast tokenizer works on many in parallel."""
    for start in range(0, len(docs), 64):
        texts = [doc.text for doc in docs[start : start + 64]]
        yield from tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int], Int[Tensor, " special"]]:
    """(ids put before a text, ids put after it, all special ids that stand for no text)."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(full) + 1) if full[i : i + len(plain)] == plain)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return full[:at], full[at + len(plain) :], torch.tensor(sorted(special), dtype=torch.int32)


def batches_of(contexts: Sequence[Context], *, tokens: int, pad: int) -> Iterator[Batch]:
    """Batches of up to `tokens` tokens, longest contexts first: neighbours in length need little padding.

    A batch ends early when more than a tenth of it would be padding, unless it is still small.
    """
    lengths = [len(c.ids) for c in contexts]
    order = sorted(range(len(contexts)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        length, end, real = lengths[order[start]], start, 0
        while end < len(order):
            full, real = (end + 1 - start) * length, real + lengths[order[end]]
            if end > start and (full > tokens or (full > SMALL_BATCH and real < 0.9 * full)):
                break
            end += 1
        members, start = order[start:end], end
        ids = torch.full((len(members), length), pad)
        mask, keep = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, i in enumerate(members):
            n = len(contexts[i].ids)
            ids[row, :n], keep[row, :n], mask[row, :n] = contexts[i].ids, contexts[i].keep, 1
        yield Batch(members, ids, mask, keep)


def model_inputs(lm: LanguageModel, batch: Batch) -> dict[str, Any]:
    """What the model is called with: ids and mask on its device; no key-value cache, unused here."""
    device = next(lm.model.parameters()).device
    inputs: dict[str, Any] = {"input_ids": batch.ids.to(device), "attention_mask": batch.mask.to(device)}
    if "use_cache" in inspect.signature(lm.model.forward).parameters:
        inputs["use_cache"] = False
    return inputs


def pad_id(tokenizer: Any) -> int:
    """Any id will do where there is no padding token: padding is masked and never becomes a row."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


@contextmanager
def evaluating(model: nn.Module, compute_dtype: str = "float32") -> Iterator[None]:
    """Eval mode (undone on leaving), matrix products in `compute_dtype`; norms and sums stay float32."""
    if compute_dtype not in DTYPES:
        raise ValueError(f"compute_dtype={compute_dtype!r} is not one of {', '.join(DTYPES)}")
    training, device = model.training, next(model.parameters()).device
    enabled = compute_dtype != "float32"
    try:
        model.eval()
        with torch.autocast(device.type, getattr(torch, compute_dtype) if enabled else None, enabled=enabled):
            yield
    finally:
        model.train(training)


def harvest(
    lm: LanguageModel,
    site: str,
    docs: Sequence[Document],
    *,
    tokens: int | None = None,
    context: int = 128,
    batch: int = 16,
    compute_dtype: str = "float32",
    text_source: str = "",
    progress: Progress | None = None,
) -> Activations:
    """Run `docs` through the model and collect the activations at `site`, one row per token of text.

    Args:
        lm: from load_model.
        site: "resid.3", "mlp_out.3", "attn_out.3" or a module path; see sites.resolve_site.
        docs: from load_documents.
        tokens: stop at exactly so many rows; None, or more than there are: all of the text.
        context: tokens per context, special ones counted. Contexts do not overlap; short last ones are kept.
        batch: full contexts per forward pass; of shorter ones as many as make the same number of tokens.
        compute_dtype: of the matrix products. "bfloat16" is about twice as fast on a CPU that has it; rows
            are float32 either way.
        text_source: what `docs` were loaded from, for the record.
        progress: called with (rows done, rows in all) after every batch.

    Special tokens and padding give no rows. Rows stand in the order of the text. Layers after the site are
    skipped.

    Raises:
        ValueError: no token of text; NaN or Inf from the model (row, document and site named); a site that
            gives no vector per token; unknown site or dtype; `tokens`, `context` or `batch` out of range.
    """
    if batch < 1 or (tokens is not None and tokens < 1):
        raise ValueError(f"tokens={tokens} and batch={batch} must be at least 1")
    where = resolve_site(lm.model, site)
    contexts = [c for c in contexts_of(lm, docs, context=context, tokens=tokens) if c.keep.any()]
    if not contexts:
        raise ValueError(
            f"the {len(docs)} documents hold no token of text for model {lm.name!r}; give a text with words"
        )
    index = _index(contexts)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), index["context"].bincount().cumsum(0)])
    x, done, rows = None, 0, len(index["context"])
    with evaluating(lm.model, compute_dtype):
        for part in batches_of(contexts, tokens=batch * context, pad=pad_id(lm.tokenizer)):
            with torch.inference_mode():
                with capture(lm.model, where, stop=True) as got:
                    lm.model(**model_inputs(lm, part))
                found = _kept(got.take(), part, site)
            to = torch.cat([torch.arange(int(starts[i]), int(starts[i + 1])) for i in part.members])
            _check_finite(found, to, index["doc_ids"], docs, site, lm.name)
            x = torch.empty(rows, found.shape[1]) if x is None else x
            x[to] = found
            done += len(to)
            if progress is not None:
                progress(done, rows)
    assert x is not None  # there is at least one context
    source = {
        **{"model": lm.name, "site": site, "module": where.path, "text": text_source, "tokens": rows},
        **{"context": context, "compute_dtype": compute_dtype, "special_tokens": "dropped"},
        "dtype": str(next(lm.model.parameters()).dtype).removeprefix("torch."),
    }
    names = tuple(doc.name for doc in docs[: contexts[-1].doc + 1])
    return Activations(x=x, **index, names=names, source=source)


def _index(contexts: Sequence[Context]) -> dict[str, Int[Tensor, " rows"]]:
    """Where every row comes from, known before the model has run."""
    kept = torch.tensor([int(c.keep.sum()) for c in contexts])
    return {
        "token_ids": torch.cat([c.ids[c.keep] for c in contexts]),
        "doc_ids": torch.tensor([c.doc for c in contexts], dtype=torch.int32).repeat_interleave(kept),
        "position": torch.cat([c.keep.nonzero().flatten() for c in contexts]).int(),
        "context": torch.arange(len(contexts), dtype=torch.int32).repeat_interleave(kept),
    }


def _kept(output: Tensor, part: Batch, site: str) -> Float[Tensor, "rows d"]:
    """The kept tokens' rows of a site's output, float32 on the CPU, in the order of part.members."""
    if output.ndim != 3 or output.shape[:2] != part.ids.shape:
        raise ValueError(
            f"site {site!r} gives shape {tuple(output.shape)}; a vector per token is needed: "
            f"({part.ids.shape[0]}, {part.ids.shape[1]}, d); choose another site, such as resid.0"
        )
    return output[part.keep.to(output.device)].float().cpu()


def _check_finite(found: Tensor, to: Tensor, doc_ids: Tensor, docs: Sequence[Document], site: str, model: str) -> None:
    bad = ~torch.isfinite(found).all(1)
    if bad.any():
        row = int(to[bad].min())
        kind = "NaN" if found[bad].isnan().any() else "Inf"
        raise ValueError(
            f"{kind} in row {row} (document {docs[int(doc_ids[row])].name!r}) at site {site!r} of {model!r}; "
            "try dtype float32, another site or another text"
        )
