"""Complete runs with the settings of papers and of the quickstart; nothing here that a user could not write."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from overtone.data.synthetic import SparseMixture, imbalanced
from overtone.method import Method
from overtone.methods import ba, gba, gba_paper, l1, modified_ba, topk
from overtone.rules import CentreAtMean
from overtone.training import Run


@dataclass(frozen=True)
class Contestant:
    """A method in a recovery suite, with what its paper reports.

    Attributes:
        make: gives the method.
        what: one line for tables.
        published: FRR in % by threshold, where published.
    """

    make: Callable[[], Method]
    what: str
    published: dict[str, float] | None = None


@dataclass(frozen=True)
class Suite:
    """A ground truth, the methods that are tried on it, and the length of a run."""

    name: str
    truth: Callable[..., SparseMixture]
    contestants: dict[str, Contestant]
    default_methods: tuple[str, ...]
    rows: int
    width: int  # latents per true feature
    steps: int
    batch: int
    what: str

    def run(self, method: Method, *, latents: int, steps: int, seed: int) -> Run:
        """The training run of one method."""
        return Run(method=method, latents=latents, steps=steps, seed=seed)


def with_gba_centre(method: Method) -> Method:
    """A comparator with the centre (at the mean, fixed) and the learning rate of `gba()`, so that only the method differs.

    A trained centre costs TopK the recovery of this set (docs/log.md).
    """
    fixed = replace(method.parametrisation, centre="fixed")
    return replace(method, rules=(*method.rules, CentreAtMean()), parametrisation=fixed, lr=gba().lr)


IMBALANCED = Suite(
    name="imbalanced",
    truth=imbalanced,
    contestants={
        "gba": Contestant(gba, "GBA", {"0.8": 100.0, "0.9": 100.0}),
        "gba-wrong": Contestant(
            lambda: gba(htf=0.5, ltf=0.3),
            "GBA, wrong",
            {"0.8": 38.3, "0.9": 3.9},
        ),
        "gba-paper": Contestant(gba_paper, "GBA as published"),
        "ba": Contestant(ba, "BA, p = 0.05"),
        "modified-ba": Contestant(modified_ba, "modified BA"),
        "topk-10": Contestant(lambda: with_gba_centre(topk(10)), "TopK, k = 10"),
        "topk-20": Contestant(lambda: with_gba_centre(topk(20)), "TopK, k = 20", {"0.8": 100.0, "0.9": 98.4}),
        "topk-30": Contestant(lambda: with_gba_centre(topk(30)), "TopK, k = 30", {"0.8": 98.4, "0.9": 24.2}),
        "topk-50": Contestant(lambda: with_gba_centre(topk(50)), "TopK, k = 50", {"0.8": 94.5, "0.9": 23.4}),
        "l1": Contestant(lambda: with_gba_centre(l1()), "L1, 0.01"),
    },
    default_methods=("gba", "gba-wrong", "ba", "topk-10", "topk-20", "topk-30", "topk-50", "l1"),
    rows=50_000,
    width=6,
    steps=3000,
    batch=512,
    what="half of the rows mix 3 features, half 20 (arXiv 2506.14002)",
)

SUITES = {suite.name: suite for suite in (IMBALANCED,)}


EXPANSION = 8  # latents per dimension


def quickstart(l0: float = 64, *, d: int = 384, steps: int = 1200, seed: int = 0) -> Run:
    """GBA at a given L0 with 8 latents per dimension, short enough for two laptop cores."""
    return Run(method=gba(l0=l0), latents=EXPANSION * d, steps=steps, seed=seed, log_every=20)
