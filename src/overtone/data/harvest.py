"""Harvest: text through a language model, the activations at some sites out, each row with where it came from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overtone.data.activations import Activations
from overtone.data.contexts import Batch, Context, batches_of, contexts_of, model_inputs, pad_id
from overtone.data.models import DTYPES, LanguageModel, device_of
from overtone.data.sites import Site, capture, resolve_site
from overtone.data.text import Document

Progress = Callable[[int, int | None], None]


@contextmanager
def evaluating(model: nn.Module, compute_dtype: str = "float32") -> Iterator[None]:
    """Eval mode (undone on leaving), matrix products in `compute_dtype`; norms and sums stay float32."""
    if compute_dtype not in DTYPES:
        raise ValueError(f"compute_dtype={compute_dtype!r} is not one of {', '.join(DTYPES)}")
    training, device = model.training, device_of(model)
    enabled = compute_dtype != "float32"
    try:
        model.eval()
        with torch.autocast(device.type, getattr(torch, compute_dtype) if enabled else None, enabled=enabled):
            yield
    finally:
        model.train(training)


class Rows(NamedTuple):
    """Where rows come from, known before the model has run; in the order of the text."""

    token_ids: Int[Tensor, " rows"]
    doc_ids: Int[Tensor, " rows"]
    position: Int[Tensor, " rows"]
    context: Int[Tensor, " rows"]

    @staticmethod
    def of(contexts: Sequence[Context]) -> "Rows":
        """The rows that the contexts give."""
        kept = torch.tensor([int(c.keep.sum()) for c in contexts])
        return Rows(
            torch.cat([c.ids[c.keep] for c in contexts]),
            torch.cat([c.docs[c.keep] for c in contexts]),
            torch.cat([c.keep.nonzero().flatten() for c in contexts]).int(),
            torch.arange(len(contexts), dtype=torch.int32).repeat_interleave(kept),
        )


def read_sites(
    lm: LanguageModel,
    sites: Sequence[Site],
    contexts: Sequence[Context],
    names: Mapping[int, str],
    *,
    batch_tokens: int,
    compute_dtype: str = "float32",
) -> Iterator[tuple[Int[Tensor, " part"], list[Float[Tensor, "part d"]]]]:
    """One forward pass per batch of contexts: (numbers of the rows in the order of the text, their values at every site).

    Values are float32 on the CPU. Layers after the last site are skipped.

    Raises:
        ValueError: NaN or Inf from the model (row, document and site named); a site that gives no vector per token.
    """
    kept = torch.tensor([int(c.keep.sum()) for c in contexts])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), kept.cumsum(0)])
    with evaluating(lm.model, compute_dtype):
        for part in batches_of(contexts, tokens=batch_tokens, pad=pad_id(lm.tokenizer)):
            with torch.inference_mode():
                with capture(lm.model, sites, stop=True) as got:
                    lm.model(**model_inputs(lm, part))
                found = [kept_rows(x, part, site.name) for x, site in zip(got.take(), sites, strict=True)]
            at = torch.cat([torch.arange(int(starts[i]), int(starts[i + 1])) for i in part.members])
            for x, site in zip(found, sites, strict=True):
                _check_finite(x, at, part, contexts, names, f"at site {site.name!r} of {lm.name!r}")
            yield at, found


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
    """Run `docs` through the model and collect the activations at `site` in memory, one row per token of text.

    For more rows than fit in memory, or for several sites at once: `harvest_store`.

    Args:
        lm: from load_model.
        site: "resid.3", "mlp_in.3", "mlp_out.3", "z.3", a module path, …; see sites.resolve_site.
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
    rows = Rows.of(contexts)
    names = {number: doc.name for number, doc in enumerate(docs)}
    x, done, count = None, 0, len(rows.context)
    read = read_sites(lm, [where], contexts, names, batch_tokens=batch * context, compute_dtype=compute_dtype)
    for at, (found,) in read:
        x = torch.empty(count, found.shape[1]) if x is None else x
        x[at] = found
        done += len(at)
        if progress is not None:
            progress(done, count)
    assert x is not None  # there is at least one context
    source = {
        **{
            "model": lm.name,
            "site": site,
            "module": where.path,
            "side": where.side,
            "text": text_source,
            "tokens": count,
        },
        **{"context": context, "compute_dtype": compute_dtype, "special_tokens": "dropped"},
        "dtype": str(next(lm.model.parameters()).dtype).removeprefix("torch."),
    }
    titles = tuple(doc.name for doc in docs[: int(rows.doc_ids[-1]) + 1])
    return Activations(x, rows.token_ids, rows.doc_ids.int(), rows.position, rows.context, titles, source)


def kept_rows(output: Tensor, part: Batch, site: str) -> Float[Tensor, "rows d"]:
    """The kept tokens' rows of a site's output, float32 on the CPU, in the order of part.members.

    Raises:
        ValueError: a site that gives no vector per token.
    """
    if output.ndim != 3 or output.shape[:2] != part.ids.shape:
        raise ValueError(
            f"site {site!r} gives shape {tuple(output.shape)}; a vector per token is needed: "
            f"({part.ids.shape[0]}, {part.ids.shape[1]}, d); choose another site, such as resid.0"
        )
    return output[part.keep.to(output.device)].float().cpu()


def _check_finite(
    x: Tensor, at: Tensor, part: Batch, contexts: Sequence[Context], names: Mapping[int, str], where: str
) -> None:
    bad = ~torch.isfinite(x).all(1)
    if bad.any():
        docs = torch.cat([contexts[i].docs[contexts[i].keep] for i in part.members])
        row, doc = int(at[bad].min()), int(docs[bad][at[bad].argmin()])
        kind = "NaN" if x[bad].isnan().any() else "Inf"
        raise ValueError(
            f"{kind} in row {row} (document {names[doc]!r}) {where}; try dtype float32, another site or another text"
        )
