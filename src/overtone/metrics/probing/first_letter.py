"""Absorption on the first-letter task (arXiv 2409.14507, 2503.09532): words whose letter a latent of their own has taken over."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.metrics import probes
from overtone.metrics.absorption import ABSORBS_FROM
from overtone.metrics.known import f1
from overtone.metrics.probing.columns import Columns
from overtone.metrics.probing.lasso import lasso_logistic

FULL_COSINE, SHARE_COSINE = 0.025, 0.1
ABSORBERS = 3
SPLITS_FROM = 0.03
MOST_LATENTS = 10
FEWEST = 10


class Absorption(NamedTuple):
    """Of every feature; NaN where its probe finds it in fewer than 10 rows to test on.

    Attributes:
        probe_f1: F1 of the linear probe that stands for the truth.
        f1: F1 of a regression on the main latents.
        latents: number of main latents: 1, and one more for each that raises the F1 by more than 0.03 (feature splitting).
        full: share of the rows where main latents are silent and one other latent brings the feature (maths.md eq. P8).
        share: mean share of the feature that is brought by others (maths.md eq. P9).
        main: which latents are main ones.
    """

    probe_f1: Float[Tensor, " features"]
    f1: Float[Tensor, " features"]
    latents: Float[Tensor, " features"]
    full: Float[Tensor, " features"]
    share: Float[Tensor, " features"]
    main: list[list[int]]

    def summary(self) -> dict[str, float]:
        """Means over the features, JSON-able; `features`: how many were frequent enough."""
        means = {name: float(getattr(self, name).nanmean()) for name in ("probe_f1", "f1", "latents", "full", "share")}
        return means | {"features": int((~self.full.isnan()).sum())}


class Truth(NamedTuple):
    """A linear probe for every feature, fitted on the rows that are not to test on.

    Attributes:
        occurs: whether each feature occurs in each row.
        test: which rows to test on.
        found: whether it occurs and the probe says so, in rows to test on.
        direction: unit weights of the probes.
        projection: of the rows, less their mean, on these (maths.md eq. P7).
        f1: of the probes.
    """

    occurs: Bool[Tensor, "rows features"]
    test: Bool[Tensor, " rows"]
    found: Bool[Tensor, "rows features"]
    direction: Float[Tensor, "features d"]
    projection: Float[Tensor, "rows features"]
    f1: Float[Tensor, " features"]

    @classmethod
    def of(
        cls, x: Float[Tensor, "rows d"], occurs: Bool[Tensor, "rows features"], test: Bool[Tensor, " rows"]
    ) -> "Truth":
        """Fit the probes."""
        weights = probes.logistic(x[~test], occurs[~test], l2=1e-3, balanced=True)
        said = probes.apply(weights, x)
        direction = torch.nn.functional.normalize(weights[:-1].T, dim=1)
        projection = (x.double() - x[~test].double().mean(0)) @ direction.T
        scores = f1(said[test].relu(), occurs[test]).diagonal()
        return cls(occurs, test, test[:, None] & occurs & (said > 0), direction, projection, scores)


def first_letter_absorption(truth: Truth, u: Columns, atoms: Float[Tensor, "latents d"]) -> Absorption:
    """How much of each feature is absorbed. Invariant to permuting latents, and to moving scale between codes and atoms.

    Args:
        truth: probes of the rows.
        u: contributions of the latents to the rows.
        atoms: unit atoms.
    """
    fit, test = (~truth.test).nonzero().flatten(), truth.test.nonzero().flatten()
    weights = lasso_logistic(u.rows(fit), truth.occurs[fit])
    entries, lines = u.rows(test), []
    for feature in range(truth.occurs.shape[1]):
        found = truth.found[test, feature]
        if int(found.sum()) < FEWEST:
            lines.append((truth.f1[feature], *[torch.tensor(math.nan)] * 4, []))
            continue
        main, score = _main_latents(u, weights[:, feature], truth.occurs[:, feature], fit, test)
        cosines = atoms.double() @ truth.direction[feature]
        rows = entries.rows(found.nonzero().flatten())
        full, share = absorbed(rows, main, cosines, truth.projection[test, feature][found])
        values = (
            torch.tensor(float(v)) for v in (truth.f1[feature], score, len(main), full.double().mean(), share.mean())
        )
        lines.append((*values, main.tolist()))
    *numbers, main = zip(*lines, strict=True)
    probe_f1, main_f1, latents, full, share = (torch.stack([v.double() for v in column]) for column in numbers)
    return Absorption(probe_f1, main_f1, latents, full, share, list(main))


def _main_latents(
    u: Columns,
    weights: Float[Tensor, " latents"],
    occurs: Bool[Tensor, " rows"],
    fit: Int[Tensor, " fit"],
    test: Int[Tensor, " test"],
) -> tuple[Int[Tensor, " main"], float]:
    """(the latents that stand for a feature, F1 of a regression on them): one more as long as it rises by more than 0.03."""
    order = weights.argsort(descending=True, stable=True)[: min(MOST_LATENTS, len(weights))]
    best, main = -math.inf, order[:1]
    for k in range(1, len(order) + 1):
        x = u.take(order[:k])
        probe = probes.logistic(x[fit], occurs[fit, None], l2=1 / (2 * len(fit)), balanced=True)
        score = float(f1(probes.apply(probe, x[test]).relu(), occurs[test, None]))
        if score <= best + SPLITS_FROM:
            break
        best, main = score, order[:k]
    return main, best


def absorbed(
    u: Columns, main: Int[Tensor, " main"], cosines: Float[Tensor, " latents"], projection: Float[Tensor, " rows"]
) -> tuple[Bool[Tensor, " rows"], Float[Tensor, " rows"]]:
    """(whether one latent has absorbed the feature, the share that three have), of rows that have it (maths.md eq. P8–P9).

    Args:
        u: contributions of the latents to these rows.
        main: the feature's main latents.
        cosines: of the unit atoms with the probe's direction.
        projection: of the rows on that direction.
    """
    own = u.take(main).double()
    silent, by_main = (own == 0).all(1), own @ cosines[main]
    full = torch.zeros(len(projection), dtype=torch.bool)
    share = torch.zeros(len(projection), dtype=torch.float64)
    by_row = u.matrix.tocsr()
    is_main = torch.zeros(len(cosines), dtype=torch.bool)
    is_main[main] = True
    for row in range(len(projection)):
        whole = float(projection[row])
        span = slice(by_row.indptr[row], by_row.indptr[row + 1])
        latents = torch.from_numpy(by_row.indices[span]).long()
        parts = torch.from_numpy(by_row.data[span]).double() * cosines[latents]
        if whole <= 0 or not len(latents):
            continue
        top = int(parts.argmax())
        enough = float(parts[top]) >= ABSORBS_FROM * whole and float(cosines[latents[top]]) >= FULL_COSINE
        full[row] = bool(silent[row]) and enough
        others = parts[(cosines[latents] >= SHARE_COSINE) & ~is_main[latents] & (parts > 0)]
        brought = float(others.topk(min(ABSORBERS, len(others))).values.sum())
        share[row] = _share(brought, float(by_main[row]), whole)
    return full, share


def _share(brought: float, by_main: float, whole: float) -> float:
    """SAEBench's absorption fraction of one row."""
    if by_main >= whole or brought < ABSORBS_FROM * whole:
        return 0.0
    if by_main <= 0:
        return 1.0
    taken = min(brought, whole - by_main)
    return taken / (taken + by_main)
