"""Passages: contexts that a model has read, and what it says with other rows in the place of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from overtone.data.contexts import Batch, Context, model_inputs, pad_id, padded
from overtone.data.harvest import evaluating, kept_rows
from overtone.data.models import LanguageModel, predicts_tokens
from overtone.data.sites import Site, capture, splice

Reconstruct = Callable[[Tensor], Tensor]


class Passage:
    """Contexts read by a causal model: the tokens kept are rows, in this order, at each of the sites.

    The model's weights get no gradient; whatever made the rows that are put in their place does.

    Args:
        lm: from load_model.
        sites: where rows may be replaced.
        contexts: the text; they are read in one forward pass.
        compute_dtype: of the model's matrix products.

    Raises:
        ValueError: a model that predicts no next token.
    """

    def __init__(
        self, lm: LanguageModel, sites: Sequence[Site], contexts: Sequence[Context], compute_dtype: str = "float32"
    ):
        if not predicts_tokens(lm):
            raise ValueError(
                f"model {lm.name!r} ({type(lm.model).__name__}) predicts no next token; use a causal model"
            )
        self._lm, self._compute_dtype = lm, compute_dtype
        self._sites = {site.name: site for site in sites}
        self.part = padded(contexts, range(len(contexts)), pad_id(lm.tokenizer))

    @torch.no_grad()
    def rows(self) -> dict[str, Float[Tensor, "rows _"]]:
        """Site → the model's own rows, float32 on the CPU."""
        with evaluating(self._lm.model, self._compute_dtype), capture(self._lm.model, [*self._sites.values()]) as got:
            self._lm.model(**model_inputs(self._lm, self.part))
        return {name: kept_rows(x, self.part, name) for name, x in zip(self._sites, got.take(), strict=True)}

    def logits(self, rows: Mapping[str, Float[Tensor, "rows _"]]) -> Float[Tensor, "contexts positions vocabulary"]:
        """What the model predicts with these rows in the place of its own; none: the clean model. Gradients reach the rows."""
        unknown = [site for site in rows if site not in self._sites]
        if unknown:
            raise ValueError(
                f"site {unknown[0]!r} was not read, only {', '.join(map(repr, self._sites))}; train on rows of a ContextStream, "
                "whose layout names its sites"
            )
        model = self._lm.model
        with evaluating(model, self._compute_dtype), frozen(model), ExitStack() as spliced:
            for name, new in rows.items():
                swap = on_text(partial(_in_place_of, new), self.part.keep, "dictionary", name)
                spliced.enter_context(splice(model, self._sites[name], swap))
            logits = model(**model_inputs(self._lm, self.part)).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def divergence(self, rows: Mapping[str, Float[Tensor, "rows _"]]) -> Float[Tensor, ""]:
        """KL(clean ‖ spliced) of the next token in nats, mean over the kept tokens (maths.md eq. E1); 0 for the model's rows."""
        keep = self.part.keep
        with torch.no_grad():
            clean = self.logits({})
            clean = clean[keep.to(clean.device)].log_softmax(-1)
        spliced = self.logits(rows)
        spliced = spliced[keep.to(spliced.device)].log_softmax(-1)
        return functional.kl_div(spliced, clean.to(spliced.dtype), reduction="batchmean", log_target=True)

    def cross_entropy(self, rows: Mapping[str, Float[Tensor, "rows _"]]) -> Float[Tensor, ""]:
        """Cross entropy in nats per predicted token, those kept that have a token before them (maths.md eq. E2)."""
        return next_token_loss(self.logits(rows), self.part) / self.part.keep[:, 1:].sum().clamp(min=1)


def _in_place_of(new: Tensor, old: Tensor) -> Tensor:
    return new.to(old.device)


def next_token_loss(logits: Float[Tensor, "contexts positions vocabulary"], part: Batch) -> Float[Tensor, ""]:
    """Summed next-token cross entropy in nats over the kept tokens that have a token before them, float64."""
    return token_cross_entropy(logits, part).nansum()


def token_cross_entropy(
    logits: Float[Tensor, "contexts positions vocabulary"], part: Batch
) -> Float[Tensor, "contexts positions"]:
    """Cross entropy in nats of every kept token, as predicted from the one before it, float64; nan elsewhere."""
    target = part.ids[:, 1:].masked_fill(~part.keep[:, 1:], -100).to(logits.device)
    found = functional.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), reduction="none").double()
    known = found.view_as(target).masked_fill(target == -100, torch.nan)
    return functional.pad(known, (1, 0), value=torch.nan)


def on_text(swap: Reconstruct, keep: Tensor, name: str, site: str) -> Reconstruct:
    """`swap` applied to the kept rows of a [batch, position, d] tensor; the other rows pass unchanged.

    Raises:
        ValueError: rows of the wrong shape, NaN or Inf; `name` is what made them.
    """

    def replace(x: Tensor) -> Tensor:
        at = keep.to(x.device)
        if x.shape[:-1] != at.shape:
            raise ValueError(f"site {site!r} gives shape {tuple(x.shape)}; a vector per token is needed")
        rows = x[at]
        new = swap(rows.float())
        if new.shape != rows.shape:
            raise ValueError(f"{name!r} gives shape {tuple(new.shape)} at {site!r}; it must be {tuple(rows.shape)}")
        if not torch.isfinite(new).all():
            raise ValueError(f"the reconstruction {name!r} at site {site!r} holds NaN or Inf; look at its training")
        out = x.clone()
        out[at] = new.to(x.dtype)
        return out

    return replace


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Weights that no gradient reaches, of passes made within; undone on leaving."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in learning:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)
