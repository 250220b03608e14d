"""Loss terms that guide the atoms: wake dead ones, keep them apart, tie them to what is known. Frozen values, pure."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from overtone import ops
from overtone.dictionary import Codes, Dictionary
from overtone.losses import check_coefficient, rows_of
from overtone.ops import half_square_error
from overtone.seeds import generator


@dataclass(frozen=True)
class AuxK:
    """coefficient · ½ ‖e − ê‖² / ‖e‖², over the batch: dead latents explain what the others left, e = x − f(x).

    Per row it is the k dead ones with the largest y; e gets no gradient and ê = Σ a_m w_m max(y_m, 0) has no b_dec (maths.md
    eq. 27; arXiv 2406.04093). 0 while no latent is dead.

    Args:
        coefficient: the authors' α = 1/32.
        k: dead latents per row, at most as many as there are; None: d/2, the authors' choice.
        after: rows without firing after which a latent is dead. The authors have 10 million; a shorter run needs fewer.
    """

    coefficient: float = 1 / 32
    k: int | None = None
    after: int = 10_000_000

    def __post_init__(self):
        check_coefficient(self.coefficient)
        if self.k is not None and self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")
        if self.after < 1:
            raise ValueError(f"after={self.after} rows must be at least 1")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        [dead] = dictionary.dead(self.after).nonzero(as_tuple=True)
        if len(dead) == 0:
            return target.new_zeros(())
        k = min(self.k or max(1, dictionary.d // 2), len(dead))
        encoder = dictionary.W_enc.index_select(0, dead), dictionary.b_enc.index_select(0, dead)
        woken = ops.encode_topk(rows_of(codes), *encoder, k, centre=dictionary.centre).codes
        with torch.no_grad():
            left = target - dictionary.decode_normalised(codes.entries)
            power = dictionary.world.rows.mean(left.square().sum(1).mean()).clamp(min=torch.finfo(left.dtype).tiny)
        explained = ops.decode(woken, dictionary.effective_atoms.index_select(0, dead))
        return self.coefficient * half_square_error(explained, left) / power


@dataclass(frozen=True)
class Orthogonality:
    """coefficient · mean over latents of max_j cos(w_m, w_j)², j among the others of m's chunk (maths.md eq. 28).

    OrtSAE's penalty (arXiv 2509.22033). Chunks are drawn anew every step, so that the cost, 2·M·chunk·d operations, grows
    linearly with the dictionary. The gradient reaches both atoms of each pair. Invariant to scale and sign of the atoms;
    permuting latents changes nothing while there is one chunk.

    Args:
        coefficient: γ, the authors' 0.25.
        chunk: latents per chunk.
        seed: of the chunks.
        draw: which chunks; `at` makes it the step.
    """

    coefficient: float = 0.25
    chunk: int = 2048
    seed: int = 0
    draw: int = 0

    def __post_init__(self):
        check_coefficient(self.coefficient)
        if self.chunk < 2:
            raise ValueError(f"chunk={self.chunk} must hold at least 2 latents to compare")

    def at(self, step: int, steps: int) -> "Orthogonality":
        """The term at a step: with chunks of its own."""
        return replace(self, draw=step)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        atoms = normalize(dictionary.W_dec, dim=1)
        order = torch.randperm(len(atoms), generator=generator(self.seed, "chunks", self.draw)).to(atoms.device)
        nearest = torch.cat([_nearest(atoms.detach(), chunk) for chunk in order.split(self.chunk)])
        cosines = (atoms.index_select(0, order) * atoms.index_select(0, nearest)).sum(1)
        alone = order == nearest  # the last chunk may be of one latent
        return self.coefficient * cosines.masked_fill(alone, 0).square().mean()


@torch.no_grad()
def _nearest(atoms: Float[Tensor, "latents d"], chunk: Tensor) -> Tensor:
    """For each of a chunk's latents the other one whose atom lies closest to the same line."""
    some = atoms[chunk]
    overlap = (some @ some.T).abs_().fill_diagonal_(-1)
    return chunk[overlap.argmax(1)]


@dataclass(frozen=True)
class Anchoring:
    """coefficient · (‖W_enc[:n] − V‖² + ‖W_dec[:n] − V‖²) for n known directions V (maths.md eq. 29; arXiv 2512.05534).

    Ties the first n latents to directions that are known, class means for instance: which latents they become is otherwise
    left open by the objective. Taken as they are, so give unit rows where atoms are.

    Args:
        directions: V, rows as tuples; `Anchoring.of(tensor)` makes them.
        coefficient: λ_a.
    """

    directions: tuple[tuple[float, ...], ...]
    coefficient: float = 0.1

    def __post_init__(self):
        check_coefficient(self.coefficient)
        if not self.directions or len({len(row) for row in self.directions}) != 1:
            raise ValueError("directions must be at least one row, all of one width")

    @classmethod
    def of(cls, directions: Float[Tensor, "n d"], coefficient: float = 0.1) -> "Anchoring":
        """The term for the rows of a tensor."""
        return cls(tuple(map(tuple, directions.tolist())), coefficient)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        n, d = self._anchors.shape
        if n > dictionary.latents or d != dictionary.d:
            raise ValueError(
                f"{n} directions of width {d} cannot anchor a dictionary of latents={dictionary.latents}, d={dictionary.d}; "
                "give at most one per latent, of the width of the rows"
            )
        anchors = self._anchors.to(dictionary.W_dec)
        distances = [(weights[:n] - anchors).square().sum() for weights in (dictionary.W_enc, dictionary.W_dec)]
        return self.coefficient * torch.stack(distances).sum()

    @cached_property
    def _anchors(self) -> Tensor:
        return torch.tensor(self.directions)
