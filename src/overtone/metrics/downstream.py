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
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.contexts import Batch, Context, batches_of, contexts_of, model_inputs, pad_id
from overtone.data.harvest import Progress, Rows, evaluating
from overtone.data.models import LanguageModel, predicts_tokens
from overtone.data.passages import Reconstruct, on_text, token_cross_entropy
from overtone.data.sites import resolve_site, splice
from overtone.data.text import Document

ROWS_AT_ONCE = 256  # of log-probabilities in float64


class EmbeddingRecovered(NamedTuple):
    """Embedding recovered, and the mean cosines to the clean embedding that it is made of."""

    recovered_mean: float
    recovered_zero: float
    cos: float
    cos_mean: float
    cos_zero: float


class LossRecovered(NamedTuple):
    """Loss recovered, and the cross entropies and divergences from the clean model (nats per token) that it is made of."""

    recovered_mean: float
    recovered_zero: float
    ce: float
    ce_clean: float
    ce_mean: float
    ce_zero: float
    kl_recovered_mean: float
    kl_recovered_zero: float
    kl: float
    kl_mean: float
    kl_zero: float


class TokenLosses(NamedTuple):
    """What a splice does to each token of text, in the order of the text.

    Attributes:
        token_ids: the token.
        docs: its document.
        position: where it stands in its context.
        ce_clean: cross entropy of this token in nats, as the clean model predicts it; nan where no token stands before it.
        ce: the same with the site spliced.
        kl: KL(clean ‖ spliced) of what is predicted after this token, in nats.
    """

    token_ids: Int[Tensor, " tokens"]
    docs: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    ce_clean: Float[Tensor, " tokens"]
    ce: Float[Tensor, " tokens"]
    kl: Float[Tensor, " tokens"]

    def by(self, labels: Int[Tensor, " tokens"]) -> dict[int, tuple[int, float, float]]:
        """Label → (tokens, mean increase of the cross entropy, mean KL): by `token_ids`, `position` or any label of tokens."""
        found = {}
        for label in labels.unique().tolist():
            of = labels == label
            rise = (self.ce - self.ce_clean)[of]
            found[label] = (int(of.sum()), float(rise.nanmean()), float(self.kl[of].mean()))
        return found


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
    chosen = choose_contexts(lm, docs, contexts, context)
    sums = torch.zeros(len(reconstructs) + 3, dtype=torch.float64)
    for _, outputs in _passes(lm, site, chosen, reconstructs, mean, batch * context, _embeddings, progress):
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

    ce is the next-token cross entropy in nats per predicted token of text (special tokens are not predicted). Beside it stands
    KL(clean ‖ spliced), mean over the tokens of text (maths.md eq. E1), with 1 − kl / kl_ablated as its share: unlike the cross
    entropy, it also sees predictions that change and happen to do so without harm.
    Arguments and errors as for embedding_recovered; also ValueError for a model that predicts no next token.
    """
    check_predicts(lm)
    chosen = choose_contexts(lm, docs, contexts, context)
    sums = torch.zeros(len(reconstructs) + 3, 2, dtype=torch.float64)
    for _, outputs in _passes(lm, site, chosen, reconstructs, mean, batch * context, against_clean, progress):
        sums += torch.stack([losses.nansum(1) for losses in outputs])
    predicted = sum(int(c.keep[1:].sum()) for c in chosen)
    if not predicted:
        raise ValueError(f"no context of {context} tokens has a token to predict; give longer texts")
    ces = (sums[:, 0] / predicted).tolist()
    kls = (sums[:, 1] / sum(int(c.keep.sum()) for c in chosen)).tolist()
    (clean, ce_mean, ce_zero), (_, kl_mean, kl_zero) = ces[:3], kls[:3]
    return {
        name: LossRecovered(
            *(_share(ce, ce_mean, clean), _share(ce, ce_zero, clean), ce, clean, ce_mean, ce_zero),
            *(_share(kl, kl_mean, 0.0), _share(kl, kl_zero, 0.0), kl, kl_mean, kl_zero),
        )
        for name, ce, kl in zip(reconstructs, ces[3:], kls[3:], strict=True)
    }


def token_losses(
    lm: LanguageModel,
    site: str,
    docs: Sequence[Document],
    reconstruct: Reconstruct,
    *,
    contexts: int = 64,
    context: int = 128,
    batch: int = 16,
) -> TokenLosses:
    """`loss_recovered`, token by token, of one reconstruction; their means are those of there."""
    check_predicts(lm)
    chosen = choose_contexts(lm, docs, contexts, context)
    clean, spliced = ([torch.empty(0)] * len(chosen) for _ in range(2))
    for part, outputs in _passes(
        lm, site, chosen, {"reconstruct": reconstruct}, None, batch * context, against_clean, None
    ):
        counts = part.keep.sum(1).tolist()
        for found, losses in zip((clean, spliced), outputs, strict=True):
            for i, one in zip(part.members, losses.split(counts, dim=1), strict=True):
                found[i] = one
    order = sorted(range(len(chosen)), key=lambda i: (chosen[i].doc, int(chosen[i].places.max())))
    (ce_clean, _), (ce, kl) = (torch.cat([found[i] for i in order], dim=1) for found in (clean, spliced))
    text = Rows.of([chosen[i] for i in order])
    return TokenLosses(text.token_ids, text.doc_ids, text.position, ce_clean, ce, kl)


def check_predicts(lm: LanguageModel) -> None:
    """Raise ValueError for a model that predicts no next token."""
    if not predicts_tokens(lm):
        raise ValueError(
            f"model {lm.name!r} ({type(lm.model).__name__}) predicts no next token; use embedding_recovered"
        )


def choose_contexts(lm: LanguageModel, docs: Sequence[Document], contexts: int, context: int) -> list[Context]:
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


Measure = Callable[[], Tensor]


def _passes(
    lm: LanguageModel,
    site: str,
    chosen: list[Context],
    reconstructs: Mapping[str, Reconstruct],
    mean: Tensor | None,
    tokens: int,
    measure: Callable[[LanguageModel, Batch], Measure],
    progress: Progress | None,
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Per batch, what `measure` finds: [clean, mean- and zero-ablated if there is a mean, then one per reconstruction]."""
    where = resolve_site(lm.model, site)
    swaps = {} if mean is None else {"mean": lambda x: _like(mean, x), "zero": torch.zeros_like}
    done = 0
    for part in batches_of(chosen, tokens=tokens, pad=pad_id(lm.tokenizer)):
        with evaluating(lm.model), torch.no_grad():
            look = measure(lm, part)
            outputs = [look()]
            for name, swap in (*swaps.items(), *reconstructs.items()):
                with splice(lm.model, where, on_text(swap, part.keep, name, site)):
                    outputs.append(look())
        yield part, outputs
        done += len(part.members)
        if progress is not None:
            progress(done, len(chosen))


def _like(mean: Tensor, rows: Tensor) -> Tensor:
    """The mean activation once per row."""
    if mean.shape != rows.shape[1:]:
        raise ValueError(f"mean has shape {tuple(mean.shape)}; the site needs {tuple(rows.shape[1:])}")
    return mean.to(rows).expand(len(rows), -1)


def _embeddings(lm: LanguageModel, part: Batch) -> Measure:
    """Mean of the last hidden state over all tokens but padding, float64: [batch, d]."""
    body = getattr(lm.model, "base_model", lm.model)  # without the head, whose logits would go unused

    def look() -> Tensor:
        hidden = body(**model_inputs(lm, part)).last_hidden_state.double()
        mask = part.mask.to(hidden.device)[..., None]
        return ((hidden * mask).sum(1) / mask.sum(1)).cpu()

    return look


def against_clean(lm: LanguageModel, part: Batch) -> Measure:
    """Cross entropy of each kept token, and KL from the first look of what is predicted after it, float64: [2, kept]."""
    clean: list[Tensor] = []

    def look() -> Tensor:
        logits = lm.model(**model_inputs(lm, part)).logits
        keep = part.keep.to(logits.device)
        said = logits[keep].float().log_softmax(-1)
        clean[:] = clean or [said]
        return torch.stack([token_cross_entropy(logits.float(), part)[keep], divergence(clean[0], said)]).cpu()

    return look


def divergence(clean: Float[Tensor, "rows words"], other: Float[Tensor, "rows words"]) -> Float[Tensor, " rows"]:
    """KL(clean ‖ other) of log-probabilities, in nats, float64; never below 0."""
    blocks = zip(clean.split(ROWS_AT_ONCE), other.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([(a.double().exp() * (a.double() - b.double())).sum(1) for a, b in blocks]).clamp(min=0)


def _cosine(a: Float[Tensor, "batch d"], b: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
    """Cosines; exactly 1 for equal vectors, since sqrt(t · t) is exactly t."""
    return (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt()


def _share(value: float, ablated: float, clean: float) -> float:
    return (value - ablated) / (clean - ablated) if clean != ablated else math.nan
