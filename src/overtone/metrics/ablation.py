"""What the model loses when single latents are taken out of its activations: exact, and only where they fire."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.data.contexts import Batch, batches_of, model_inputs, pad_id
from overtone.data.harvest import Progress, evaluating, kept_rows
from overtone.data.models import LanguageModel
from overtone.data.passages import on_text, token_cross_entropy
from overtone.data.sites import Site, capture, resolve_site, splice
from overtone.data.text import Document
from overtone.dictionary import Dictionary
from overtone.metrics.downstream import check_predicts, choose_contexts, divergence


class LatentEffects(NamedTuple):
    """The effect of taking out each latent's part of the activations, what no latent explains left in (maths.md eq. Q8).

    Attributes:
        latents: which ones.
        firings: tokens on which each is active.
        kl: KL(clean ‖ without it) in nats, mean over all tokens of the text.
        ce: rise of the cross entropy in nats, mean over all predicted tokens; negative where the latent did harm.
        tokens: tokens of the text.
    """

    latents: Int[Tensor, " chosen"]
    firings: Int[Tensor, " chosen"]
    kl: Float[Tensor, " chosen"]
    ce: Float[Tensor, " chosen"]
    tokens: int

    @property
    def kl_per_firing(self) -> Float[Tensor, " chosen"]:
        """KL summed over the text per token on which the latent is active; 0 where it never is."""
        return self.kl * self.tokens / self.firings.clamp(min=1)


class _Pairs(NamedTuple):
    """Some latents each with a context in which it fires, and its part of that context's rows."""

    latent: Int[Tensor, " pairs"]  # its place among those chosen
    context: Int[Tensor, " pairs"]  # its place in the batch
    pair: Int[Tensor, " entries"]
    row: Int[Tensor, " entries"]
    part: Float[Tensor, "entries d"]


@torch.no_grad()
def latent_effects(
    lm: LanguageModel,
    site: str,
    docs: Sequence[Document],
    dictionary: Dictionary,
    latents: Sequence[int] | Int[Tensor, " chosen"],
    *,
    contexts: int = 64,
    context: int = 128,
    batch: int = 16,
    progress: Progress | None = None,
) -> LatentEffects:
    """Ablate latents one by one, several of them in one pass of the model.

    A context in which a latent does not fire is as it was, so that it is not run: the cost is one context's pass for each pair
    of a latent and a context in which it fires, and two for each context.

    Args:
        lm: a causal model, from load_model.
        site: the site that the dictionary was trained on.
        docs: held-out documents; contexts are taken from all of them in turn.
        dictionary: an autoencoder of that site.
        latents: which to ablate.
        contexts: how many contexts to use (fewer where the text is short).
        context: tokens per context, special ones counted.
        batch: contexts per forward pass.
        progress: called with (contexts done, contexts in all).

    Raises:
        ValueError: latents that the dictionary does not have; one that is no autoencoder of one site; no text.
    """
    check_predicts(lm)
    wanted = torch.as_tensor(latents, dtype=torch.long).flatten()
    if not dictionary.layout.plain:
        raise ValueError(f"latents are ablated at the one site of an autoencoder; this is of {dictionary.layout}")
    if len(wanted) == 0 or not 0 <= int(wanted.min()) <= int(wanted.max()) < dictionary.latents:
        raise ValueError(f"latents={wanted.tolist()} must be some of 0 … {dictionary.latents - 1}")
    if len(wanted.unique()) < len(wanted):
        raise ValueError(f"latents={wanted.tolist()} names one twice; give every latent once")
    chosen = choose_contexts(lm, docs, contexts, context)
    where = resolve_site(lm.model, site)
    firings = torch.zeros(len(wanted), dtype=torch.long)
    sums = torch.zeros(2, len(wanted), dtype=torch.float64)
    done = 0
    for part in batches_of(chosen, tokens=batch * context, pad=pad_id(lm.tokenizer)):
        with evaluating(lm.model):
            sums, firings = _ablate(lm, where, part, dictionary, wanted, sums, firings)
        done += len(part.members)
        if progress is not None:
            progress(done, len(chosen))
    tokens = sum(int(c.keep.sum()) for c in chosen)
    predicted = sum(int(c.keep[1:].sum()) for c in chosen)
    return LatentEffects(wanted, firings, sums[0] / tokens, sums[1] / max(1, predicted), tokens)


def _ablate(
    lm: LanguageModel,
    where: Site,
    part: Batch,
    dictionary: Dictionary,
    wanted: Int[Tensor, " chosen"],
    sums: Float[Tensor, "2 chosen"],
    firings: Int[Tensor, " chosen"],
) -> tuple[Float[Tensor, "2 chosen"], Int[Tensor, " chosen"]]:
    """The sums with one batch's contexts added."""
    with capture(lm.model, [where], stop=False) as got:
        logits = lm.model(**model_inputs(lm, part)).logits
    clean, clean_loss = _said(logits, part)
    rows = kept_rows(got.take()[0], part, where.name)
    starts = torch.nn.functional.pad(part.keep.sum(1).cumsum(0), (1, 0))
    for pairs in _pairs(dictionary, rows, starts, wanted, len(part.members)):
        firings = firings + torch.bincount(pairs.latent[pairs.pair], minlength=len(wanted))
        spans = [torch.arange(int(starts[c]), int(starts[c + 1])) for c in pairs.context.tolist()]
        old = torch.cat(spans)
        begins = torch.nn.functional.pad(torch.tensor([len(span) for span in spans]).cumsum(0), (1, 0))
        place = begins[pairs.pair] + pairs.row - starts[pairs.context[pairs.pair]]
        new = rows[old].index_add_(0, place, -pairs.part)
        again = Batch([], part.ids[pairs.context], part.mask[pairs.context], part.keep[pairs.context])
        swap = on_text(lambda x, new=new: new.to(x.device), again.keep, "ablation", where.name)
        with splice(lm.model, where, swap):
            said, loss = _said(lm.model(**model_inputs(lm, again)).logits, again)
        lost = torch.stack([divergence(clean[old.to(clean.device)], said).cpu(), (loss - clean_loss[old]).nan_to_num()])
        of = pairs.latent.repeat_interleave(begins.diff())
        sums = sums.index_add(1, of, lost)
    return sums, firings


def _said(logits: Tensor, part: Batch) -> tuple[Float[Tensor, "rows words"], Float[Tensor, " rows"]]:
    """Log-probabilities after each kept token, and the cross entropy of each: nan where none stands before it."""
    keep = part.keep.to(logits.device)
    return logits[keep].float().log_softmax(-1), token_cross_entropy(logits.float(), part)[keep].cpu()


def _pairs(
    dictionary: Dictionary,
    rows: Float[Tensor, "rows d"],
    starts: Int[Tensor, " contexts_and_1"],
    wanted: Int[Tensor, " chosen"],
    at_once: int,
) -> Iterator[_Pairs]:
    """Every chosen latent with every context in which it fires, `at_once` pairs at a time."""
    codes = dictionary.encode(rows)
    entries = codes.entries.sparse().nonzero()
    chosen = torch.full((dictionary.latents,), -1).scatter_(0, wanted, torch.arange(len(wanted)))
    kept = chosen[entries.latents] >= 0
    row, latent, z = entries.rows[kept], entries.latents[kept], entries.values[kept]
    contexts = len(starts) - 1
    context = torch.searchsorted(starts, row, right=True) - 1
    keys, pair = (chosen[latent] * contexts + context).unique(return_inverse=True)
    part = (z[:, None] * codes.norm[row]) * dictionary.data_atoms[latent]
    for first in range(0, len(keys), at_once):
        here = (pair >= first) & (pair < first + at_once)
        some = keys[first : first + at_once]
        yield _Pairs(some // contexts, some % contexts, pair[here] - first, row[here], part[here].float())
