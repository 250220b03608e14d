"""The named methods: functions that return a Method."""

from dataclasses import replace
from typing import Literal

from overtone.dictionary import Parametrisation
from overtone.losses import L1, Alignment, Matryoshka, RarestFirst, Reconstruction
from overtone.method import Method
from overtone.rules import BiasAdaptation, CentreAtMean, FixedBias, ThresholdEMA, UnitNorm
from overtone.selection import BatchTopK, JumpReLU, ReLU, Selection, SmoothReLU, TopK
from overtone.spectrum import Spectrum


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
