"""Suites whose ground truth is a model organism: rows of a trained transformer, with what is known of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from overtone.data.markov import MarkovMixture
from overtone.data.regression import RegressionMixture
from overtone.method import Method
from overtone.methods import gba
from overtone.organisms.learning import Lessons
from overtone.organisms.named import markov_organism, regression_organism
from overtone.organisms.organism import Organism
from overtone.organisms.transformer import Shape
from overtone.recipes import Contestant, rivals, with_gba_centre
from overtone.training import Run


@dataclass(frozen=True)
class OrganismSuite:
    """A model organism, the methods that are tried on it, and the length of a run.

    Attributes:
        name: of the suite.
        truth: the trained organism, from a seed, a folder of trained models and settings, which are its keyword arguments.
        contestants: methods by name.
        default_methods: those trained where none is named.
        rows: fixed rows that training goes through again and again.
        scored: rows to choose latents on, and as many to score them on.
        length: a run without its method.
        what: one line.
        headline: the scores that stand for the suite beside others, kind and score; the first ranks methods.
    """

    name: str
    truth: Callable[..., Organism]
    contestants: dict[str, Contestant]
    default_methods: tuple[str, ...]
    rows: int
    scored: int
    length: Run
    what: str
    headline: tuple[str, ...]

    def run(self, method: Method, *, latents: int, steps: int, seed: int) -> Run:
        """The training run of one method."""
        return replace(self.length, method=method, latents=latents, steps=steps, seed=seed)


def _markov(*, seed: int, layer: int = 1, models: Path | None = None) -> Organism:
    return markov_organism(layer=layer, seed=seed, models=models)


def _small_markov(*, seed: int, layer: int = 1, models: Path | None = None) -> Organism:
    law = MarkovMixture(chains=2, tokens=3, length=16, seed=seed)
    lessons = Lessons(steps=200, batch=16)
    return markov_organism(law, shape=SMALL, lessons=lessons, layer=layer, seed=seed, models=models)


def _regression(*, seed: int, noise: float = 0.25, layer: int = 1, models: Path | None = None) -> Organism:
    return regression_organism(RegressionMixture(noise=noise, seed=seed), layer=layer, seed=seed, models=models)


def _small_regression(*, seed: int, noise: float = 0.25, layer: int = 1, models: Path | None = None) -> Organism:
    law = RegressionMixture(tasks=2, d_x=2, pairs=10, noise=noise, seed=seed)
    lessons = Lessons(steps=200, batch=16)
    return regression_organism(law, shape=SMALL, lessons=lessons, layer=layer, seed=seed, models=models)


SMALL = Shape(width=32, layers=2, heads=2)

MARKOV = OrganismSuite(
    name="markov",
    truth=_markov,
    contestants=rivals(8, with_gba_centre),
    default_methods=("gba", "gba-universal", "gba-l0", "topk", "batch-topk"),
    rows=65_536,
    scored=8192,
    length=Run(latents=512, steps=2000, batch=512),
    what="a transformer that reads Markov chains (after arXiv 2409.10559)",
    headline=("context f1",),
)
REGRESSION = replace(
    MARKOV,
    name="regression",
    truth=_regression,
    what="a transformer that does linear regression in context (after arXiv 2402.19442)",
    headline=("task f1",),
)
_SMALL_RUN = Run(method=gba(groups=4), latents=96, steps=300, batch=256)
SMALL_MARKOV = replace(MARKOV, name="markov-small", truth=_small_markov, rows=8192, scored=2048, length=_SMALL_RUN)
SMALL_REGRESSION = replace(
    REGRESSION, name="regression-small", truth=_small_regression, rows=8192, scored=2048, length=_SMALL_RUN
)
ORGANISMS = {suite.name: suite for suite in (MARKOV, REGRESSION, SMALL_MARKOV, SMALL_REGRESSION)}

SMALL_SCALE = (
    "imbalanced",
    "linear-bench-small",
    "sanity-check-small",
    "sanity-check-skewed-small",
    "hierarchy",
    "synth",
    "markov",
    "regression",
)
FULL_SCALE = (
    "imbalanced",
    "linear-bench",
    "sanity-check",
    "sanity-check-skewed",
    "hierarchy",
    "synth-16k",
    "markov",
    "regression",
)
# What `overtone recover all` runs: the sizes that show each suite's point within minutes, and those that papers have.
SCALES = {"small": SMALL_SCALE, "full": FULL_SCALE}
