"""Latents against what is known of rows, where no direction is: each feature with the best of all latents, chosen on other rows.

A known feature may have no direction of its own, so that atoms cannot be compared with it; codes can. Of many latents the best
one scores above chance by chance alone. So it is chosen on some rows and scored on others, and what is left of chance is shown
by `score_chance`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overtone.data.sequences import Known
from overtone.metrics import probes

LATENTS_AT_A_TIME = 256
FEWEST = 20


class Detected(NamedTuple):
    """Each known feature as detected by the best latents; NaN where it, or its absence, is in fewer than 20 rows of either half.

    Attributes:
        f1: of the best latent as a detector that says yes where it fires (maths.md eq. R5).
        auroc: P(code with the feature > code without), ties half, of the latent that is best at that (maths.md eq. O8).
    """

    f1: Float[Tensor, " features"]
    auroc: Float[Tensor, " features"]


class Halves(NamedTuple):
    """The same of rows to choose on and rows to score on."""

    choose: Tensor
    score: Tensor


def detected(codes: Halves, occurs: Halves) -> Detected:
    """The best latent of each feature. Invariant to permuting latents, and to rescaling each by a positive number.

    Args:
        codes: of both halves, (rows, latents).
        occurs: whether each feature occurs, (rows, features).
    """
    latents = [of(codes.choose, occurs.choose).argmax(0) for of in (f1, auroc)]
    chosen = [of(codes.score[:, who], occurs.score).diagonal() for of, who in zip((f1, auroc), latents, strict=True)]
    return Detected(*(score.masked_fill(_rare(occurs), torch.nan) for score in chosen))


def correlated(codes: Halves, values: Halves) -> Float[Tensor, " features"]:
    """Correlation of each quantity with the latent whose |correlation| with it is largest; below 0 where the sign is another.

    Args:
        codes: of both halves, (rows, latents).
        values: the quantities, (rows, features).
    """
    first = correlation(codes.choose, values.choose)
    who = first.abs().argmax(0)
    second = correlation(codes.score[:, who], values.score).diagonal()
    return second * first.gather(0, who[None]).squeeze(0).sign()


def _rare(occurs: Halves) -> Bool[Tensor, " features"]:
    return torch.stack([torch.minimum(half.sum(0), (~half).sum(0)) < FEWEST for half in occurs]).any(0)


def f1(
    codes: Float[Tensor, "rows latents"], occurs: Bool[Tensor, "rows features"]
) -> Float[Tensor, "latents features"]:
    """F1 of every latent as a detector of every feature; 0 where neither fires nor occurs."""
    fires, occurs_ = (codes != 0).float(), occurs.float()
    return 2 * (fires.T @ occurs_) / (fires.sum(0)[:, None] + occurs_.sum(0)).clamp(min=1)


def auroc(
    codes: Float[Tensor, "rows latents"], occurs: Bool[Tensor, "rows features"]
) -> Float[Tensor, "latents features"]:
    """Area under the curve of every latent and feature, ties half (maths.md eq. O8); ½ where a feature is in all rows or none."""
    present = occurs.double()
    with_it, without = present.sum(0), (1 - present).sum(0)
    above = [ranks(block).T @ present for block in codes.split(LATENTS_AT_A_TIME, dim=1)]
    area = (torch.cat(above) - with_it * (with_it + 1) / 2) / (with_it * without)
    return torch.where(with_it * without > 0, area, 0.5)


def ranks(codes: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
    """Rank of every row by every latent, from 1; ties share the mean of theirs."""
    columns = codes.T.contiguous()
    ordered = columns.sort(1).values
    ends = [torch.searchsorted(ordered, columns, right=right) for right in (False, True)]
    return ((ends[0] + ends[1] + 1) / 2).T.double()


def correlation(
    codes: Float[Tensor, "rows latents"], values: Float[Tensor, "rows features"]
) -> Float[Tensor, "latents features"]:
    """Pearson's of every latent with every quantity; 0 where either does not vary."""
    sides = [side.double() - side.double().mean(0) for side in (codes, values)]
    lengths = [side.norm(dim=0) for side in sides]
    return (sides[0].T @ sides[1]) / (lengths[0][:, None] * lengths[1]).clamp(min=1e-12)


class KnownScores(NamedTuple):
    """What is found of everything that is known of rows, by kind.

    Attributes:
        detected: of what occurs.
        correlated: of quantities, as `correlated` gives it.
    """

    detected: dict[str, Detected]
    correlated: dict[str, Float[Tensor, " features"]]

    def summary(self) -> dict[str, dict[str, float]]:
        """Means over the features of each kind, JSON-able; `features`: how many were frequent enough to be scored."""
        found = {
            kind: {
                "f1": float(scores.f1.nanmean()),
                "auroc": float(scores.auroc.nanmean()),
                "features": int((~scores.f1.isnan()).sum()),
            }
            for kind, scores in self.detected.items()
        }
        followed = {kind: {"correlation": float(r.mean()), "features": len(r)} for kind, r in self.correlated.items()}
        return found | followed


def score_known(codes: Halves, known: tuple[Known, Known]) -> KnownScores:
    """The best latent of everything that is known. Invariances as `detected`.

    Args:
        codes: of rows to choose latents on, and of rows to score them on.
        known: what is known of these rows.
    """
    choose, score = known
    return KnownScores(
        {kind: detected(codes, Halves(choose.occurs[kind], score.occurs[kind])) for kind in choose.occurs},
        {kind: correlated(codes, Halves(choose.values[kind], score.values[kind])) for kind in choose.values},
    )


def score_chance(codes: Halves, known: tuple[Known, Known], generator: torch.Generator) -> KnownScores:
    """As `score_known`, on what is known of other rows: what the best of so many latents reaches by chance."""
    orders = [torch.randperm(len(half), generator=generator) for half in codes]
    return score_known(codes, (known[0].at(orders[0]), known[1].at(orders[1])))


def score_probes(x: Halves, known: tuple[Known, Known]) -> KnownScores:
    """A linear probe of the rows for everything that is known, fitted on the first half, in place of a latent."""
    choose, score = known
    found = {}
    for kind, occurs in choose.occurs.items():
        weights = probes.logistic(x.choose, occurs)
        threshold = probes.best_threshold(probes.apply(weights, x.choose), occurs)
        said = probes.apply(weights, x.score) - threshold
        scores = (of(codes, score.occurs[kind]).diagonal() for of, codes in ((f1, said.relu()), (auroc, said)))
        rare = _rare(Halves(occurs, score.occurs[kind]))
        found[kind] = Detected(*(one.masked_fill(rare, torch.nan) for one in scores))
    followed = {
        kind: correlation(probes.apply(probes.least_squares(x.choose, values), x.score), score.values[kind]).diagonal()
        for kind, values in choose.values.items()
    }
    return KnownScores(found, followed)
