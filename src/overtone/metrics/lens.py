"""The logit lens of atoms: which tokens a latent promotes and which it suppresses, straight through the unembedding."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overtone.data.harvest import evaluating
from overtone.data.models import LanguageModel, predicts_tokens
from overtone.data.sites import blocks_path, submodule

LATENTS_AT_ONCE = 256


class LogitLens(NamedTuple):
    """Tokens by what one unit of a latent's code adds to their logits, less the mean over the vocabulary (maths.md eq. Q7).

    Attributes:
        promoted: ids of the tokens that gain most, the strongest first.
        gains: what they gain.
        suppressed: ids of the tokens that lose most, the strongest first.
        losses: what they lose, negative numbers.
    """

    promoted: Int[Tensor, "latents k"]
    gains: Float[Tensor, "latents k"]
    suppressed: Int[Tensor, "latents k"]
    losses: Float[Tensor, "latents k"]

    def words(self, tokenizer: Any, latent: int) -> tuple[list[str], list[str]]:
        """(promoted, suppressed) of the latent in row `latent`, as text."""
        promoted, suppressed = (
            [tokenizer.decode([i]) for i in ids[latent].tolist()] for ids in (self.promoted, self.suppressed)
        )
        return promoted, suppressed


@torch.no_grad()
def logit_lens(lm: LanguageModel, atoms: Float[Tensor, "latents d"], *, k: int = 10) -> LogitLens:
    """What each atom, added to the residual stream, does to the next token's logits without the layers in between.

    The final norm acts with its gain, and with its centring where it is a LayerNorm; what it divides by is that of a row, the
    same positive number for all tokens, and is left out. So tokens stand in their true order for the direct path, and values
    are in units of the norm's scale. Positively rescaling an atom rescales its values.

    Args:
        lm: a causal model.
        atoms: directions in its residual stream: `dictionary.effective_atoms` of a dictionary at a `resid`, `attn_out` or
            `mlp_out` site, or some of their rows.
        k: tokens a side.

    Raises:
        ValueError: a model without an unembedding, or atoms of another width than its residual stream.
    """
    if not predicts_tokens(lm):
        raise ValueError(f"model {lm.name!r} ({type(lm.model).__name__}) predicts no next token: it has no logits")
    head: Any = lm.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    unembedding = head.weight.detach().float()
    words, d = unembedding.shape
    if atoms.shape[1] != d:
        raise ValueError(
            f"atoms have width {atoms.shape[1]}, the residual stream of {lm.name!r} has {d}; give a dictionary of a resid, "
            "attn_out or mlp_out site"
        )
    if not 1 <= k <= words:
        raise ValueError(f"k={k} must be 1 to {words}, the size of the vocabulary")
    # Centred once: the mean over the vocabulary then drops out of every product.
    reads = unembedding - unembedding.mean(0)
    gain, centres = _final_norm(lm, d)
    parts = []
    for block in atoms.detach().to(reads).split(LATENTS_AT_ONCE):
        block = block - block.mean(1, keepdim=True) if centres else block
        logits = (block * gain) @ reads.T
        most, least = logits.topk(k), logits.topk(k, largest=False)
        parts.append((most.indices, most.values, least.indices, least.values))
    return LogitLens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _final_norm(lm: LanguageModel, d: int) -> tuple[Float[Tensor, " d"], bool]:
    """(gain, whether it subtracts the mean) of the norm behind the last block; (ones, False) where there is none."""
    path = blocks_path(lm.model)
    holder, _, blocks = path.rpartition(".")
    children = [*submodule(lm.model, holder).named_children()]
    behind = children[[name for name, _ in children].index(blocks) + 1 :]
    norms = [module for _, module in behind if _has_gain(module, d)]
    if not norms:
        return torch.ones(d, device=next(lm.model.parameters()).device), False
    norm = norms[-1]
    # Asked, not read: some models keep the gain less 1. Norms only divide this row, whose mean is 0, by its size.
    probe = torch.ones(d)
    probe[1::2] = -1
    if d % 2:
        probe[-3:] = torch.tensor([2.0, -1.0, -1.0])
    like = next(lm.model.parameters())
    with evaluating(lm.model):
        up, down, moved = (norm(row.to(like)[None, None]).flatten().float() for row in (probe, -probe, probe + 3))
    probe = probe.to(up)
    centres = torch.allclose(up, moved, rtol=1e-2, atol=1e-3 * float(up.abs().max()))
    return (up - down) / 2 / probe * probe.square().mean().sqrt(), centres


def _has_gain(module: nn.Module, d: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (d,)
