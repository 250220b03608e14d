"""Complete runs with the settings of papers and of the quickstart; nothing here that a user could not write."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from overtone import published
from overtone.data.forest import synth_sae_bench
from overtone.data.ground_truths import Hierarchy, linear_representation_bench, sanity_check
from overtone.data.synthetic import GroundTruth, SparseMixture
from overtone.method import Method
from overtone.methods import (
    abs_topk,
    ba,
    batch_topk,
    gba,
    gba_jumprelu,
    gba_matryoshka,
    gba_paper,
    gba_released,
    gba_universal,
    gba_untied,
    group_max,
    jumprelu,
    l1,
    matching_pursuit,
    matryoshka,
    modified_ba,
    topk,
)
from overtone.published import Published
from overtone.rules import CentreAtMean
from overtone.training import Run


@dataclass(frozen=True)
class Contestant:
    """A method in a recovery suite.

    Attributes:
        make: gives the method.
        what: one line for tables.
    """

    make: Callable[[], Method]
    what: str


@dataclass(frozen=True)
class Suite:
    """A ground truth, the methods that are tried on it, and the length of a run.

    Attributes:
        name: of the suite.
        truth: from a seed and settings, which are its keyword arguments.
        contestants: methods by name.
        default_methods: those trained where none is named.
        rows: fixed rows that training goes through again and again; None: fresh ones for every step.
        width: latents per true feature, a fraction where a dictionary is narrower than the truth.
        steps: of a training.
        batch: rows per step.
        what: one line.
        thresholds: τ of the recovery rates.
        signed: of `metrics.recovery.recovery`.
        decay: as in `Run`.
        rivals: the same methods at another number of active latents; None where each has its own.
        published: what papers report of the methods.
        headline: the scores that stand for the suite beside others, the first of which ranks methods; of recovery rates: the
            stricter one.
    """

    name: str
    truth: Callable[..., GroundTruth]
    contestants: dict[str, Contestant]
    default_methods: tuple[str, ...]
    rows: int | None
    width: float
    steps: int
    batch: int
    what: str
    thresholds: tuple[float, ...] = (0.8, 0.9)
    signed: bool = True
    decay: float = 0.2
    rivals: Callable[[int], dict[str, Contestant]] | None = None
    published: Published | None = None
    headline: tuple[str, ...] = ("frr_0.9",)

    def at(self, k: int) -> "Suite":
        """The suite with its methods at about k active latents."""
        if self.rivals is None:
            raise ValueError(f"k={k}: the methods of suite {self.name} have a k each; choose among them with --methods")
        return replace(self, contestants=self.rivals(k))

    def latents(self, truth: GroundTruth) -> int:
        """Width of the dictionaries, where no other is asked for."""
        return round(self.width * len(truth.features))

    def run(self, method: Method, *, latents: int, steps: int, seed: int) -> Run:
        """The training run of one method."""
        return Run(method=method, latents=latents, steps=steps, batch=self.batch, decay=self.decay, seed=seed)


def with_gba_centre(method: Method) -> Method:
    """A comparator with the centre (at the mean, fixed) and the learning rate of `gba()`, so that only the method differs.

    A trained centre costs TopK the recovery of the imbalanced set (docs/log.md). A method that starts at the mean by itself is
    left as it is.
    """
    if any(isinstance(rule, CentreAtMean) for rule in method.rules):
        return method
    fixed = replace(method.parametrisation, centre="fixed")
    # The centre first: quantiles of projections, where a rule takes them, are of centred rows.
    return replace(method, rules=(CentreAtMean(), *method.rules), parametrisation=fixed, lr=gba().lr)


UNIVERSAL = "GBA, universal threshold"
UNIVERSAL_ROWS = f"{UNIVERSAL}, unit rows"

IMBALANCED = Suite(
    name="imbalanced",
    truth=SparseMixture,
    contestants={
        "gba": Contestant(gba, "GBA"),
        "gba-wrong": Contestant(lambda: gba(htf=0.5, ltf=0.3), "GBA, wrong"),
        "gba-paper": Contestant(gba_paper, "GBA as published"),
        "gba-untied": Contestant(gba_untied, "GBA, untied"),
        "gba-jumprelu": Contestant(gba_jumprelu, "GBA, trained thresholds"),
        "gba-matryoshka": Contestant(gba_matryoshka, "GBA, Matryoshka groups"),
        "gba-10": Contestant(lambda: gba(10), "GBA, L0 = 10"),
        "gba-matryoshka-10": Contestant(lambda: gba_matryoshka(10), "GBA, Matryoshka groups, L0 = 10"),
        "gba-universal": Contestant(gba_universal, UNIVERSAL),
        "gba-universal-rows": Contestant(lambda: gba_universal(input_norm="row"), UNIVERSAL_ROWS),
        "ba": Contestant(ba, "BA, p = 0.05"),
        "modified-ba": Contestant(modified_ba, "modified BA"),
        "topk-10": Contestant(lambda: with_gba_centre(topk(10)), "TopK, k = 10"),
        "topk-20": Contestant(lambda: with_gba_centre(topk(20)), "TopK, k = 20"),
        "topk-30": Contestant(lambda: with_gba_centre(topk(30)), "TopK, k = 30"),
        "topk-50": Contestant(lambda: with_gba_centre(topk(50)), "TopK, k = 50"),
        "matryoshka-10": Contestant(lambda: with_gba_centre(matryoshka(10)), "Matryoshka, k = 10"),
        "jumprelu-10": Contestant(lambda: with_gba_centre(jumprelu(10)), "JumpReLU, L0 = 10"),
        "l1": Contestant(lambda: with_gba_centre(l1()), "L1, 0.01"),
    },
    default_methods=("gba", "gba-universal", "gba-wrong", "ba", "topk-10", "topk-20", "topk-50", "l1"),
    rows=50_000,
    width=6,
    steps=3000,
    batch=512,
    what="half of the rows mix 3 features, half 20 (arXiv 2506.14002)",
    published=published.IMBALANCED,
)


def uncentred(method: Method) -> Method:
    """A method on rows as they are, neither centred nor scaled, at the learning rate of `gba()`.

    Of data whose magnitudes vary independently: scaled to unit norm, the rows of one parent and one child all but coincide, and
    whatever the method, a latent for the two together is learnt (docs/log.md).
    """
    plain = replace(method.parametrisation, centre="fixed", input_norm="none")
    rules = tuple(rule for rule in method.rules if not isinstance(rule, CentreAtMean))
    return replace(method, rules=rules, parametrisation=plain, lr=gba().lr)


def rivals(
    k: int, prepared: Callable[[Method], Method], l1_coefficient: Callable[[int], float] = lambda k: 0.01
) -> dict[str, Contestant]:
    """The methods that suites beside the imbalanced one try, at about k active latents; L1 with the coefficient for k."""
    coefficient = l1_coefficient(k)
    made: dict[str, tuple[Callable[[], Method], str]] = {
        "gba": (gba, "GBA"),
        "gba-l0": (lambda: gba(l0=k), f"GBA, L0 = {k}"),
        "gba-released": (lambda: gba_released(k), f"GBA, released to L0 = {k}"),
        "gba-wide": (
            lambda: gba_released(k, share=1.0, ltf=3e-5),
            f"GBA, targets down to 3e-5, released to L0 = {k}",
        ),
        "gba-nested": (lambda: gba_released(k, nested=True), f"GBA, nested, released to L0 = {k}"),
        "gba-universal": (gba_universal, UNIVERSAL),
        "gba-universal-rows": (lambda: gba_universal(input_norm="row"), UNIVERSAL_ROWS),
        "topk": (lambda: topk(k), f"TopK, k = {k}"),
        "batch-topk": (lambda: batch_topk(k), f"BatchTopK, k = {k}"),
        "matryoshka": (lambda: matryoshka(k), f"Matryoshka, k = {k}"),
        "abs-topk": (lambda: abs_topk(k), f"AbsTopK, k = {k}"),
        "group-max": (lambda: group_max(k), f"GroupMax, k = {k}"),
        "matching-pursuit": (lambda: matching_pursuit(k), f"matching pursuit, {k} steps"),
        "jumprelu": (lambda: jumprelu(k), f"JumpReLU, L0 = {k}"),
        "l1": (lambda: l1(coefficient), f"ReLU, L1 {coefficient:.2g}"),
    }
    return {name: Contestant(lambda make=make: prepared(make()), what) for name, (make, what) in made.items()}


LINEAR_BENCH = Suite(
    name="linear-bench",
    truth=linear_representation_bench,
    contestants=rivals(32, with_gba_centre),
    default_methods=(
        "gba",
        "gba-universal",
        "topk",
        "batch-topk",
        "matryoshka",
        "jumprelu",
        "l1",
    ),
    rows=None,
    width=2,
    steps=3000,
    batch=512,
    what="inner products at most 0.1, each in 1 % of the rows (arXiv 2512.05534)",
    thresholds=(0.8, 0.95),
    signed=False,
    rivals=lambda k: rivals(k, with_gba_centre),
    published=published.LINEAR_BENCH,
    headline=("frr_0.95",),
)
# The size at which two cores see the trend in half a minute per method: as many features per dimension, each as rare.
SMALL_BENCH = replace(
    LINEAR_BENCH,
    name="linear-bench-small",
    truth=partial(linear_representation_bench, n_features=400, d=307),
    contestants=rivals(13, with_gba_centre),
    steps=2000,
    batch=256,
)

SANITY_CHECK = Suite(
    name="sanity-check",
    truth=sanity_check,
    contestants=rivals(20, with_gba_centre),
    default_methods=(
        "gba",
        "gba-universal",
        "gba-released",
        "topk",
        "batch-topk",
        "matryoshka",
        "matching-pursuit",
        "jumprelu",
    ),
    rows=None,
    width=1,
    steps=3000,
    batch=1024,
    what="32 per dimension, all equally frequent (arXiv 2602.14111)",
    rivals=lambda k: rivals(k, with_gba_centre),
    published=published.SANITY_CHECK,
    headline=("frr_0.8",),
)

SKEWED_CHECK = replace(
    SANITY_CHECK,
    name="sanity-check-skewed",
    truth=partial(sanity_check, probability="log-uniform"),
    what="32 per dimension, log-uniform frequencies (arXiv 2602.14111)",
    published=published.SKEWED_CHECK,
)

# The size at which two cores see the trend in a minute per method.
SMALL_CHECK = replace(
    SANITY_CHECK,
    name="sanity-check-small",
    truth=partial(sanity_check, n_features=800, d=50, l0=8.0),
    contestants=rivals(8, with_gba_centre),
    steps=4000,
    batch=512,
    what="16 per dimension, all equally frequent (after arXiv 2602.14111)",
)
SMALL_SKEWED_CHECK = replace(
    SMALL_CHECK,
    name="sanity-check-skewed-small",
    truth=partial(sanity_check, n_features=800, d=50, l0=8.0, probability="log-uniform"),
    steps=2500,
    what="16 per dimension, log-uniform frequencies (after arXiv 2602.14111)",
    published=published.SKEWED_CHECK,
)

HIERARCHY = Suite(
    name="hierarchy",
    truth=partial(Hierarchy, cosine=0.5),
    contestants=rivals(2, uncentred),
    default_methods=(
        "gba",
        "gba-universal",
        "gba-released",
        "topk",
        "batch-topk",
        "matryoshka",
        "matching-pursuit",
    ),
    rows=None,
    width=1,
    steps=5000,
    batch=512,
    what="children with their parents only, siblings correlated (arXiv 2506.03093)",
    rivals=lambda k: rivals(k, uncentred),
)

# L0 that L1's coefficients lead to on `SYNTH`, after its 3000 steps and on a seed that no table has (docs/log.md).
L1_ON_SYNTH = {0.01: 120.0, 0.03: 29.0, 0.05: 11.0, 0.1: 4.3}


def synth_l1(k: float) -> float:
    """L1's coefficient for an L0 of about k on `SYNTH`, between those that were tried, in logarithms.

    Of the larger scales nothing was tried; the table's L0 says what it came to.
    """
    coefficients, reached = zip(*reversed(L1_ON_SYNTH.items()), strict=True)
    return math.exp(np.interp(math.log(k), np.log(reached), np.log(coefficients)))


# The published benchmark has 4096 latents for 16 384 features, of which the first quarter are 25 of a row's 34; a smaller scale
# has its square root's share of them.
SYNTH = Suite(
    name="synth",
    truth=partial(synth_sae_bench, n_features=1024),
    contestants=rivals(6, with_gba_centre, synth_l1),
    default_methods=(
        "gba",
        "gba-universal",
        "topk",
        "batch-topk",
        "matryoshka",
        "matching-pursuit",
        "jumprelu",
        "l1",
    ),
    rows=None,
    width=0.25,
    steps=3000,
    batch=1024,
    what="trees of features, Zipf, correlated; four times as many as latents (after arXiv 2602.14687)",
    rivals=lambda k: rivals(k, with_gba_centre, synth_l1),
    published=published.SYNTH,
    headline=("mcc", "f1"),
)
SYNTH_4K = replace(
    SYNTH,
    name="synth-4k",
    truth=partial(synth_sae_bench, n_features=4096),
    contestants=rivals(12, with_gba_centre, synth_l1),
    steps=6000,
)
SYNTH_16K = replace(
    SYNTH,
    name="synth-16k",
    truth=synth_sae_bench,
    contestants=rivals(25, with_gba_centre, synth_l1),
    steps=20_000,
    what="SynthSAEBench-16k v2, four features per latent (arXiv 2602.14687: 200M rows, ten times as many)",
)

SUITES = {
    suite.name: suite
    for suite in (
        IMBALANCED,
        LINEAR_BENCH,
        SMALL_BENCH,
        SANITY_CHECK,
        SKEWED_CHECK,
        SMALL_CHECK,
        SMALL_SKEWED_CHECK,
        HIERARCHY,
        SYNTH,
        SYNTH_4K,
        SYNTH_16K,
    )
}


EXPANSION = 8  # latents per dimension


def quickstart(l0: float = 64, *, d: int = 384, steps: int = 1200, seed: int = 0) -> Run:
    """GBA at a given L0 with 8 latents per dimension, short enough for two laptop cores."""
    return Run(method=gba(l0=l0), latents=EXPANSION * d, steps=steps, seed=seed, log_every=20)
