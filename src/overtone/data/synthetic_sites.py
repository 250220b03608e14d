"""Ground truths of several sites: a map between two of them, and features that are at all sites or at one alone."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overtone.data.synthetic import SparseMixture
from overtone.layout import Block, Layout
from overtone.seeds import generator


class MappedRows(NamedTuple):
    """Rows that are read, and what the true map makes of them."""

    x: Float[Tensor, "rows d"]
    target: Float[Tensor, "rows d_out"]


@dataclass(frozen=True, eq=False)
class ReLUMap:
    """y = Σ_i max(0, v_iᵀx − threshold) u_i + linear · A x + offset: an MLP whose neurons read the features v_i of a mixture.

    Args:
        truth: the mixture that x is drawn from; one neuron per feature.
        d_out: width of y.
        threshold: below which a neuron is silent.
        linear: size of the linear path, relative to a random A that keeps norms.
        offset: size of the constant that is added to every row, drawn along a random direction.
        scale: what y is multiplied by: another site has other units.
        seed: seed of u_i (unit norm), A and the offset.
    """

    truth: SparseMixture
    d_out: int = 24
    threshold: float = 0.3
    linear: float = 0.0
    offset: float = 0.5
    scale: float = 10.0
    seed: int = 0

    @property
    def writes(self) -> Float[Tensor, "features d_out"]:
        """u_i, what neuron i adds to y per unit of activation, before `scale`."""
        drawn = torch.randn(self.truth.n_features, self.d_out, generator=generator(self.seed, "what neurons write"))
        return drawn / drawn.norm(dim=1, keepdim=True)

    def __call__(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d_out"]:
        """y of x."""
        draws = generator(self.seed, "linear path")
        matrix = torch.randn(x.shape[1], self.d_out, generator=draws) / self.d_out**0.5
        away = torch.randn(self.d_out, generator=draws)
        neurons = (x @ self.truth.features.T - self.threshold).relu()
        return self.scale * (neurons @ self.writes + self.linear * (x @ matrix) + self.offset * away / away.norm())

    def rows(self, rows: int, *, seed: int = 0) -> MappedRows:
        """A fixed data set."""
        x = self.truth.rows(rows, seed=seed).x
        return MappedRows(x, self(x))


@dataclass(frozen=True, eq=False)
class SiteMixture:
    """A sparse mixture seen at several sites, each with directions and units of its own; some features are at one site alone.

    Attributes:
        truth: of rows with the sites side by side; a feature's columns are zero where it is absent.
        layout: which columns belong to which site.
        present: whether a feature is at a site.
    """

    truth: SparseMixture
    layout: Layout
    present: Bool[Tensor, "features sites"]

    def split(self, rows: Float[Tensor, "rows d"]) -> dict[str, Float[Tensor, "rows _"]]:
        """Site → its columns."""
        return self.layout.split(rows)


def site_mixture(
    shared: int = 24,
    exclusive: int = 12,
    *,
    widths: tuple[int, ...] = (24, 32),
    scales: tuple[float, ...] = (1.0, 20.0),
    sparsities: tuple[int, ...] = (3,),
    noise: float = 0.0,
    seed: int = 0,
) -> SiteMixture:
    """Features at all sites, and features of every site alone.

    Args:
        shared: features that are at every site.
        exclusive: features, for every site, that are there alone.
        widths: of the sites, which are called "a", "b", …
        scales: norm of a feature at every site.
        sparsities: active features per row, each number equally likely.
        noise: standard deviation of Gaussian noise per coordinate.
        seed: seed of the features, whose directions at different sites are independent.
    """
    if len(widths) != len(scales) or not 1 <= len(widths) <= 26:
        raise ValueError(f"widths={widths} and scales={scales} must be one number per site, of up to 26 sites")
    sites = len(widths)
    alone = torch.eye(sites, dtype=torch.bool).repeat_interleave(exclusive, dim=0)
    present = torch.cat([torch.ones(shared, sites, dtype=torch.bool), alone])
    layout = Layout(tuple(Block(chr(ord("a") + i), d) for i, d in enumerate(widths)))
    draws, parts = generator(seed, "features of sites"), []
    for i, (d, scale) in enumerate(zip(widths, scales, strict=True)):
        drawn = torch.randn(len(present), d, generator=draws)
        parts.append(scale * present[:, i : i + 1] * drawn / drawn.norm(dim=1, keepdim=True))
    features = torch.cat(parts, dim=1)
    truth = SparseMixture(len(present), layout.d, sparsities, noise=noise, seed=seed, features=features)
    return SiteMixture(truth, layout, present)
