"""Loss terms besides reconstruction: what makes codes sparse, wakes dead latents or orders the atoms. Frozen values, pure."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, normalize

from overtone import ops
from overtone.dictionary import Codes, Dictionary
from overtone.ops import AnyCodes, half_square_error
from overtone.seeds import generator


@dataclass(frozen=True)
class L1:
    """coefficient · Σ_m |z_m| ‖a_m w_m‖, averaged over rows: the decoder norm makes the term blind to rescaling."""

    coefficient: float

    def __post_init__(self):
        _check_coefficient(self.coefficient)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        return self.coefficient * _per_row(codes.entries, _sizes(dictionary, codes.entries))


@dataclass(frozen=True)
class Lp:
    """coefficient · λ_p Σ_m (|z_m| ‖a_m w_m‖)^p, averaged over rows, with λ_p such that the term is worth what L1's is.

    p below 1 weighs whether a latent fires more than how much (maths.md eq. 26; arXiv 2408.00113). The authors anneal p and
    multiply their coefficient, at each change, by the ratio of the penalty before to the penalty after; λ_p, taken on the
    batch itself and without gradient, is the product of these ratios. `Ramp` anneals p.

    Args:
        coefficient: that of L1.
        p: exponent, in (0, 1].
        floor: added to what is raised, in units of the normalised input: bounds the gradient p·floor^(p − 1) of small codes.
    """

    coefficient: float
    p: float = 1.0
    floor: float = 1e-3

    def __post_init__(self):
        _check_coefficient(self.coefficient)
        if not 0 < self.p <= 1:
            raise ValueError(f"p={self.p} must lie in (0, 1]")
        if not 0 < self.floor < math.inf:
            raise ValueError(f"floor={self.floor} must be positive and finite")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        sizes = _sizes(dictionary, codes.entries)
        raised = (sizes + self.floor) ** self.p - self.floor**self.p
        worth = sizes.detach().sum() / raised.detach().sum().clamp(min=torch.finfo(sizes.dtype).tiny)
        return self.coefficient * worth * _per_row(codes.entries, raised)


@dataclass(frozen=True)
class L0:
    """coefficient · Σ_m 1{y_m > θ_m}, averaged over rows, or coefficient · (that mean / target − 1)² (maths.md eq. 22, 22b).

    The gradient reaches the thresholds of `ThresholdJumpReLU` alone, by its kernel (arXiv 2407.14435).

    Args:
        coefficient: λ. The authors' loss has no ½ before the squared error: half of their λ does the same here.
        target: mean number of active latents to steer to; None: as few as the reconstruction lets there be.
    """

    coefficient: float
    target: float | None = None

    def __post_init__(self):
        _check_coefficient(self.coefficient)
        if self.target is not None and not 0 < self.target < math.inf:
            raise ValueError(f"target={self.target} is a number of active latents and must be positive and finite")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        gate = _gate(dictionary, codes)
        l0 = _per_row(gate, gate.values)
        return self.coefficient * (l0 if self.target is None else (l0 / self.target - 1).square())


@dataclass(frozen=True)
class Tanh:
    """coefficient · Σ_m tanh(scale · |z_m| ‖a_m w_m‖), averaged over rows: counts active latents, and large codes do not feel it.

    λ_S of Anthropic's January 2025 update (maths.md eq. 23). Their rows have norm √d and their squared error no ½: on unit rows
    their settings are scale 4√d, coefficient 20/(2d), and a bandwidth of 2/√d.
    """

    coefficient: float
    scale: float

    def __post_init__(self):
        _check_coefficient(self.coefficient)
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale} must be positive and finite")

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        sizes = _sizes(dictionary, codes.entries)
        return self.coefficient * _per_row(codes.entries, torch.tanh(self.scale * sizes))


@dataclass(frozen=True)
class PreActivation:
    """coefficient · Σ_m max(θ_m − y_m, 0) ‖a_m w_m‖, averaged over rows: pulls latents that are silent back to their threshold.

    λ_P of Anthropic's January 2025 update (maths.md eq. 23). Of all latents, as they have it, it needs every pre-activation:
    some B·M numbers of memory and, forward and backward, three dense products of 2·B·M·d operations each – more than the whole
    of a sparse step. Of dead latents alone (`after`), as SAELens has it, it costs next to nothing once few are dead.

    Args:
        coefficient: λ_P.
        after: rows without firing after which a latent is dead; None: all latents are pulled.
    """

    coefficient: float
    after: int | None = None

    def __post_init__(self):
        _check_coefficient(self.coefficient)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        if not hasattr(dictionary, "log_threshold"):
            raise ValueError(
                f"{dictionary.select} has no trained threshold; PreActivation belongs to ThresholdJumpReLU"
            )
        some = slice(None) if self.after is None else dictionary.dead(self.after)
        threshold = dictionary.get_parameter("log_threshold")[some].exp()
        y = linear(_rows(codes) - dictionary.b_dec, dictionary.W_enc[some], dictionary.b_enc[some])
        norms = dictionary.effective_atoms[some].norm(dim=1)
        return self.coefficient * ((threshold - y).relu() @ norms).mean()


@dataclass(frozen=True)
class GateL1:
    """coefficient · Σ_m max(π_m, 0) ‖a_m w_m‖, averaged over rows: L1 on the gates of `Gated` (maths.md eq. 25)."""

    coefficient: float

    def __post_init__(self):
        _check_coefficient(self.coefficient)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        gate = _gate(dictionary, codes)
        return self.coefficient * _per_row(gate, _sizes(dictionary, gate))


@dataclass(frozen=True)
class GateReconstruction:
    """½ ‖Σ_m a_m w_m max(π_m, 0) + b_dec − x‖², averaged over rows, through the frozen decoder (maths.md eq. 25).

    What teaches the gates of `Gated` to open on what explains the data; atoms, scales and the decoder's b_dec get no gradient.
    """

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        explained = ops.decode(_gate(dictionary, codes), dictionary.effective_atoms.detach(), dictionary.b_dec.detach())
        return half_square_error(explained, target)


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
        _check_coefficient(self.coefficient)
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
        woken = ops.encode_topk(_rows(codes), *encoder, k, centre=dictionary.b_dec).codes
        with torch.no_grad():
            left = target - dictionary.decode_normalised(codes.entries)
            power = left.square().sum(1).mean().clamp(min=torch.finfo(left.dtype).tiny)
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
        _check_coefficient(self.coefficient)
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
        _check_coefficient(self.coefficient)
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


def _check_coefficient(coefficient: float) -> None:
    if not 0 <= coefficient < math.inf:
        raise ValueError(f"coefficient={coefficient} must be finite and not negative")


def _sizes(dictionary: Dictionary, codes: AnyCodes) -> Tensor:
    """|z_m| ‖a_m w_m‖: what does not change when scale moves between codes and atoms."""
    signed = codes.scaled(dictionary.effective_atoms.norm(dim=1)).values
    # Not abs(), whose gradient at 0 is 0: entries below a trained threshold are 0 and learn from what they would cost.
    return torch.where(signed < 0, -signed, signed)


def _per_row(codes: AnyCodes, values: Tensor) -> Float[Tensor, ""]:
    """Sum over a row's entries, averaged over rows."""
    return values.sum() / codes.rows_total


def _gate(dictionary: Dictionary, codes: Codes) -> AnyCodes:
    if codes.gate is None:
        raise ValueError(
            f"{dictionary.select} gave no gates for a penalty to act on; use ThresholdJumpReLU (codes of `encode_batch`) or Gated"
        )
    return codes.gate


def _rows(codes: Codes) -> Float[Tensor, "rows d"]:
    if codes.x is None:
        raise ValueError("these codes do not know their rows; a loss takes the codes of `Dictionary.encode_batch`")
    return codes.x
