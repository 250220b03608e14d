"""The named methods: functions that return a Method. One file however long, since it is the list `overtone methods` reads."""

import math
from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from overtone.gating import Gated, ThresholdJumpReLU
from overtone.guidance import Anchoring, AuxK, Orthogonality
from overtone.losses import Alignment, Matryoshka, RarestFirst, Reconstruction, RelativeError, SampledMatryoshka
from overtone.method import Method
from overtone.model_loss import EndToEnd
from overtone.parametrisation import Parametrisation
from overtone.penalties import L0, L1, GateL1, GateReconstruction, Lp, PreActivation, Tanh
from overtone.revival import CountIdle, SurplusResampling
from overtone.rules import CentreAtMean, TangentGradient, ThresholdEMA, UnitEncoder, UnitNorm
from overtone.schedules import Ramp, warmed
from overtone.selection import (
    AbsTopK,
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
from overtone.steering import BiasAdaptation, FixedBias, Release


def gba(
    l0: float | None = None,
    *,
    groups: int | None = None,
    htf: float | None = None,
    ltf: float | None = None,
    interval: int = 10,
    activation: Literal["jumprelu", "relu"] = "jumprelu",
) -> Method:
    """Group Bias Adaptation with the rarest groups explaining the data first: at a wanted L0, or over the full range.

    The bias rule is the paper's (arXiv 2506.14002). What differs from `gba_paper` has its evidence in docs/log.md and is what
    holds feature recovery to the end of training: biases start at their target's quantile instead of at 0 (maths.md eq. 13);
    no threshold rises beyond 0.7 of its latent's own peak (eq. 9b), unless that latent stands for several features (eq. 9c); the
    loss is nested over groups from rare to frequent (`RarestFirst`, eq. 14); the centre is the data's mean. With `l0`, latents
    that fire too rarely are raised as well (eq. 10b): then L0 is steered to and not only bounded.

    Args:
        l0: wanted mean number of active latents, met within about a tenth; None: the full range HTF 0.5 → LTF 1e-3.
        groups: K; None: 20 over the full range, 10 at an L0.
        htf, ltf: highest and lowest target frequency; htf excludes l0.
        interval: T, steps between bias adaptations.
        activation: "jumprelu" (magnitudes do not depend on the bias) or "relu".
    """
    if groups is None:
        # Over the full range small groups, of fewer latents than there are features: none has latents to spare (docs/log.md).
        groups = 20 if l0 is None else 10
    spectrum = Spectrum(groups, htf, ltf, l0)
    return Method(
        name=_at_l0("gba", l0),
        select=_activation(activation),
        losses=(RarestFirst(spectrum),),
        rules=(UnitNorm(), CentreAtMean(), _steering(spectrum, interval)),
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
    """Group Bias Adaptation as published: one reconstruction loss, biases from 0, T = 50 (arXiv 2506.14002).

    Args:
        l0: mean number of active latents if each fires at its target; they stay below. None: HTF 0.5 → LTF 1e-3.
        groups: K.
        htf, ltf: highest and lowest target frequency; htf excludes l0.
        interval: T, steps between bias adaptations.
        activation: "jumprelu" (magnitudes do not depend on the bias) or "relu".
    """
    return Method(
        name="gba-paper",
        select=_activation(activation),
        losses=(Reconstruction(),),
        rules=(UnitNorm(), BiasAdaptation(Spectrum(groups, htf, ltf, l0), interval=interval)),
    )


def ba(frequency: float = 0.05, *, interval: int = 10) -> Method:
    """Bias Adaptation: one group, every latent steered to at most one `frequency` (arXiv 2506.14002).

    Args:
        frequency: the target p.
        interval: T, steps between bias adaptations.
    """
    spectrum = Spectrum(groups=1, htf=frequency)
    return Method(
        name="ba",
        select=JumpReLU(),
        losses=(Reconstruction(),),
        rules=(UnitNorm(), BiasAdaptation(spectrum, interval=interval, start="quantile")),
        lr=3e-3,
    )


def modified_ba(frequency: float = 0.005, *, step: float = 10.0, beta: float = 50.0) -> Method:
    """Modified BA, the theory's algorithm: one fixed bias, smooth ReLU, latents decoupled (a → 0), spherical steps.

    What arXiv 2506.14002 proves its recovery theorem for.

    Args:
        frequency: p, which fixes the bias of all latents at initialisation.
        step: η of w ← normalise(w + η g) with g the mean gradient of the alignment φ(y) wᵀx.
        beta: sharpness of the smooth ReLU; infinite: the ReLU, of which inactive rows cost nothing.
    """
    return Method(
        name="modified-ba",
        select=ReLU() if beta == math.inf else SmoothReLU(beta),
        losses=(Alignment(),),
        rules=(UnitNorm(), CentreAtMean(), FixedBias(frequency)),
        parametrisation=Parametrisation(scale=False, centre="fixed"),
        optimiser="sgd",
        lr=step,
    )


def gba_untied(
    l0: float | None = None,
    *,
    groups: int = 10,
    htf: float | None = None,
    ltf: float | None = None,
    interval: int = 10,
) -> Method:
    """GBA (arXiv 2506.14002) with an encoder of its own: what decides when a latent fires is not what it adds.

    Encoder rows stay on the unit sphere beside the atoms, so that thresholds mean what they mean in `gba`.

    Args:
        l0: wanted mean number of active latents; None: the full range HTF 0.5 → LTF 1e-3.
        groups: K.
        htf, ltf: highest and lowest target frequency; htf excludes l0.
        interval: T, steps between bias adaptations.
    """
    tied = gba(l0, groups=groups, htf=htf, ltf=ltf, interval=interval)
    untied = replace(tied.parametrisation, tied=False)
    return replace(tied, name=_at_l0("gba-untied", l0), rules=(UnitEncoder(), *tied.rules), parametrisation=untied)


def gba_jumprelu(
    l0: float | None = None,
    *,
    groups: int = 10,
    htf: float | None = None,
    ltf: float | None = None,
    interval: int = 10,
    start: float = 0.01,
    bandwidth: float = 0.02,
) -> Method:
    """JumpReLU with trained thresholds (arXiv 2407.14435) and, instead of a penalty, GBA's frequency control (arXiv 2506.14002).

    Each latent's bias is steered to its frequency, while its threshold learns from the reconstruction where it had better open.

    Args:
        l0: wanted mean number of active latents; None: the full range HTF 0.5 → LTF 1e-3.
        groups: K.
        htf, ltf: highest and lowest target frequency; htf excludes l0.
        interval: T, steps between bias adaptations.
        start: threshold before training; low, since it is the bias that makes codes sparse.
        bandwidth: ε.
    """
    spectrum = Spectrum(groups, htf, ltf, l0)
    plain = Method(
        name="jumprelu",
        select=ThresholdJumpReLU(start, bandwidth),
        losses=(RarestFirst(spectrum),),
        rules=(UnitNorm(), CentreAtMean()),
        parametrisation=Parametrisation(tied=False, centre="fixed"),
        lr=gba().lr,
    )
    return replace(with_frequency_control(plain, spectrum, interval=interval), name=_at_l0("gba-jumprelu", l0))


def gba_matryoshka(
    l0: float | None = None,
    *,
    groups: int = 10,
    htf: float | None = None,
    ltf: float | None = None,
    interval: int = 10,
) -> Method:
    """GBA (arXiv 2506.14002) with Matryoshka's loss (arXiv 2503.17547), whose prefixes are the groups, the most frequent first.

    The opposite order of `gba`, whose rarest groups explain first, and nothing stops gradients between groups.

    Args:
        l0: wanted mean number of active latents; None: the full range HTF 0.5 → LTF 1e-3.
        groups: K, of frequencies and so of prefixes.
        htf, ltf: highest and lowest target frequency; htf excludes l0.
        interval: T, steps between bias adaptations.
    """
    method = gba(l0, groups=groups, htf=htf, ltf=ltf, interval=interval)
    nested = Matryoshka(tuple((group + 1) / groups for group in range(groups)))
    return replace(method, name=_at_l0("gba-matryoshka", l0), losses=(nested,))


def gba_released(
    l0: float = 32,
    *,
    share: float = 0.5,
    groups: int = 10,
    interval: int = 10,
    ltf: float | None = None,
    first: float = 0.5,
    last: float = 0.75,
    nested: bool = False,
) -> Method:
    """GBA (arXiv 2506.14002) that resonates at low frequencies and then lets go of them: `Release`.

    Latents are steered to targets that add up to a share of the wanted L0, rarer than their features: there recovery is fast and
    sure, whatever the true L0 (docs/log.md). From the middle of the run all thresholds go to one common value, which gives the
    wanted L0 and every latent the frequency that its feature has.

    Args:
        l0: wanted mean number of active latents.
        share: Σ_m p_m of the targets, as a share of l0.
        groups: K.
        interval: T, steps between bias adaptations.
        ltf: lowest target frequency, for features of very different frequencies. None: a quarter of the highest.
        first, last: where thresholds start to go to the common one and where they arrive, as shares of the run.
        nested: with Matryoshka's loss (arXiv 2503.17547) in place of the reconstruction's, for features in hierarchies.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is a share of l0 and must lie in (0, 1]")
    method = gba(share * l0, groups=groups, ltf=ltf, interval=interval)
    rules = tuple(Release(rule, l0, first, last) if isinstance(rule, BiasAdaptation) else rule for rule in method.rules)
    loss = Matryoshka() if nested else Reconstruction()
    return replace(method, name=_at_l0("gba-nested" if nested else "gba-released", l0), losses=(loss,), rules=rules)


def gba_universal(
    *,
    groups: int = 10,
    htf: float = 0.1,
    ltf: float = 3e-5,
    interval: int = 10,
    threshold: float = 0.65,
    final: float = 1.0,
    first: float = 0.3,
    last: float = 0.6,
    resample: bool = True,
    centre: Literal["fixed", "trained"] = "trained",
    input_norm: Literal["row", "root", "site"] = "root",
) -> Method:
    """GBA (arXiv 2506.14002) that is told nothing: it resonates over a wide spectrum, then lets go to the universal threshold.

    As `gba_released`, but with no L0: all thresholds go to a share of σ √(2 ln M), which the largest of M projections that are
    only noise hardly exceeds (Donoho & Johnstone 1994; maths.md eq. 10d), and rise from there to the whole of it at the end of
    the run. Meanwhile latents that do not fire, or double another, start anew at what the others leave of rows
    (`SurplusResampling`, eq. 10e). Rows are divided by the root of their norm (eq. 2b), and every row's error counts alike
    (`RelativeError`, eq. 5b).

    Args:
        groups: K.
        htf, ltf: highest and lowest target frequency of the first part of the run.
        interval: T, steps between bias adaptations.
        threshold: share of the universal threshold that latents are released to. Lower: rare features are learnt sooner.
        final: share of it at the end of the run. Lower: more active latents and a better reconstruction.
        first, last: where thresholds start to go to the common one and where they arrive, as shares of the run.
        resample: whether latents start anew.
        centre: "trained" – from the data's mean; "fixed" – it stays there: features that are often active are part of the mean,
            and detected worse where it holds them.
        input_norm: "root" – best on the ground truths (docs/recovery.md); "row" – as `gba()`: other tools can read it; "site".
    """
    method = gba(groups=groups, htf=htf, ltf=ltf, interval=interval)
    rules = tuple(
        Release(rule, None, first, last, threshold, final) if isinstance(rule, BiasAdaptation) else rule
        for rule in method.rules
    )
    rules += (SurplusResampling(),) if resample else ()
    parametrisation = replace(method.parametrisation, centre=centre, input_norm=input_norm)
    return replace(
        method, name="gba-universal", losses=(RelativeError(),), rules=rules, parametrisation=parametrisation
    )


# What many methods of the field have in common: an encoder of its own, trained biases, no output scales; unit atoms under Adam.
_UNTIED = Parametrisation(tied=False, scale=False, bias="trained")
_UNIT = (TangentGradient(), UnitNorm())


def topk(k: int = 32, *, aux_after: int | None = None) -> Method:
    """TopK (Gao et al., arXiv 2406.04093): the k largest pre-activations of every row; untied, unit-norm atoms.

    Args:
        k: active latents per row.
        aux_after: rows without firing after which a latent is dead and learns from what the others leave (`AuxK`); the
            authors have 10 million. None: dead latents stay so.
    """
    method = Method(name=f"topk-{k}", select=TopK(k), losses=(Reconstruction(),), parametrisation=_UNTIED)
    return method if aux_after is None else with_aux_k(method, AuxK(after=aux_after))


def abs_topk(k: int = 32) -> Method:
    """AbsTopK (Zhu et al., arXiv 2510.00404): the k pre-activations largest in size of every row, signed; else as `topk`.

    Args:
        k: active latents per row.
    """
    return replace(topk(k), name=f"abs-topk-{k}", select=AbsTopK(k))


def group_max(k: int = 32) -> Method:
    """GroupMax (as in eai-sparsify): the largest pre-activation of each of k groups of latents; else as `topk`.

    Args:
        k: groups, and so the most active latents per row.
    """
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
    """BatchTopK (Bussmann et al., arXiv 2412.06410): the k · batch largest pre-activations of every batch; else as `topk`.

    Args:
        k: mean number of active latents.
    """
    return Method(
        name=f"batch-topk-{k}",
        select=BatchTopK(k),
        losses=(Reconstruction(),),
        rules=(UnitNorm(), ThresholdEMA()),
        parametrisation=_UNTIED,
    )


def matryoshka(
    k: int = 32, *, prefixes: tuple[float, ...] = Matryoshka().prefixes, sampled: int | None = None
) -> Method:
    """Matryoshka BatchTopK (Bussmann et al., arXiv 2503.17547): nested prefixes of the latents, each reconstructing alone.

    Args:
        k: mean number of active latents.
        prefixes: sizes of the prefixes as shares of all latents, ascending; the last one is 1.
        sampled: draw so many prefixes anew every step instead (`SampledMatryoshka`), the smallest possible one being the
            first of `prefixes`; None: they are fixed.
    """
    nested = Matryoshka(prefixes)
    term = nested if sampled is None else SampledMatryoshka(sampled, smallest=nested.prefixes[0])
    return replace(batch_topk(k), name=f"matryoshka-{k}", losses=(term,))


def l1(coefficient: float = 0.01) -> Method:
    """ReLU with an L1 penalty weighted by the atoms' norms; untied.

    Args:
        coefficient: weight of the penalty.
    """
    return Method(
        name=f"l1-{coefficient:g}",
        select=ReLU(),
        losses=(Reconstruction(), L1(coefficient)),
        rules=(),
        parametrisation=_UNTIED,
    )


def p_anneal(coefficient: float = 0.03, *, p_end: float = 0.2, first: float = 0.3, warmup: float = 0.05) -> Method:
    """ReLU with an Lp penalty whose p falls from 1 (Karvonen et al., arXiv 2408.00113).

    Args:
        coefficient: of the penalty, as for `l1`: annealing changes what a code is charged, not what all are.
        p_end: last p.
        first: share of the run after which p begins to fall.
        warmup: share of the run over which the coefficient rises.
    """
    return Method(
        name=f"p-anneal-{coefficient:g}",
        select=ReLU(),
        losses=(Reconstruction(), Ramp(warmed(Lp(coefficient), warmup), "p", 1.0, p_end, first)),
        rules=_UNIT,
        parametrisation=_UNTIED,
    )


def jumprelu(
    l0: float | None = None,
    *,
    coefficient: float | None = None,
    start: float = 0.05,
    bandwidth: float = 0.02,
    warmup: float = 0.1,
) -> Method:
    """JumpReLU with a trained threshold per latent and a penalty on L0 (Rajamanoharan et al., arXiv 2407.14435).

    Args:
        l0: mean number of active latents to steer to, by the penalty's squared distance from it; None: the plain penalty.
        coefficient: λ; None: 1 with `l0`, 1e-3 without.
        start: threshold before training. The authors' 0.001 (and bandwidth 0.001) starts half-active, which takes their
            hundreds of thousands of steps to come down from.
        bandwidth: ε.
        warmup: share of the run over which the coefficient rises.
    """
    if coefficient is None:
        coefficient = 1e-3 if l0 is None else 1.0
    return Method(
        name=f"jumprelu-{coefficient:g}" if l0 is None else f"jumprelu-l0-{l0:g}",
        select=ThresholdJumpReLU(start, bandwidth),
        losses=(Reconstruction(), warmed(L0(coefficient, l0), warmup)),
        rules=_UNIT,
        parametrisation=_UNTIED,
    )


def tanh_jumprelu(
    coefficient: float = 2e-3,
    *,
    scale: float = 20.0,
    pre_activation: float = 1e-6,
    start: float = 0.05,
    bandwidth: float = 0.05,
) -> Method:
    """JumpReLU with the tanh penalty, rising over the whole run, and the pre-activation loss of Anthropic's January 2025 update.

    Args:
        coefficient: λ_S at the end of the run.
        scale: c.
        pre_activation: λ_P; 0: without, which spares a dense product per step (`PreActivation`).
        start: threshold before training.
        bandwidth: ε.
    """
    sparsity = warmed(Tanh(coefficient, scale), 1.0)
    pulled = (PreActivation(pre_activation),) if pre_activation else ()
    return Method(
        name=f"tanh-jumprelu-{coefficient:g}",
        select=ThresholdJumpReLU(start, bandwidth),
        losses=(Reconstruction(), sparsity, *pulled),
        rules=(),
        parametrisation=_UNTIED,
    )


def gated(coefficient: float = 0.1, *, warmup: float = 0.1) -> Method:
    """Gated: one path decides which latents are active, another how much (Rajamanoharan et al., arXiv 2404.16014).

    Args:
        coefficient: of L1 on the gates. The authors' loss has no ½ before the squared errors: half of their λ does the same.
        warmup: share of the run over which the coefficient rises.
    """
    return Method(
        name=f"gated-{coefficient:g}",
        select=Gated(),
        losses=(Reconstruction(), GateReconstruction(), warmed(GateL1(coefficient), warmup)),
        # Free norms would let the atoms shrink under the penalty while the magnitudes' scale makes up for it.
        rules=_UNIT,
        parametrisation=_UNTIED,
    )


def ortsae(k: int = 32, *, coefficient: float = 0.25, chunk: int = 2048) -> Method:
    """OrtSAE (Korznikov et al., arXiv 2509.22033): BatchTopK whose atoms are kept from lying close to each other.

    Args:
        k: mean number of active latents.
        coefficient: γ of `Orthogonality`. The authors' loss has no ½ before the squared error.
        chunk: latents that are compared with each other in a step.
    """
    method = batch_topk(k)
    return replace(method, name=f"ortsae-{k}", losses=(*method.losses, Orthogonality(coefficient, chunk)))


def with_aux_k(method: Method, term: AuxK) -> Method:
    """A method whose dead latents learn from what the others leave."""
    return replace(
        method,
        losses=(*method.losses, term),
        rules=(*method.rules, CountIdle()),
        parametrisation=replace(method.parametrisation, counts_idle=True),
    )


def with_frequency_control(method: Method, spectrum: Spectrum, *, interval: int = 10) -> Method:
    """A method whose latents fire at target frequencies: GBA's rule as an add-on (arXiv 2506.14002, maths.md eq. 9–13).

    Encoder biases, which the method may have trained, are steered from now on; whatever else selects (k, trained thresholds,
    gates, a learnt threshold) does so as before, among biased pre-activations. What is compared with a bias is kept on the
    unit sphere: encoder rows, or atoms where they are the same. Penalties stay; one that makes codes sparse is no longer needed.

    Args:
        method: any method with encoder biases; not matching pursuit.
        spectrum: target frequencies and groups. With an `l0` frequencies are steered to from both sides, else bounded from above.
        interval: T, steps between bias adaptations.

    Raises:
        ValueError: the method's biases are steered already.
    """
    if any(isinstance(rule, BiasAdaptation | FixedBias | Release) for rule in method.rules):
        raise ValueError(
            f"method {method.name!r} steers its biases already; give one without BiasAdaptation or FixedBias"
        )
    sphere = UnitNorm() if method.parametrisation.tied else UnitEncoder()
    kept = () if sphere in method.rules else (sphere,)
    return replace(
        method,
        name=f"{method.name}-steered",
        rules=(*kept, *method.rules, _steering(spectrum, interval)),
        parametrisation=replace(method.parametrisation, bias="steered"),
    )


def _steering(spectrum: Spectrum, interval: int) -> BiasAdaptation:
    """The bias rule of `gba`: from both sides where an L0 is asked for, and else against latents of several features."""
    mixed = {"mixture_above": 1.5}
    both = {"raise_below": 0.75, "over_step": 0.035, "dead_step": 0.035}
    own = mixed if spectrum.l0 is None else both
    return BiasAdaptation(spectrum, interval=interval, start="quantile", narrowest=0.7, **own)


def _at_l0(name: str, l0: float | None) -> str:
    return name if l0 is None else f"{name}-l0-{l0:g}"


def anchored(method: Method, directions: Float[Tensor, "n d"], *, coefficient: float = 0.1) -> Method:
    """A method whose first n latents are tied to known directions, unit rows (`Anchoring`; arXiv 2512.05534)."""
    return replace(
        method, name=f"{method.name}-anchored", losses=(*method.losses, Anchoring.of(directions, coefficient))
    )


def end_to_end(method: Method, *, coefficient: float = 1.0, measure: Literal["kl", "ce"] = "kl") -> Method:
    """A method that also minds what the model makes of its reconstructions (`EndToEnd`; arXiv 2405.12241).

    The term is added to the method's own losses; `dataclasses.replace(method, losses=(EndToEnd(),))` has it alone. Batches have
    to know their text: train on a `ContextStream`.
    """
    return replace(method, name=f"{method.name}-{measure}", losses=(*method.losses, EndToEnd(coefficient, measure)))


def _activation(name: str) -> Selection:
    if name not in ("jumprelu", "relu"):
        raise ValueError(f"activation={name!r} is neither 'jumprelu' nor 'relu'")
    return JumpReLU() if name == "jumprelu" else ReLU()
