"""What a model loses when a site's activations are replaced by their reconstructions.

Both metrics splice the reconstructions in and compare what comes out with the clean model (score 1) and with
the site ablated (score 0): every row set to the mean activation, or to zero. Only tokens of text are
replaced; special tokens such as [CLS], [SEP] and BOS keep their own: the dictionary never saw them.

Exactly 1 for the identity and exactly 0 for the ablation itself, whatever else is measured beside it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.data.contexts import Batch, Context, batches_of, contexts_of, model_inputs, pad_id
from overtone.data.harvest import Progress, evaluating
from overtone.data.models import LanguageModel, predicts_tokens
from overtone.data.passages import Reconstruct, next_token_loss, on_text
from overtone.data.sites import resolve_site, splice
from overtone.data.text import Document


class EmbeddingRecovered(NamedTuple):
    """Embedding recovered, and the mean cosines to the clean embedding that it is made of."""

    recovered_mean: float
    recovered_zero: float
    cos: float
    cos_mean: float
    cos_zero: float


class LossRecovered(NamedTuple):
    """Loss recovered, and the cross entropies (nats per token) that it is made of."""

    recovered_mean: float
    recovered_zero: float
    ce: float
    ce_clean: float
    ce_mean: float
    ce_zero: float


def embedding_recovered(
    lm: LanguageModel,
    site: str,
    docs: Sequence[Document],
    reconstructs: Mapping[str, Reconstruct],
    mean: Float[Tensor, " d"],
    *,
    contexts: int = 64,
    context: int = 128,
    batch: int = 16,
    progress: Progress | None = None,
) -> dict[str, EmbeddingRecovered]:
    """Share of the pooled embedding that survives, (cos − cos_ablated) / (1 − cos_ablated).

    The embedding is the mean of the last hidden state over all tokens but padding (as sentence-transformers
    has it); cos is its cosine with the clean one, averaged over contexts. Any model will do, with or without
    a head. One result per reconstruction.

    Args:
        lm: from load_model.
        site: where to splice: the site that the dictionary was trained on.
        docs: held-out documents; contexts are taken from all of them in turn.
        reconstructs: name → function from rows [n, d] (float32, the model's units) to reconstructions [n, d].
            All share the clean and the ablated passes, so comparing several is cheap.
        mean: the training activations' mean, in the model's units.
        contexts: how many contexts to use (fewer where the text is short).
        context: tokens per context, special ones counted.
        batch: contexts per forward pass.
        progress: called with (contexts done, contexts in all).

    A score is nan where the ablation changes nothing. Raises ValueError: no text, a `mean` or reconstruction
    of the wrong shape, NaN or Inf in a reconstruction (its name given).
    """
    chosen = _choose(lm, docs, contexts, context)
    sums = torch.zeros(len(reconstructs) + 3, dtype=torch.float64)
    for outputs in _passes(lm, site, chosen, reconstructs, mean, batch * context, _embed, progress):
        sums += torch.stack([_cosine(outputs[0], o).sum() for o in outputs])
    _, cos_mean, cos_zero, *rest = (sums / len(chosen)).tolist()
    return {
        name: EmbeddingRecovered(_share(c, cos_mean, 1.0), _share(c, cos_zero, 1.0), c, cos_mean, cos_zero)
        for name, c in zip(reconstructs, rest, strict=True)
    }


def loss_recovered(
    lm: LanguageModel,
    site: str,
    docs: Sequence[Document],
    reconstructs: Mapping[str, Reconstruct],
    mean: Float[Tensor, " d"],
    *,
    contexts: int = 64,
    context: int = 128,
    batch: int = 16,
    progress: Progress | None = None,
) -> dict[str, LossRecovered]:
    """Share of the loss that survives, (ce_ablated − ce) / (ce_ablated − ce_clean), per reconstruction.

    ce is the next-token cross entropy in nats per predicted token of text (special tokens are not predicted).
    Arguments and errors as for embedding_recovered; also ValueError for a model that predicts no next token.
    """
    if not predicts_tokens(lm):
        raise ValueError(
            f"model {lm.name!r} ({type(lm.model).__name__}) predicts no next token; use embedding_recovered"
        )
    chosen = _choose(lm, docs, contexts, context)
    sums = torch.zeros(len(reconstructs) + 3, dtype=torch.float64)
    for outputs in _passes(lm, site, chosen, reconstructs, mean, batch * context, _cross_entropy, progress):
        sums += torch.stack(outputs)
    predicted = sum(int(c.keep[1:].sum()) for c in chosen)
    if not predicted:
        raise ValueError(f"no context of {context} tokens has a token to predict; give longer texts")
    clean, ce_mean, ce_zero, *rest = (sums / predicted).tolist()
    return {
        name: LossRecovered(_share(c, ce_mean, clean), _share(c, ce_zero, clean), c, clean, ce_mean, ce_zero)
        for name, c in zip(reconstructs, rest, strict=True)
    }


def _choose(lm: LanguageModel, docs: Sequence[Document], contexts: int, context: int) -> list[Context]:
    """The first contexts of all documents, then the second ones, …: as many texts as possible, no drawing."""
    if contexts < 1:
        raise ValueError(f"contexts={contexts} must be at least 1")
    found = [c for c in contexts_of(lm, docs[:contexts], context=context) if c.keep.any()]
    if not found:
        raise ValueError(f"the {len(docs)} documents hold no token of text; give a text with words")
    seen: dict[int, int] = {}
    turns = []
    for c in found:
        turns.append(seen.get(c.doc, 0))
        seen[c.doc] = turns[-1] + 1
    return [found[i] for i in sorted(range(len(found)), key=lambda i: turns[i])[:contexts]]


def _passes(
    lm: LanguageModel,
    site: str,
    chosen: list[Context],
    reconstructs: Mapping[str, Reconstruct],
    mean: Tensor,
    tokens: int,
    measure: Callable[[LanguageModel, Batch], Tensor],
    progress: Progress | None,
) -> Iterator[list[Tensor]]:
    """Per batch, `measure` of the model: [clean, mean-ablated, zero-ablated, then one per reconstruction]."""
    where = resolve_site(lm.model, site)
    swaps = {"mean": lambda x: _like(mean, x), "zero": torch.zeros_like}
    done = 0
    for part in batches_of(chosen, tokens=tokens, pad=pad_id(lm.tokenizer)):
        with evaluating(lm.model), torch.no_grad():
            outputs = [measure(lm, part)]
            for name, swap in (*swaps.items(), *reconstructs.items()):
                with splice(lm.model, where, on_text(swap, part.keep, name, site)):
                    outputs.append(measure(lm, part))
        yield outputs
        done += len(part.members)
        if progress is not None:
            progress(done, len(chosen))


def _like(mean: Tensor, rows: Tensor) -> Tensor:
    """The mean activation once per row."""
    if mean.shape != rows.shape[1:]:
        raise ValueError(f"mean has shape {tuple(mean.shape)}; the site needs {tuple(rows.shape[1:])}")
    return mean.to(rows).expand(len(rows), -1)


def _embed(lm: LanguageModel, part: Batch) -> Float[Tensor, "batch d"]:
    """Mean of the last hidden state over all tokens but padding, float64."""
    body = getattr(lm.model, "base_model", lm.model)  # without the head, whose logits would go unused
    hidden = body(**model_inputs(lm, part)).last_hidden_state.double()
    mask = part.mask.to(hidden.device)[..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)).cpu()


def _cross_entropy(lm: LanguageModel, part: Batch) -> Float[Tensor, ""]:
    """`next_token_loss` of a pass, float64."""
    return next_token_loss(lm.model(**model_inputs(lm, part)).logits.float(), part).cpu()


def _cosine(a: Float[Tensor, "batch d"], b: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """Cosines; exactly 1 for equal vectors, since sqrt(t · t) is exactly t."""
    return (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt()


def _share(value: float, ablated: float, clean: float) -> float:
    return (value - ablated) / (clean - ablated) if clean != ablated else math.nan
