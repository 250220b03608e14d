"""Sparse codes: the active latents of every row, and nothing of the others."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.ops.transposed import Transposed


class SparseCodes(NamedTuple):
    """Codes of B rows over M latents, kept as the nnz active entries in the order of rows, then of latents (CSR).

    Gradients flow through `values` alone: which latents are active has none.

    Attributes:
        values: the code of every entry.
        latents: the latent of every entry, ascending within a row.
        offsets: entries of row r are offsets[r] … offsets[r + 1] − 1.
        latents_total: M.
        order: the permutation that sorts the entries by latent and keeps the order of rows, where an encoder found it
            on its way; decoding and gradients need it.
        transposed: the entries in that order, where an encoder made them.
    """

    values: Float[Tensor, " nnz"]
    latents: Int[Tensor, " nnz"]
    offsets: Int[Tensor, " rows_and_1"]
    latents_total: int
    order: Int[Tensor, " nnz"] | None = None
    transposed: Transposed | None = None

    @classmethod
    def from_dense(
        cls, z: Float[Tensor, "batch latents"], active: Bool[Tensor, "batch latents"] | None = None
    ) -> "SparseCodes":
        """The entries of dense codes where `active`; None: where they are not zero. Inverse of `dense`."""
        active = z != 0 if active is None else active
        latents = active.nonzero()[:, 1]
        # Not z[active], whose gradient is slow.
        return cls(z.masked_select(active), latents, _starts(active.sum(1)), z.shape[1])

    @property
    def rows_total(self) -> int:
        """B."""
        return len(self.offsets) - 1

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The row of every entry."""
        return torch.arange(self.rows_total, device=self.offsets.device).repeat_interleave(
            self.l0(), output_size=len(self.latents)
        )

    def l0(self) -> Int[Tensor, " batch"]:
        """Number of active latents of every row."""
        return self.offsets.diff()

    def dense(self) -> Float[Tensor, "batch latents"]:
        """Codes with their zeros: B·M numbers, meant for tests and small batches."""
        zeros = self.values.new_zeros(self.rows_total, self.latents_total)
        return zeros.index_put((self.rows, self.latents), self.values)

    def sparse(self) -> "SparseCodes":
        """These codes: `DenseCodes` have to become entries."""
        return self

    def with_values(self, values: Float[Tensor, " nnz"]) -> "SparseCodes":
        """Other values at the same places."""
        return self._replace(values=values)

    def at(self, per_latent: Float[Tensor, " latents"]) -> Float[Tensor, " nnz"]:
        """A number per latent where each of the values is."""
        return per_latent.index_select(0, self.latents)

    def look_up(self, rows: Int[Tensor, " places"], latents: Int[Tensor, " places"]) -> Float[Tensor, " places"]:
        """The codes at these places, 0 where there is no entry: dense()[rows, latents] without the dense codes."""
        # A last key that no place has, so that a search which finds nothing points somewhere too.
        beyond = self.latents.new_tensor([self.rows_total * self.latents_total])
        keys = torch.cat([self.rows * self.latents_total + self.latents, beyond])
        values = torch.nn.functional.pad(self.values, (0, 1))
        wanted = rows * self.latents_total + latents
        found = torch.searchsorted(keys, wanted)
        return torch.where(keys[found] == wanted, values[found], 0.0)

    def scaled(self, scale: Float[Tensor, " latents"]) -> "SparseCodes":
        """a_m z_m, differentiable in both."""
        return self.with_values(self.values * self.at(scale))

    def nonzero(self) -> "SparseCodes":
        """These codes without the entries whose code is 0."""
        kept = self.values != 0
        if kept.all():
            return self
        offsets = torch.nn.functional.pad(kept.cumsum(0), (1, 0))[self.offsets]
        return SparseCodes(self.values.masked_select(kept), self.latents[kept], offsets, self.latents_total)

    def of_rows(self, kept: Bool[Tensor, " batch"]) -> "SparseCodes":
        """The codes of some of the rows."""
        entries = kept[self.rows]
        return SparseCodes(self.values[entries], self.latents[entries], _starts(self.l0()[kept]), self.latents_total)

    def tally(self, pre: Float[Tensor, " nnz"]) -> tuple[Int[Tensor, " latents"], Float[Tensor, " latents"]]:
        """How often each latent has a positive code, and the largest `pre` where it has one (0: nowhere)."""
        active = self.values > 0
        latents = self.latents[active]
        peak = pre.new_zeros(self.latents_total).scatter_reduce_(0, latents, pre[active], "amax")
        return torch.bincount(latents, minlength=self.latents_total), peak

    def permuted(self, order: Int[Tensor, " latents"]) -> "SparseCodes":
        """Codes of the dictionary whose latent j is this one's latent order[j]: dense()[:, order]."""
        renamed = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        latents = renamed[self.latents]
        by_place = (self.rows * self.latents_total + latents).argsort()
        return self._replace(values=self.values[by_place], latents=latents[by_place], order=None, transposed=None)


class DenseCodes(NamedTuple):
    """Codes kept with their zeros, where few of them are: what `SparseCodes` says, as a matrix.

    Attributes:
        z: the codes.
    """

    z: Float[Tensor, "batch latents"]

    @property
    def values(self) -> Float[Tensor, " batch_times_latents"]:
        """All codes, zeros among them, in the order of rows, then of latents."""
        return self.z.reshape(-1)

    @property
    def rows_total(self) -> int:
        """B."""
        return self.z.shape[0]

    @property
    def latents_total(self) -> int:
        """M."""
        return self.z.shape[1]

    def l0(self) -> Int[Tensor, " batch"]:
        """Number of codes of every row that are not zero."""
        return (self.z != 0).sum(1)

    def dense(self) -> Float[Tensor, "batch latents"]:
        """The codes."""
        return self.z

    def sparse(self) -> SparseCodes:
        """The same codes as entries."""
        return SparseCodes.from_dense(self.z)

    def with_values(self, values: Float[Tensor, " batch_times_latents"]) -> "DenseCodes":
        """Other values at the same places."""
        return DenseCodes(values.view_as(self.z))

    def at(self, per_latent: Float[Tensor, " latents"]) -> Float[Tensor, " batch_times_latents"]:
        """A number per latent where each of the values is."""
        return per_latent.expand_as(self.z).reshape(-1)

    def nonzero(self) -> "DenseCodes":
        """These codes, of which none is an entry."""
        return self

    def tally(
        self, pre: Float[Tensor, " batch_times_latents"]
    ) -> tuple[Int[Tensor, " latents"], Float[Tensor, " latents"]]:
        """How often each latent has a positive code, and the largest `pre` where it has one (0: nowhere)."""
        active = self.z > 0
        return active.sum(0), torch.where(active, pre.view_as(self.z), 0).amax(0).clamp(min=0)

    def scaled(self, scale: Float[Tensor, " latents"]) -> "DenseCodes":
        """a_m z_m, differentiable in both."""
        return DenseCodes(self.z * scale)

    def permuted(self, order: Int[Tensor, " latents"]) -> "DenseCodes":
        """Codes of the dictionary whose latent j is this one's latent order[j]."""
        return DenseCodes(self.z[:, order])


AnyCodes = SparseCodes | DenseCodes


class Encoded(NamedTuple):
    """Codes and what a pass over the pre-activations y tells besides.

    Attributes:
        codes: the selected entries, as a list or, where they are many, as a matrix.
        fired: rows in which each latent is active and y > 0.
        peak: the largest y of the rows in which a latent fires, 0 for one that fires in none.
        gate: how far the gate of each latent is open, with a gradient that codes do not give: what a sparsity penalty acts
            on. 1{y > θ} for a threshold that is trained, max(π, 0) of a gate with pre-activations π of its own.

    Where codes have either sign, y counts by its size; in a pursuit, which has no one y, it is the code.
    """

    codes: AnyCodes
    fired: Int[Tensor, " latents"]
    peak: Float[Tensor, " latents"]
    gate: AnyCodes | None = None


def concatenate(parts: Sequence[SparseCodes]) -> SparseCodes:
    """Codes of the rows of all parts, in their order; encoding a batch in parts and whole is the same."""
    totals = sorted({part.latents_total for part in parts})
    if len(totals) != 1:
        raise ValueError(
            f"codes over latents={totals} cannot be concatenated; take at least one, all of one dictionary"
        )
    l0 = torch.cat([part.l0() for part in parts])
    values, latents = torch.cat([part.values for part in parts]), torch.cat([part.latents for part in parts])
    return SparseCodes(values, latents, _starts(l0), totals[0])


def _starts(lengths: Int[Tensor, " segments"]) -> Int[Tensor, " segments_and_1"]:
    """Where segments of these lengths start, laid end to end, and where the last one ends."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
