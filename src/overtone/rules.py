"""After-step rules: what moves without a gradient. State goes in and comes out; the checkpoint keeps all of it."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from overtone import atoms
from overtone.dictionary import Codes, Dictionary

RuleState = dict[str, Tensor]


@runtime_checkable
class Rule(Protocol):
    """Acts on a dictionary after every optimiser step."""

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """State before the first step; may initialise weights from normalised sample rows."""
        ...

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Act on the dictionary in place and return the new state. `codes` are those of this step's rows.

        Where ranks share a batch, `codes.seen` are statistics of all of it, the rest is of this one's rows; what is done to the
        dictionary has to be the same on all (`dictionary.world`). Where rows are worked through in parts, codes are those of all
        parts, without gate and skip.
        """
        ...


@runtime_checkable
class GradientRule(Rule, Protocol):
    """A rule that also changes gradients before the optimiser sees them."""

    def before_step(self, dictionary: Dictionary) -> None:
        """Change gradients in place."""
        ...


@runtime_checkable
class TimedRule(Rule, Protocol):
    """A rule that is another one in the course of a run; its state stays of one kind."""

    def at(self, step: int, steps: int) -> Rule:
        """The rule at step 1 … steps."""
        ...


@runtime_checkable
class Resampling(Rule, Protocol):
    """A rule that starts latents anew: the optimiser's memory of them is cleared."""

    def forgotten(self, state: RuleState) -> Bool[Tensor, " latents"]:
        """Latents that started anew in the step this state is of."""
        ...


@dataclass(frozen=True)
class TangentGradient:
    """Removes from the gradient what `UnitNorm` would undo, before Adam's moments see it (maths.md eq. 8b; arXiv 2406.04093)."""

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """No state."""
        return {}

    @torch.no_grad()
    def before_step(self, dictionary: Dictionary) -> None:
        """Remove the part of the gradient that is parallel to its atom."""
        gradient, atoms = dictionary.W_dec.grad, dictionary.W_dec
        if gradient is not None:
            square = atoms.square().sum(1, keepdim=True).clamp(min=torch.finfo(atoms.dtype).tiny)
            gradient.sub_((gradient * atoms).sum(1, keepdim=True) / square * atoms)

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Nothing moves."""
        return state


@dataclass(frozen=True)
class UnitNorm:
    """w_m ← w_m / ‖w_m‖ after every step (maths.md eq. 8)."""

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Normalise the initial atoms; no state."""
        self.project(dictionary)
        return {}

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Project the atoms back to the sphere."""
        self.project(dictionary)
        return state

    def project(self, dictionary: Dictionary) -> None:
        """Unit-norm atoms, their directions unchanged."""
        _to_sphere(dictionary.W_dec)


@dataclass(frozen=True)
class UnitEncoder:
    """Encoder rows go back to the unit sphere after every step, as `UnitNorm` does with atoms.

    For untied weights whose bias is steered: thresholds in [0, 1] mean the same for all latents only while the rows they are
    compared with are of unit norm. Output scales a_m carry the magnitudes.
    """

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Normalise the initial rows; no state."""
        _to_sphere(dictionary.W_enc)
        return {}

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Project the encoder rows back to the sphere."""
        _to_sphere(dictionary.W_enc)
        return state


@torch.no_grad()
def _to_sphere(rows: Float[Tensor, "latents d"]) -> None:
    """Unit rows, their directions unchanged."""
    norm = rows.norm(dim=1, keepdim=True)
    rows.div_(norm.clamp(min=torch.finfo(norm.dtype).tiny))


@dataclass(frozen=True)
class AtomsNearStart:
    """Atoms stay within a cosine of where they started: the soft-frozen decoder of arXiv 2602.14111 (maths.md eq. R8).

    An atom that has left its cone goes to the nearest direction in it; norms are free. With cosine 1 atoms stay what they were,
    norms included: the frozen decoder. Belongs behind rules that move atoms at the start.

    Args:
        cosine: least cosine with the start, in (0, 1].
    """

    cosine: float = 0.8

    def __post_init__(self):
        if not 0 < self.cosine <= 1:
            raise ValueError(f"cosine={self.cosine} must lie in (0, 1]; 1 freezes the atoms")

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Where the atoms start."""
        return {"start": dictionary.W_dec.detach().clone()}

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Bring atoms back that have left their cone."""
        atoms, start = dictionary.W_dec, state["start"]
        if self.cosine == 1:
            atoms.copy_(start)
            return state
        axis = normalize(start, dim=1)
        norm = atoms.norm(dim=1, keepdim=True)
        along = (atoms * axis).sum(1, keepdim=True)
        aside = normalize(atoms - along * axis, dim=1)
        edge = norm * (self.cosine * axis + math.sqrt(1 - self.cosine**2) * aside)
        atoms.copy_(torch.where(along < self.cosine * norm, edge, atoms))
        return state


@dataclass(frozen=True)
class CentreAtMean:
    """The centre, b_dec, starts at the mean of the first rows (and stays there where the parametrisation does not train it)."""

    @torch.no_grad()
    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Set the centre; no state."""
        dictionary.centre.copy_(sample.mean(0))
        return {}

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Nothing moves."""
        return state


@dataclass(frozen=True)
class WhitenedEncoder:
    """The encoder follows the atoms in whitened space: W_enc = W_dec S̃ (maths.md eq. 31; arXiv 2509.20784).

    S̃ is the inverse second moment of the first rows less the centre, and atoms keep unit norm in its inner product, so that an
    atom alone has a product of 1 with itself. What the encoder's own gradient would do is overwritten.
    """

    @torch.no_grad()
    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """S̃, and atoms and encoder in its units."""
        if dictionary.parametrisation.tied or not dictionary.layout.onto_itself:
            raise ValueError(
                "WhitenedEncoder makes the encoder's rows of its own atoms; use Parametrisation(tied=False), and no other target"
            )
        state = {"metric": atoms.inverse_second_moment(sample - dictionary.b_dec)}
        self.follow(dictionary, state["metric"])
        return state

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Atoms back to the metric's sphere, and the encoder after them."""
        self.follow(dictionary, state["metric"])
        return state

    @torch.no_grad()
    def follow(self, dictionary: Dictionary, metric: Float[Tensor, "d d"]) -> None:
        """Unit atoms in the metric, and W_enc = W_dec S̃."""
        dictionary.W_dec.copy_(atoms.unit_atoms(dictionary.W_dec, metric))
        dictionary.W_enc.copy_(dictionary.W_dec @ metric)


@dataclass(frozen=True)
class ThresholdEMA:
    """The dictionary's threshold follows the smallest code of every batch: what `BatchTopK` lets through, for rows alone.

    θ ← (1 − rate) θ + rate · min z, from the first batch's own on (Bussmann et al., arXiv 2412.06410).

    Args:
        rate: share of a batch in the average.
    """

    rate: float = 0.01

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate} must lie in (0, 1]")

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """No batch seen yet."""
        if not hasattr(dictionary, "threshold"):
            raise ValueError(f"{dictionary.select} has no threshold to learn; ThresholdEMA belongs to BatchTopK")
        return {"batches": torch.zeros((), dtype=torch.int64)}

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Move the threshold; a batch without any code leaves it."""
        values = codes.entries.values
        smallest = torch.where(values > 0, values, torch.inf).amin() if len(values) else values.new_tensor(torch.inf)
        smallest = dictionary.world.everyone.min(smallest)
        if smallest.isfinite():
            rate = self.rate if state["batches"] > 0 else 1.0
            dictionary.get_parameter("threshold").lerp_(smallest, rate)
            state = {"batches": state["batches"] + 1}
        return state
