"""A ground truth that a run was trained on, drawn again: for its rows, and to show a dictionary beside what is known of them."""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.data.source import TruthSource
from overtone.data.synthetic import GroundTruth
from overtone.data.text_rows import TextRows
from overtone.dictionary import Dictionary
from overtone.interpret.random_dictionary import random_like
from overtone.metrics.truth import TruthScores, score_against
from overtone.ops.codes import SparseCodes
from overtone.recipes import SUITES, Suite
from overtone.report.page import TruthView

SCORED_ROWS = 20_000
SHOWN_DIGITS = 2  # of a coefficient


def source_of_truth(
    suite: str, truth: GroundTruth, options: Mapping[str, Any], *, seed: int, rows: int | None
) -> TruthSource:
    """What a run keeps of the truth that it is trained on."""
    return TruthSource(suite, seed, rows, _checksum(truth.features), options)


def truth_of(source: TruthSource) -> tuple[Suite, GroundTruth]:
    """The suite and its truth.

    Raises:
        ValueError: a suite that there is not, or features that are not those of the run.
    """
    suite = SUITES.get(source.suite)
    if suite is None:
        raise ValueError(f"the run is of suite {source.suite!r}, which this version of overtone does not have")
    truth = suite.truth(seed=source.seed, **source.options)
    if _checksum(truth.features) != source.features:
        raise ValueError(
            f"suite {source.suite} draws other features for seed {source.seed} than the run was trained on; open it with the "
            "version of overtone and of torch in its config.json, or train again"
        )
    return suite, truth


def _checksum(features: Float[Tensor, "features d"]) -> str:
    return hashlib.sha256(features.contiguous().numpy().tobytes()).hexdigest()[:16]


class OnTruth:
    """Held-out rows of a truth, in place of a text to look at latents in: each row a context of its own.

    Attributes:
        source: of the run's rows.
        most: how many rows.
        where: what they are, in words.
        unit: what is counted.
        words: of the number of a row, the sum that it is.
    """

    unit = "rows"

    def __init__(self, source: TruthSource, most: int = SCORED_ROWS):
        self.source, self.most = source, most
        self.suite, self.truth = truth_of(source)
        self.where = f"held-out rows of {source.suite}, seed {source.seed}"

    @property
    def key(self) -> tuple[str, ...]:
        """The same for the same rows."""
        return (self.source.suite, self.source.features, str(self.source.seed), str(self.most))

    @property
    def title(self) -> str:
        """What a page about it is called."""
        features, d = self.truth.features.shape
        return f"{self.source.suite}: {features:,} known features in {d} dimensions"

    @property
    def about(self) -> dict[str, str]:
        """What it is, in words."""
        features, d = self.truth.features.shape
        usual = {name: p.default for name, p in inspect.signature(self.suite.truth).parameters.items()}
        own = {name: value for name, value in self.source.options.items() if value != usual[name]}
        settings = ", ".join(f"{name} {_said(value)}" for name, value in own.items() if name not in ("n_features", "d"))
        trained = (
            "fresh rows for every step" if self.source.rows is None else f"{self.source.rows:,} rows again and again"
        )
        about = {
            "ground truth": f"{self.source.suite}: {features:,} features in {d} dimensions, seed {self.source.seed}"
        }
        return about | ({"settings of its own": settings} if settings else {}) | {"trained on": trained}

    def rows(self) -> Iterator[TextRows]:
        """They, in order; the token of a row is its number."""
        first = 0
        for x, _ in self._coded():
            number = torch.arange(first, first + len(x))
            yield TextRows(x, number, number, first)
            first += len(x)

    @cached_property
    def words(self) -> Callable[[list[int]], list[str]]:
        """Of numbers of rows: what each is the sum of, the largest coefficient first."""
        parts = [codes.nonzero() for _, codes in self._coded()]
        return lambda rows: [self._sum(parts, row) for row in rows]

    def _sum(self, parts: list[SparseCodes], row: int) -> str:
        codes = parts[row // parts[0].rows_total]
        low, high = codes.offsets[row % parts[0].rows_total :][:2].tolist()
        coefficients, features = codes.values[low:high], codes.latents[low:high]
        order = coefficients.abs().argsort(descending=True, stable=True)
        pairs = zip(coefficients[order].tolist(), features[order].tolist(), strict=True)
        return " + ".join(f"{_plain(h)}·v{i}" for h, i in pairs)

    def _coded(self) -> Iterator[tuple[Tensor, SparseCodes]]:
        # As `overtone recover` draws what it scores on, so that scores of as many rows are the same.
        return self.truth.held_out(self.most, seed=self.source.seed)

    def scores(self, dictionary: Dictionary) -> TruthScores:
        """Of a dictionary, as `overtone recover` gives them."""
        return score_against(
            dictionary,
            self.truth.features,
            self._coded(),
            parent_of=getattr(self.truth, "parent_of", None),
            thresholds=self.suite.thresholds,
            signed=self.suite.signed,
        )

    def view(self, dictionary: Dictionary) -> tuple[TruthView, dict[str, float]]:
        """What the page shows of a dictionary beside the truth, and scores by name, those of random atoms among them."""
        found = self.scores(dictionary)
        x, _ = next(self._coded())
        chance = self.scores(random_like(dictionary, found.reconstruction.summary()["l0"], x))
        nearest = found.matching.of_latents.nearest
        atoms = torch.nn.functional.normalize(dictionary.W_dec.detach().float(), dim=1)
        features = torch.nn.functional.normalize(self.truth.features, dim=1)
        view = TruthView(
            nearest,
            (atoms * features[nearest]).sum(1),
            found.latents.f1.float(),
            self.truth.occurrence().float(),
            found.recovery.max_cosine,
            found.matching.of_features.nearest,
            chance.recovery.max_cosine,
        )
        return view, _named(found) | {f"random_{name}": value for name, value in _named(chance).items()}


def _named(scores: TruthScores) -> dict[str, float]:
    """The scores that the page's table has."""
    summary = scores.summary()
    rates = {f"frr_{threshold}": share for threshold, share in summary["frr"].items()}
    return rates | {name: summary[name] for name in ("mcc", "f1")}


def _said(value: Any) -> str:
    return (
        " and ".join(map(_said, value))
        if isinstance(value, tuple)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _plain(value: float) -> str:
    """A coefficient without an exponent."""
    return f"{float(f'{value:.{SHOWN_DIGITS}g}'):.6f}".rstrip("0").rstrip(".")
