"""Sparse probing: how much of a label do a dictionary's best few latents know (arXiv 2305.01610, 2503.09532)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overtone.metrics.probing.columns import Columns
from overtone.metrics.probing.tasks import Answered, Question, answered, fitted

KS = (1, 2, 5)


def contrasts(u: Columns, asked: Sequence[Question]) -> Float[Tensor, "questions columns"]:
    """Mean over rows of a class less mean over the others, of every column, on the rows to fit on (maths.md eq. P2)."""
    return u.sums(torch.stack([question.contrast(u.shape[0]) for question in asked], dim=1)).T


def best(difference: Float[Tensor, " columns"], k: int) -> Int[Tensor, " k"]:
    """The k columns with the largest |difference|; of equal ones the first."""
    return difference.abs().argsort(descending=True, stable=True)[:k]


def sparse_probe(u: Columns, asked: Sequence[Question], ks: Sequence[int] = KS) -> dict[int, list[Answered]]:
    """k → how well logistic regressions on the k best columns answer each question (maths.md eq. P2).

    Invariant to permuting columns, and, for k of all of them, to rescaling each. One column that is the label has accuracy 1.

    Args:
        u: of every row what each latent, or each dimension of the model, says.
        asked: the questions.
        ks: how many columns.

    Raises:
        ValueError: k below 1 or above the number of columns.
    """
    check_counts("k", ks, u.shape[1])
    differences = contrasts(u, asked)
    found: dict[int, list[Answered]] = {k: [] for k in ks}
    for question, difference in zip(asked, differences, strict=True):
        for k in ks:
            x = u.take(best(difference, k))
            found[k].append(answered(x, question, fitted(x, question)))
    return found


def dense_probe(x: Float[Tensor, "rows d"], asked: Sequence[Question]) -> list[Answered]:
    """The ceiling: the same regressions on all dimensions of the model."""
    return [answered(x, question, fitted(x, question)) for question in asked]


def check_counts(name: str, counts: Sequence[int], most: int | None = None) -> None:
    """Raise ValueError for counts below 1, above `most`, or none."""
    wrong = [count for count in counts if count < 1 or (most is not None and count > most)]
    if wrong or not counts:
        limit = "at least 1" if most is None else f"1 to {most}, the number of columns"
        raise ValueError(f"{name}={wrong[0] if wrong else '()'} must be {limit}")
