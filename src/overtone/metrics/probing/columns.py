"""What many latents say of many rows, kept by latent: most of it is 0."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from overtone.dictionary import Dictionary


@dataclass(frozen=True)
class Columns:
    """Numbers in rows × columns, the zeros left out. Memory: 8 bytes for every number that is not 0.

    Args:
        matrix: scipy's compressed columns.
    """

    matrix: Any

    @classmethod
    def of(cls, dense: Float[Tensor, "rows columns"]) -> "Columns":
        """Of numbers that have their zeros."""
        return cls(sparse.csc_array(dense.numpy()))

    @classmethod
    def of_entries(
        cls, parts: Iterable[tuple[Int[Tensor, " _"], Int[Tensor, " _"], Float[Tensor, " _"]]], shape: tuple[int, int]
    ) -> "Columns":
        """Of (rows, columns, values) at different places."""
        rows, columns, values = (torch.cat(arrays).numpy() for arrays in zip(*parts, strict=True))
        return cls(sparse.csc_array((values, (rows.astype(np.int32), columns.astype(np.int32))), shape=shape))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.matrix.shape

    def take(self, columns: Int[Tensor, " k"]) -> Float[Tensor, "rows k"]:
        """Some columns with their zeros."""
        return torch.from_numpy(self.matrix[:, columns.numpy()].toarray())

    def rows(self, kept: Int[Tensor, " some"]) -> "Columns":
        """Some of the rows."""
        return Columns(sparse.csc_array(self.matrix.tocsr()[kept.numpy()]))

    def sums(self, weights: Float[Tensor, "rows sums"]) -> Float[Tensor, "columns sums"]:
        """Weighted sums over rows, float64."""
        return torch.from_numpy(np.asarray(self.matrix.T @ weights.double().numpy()))

    def fires(self) -> "Columns":
        """1 where there is a number that is not 0."""
        matrix = self.matrix.copy()
        matrix.eliminate_zeros()
        matrix.data = np.ones_like(matrix.data)
        return Columns(matrix)


def contributions(
    dictionary: Dictionary, x: Float[Tensor, "rows d"], lengths: Float[Tensor, " latents"]
) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " nnz"], Float[Tensor, " nnz"]]:
    """(row, latent, u) where a latent is active: how much of its unit atom it adds, in units of the data (maths.md eq. P1).

    Does not change when scale moves between codes and atoms.

    Args:
        dictionary: the dictionary.
        x: rows that it reads.
        lengths: ‖`data_atoms`‖ of every latent.
    """
    codes = dictionary.encode(x)
    entries = codes.entries.sparse().nonzero()
    rows = entries.rows
    return rows, entries.latents, entries.values * codes.norm.reshape(-1)[rows] * lengths[entries.latents]
