"""After-step rules: what moves without a gradient. State goes in and comes out; the checkpoint keeps all of it."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone import atoms, firing
from overtone.dictionary import Codes, Dictionary
from overtone.firing import FiringStats
from overtone.spectrum import Spectrum, group_sizes

RuleState = dict[str, Tensor]

LATENTS_PER_BLOCK = 512


@runtime_checkable
class Rule(Protocol):
    """Acts on a dictionary after every optimiser step."""

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """State before the first step; may initialise weights from normalised sample rows."""
        ...

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Act on the dictionary in place and return the new state. `codes` are those of this step's rows."""
        ...


@runtime_checkable
class GradientRule(Rule, Protocol):
    """A rule that also changes gradients before the optimiser sees them."""

    def before_step(self, dictionary: Dictionary) -> None:
        """Change gradients in place."""
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


def adapt_bias(
    bias: Float[Tensor, " latents"],
    stats: FiringStats,
    targets: Float[Tensor, " latents"],
    group: Int[Tensor, " latents"],
    *,
    over_step: float = 0.01,
    dead_step: float = 0.01,
    dead_below: float = 1e-6,
    floor: float = -1.0,
    narrowest: float = 1.0,
    raise_below: float = 0.0,
) -> Float[Tensor, " latents"]:
    """One bias adaptation (maths.md eq. 9–10; arXiv 2506.14002, Algorithm 1).

    p_m and r_m are the frequency and the peak in `stats`, R_k the mean of the positive peaks of group k:

        over-active  p_m > p_k:  b_m ← max(b_m − γ₋ r_m, floor)
        dead         p_m < ε:    b_m ← min(b_m + γ₊ R_k, 0)

    All other latents keep their bias (but see `raise_below`). Permuting latents (with targets and groups) permutes the result.

    Args:
        bias: b, in units of the normalised input.
        stats: firing statistics since the last adaptation.
        targets: target frequency p_k of every latent's group.
        group: group index of every latent.
        over_step: γ₋, step of over-active latents, as a share of their peak.
        dead_step: γ₊, step of dead latents, as a share of their group's mean peak.
        dead_below: ε, frequency under which a latent is dead.
        floor: smallest bias.
        raise_below: share of the target under which a latent that still fires is raised, by dead_step of its own peak; 0: never,
            as published.
        narrowest: c in (0, 1], the largest threshold −b_m as a share of the latent's own peak projection r_m − b_m (maths.md
            eq. 9b); a latent that has got there is not lowered further, target or not. 1: no limit, as published.
    """
    frequency, peak = stats.frequency, stats.peak
    fired = (peak > 0).to(peak.dtype)
    size = int(group.max()) + 1
    total_peak = torch.zeros(size, dtype=peak.dtype, device=peak.device).index_add(0, group, peak)
    firing_latents = torch.zeros_like(total_peak).index_add(0, group, fired)
    group_peak = (total_peak / firing_latents.clamp(min=1))[group]
    # A latent at its limit keeps its bias; the limit itself moves with the peak and must not raise a bias.
    limit = (narrowest * (bias - peak)).clamp(min=floor).minimum(bias)
    lowered = (bias - over_step * peak).maximum(limit)
    dead = frequency < dead_below
    rise = torch.where(dead, group_peak, torch.where(frequency < raise_below * targets, peak, 0.0))
    raised = (bias + dead_step * rise).clamp(max=0.0)
    return torch.where(frequency > targets, lowered, raised)


def quantile_bias(projections: Float[Tensor, "latents rows"], target: float) -> Float[Tensor, " latents"]:
    """The bias −q at which each latent fires on a share `target` of the rows, kept within [−1, 0] (maths.md eq. 13).

    q is the (1 − target)-quantile of the latent's projections w·(x − b_dec).
    """
    rows = projections.shape[1]
    rank = min(max(round((1 - target) * rows), 1), rows)
    return -projections.kthvalue(rank, dim=1).values.clamp(0.0, 1.0)


@dataclass(frozen=True)
class BiasAdaptation:
    """Group Bias Adaptation: every `interval` steps each bias moves so that its latent fires at most at its target.

    Keeps counts and peaks only (O(latents)); forgets them after every adaptation. One group gives BA.

    Args:
        spectrum: groups and target frequencies.
        interval: T, steps between adaptations.
        over_step: γ₋ of `adapt_bias`.
        dead_step: γ₊ of `adapt_bias`.
        dead_below: ε of `adapt_bias`.
        narrowest: c of `adapt_bias`.
        raise_below: of `adapt_bias`; above 0, targets are steered to from both sides and bound L0 no longer, but meet it.
        start: "zero" – biases start at 0, every latent half-active, as in the paper; "quantile" – each latent starts at
            the bias at which it fires at its target frequency on the first rows (maths.md eq. 13).
    """

    spectrum: Spectrum = field(default_factory=Spectrum)
    interval: int = 50
    over_step: float = 0.01
    dead_step: float = 0.01
    dead_below: float = 1e-6
    narrowest: float = 1.0
    raise_below: float = 0.0
    start: Literal["zero", "quantile"] = "zero"

    def __post_init__(self):
        if self.interval < 1:
            raise ValueError(f"interval={self.interval} must be at least 1 step")
        if not 0 < self.narrowest <= 1:
            raise ValueError(f"narrowest={self.narrowest} is a share of the peak and must lie in (0, 1]")
        if not 0 <= self.raise_below <= 1:
            raise ValueError(f"raise_below={self.raise_below} is a share of the target and must lie in [0, 1]")
        if self.start not in ("zero", "quantile"):
            raise ValueError(f"start={self.start!r} is neither 'zero' nor 'quantile'")

    @torch.no_grad()
    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Empty statistics and the targets; biases at their start."""
        targets = self.spectrum.targets(dictionary.latents).to(dictionary.b_enc)
        if self.start == "quantile":
            centred = (sample - dictionary.centre).T
            sizes = group_sizes(dictionary.latents, self.spectrum.groups)
            groups = torch.arange(dictionary.latents).split(sizes)
            for target, group in zip(self.spectrum.frequencies(dictionary.latents).tolist(), groups, strict=True):
                # In blocks: the projections of a wide dictionary would outgrow everything else in memory.
                for block in group.split(LATENTS_PER_BLOCK):
                    dictionary.b_enc[block] = quantile_bias(dictionary.W_enc[block] @ centred, target)
        stats = firing.empty(dictionary.latents, dictionary.b_enc.device)
        return {"targets": targets, **stats._asdict()}

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Gather statistics; adapt and forget every `interval` steps."""
        stats = firing.merge(FiringStats(state["rows"], state["fired"], state["peak"]), codes.seen)
        if step % self.interval == 0:
            group = self.spectrum.group_of(dictionary.latents).to(dictionary.b_enc.device)
            dictionary.b_enc.copy_(
                adapt_bias(
                    dictionary.b_enc,
                    stats,
                    state["targets"],
                    group,
                    over_step=self.over_step,
                    dead_step=self.dead_step,
                    dead_below=self.dead_below,
                    narrowest=self.narrowest,
                    raise_below=self.raise_below,
                )
            )
            stats = firing.empty(dictionary.latents, dictionary.b_enc.device)
        return {"targets": state["targets"], **stats._asdict()}


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
class FixedBias:
    """One bias for all latents, set once from a target frequency: modified BA, the theory's algorithm (maths.md eq. 11).

    The bias is minus the (1 − p)-quantile of the projections w·(x − b_dec) of the first rows on the initial atoms, pooled
    over latents; for unit rows and uniform atoms that is −Φ⁻¹(1 − p)/√d.
    """

    frequency: float

    def __post_init__(self):
        if not 0 < self.frequency < 1:
            raise ValueError(f"frequency={self.frequency} must lie between 0 and 1 (exclusive)")

    @torch.no_grad()
    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Set every bias; no state."""
        pooled = dictionary.W_enc[:LATENTS_PER_BLOCK] @ (sample - dictionary.centre).T
        dictionary.b_enc.copy_(quantile_bias(pooled.reshape(1, -1), self.frequency))
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
        if smallest.isfinite():
            rate = self.rate if state["batches"] > 0 else 1.0
            dictionary.get_parameter("threshold").lerp_(smallest, rate)
            state = {"batches": state["batches"] + 1}
        return state
