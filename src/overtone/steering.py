"""Bias adaptation: the rules that steer how often each latent fires, and where its bias starts."""

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone import firing
from overtone.dictionary import Codes, Dictionary
from overtone.firing import FiringStats
from overtone.rules import RuleState
from overtone.spectrum import Spectrum, group_sizes

LATENTS_PER_BLOCK = 512


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
    mixture_above: float | None = None,
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
        mixture_above: latents that fire more than so many times as often as the median of their group have no such limit: they
            stand for several features (maths.md eq. 9c). None: for all latents.
    """
    frequency, peak = stats.frequency, stats.peak
    fired = (peak > 0).to(peak.dtype)
    size = int(group.max()) + 1
    total_peak = torch.zeros(size, dtype=peak.dtype, device=peak.device).index_add(0, group, peak)
    firing_latents = torch.zeros_like(total_peak).index_add(0, group, fired)
    group_peak = (total_peak / firing_latents.clamp(min=1))[group]
    # A latent at its limit keeps its bias; the limit itself moves with the peak and must not raise a bias.
    if mixture_above is None:
        mixed = torch.zeros_like(fired, dtype=torch.bool)
    else:
        mixed = frequency > mixture_above * _medians(frequency, group)
    limit = (torch.where(mixed, 1.0, narrowest) * (bias - peak)).clamp(min=floor).minimum(bias)
    lowered = (bias - over_step * peak).maximum(limit)
    dead = frequency < dead_below
    rise = torch.where(dead, group_peak, torch.where(frequency < raise_below * targets, peak, 0.0))
    raised = (bias + dead_step * rise).clamp(max=0.0)
    return torch.where(frequency > targets, lowered, raised)


def _medians(frequency: Tensor, group: Tensor) -> Tensor:
    """Of every latent, the median frequency of its group."""
    medians = [frequency[group == g].median() for g in range(int(group.max()) + 1)]
    return torch.stack(medians)[group]


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
        mixture_above: of `adapt_bias`; at least 1. None: the limit holds for all.
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
    mixture_above: float | None = None
    raise_below: float = 0.0
    start: Literal["zero", "quantile"] = "zero"

    def __post_init__(self):
        if self.interval < 1:
            raise ValueError(f"interval={self.interval} must be at least 1 step")
        if not 0 < self.narrowest <= 1:
            raise ValueError(f"narrowest={self.narrowest} is a share of the peak and must lie in (0, 1]")
        if self.mixture_above is not None and not self.mixture_above >= 1:
            raise ValueError(
                f"mixture_above={self.mixture_above} is a multiple of the group's median and must be at least 1"
            )
        if not 0 <= self.raise_below <= 1:
            raise ValueError(f"raise_below={self.raise_below} is a share of the target and must lie in [0, 1]")
        if self.start not in ("zero", "quantile"):
            raise ValueError(f"start={self.start!r} is neither 'zero' nor 'quantile'")

    @torch.no_grad()
    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Empty statistics and the targets; biases at their start."""
        targets = dictionary.part(self.spectrum.targets(dictionary.latents)).to(dictionary.b_enc)
        if self.start == "quantile":
            centred = (sample - dictionary.centre).T
            sizes = group_sizes(dictionary.latents, self.spectrum.groups)
            groups = torch.arange(dictionary.latents).split(sizes)
            for target, group in zip(self.spectrum.frequencies(dictionary.latents).tolist(), groups, strict=True):
                # In blocks: the projections of a wide dictionary would outgrow everything else in memory.
                group = group[(group >= dictionary.own.start) & (group < dictionary.own.stop)] - dictionary.own.start
                for block in group.split(LATENTS_PER_BLOCK) if len(group) else ():
                    dictionary.b_enc[block] = quantile_bias(dictionary.W_enc[block] @ centred, target)
        stats = firing.empty(len(dictionary.b_enc), dictionary.b_enc.device)
        return {"targets": targets, **stats._asdict()}

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Gather statistics; adapt and forget every `interval` steps."""
        stats = firing.merge(FiringStats(state["rows"], state["fired"], state["peak"]), codes.seen)
        if step % self.interval == 0:
            group, whole = self.spectrum.group_of(dictionary.latents).to(dictionary.b_enc.device), dictionary.whole
            # Groups may be on several ranks: all adapt all latents, a few numbers each, and keep their own.
            dictionary.b_enc.copy_(
                dictionary.part(
                    adapt_bias(
                        whole(dictionary.b_enc),
                        FiringStats(stats.rows, whole(stats.fired), whole(stats.peak)),
                        whole(state["targets"]),
                        group,
                        over_step=self.over_step,
                        dead_step=self.dead_step,
                        dead_below=self.dead_below,
                        narrowest=self.narrowest,
                        mixture_above=self.mixture_above,
                        raise_below=self.raise_below,
                    )
                )
            )
            stats = firing.empty(len(dictionary.b_enc), dictionary.b_enc.device)
        return {"targets": state["targets"], **stats._asdict()}


def universal_threshold(rows: Float[Tensor, "rows d"], latents: int) -> Float[Tensor, ""]:
    """σ √(2 ln M), which the largest of M Gaussian projections hardly exceeds (maths.md eq. 10d; Donoho & Johnstone 1994).

    σ² = mean ‖x‖²/d is the variance of centred rows along a unit direction, on average over directions. Scales with the rows.

    Args:
        rows: centred, in the units that thresholds are in.
        latents: M; of one latent the threshold is 0.
    """
    return (rows.square().mean() * (2 * math.log(latents))).sqrt()


@dataclass(frozen=True)
class Release:
    """Bias adaptation that lets go: latents are steered to targets of their own first, then to one threshold (maths.md eq. 10c).

    A latent learns a feature best while it fires more rarely than the feature occurs; once its atom has settled, how often it
    ought to fire is a question to the data, and no longer to a spectrum. So from `first` on, thresholds −b_m go to one value θ,
    along straight lines in their logarithm, and are there at `last`. θ is steered from both sides until L0 is as asked. Where
    none is, it is a share of the universal threshold of M Gaussian projections (eq. 10d; Donoho & Johnstone 1994), which can
    rise to the end of the run: what is below it is learnt from, and in the end not said to be there.

    Args:
        adaptation: the rule until then; its `interval` is kept.
        l0: mean number of active latents at the end; None: whatever the universal threshold lets through.
        first, last: where thresholds start to go and where they arrive, as shares of the run.
        universal: θ at `last` as a share of the universal threshold, where no l0 is asked for.
        final: the share at the end of the run, where no l0 is asked for; None: the same.
        gain: largest relative change of θ per adaptation.
        pull: share of the way to θ, in logarithms, that the next adaptation goes; `at` sets it. 0: still steered.
        risen: share of the way from `universal` to `final`, in logarithms; `at` sets it.
    """

    adaptation: BiasAdaptation
    l0: float | None
    first: float = 0.5
    last: float = 0.75
    universal: float = 0.85
    final: float | None = None
    gain: float = 0.1
    pull: float = 0.0
    risen: float = 0.0

    def __post_init__(self):
        if self.l0 is not None and not 0 < self.l0 < math.inf:
            raise ValueError(f"l0={self.l0} must be positive: it is a mean number of active latents per row")
        for name, share in (("universal", self.universal), ("final", self.final)):
            if share is not None and not 0 < share < math.inf:
                raise ValueError(f"{name}={share} is a share of the universal threshold and must be positive")
        if not 0 <= self.first <= self.last <= 1:
            raise ValueError(f"first={self.first} and last={self.last} are shares of the run: 0 ≤ first ≤ last ≤ 1")
        if not 0 < self.gain < 1:
            raise ValueError(f"gain={self.gain} is a relative change and must lie between 0 and 1 (exclusive)")

    @property
    def spectrum(self) -> Spectrum:
        """Of the first part of the run."""
        return self.adaptation.spectrum

    def at(self, step: int, steps: int) -> "Release":
        """The rule at step 1 … steps."""
        if step <= self.first * steps:
            return self
        interval, last = self.adaptation.interval, self.last * steps
        risen = (step - last) / (steps - last) if last < step else 0.0
        return replace(self, pull=interval / (interval + max(0.0, last - step)), risen=risen)

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """As the adaptation, and the common threshold; 0 where L0 is to decide it."""
        state = self.adaptation.begin(dictionary, sample)
        if self.l0 is not None:
            return state | {"threshold": dictionary.b_enc.new_zeros(())}
        theta = self.universal * universal_threshold(sample - dictionary.centre, dictionary.latents)
        return state | {"threshold": theta.to(dictionary.b_enc).clamp(max=1.0)}

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Steer, or let go."""
        threshold = state["threshold"]
        steered = {name: value for name, value in state.items() if name != "threshold"}
        if not self.pull:
            return self.adaptation.after_step(dictionary, steered, codes, step) | {"threshold": threshold}
        stats = firing.merge(FiringStats(state["rows"], state["fired"], state["peak"]), codes.seen)
        if step % self.adaptation.interval == 0:
            least = torch.finfo(dictionary.b_enc.dtype).eps
            own = (-dictionary.b_enc).clamp(min=least)
            if self.l0 is not None:
                threshold = torch.where(threshold > 0, threshold, dictionary.whole(own).mean())
                l0 = dictionary.world.latents.sum(stats.frequency.sum())
                excess = (l0 / self.l0 - 1).clamp(-1.0, 1.0)
                threshold = (threshold * (1 + self.gain * excess)).clamp(least, 1.0)
            aim = threshold
            if self.l0 is None and self.final is not None:
                aim = (threshold * (self.final / self.universal) ** self.risen).clamp(max=1.0)
            dictionary.b_enc.copy_(-own.pow(1 - self.pull) * aim**self.pull)
            stats = firing.empty(len(dictionary.b_enc), dictionary.b_enc.device)
        return {"targets": state["targets"], **stats._asdict(), "threshold": threshold}


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
        some = dictionary.W_enc[: max(0, LATENTS_PER_BLOCK - dictionary.own.start)]
        ranks, total = dictionary.world.latents, min(LATENTS_PER_BLOCK, dictionary.latents)
        if ranks.size > 1:
            ends = itertools.accumulate(ranks.parts(dictionary.latents))
            reached = [min(end, total) for end in (0, *ends)]
            some = ranks.concatenate(some, [b - a for a, b in itertools.pairwise(reached)])
        pooled = some @ (sample - dictionary.centre).T
        dictionary.b_enc.copy_(quantile_bias(pooled.reshape(1, -1), self.frequency))
        return {}

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Nothing moves."""
        return state
