"""The model organisms by name: sequences of a law, read by a decoder that was trained on them."""

import os
from dataclasses import replace
from pathlib import Path

from overtone.data.markov import MarkovMixture
from overtone.data.regression import RegressionMixture
from overtone.organisms.learning import Lessons, taught_once
from overtone.organisms.organism import Organism
from overtone.organisms.transformer import Shape

MARKOV_SHAPE = Shape()
MARKOV_LESSONS = Lessons(steps=1500, batch=32, lr=6e-3)
REGRESSION_LESSONS = Lessons(steps=2500, batch=40)
REGRESSION_SHAPE = Shape(layers=3)


def model_folder() -> Path:
    """Where trained organisms are kept, unless another folder is given: in $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overtone" / "organisms"


def markov_organism(
    law: MarkovMixture | None = None,
    *,
    shape: Shape = MARKOV_SHAPE,
    lessons: Lessons = MARKOV_LESSONS,
    layer: int = 1,
    seed: int = 0,
    models: Path | None = None,
) -> Organism:
    """A decoder trained to predict the next token of Markov chains; it is trained once, then read from `models`.

    Args:
        law: of the tokens; None: the default one, its chains drawn with `seed`.
        shape: of the decoder.
        lessons: how it is trained, with `seed`.
        layer: the block whose output rows are taken from.
        seed: of the chains, of the initial weights and of the sequences.
        models: folder of trained models; None: `model_folder()`.
    """
    law = MarkovMixture(seed=seed) if law is None else law
    model = taught_once(law, shape, replace(lessons, seed=seed), models or model_folder())
    return Organism(law, model, layer)


def regression_organism(
    law: RegressionMixture | None = None,
    *,
    shape: Shape = REGRESSION_SHAPE,
    lessons: Lessons = REGRESSION_LESSONS,
    layer: int = 1,
    seed: int = 0,
    models: Path | None = None,
) -> Organism:
    """A decoder trained on linear regression in context, the weights from a mixture of tasks; arguments as `markov_organism`."""
    law = RegressionMixture(seed=seed) if law is None else law
    model = taught_once(law, shape, replace(lessons, seed=seed), models or model_folder())
    return Organism(law, model, layer)
