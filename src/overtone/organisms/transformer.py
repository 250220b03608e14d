"""A small decoder: pre-norm, causal attention, learned positions. Its initial weights follow from a seed alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from overtone.data.sequences import at_least
from overtone.seeds import generator


@dataclass(frozen=True)
class Shape:
    """How large a decoder is.

    Args:
        width: d, of the residual stream.
        layers: number of blocks.
        heads: attention heads of a block.
        hidden: width of an MLP, in units of d.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    hidden: int = 4

    def __post_init__(self):
        at_least(self, width=1, layers=1, heads=1, hidden=1)
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}; change either")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, shape: Shape, draws: torch.Generator):
        super().__init__()
        d, hidden, damped = shape.width, shape.hidden * shape.width, (2 * shape.layers) ** -0.5
        self.heads = shape.heads
        self.attn_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.attn_out = _linear(d, 3 * d, draws), _linear(d, d, draws, damped)
        self.up, self.down = _linear(d, hidden, draws), _linear(hidden, d, draws, damped)

    def attention(
        self, x: Float[Tensor, "sequences positions d"]
    ) -> tuple[Float[Tensor, "sequences heads positions positions"], Float[Tensor, "sequences heads positions width"]]:
        """How much each position (first) reads from each (second), and what there is to be read."""
        q, k, v = self.qkv(self.attn_norm(x)).unflatten(-1, (3, self.heads, -1)).movedim(-2, 1).unbind(-2)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1), v

    def forward(self, x: Float[Tensor, "sequences positions d"]) -> Float[Tensor, "sequences positions d"]:
        """The residual stream after the block."""
        weights, v = self.attention(x)
        x = x + self.attn_out((weights @ v).movedim(1, -2).flatten(-2))
        return x + self.down(gelu(self.up(self.mlp_norm(x))))


class Decoder(nn.Module):
    """Reads vectors, one per position (a token: one-hot), and predicts vectors.

    Args:
        shape: its size.
        channels: width of what it reads.
        outputs: width of what it predicts.
        positions: the longest sequence.
        seed: seed of the initial weights.
    """

    def __init__(self, shape: Shape, *, channels: int, outputs: int, positions: int, seed: int = 0):
        super().__init__()
        draws = generator(seed, "decoder weights")
        self.shape = shape
        self.read = _linear(channels, shape.width, draws)
        self.position = nn.Parameter(0.1 * torch.randn(positions, shape.width, generator=draws))
        self.blocks = nn.ModuleList(Block(shape, draws) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.predict = _linear(shape.width, outputs, draws, 0.1)

    def residual(
        self, inputs: Float[Tensor, "sequences positions channels"], layer: int
    ) -> Float[Tensor, "sequences positions d"]:
        """The residual stream after block `layer` (resid.`layer`, counted from 0); −1: before the first."""
        x = self.read(inputs) + self.position[: inputs.shape[1]]
        for block in self.blocks[: layer + 1]:
            x = block(x)
        return x

    def forward(
        self, inputs: Float[Tensor, "sequences positions channels"]
    ) -> Float[Tensor, "sequences positions outputs"]:
        """What is predicted at every position, from it and those before it."""
        return self.predict(self.norm(self.residual(inputs, len(self.blocks) - 1)))

    @torch.no_grad()
    def read_from(
        self, inputs: Float[Tensor, "sequences positions channels"], lag: int
    ) -> Float[Tensor, "layers heads"]:
        """Share of its attention that each head gives to the position `lag` before, mean over positions that have one."""
        shares = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            weights, _ = block.attention(self.residual(inputs, layer - 1))
            shares.append(weights.diagonal(-lag, -2, -1).mean((0, 2)))
        return torch.stack(shares)


def _linear(d_in: int, d_out: int, draws: torch.Generator, scale: float = 1.0) -> nn.Linear:
    """A linear map that keeps norms up to `scale`, drawn without the global generator."""
    made = nn.Linear(d_in, d_out, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        made.weight.copy_(scale * d_in**-0.5 * torch.randn(d_out, d_in, generator=draws))
        made.bias.zero_()
    return made
