"""What papers report of methods on the suites' data, each number with its source and the size that it was measured at.

Scores have the names and units of the suites' own results: shares, not percent. M_GT is the recovery rate at 0.95, M_IP
`mean_max_cosine`. arXiv 2506.03093 shows its hierarchical toy as curves only, and of the model organisms nothing is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """Scores of a paper.

    Attributes:
        source: where they stand.
        setting: what they were measured at, where a suite may differ from it.
        scores: method's name in the suite → score → value.
        others: likewise, of what is no method of the suite; by what a table calls it.
    """

    source: str
    setting: str
    scores: Mapping[str, Mapping[str, float]]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


IMBALANCED = Published(
    "arXiv 2506.14002, its imbalanced synthetic set",
    "the suite's own data: 128 features in 42 dimensions",
    {
        "gba": {"frr_0.8": 1.0, "frr_0.9": 1.0},
        "gba-wrong": {"frr_0.8": 0.383, "frr_0.9": 0.039},
        "topk-20": {"frr_0.8": 1.0, "frr_0.9": 0.984},
        "topk-30": {"frr_0.8": 0.984, "frr_0.9": 0.242},
        "topk-50": {"frr_0.8": 0.945, "frr_0.9": 0.234},
    },
)

# Its tables disagree with each other on ReLU.
LINEAR_BENCH = Published(
    "arXiv 2512.05534, M_GT and M_IP on the Linear Representation Bench",
    "1000 features in 768 dimensions, 16,000 latents; TopK at k = 32, the others over several k or penalties",
    {
        "topk": {"frr_0.95": 1.0, "mean_max_cosine": 0.999},
        "batch-topk": {"frr_0.95": 0.848, "mean_max_cosine": 0.981},
        "matryoshka": {"frr_0.95": 0.837, "mean_max_cosine": 0.982},
        "jumprelu": {"frr_0.95": 0.0, "mean_max_cosine": 0.237},
        "l1": {"frr_0.95": 0.0, "mean_max_cosine": 0.205},
    },
)

_SANITY = "3200 features in 100 dimensions, 20 a row, 3200 latents"
SANITY_CHECK = Published(
    "arXiv 2602.14111, all features equally frequent",
    _SANITY,
    {
        "topk": {"frr_0.8": 0.999},
        "batch-topk": {"frr_0.8": 3 / 3200},
        "jumprelu": {"frr_0.8": 3 / 3200},
        "matryoshka": {"frr_0.8": 0.0003},
    },
)
SKEWED_CHECK = Published(
    "arXiv 2602.14111, log-uniform frequencies",
    f"{_SANITY}; TopK at its best k",
    {"topk": {"frr_0.8": 0.43}, "batch-topk": {"frr_0.8": 0.09}, "jumprelu": {"frr_0.8": 0.07}},
)


def _synth(f1: float, mcc: float, uniqueness: float, explained_variance: float) -> dict[str, float]:
    return {"f1": f1, "mcc": mcc, "uniqueness": uniqueness, "explained_variance": explained_variance}


SYNTH = Published(
    "arXiv 2602.14687, SynthSAEBench-16k v2 at L0 25",
    "16,384 features in 768 dimensions, 4096 latents, 200M rows, L0 25, 5 seeds",
    {
        "batch-topk": _synth(0.732, 0.757, 0.984, 0.792),
        "matryoshka": _synth(0.879, 0.793, 0.999, 0.779),
        "matching-pursuit": _synth(0.446, 0.693, 0.828, 0.835),
        "l1": _synth(0.556, 0.604, 0.898, 0.765),
        "jumprelu": _synth(0.732, 0.753, 0.989, 0.795),
    },
    {"supervised probe (ceiling)": {"f1": 0.974}},
)
