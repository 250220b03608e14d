"""A method is a value: selection × loss terms × after-step rules × parametrisation. The named ones are functions."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from overtone.dictionary import Parametrisation
from overtone.losses import L1, Alignment, LossTerm, Matryoshka, RarestFirst, Reconstruction
from overtone.rules import BiasAdaptation, CentreAtMean, FixedBias, Rule, ThresholdEMA, UnitNorm
from overtone.selection import (
    AbsTopK,
    BatchSelection,
    BatchTopK,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    Selection,
    SmoothReLU,
    TopK,
)
from overtone.spectrum import Spectrum


@dataclass(frozen=True)
class Method:
    """What is trained, apart from sizes, data and length of the run.

    Args:
        name: how tables call it.
        select: selection rule (overtone.selection).
        losses: loss terms, summed (overtone.losses).
        rules: after-step rules, in order (overtone.rules).
        parametrisation: which weights exist.
        optimiser: "adam", or "sgd" (on unit rows: w ← normalise(w + η g), spherical gradient steps).
        lr: learning rate the method wants where a run does not set one.
    """

    name: str
    select: Selection | BatchSelection
    losses: tuple[LossTerm, ...]
    rules: tuple[Rule, ...] = (UnitNorm(),)
    parametrisation: Parametrisation = field(default_factory=Parametrisation)
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3

    def __post_init__(self):
        if not self.losses:
            raise ValueError(f"method {self.name!r} has no loss term; give at least Reconstruction()")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be positive and finite")

    def check(self, latents: int) -> None:
        """Raise a ValueError where this method cannot have so many latents."""
        k = getattr(self.select, "k", None)
        if k is not None and k > latents:
            raise ValueError(f"k={k} exceeds latents={latents}; lower k or widen the dictionary")
        if self.spectrum is not None:
            self.spectrum.targets(latents)
        for term in self.losses:
            if isinstance(term, Matryoshka):
                term.sizes(latents)
        if isinstance(self.select, MatchingPursuit):
            p = self.parametrisation
            if not p.tied or p.scale or p.bias == "trained" or self.spectrum is not None:
                raise ValueError(
                    f"method {self.name!r} pursues with other atoms than it decodes with, or has a bias to train or steer; "
                    "MatchingPursuit needs Parametrisation(tied=True, scale=False, bias='steered') and no BiasAdaptation"
                )
        staged = {term.spectrum for term in self.losses if isinstance(term, RarestFirst)}
        if staged - {self.spectrum}:
            raise ValueError(
                f"method {self.name!r} explains by the stages of one spectrum and steers to another; give RarestFirst and "
                "BiasAdaptation the same"
            )

    @property
    def spectrum(self) -> Spectrum | None:
        """The target spectrum, where a rule steers frequencies."""
        return next((rule.spectrum for rule in self.rules if isinstance(rule, BiasAdaptation)), None)


def gba(
    l0: float | None = None,
    *,
    groups: int = 10,
    htf: float | None = None,
    ltf: float | None = None,
    interval: int = 10,
    activation: Literal["jumprelu", "relu"] = "jumprelu",
) -> Method:
    """Group Bias Adaptation with the rarest groups explaining the data first: the default method.

    The bias rule is the paper's (arXiv 2506.14002). What differs from `gba_paper` has its evidence in docs/log.md and is what
    holds feature recovery to the end of training: biases start at their target's quantile instead of at 0 (maths.md eq. 13);
    no threshold rises beyond 0.7 of its latent's own peak (eq. 9b); the loss is nested over groups from rare to frequent
    (`RarestFirst`, eq. 14); the centre is the data's mean. With `l0`, latents that fire too rarely are raised as well (eq. 10b):
    then L0 is steered to and not only bounded.

    Args:
        l0: wanted mean number of active latents, met within about a tenth; None: the full range HTF 0.5 → LTF 1e-3.
        groups: K.
        htf, ltf: highest and lowest target frequency; htf excludes l0.
        interval: T, steps between bias adaptations.
        activation: "jumprelu" (magnitudes do not depend on the bias) or "relu".
    """
    spectrum = Spectrum(groups, htf, ltf, l0)
    steering = {} if l0 is None else {"raise_below": 0.75, "over_step": 0.035, "dead_step": 0.035}
    return Method(
        name="gba" if l0 is None else f"gba-l0-{l0:g}",
        select=_activation(activation),
        losses=(RarestFirst(spectrum),),
        rules=(
            UnitNorm(),
            CentreAtMean(),
            BiasAdaptation(spectrum, interval=interval, start="quantile", narrowest=0.7, **steering),
        ),
        parametrisation=Parametrisation(centre="fixed"),
        lr=3e-3,
    )


def gba_paper(
    l0: float | None = None,
    *,
    groups: int = 10,
    htf: float | None = None,
    ltf: float | None = None,
    interval: int = 50,
    activation: Literal["jumprelu", "relu"] = "jumprelu",
) -> Method:
    """Group Bias Adaptation as published: one reconstruction loss, biases from 0, T = 50 (arXiv 2506.14002)."""
    return Method(
        name="gba-paper",
        select=_activation(activation),
        losses=(Reconstruction(),),
        rules=(UnitNorm(), BiasAdaptation(Spectrum(groups, htf, ltf, l0), interval=interval)),
    )


def ba(frequency: float = 0.05, *, interval: int = 10) -> Method:
    """Bias Adaptation: one group, every latent steered to at most one `frequency`."""
    spectrum = Spectrum(groups=1, htf=frequency)
    return Method(
        name="ba",
        select=JumpReLU(),
        losses=(Reconstruction(),),
        rules=(UnitNorm(), BiasAdaptation(spectrum, interval=interval, start="quantile")),
        lr=3e-3,
    )


def modified_ba(frequency: float = 0.005, *, step: float = 10.0) -> Method:
    """Modified BA, the theory's algorithm: one fixed bias, smooth ReLU, latents decoupled (a → 0), spherical steps.

    Args:
        frequency: p, which fixes the bias of all latents at initialisation.
        step: η of w ← normalise(w + η g) with g the mean gradient of the alignment φ(y) wᵀx.
    """
    return Method(
        name="modified-ba",
        select=SmoothReLU(),
        losses=(Alignment(),),
        rules=(UnitNorm(), CentreAtMean(), FixedBias(frequency)),
        parametrisation=Parametrisation(scale=False, centre="fixed"),
        optimiser="sgd",
        lr=step,
    )


def topk(k: int = 32) -> Method:
    """TopK (Gao et al., arXiv 2406.04093): the k largest pre-activations of every row; untied, unit-norm atoms."""
    return Method(
        name=f"topk-{k}",
        select=TopK(k),
        losses=(Reconstruction(),),
        parametrisation=Parametrisation(tied=False, scale=False, bias="trained"),
    )


def abs_topk(k: int = 32) -> Method:
    """AbsTopK (Zhu et al., arXiv 2510.00404): the k pre-activations largest in size of every row, signed; else as `topk`."""
    return replace(topk(k), name=f"abs-topk-{k}", select=AbsTopK(k))


def group_max(k: int = 32) -> Method:
    """GroupMax (as in eai-sparsify): the largest pre-activation of each of k groups of latents; else as `topk`."""
    return replace(topk(k), name=f"group-max-{k}", select=GroupMax(k))


def matching_pursuit(k: int = 32, *, residual: float | None = None) -> Method:
    """Matching pursuit (Costa et al., arXiv 2506.03093): greedy steps on the residual; tied, unit-norm atoms, no encoder bias.

    Args:
        k: steps T of every row, and so the most active latents; one that is picked twice counts once.
        residual: norm of the residual under which a row stops, in units of the normalised input; None: never.
    """
    return Method(
        name=f"matching-pursuit-{k}",
        select=MatchingPursuit(k, residual),
        losses=(Reconstruction(),),
        parametrisation=Parametrisation(scale=False),
    )


def batch_topk(k: int = 32) -> Method:
    """BatchTopK (Bussmann et al., arXiv 2412.06410): the k · batch largest pre-activations of every batch; else as `topk`."""
    return Method(
        name=f"batch-topk-{k}",
        select=BatchTopK(k),
        losses=(Reconstruction(),),
        rules=(UnitNorm(), ThresholdEMA()),
        parametrisation=Parametrisation(tied=False, scale=False, bias="trained"),
    )


def matryoshka(k: int = 32, *, prefixes: tuple[float, ...] = Matryoshka().prefixes) -> Method:
    """Matryoshka BatchTopK (Bussmann et al., arXiv 2503.17547): nested prefixes of the latents, each reconstructing alone.

    Args:
        k: mean number of active latents.
        prefixes: sizes of the prefixes as shares of all latents, ascending; the last one is 1.
    """
    return replace(batch_topk(k), name=f"matryoshka-{k}", losses=(Matryoshka(prefixes),))


def l1(coefficient: float = 0.01) -> Method:
    """ReLU with an L1 penalty weighted by the atoms' norms; untied."""
    return Method(
        name=f"l1-{coefficient:g}",
        select=ReLU(),
        losses=(Reconstruction(), L1(coefficient)),
        rules=(),
        parametrisation=Parametrisation(tied=False, scale=False, bias="trained"),
    )


def _activation(name: str) -> Selection:
    if name not in ("jumprelu", "relu"):
        raise ValueError(f"activation={name!r} is neither 'jumprelu' nor 'relu'")
    return JumpReLU() if name == "jumprelu" else ReLU()
