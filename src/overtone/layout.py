"""Which sites a dictionary reads and which it reconstructs: the x_p → codes → x_r of sparse dictionary learning.

One objective, ½‖x_r − D φ(E x_p)‖² (arXiv 2512.05534), is an autoencoder, a transcoder or a crosscoder by its layout alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The columns of one site in rows that hold several.

    Args:
        site: its name; "" where rows of one unnamed site are all there is.
        d: its width.
    """

    site: str
    d: int

    def __post_init__(self):
        if self.d < 1:
            raise ValueError(f"site {self.site!r} has width d={self.d}; it must be at least 1")


@dataclass(frozen=True)
class Layout:
    """The sites side by side in the rows that are read, and in those that are reconstructed.

    Args:
        reads: sites whose rows, laid side by side, are encoded.
        writes: sites whose rows are reconstructed; None: those that are read. One site onto itself is an autoencoder, several
            onto themselves a crosscoder; anything onto other sites a transcoder.
    """

    reads: tuple[Block, ...]
    writes: tuple[Block, ...] | None = None

    def __post_init__(self):
        for blocks in (self.reads, self.reconstructs):
            names = [block.site for block in blocks]
            if not names or len(set(names)) < len(names):
                raise ValueError(f"sites {', '.join(names) or '(none)'} must be at least one, and each of them once")

    @classmethod
    def of(cls, d: "int | Layout") -> "Layout":
        """An autoencoder of rows of width d; a layout as it is."""
        return d if isinstance(d, Layout) else cls((Block("", d),))

    @property
    def reconstructs(self) -> tuple[Block, ...]:
        """The sites that are reconstructed."""
        return self.reads if self.writes is None else self.writes

    @property
    def d(self) -> int:
        """Width of the rows that are read."""
        return sum(block.d for block in self.reads)

    @property
    def d_out(self) -> int:
        """Width of the rows that are reconstructed."""
        return sum(block.d for block in self.reconstructs)

    @property
    def onto_itself(self) -> bool:
        """Whether what is read is what is reconstructed: an autoencoder or a crosscoder."""
        return self.writes is None

    @property
    def plain(self) -> bool:
        """Whether this is an autoencoder of one site."""
        return self.writes is None and len(self.reads) == 1

    def split(self, rows: Float[Tensor, "*batch d_out"]) -> dict[str, Float[Tensor, "*batch _"]]:
        """Site → its columns of reconstructed rows."""
        blocks = self.reconstructs
        parts = rows.split([block.d for block in blocks], dim=-1)
        return {block.site: part for block, part in zip(blocks, parts, strict=True)}

    def __str__(self) -> str:
        """resid.1 + resid.3, or mlp_in.3 → mlp_out.3, with widths."""
        sides = [self.reads] if self.writes is None else [self.reads, self.writes]
        return " → ".join(" + ".join(f"{b.site or 'rows'} (d = {b.d})" for b in blocks) for blocks in sides)


def side_by_side(
    blocks: Sequence[Block], rows: Mapping[str, Float[Tensor, "batch _"]]
) -> Float[Tensor, "batch columns"]:
    """The rows of several sites as one row per token; of one site, its own tensor."""
    parts = [rows[block.site] for block in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def columns(values: Float[Tensor, " blocks"], blocks: Sequence[Block]) -> Float[Tensor, " columns"]:
    """One number per site, repeated over the site's columns."""
    return values.repeat_interleave(torch.tensor([block.d for block in blocks], device=values.device))


def typical_norms(rows: Float[Tensor, "rows columns"], blocks: Sequence[Block]) -> Float[Tensor, " blocks"]:
    """What each site is divided by so that a typical row, all sites side by side, has norm 1 (maths.md eq. S1).

    √S times the median of the site's positive row norms: a few rows of a hundred times the usual norm, as attention sinks
    have, do not move it.
    """
    found = []
    for block, part in zip(blocks, rows.split([b.d for b in blocks], dim=1), strict=True):
        norms = torch.linalg.vector_norm(part, dim=1)
        if not (norms > 0).any():
            raise ValueError(
                f"site {block.site!r} is all zeros in the first {len(rows)} rows and has no scale; drop the site, or "
                "look at what the model gives there"
            )
        found.append(norms[norms > 0].median())
    return torch.stack(found) * len(blocks) ** 0.5
