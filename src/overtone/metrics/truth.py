"""A dictionary against a ground truth: every score of atoms, firing, reconstruction and hierarchy in one pass over rows."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.dictionary import Dictionary
from overtone.metrics import absorption, detection, reconstruction
from overtone.metrics.absorption import HierarchyScores
from overtone.metrics.detection import Detection, FiringCounts
from overtone.metrics.matching import Matching, match, mean_correlation
from overtone.metrics.reconstruction import ReconstructionStats
from overtone.metrics.recovery import HierarchyErrors, Recovery, hierarchy_errors, recovery
from overtone.ops import SparseCodes

Labelled = tuple[Float[Tensor, "_ d"], Float[Tensor, "_ _"] | SparseCodes]


class TruthScores(NamedTuple):
    """What a dictionary found of features that are known. All invariant to permuting latents and features.

    Attributes:
        recovery: FRR and mean largest cosine (M_GT and M_IP where counted unsigned).
        mcc: `matching.mean_correlation`.
        matching: who stands for whom; uniqueness and splitting.
        latents: each latent as a detector of its nearest feature, which is how SynthSAEBench scores them (arXiv 2602.14687).
        features: each feature as detected by its nearest latent.
        reconstruction: explained variance, shrinkage, L0.
        hierarchy: absorption and hedging, where features have parents.
        errors: flat and hierarchical error, likewise.
    """

    recovery: Recovery
    mcc: float
    matching: Matching
    latents: Detection
    features: Detection
    reconstruction: ReconstructionStats
    hierarchy: HierarchyScores | None
    errors: HierarchyErrors | None

    def summary(self) -> dict[str, Any]:
        """All of it, JSON-able; means over latents, and over features where the name says so."""
        scores: dict[str, Any] = {
            "frr": {f"{t:g}": share for t, share in self.recovery.frr.items()},
            "mean_max_cosine": self.recovery.mean_max_cosine,
            "mcc": self.mcc,
            "uniqueness": self.matching.uniqueness,
            "splitting": self.matching.splitting(),
        }
        for prefix, detectors in (("", self.latents), ("feature_", self.features)):
            for name in ("precision", "recall", "f1"):
                scores[prefix + name] = float(getattr(detectors, name).mean())
        if self.hierarchy is not None and self.errors is not None:
            scores |= self.errors._asdict()
            scores |= {"absorption": self.hierarchy.mean_absorption, "hedging": self.hierarchy.mean_hedging}
        return scores | self.reconstruction.summary()


@torch.no_grad()
def score_against(
    dictionary: Dictionary,
    truth: Float[Tensor, "features d"],
    samples: Iterable[Labelled],
    *,
    parent_of: Int[Tensor, " features"] | None = None,
    thresholds: Sequence[float] = (0.8, 0.9),
    signed: bool = True,
) -> TruthScores:
    """Every score, in one pass over rows, exact under any batching.

    Memory is that of a batch, of O(latents + features) counts and, once, of `mean_correlation`.

    Args:
        dictionary: the dictionary.
        truth: V, true features.
        samples: batches (x, h): rows and the coefficients they were made of, dense or as entries.
        parent_of: index of every feature's parent, −1: none; without it no hierarchy is scored.
        thresholds: τ of the recovery rates.
        signed: of `recovery`; all other scores count either sign.

    Raises:
        ValueError: no rows, or coefficients of other features.
    """
    atoms = dictionary.W_dec.detach()
    matching = match(atoms, truth)
    family = None if parent_of is None else absorption.family(dictionary, truth, parent_of, matching)
    seen: tuple[ReconstructionStats, FiringCounts] | None = None
    absorbed = torch.zeros(len(truth), dtype=torch.int64, device=atoms.device)
    for x, given in samples:
        h = SparseCodes.from_dense(given) if isinstance(given, Tensor) else given
        if h.latents_total != len(truth) or h.rows_total != len(x):
            raise ValueError(
                f"{len(x)} rows have coefficients of shape {(h.rows_total, h.latents_total)}; give one for each of the "
                f"{len(truth)} features in every row"
            )
        codes = dictionary.encode(x)
        part = (
            reconstruction.observe(dictionary, codes, x),
            detection.count(codes.entries.sparse(), h, matching),
        )
        seen = part if seen is None else (reconstruction.merge(seen[0], part[0]), detection.merge(seen[1], part[1]))
        if family is not None:
            absorbed += absorption.count_absorbed(family, codes, h, matching)
    if seen is None:
        raise ValueError("no rows to score on")
    reconstructed, counts = seen
    hierarchy = errors = None
    if family is not None and parent_of is not None:
        hierarchy = absorption.hierarchy_scores(family, absorbed, counts.occurred)
        errors = hierarchy_errors(atoms, truth, parent_of)
    return TruthScores(
        recovery(atoms, truth, thresholds, signed=signed),
        mean_correlation(atoms, truth),
        matching,
        counts.latents(matching),
        counts.features(matching),
        reconstructed,
        hierarchy,
        errors,
    )
