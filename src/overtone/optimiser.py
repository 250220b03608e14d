"""The optimiser of a run. Where the matrices' rows can be updated in one pass, that pass also does what rules do to rows."""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from overtone import ops
from overtone.dictionary import Dictionary
from overtone.method import Method
from overtone.parallel import Axis
from overtone.protocols import fits
from overtone.rules import GradientRule, Rule, TangentGradient, UnitEncoder, UnitNorm


def make_optimiser(method: Method, dictionary: Dictionary, lr: float) -> torch.optim.Optimizer:
    """The method's optimiser over every parameter that takes a gradient."""
    weights = [p for p in dictionary.parameters() if p.requires_grad]
    if method.optimiser == "sgd":
        return torch.optim.SGD(weights, lr=lr, fused=True)
    return torch.optim.Adam(weights, lr=lr, fused=True)


# Sums over entries of one matrix that ranks tell each other of: an encoder's and a decoder's.
_MOST_SUMS = 2


class RowPass(NamedTuple):
    """What happens to the rows of one matrix in the optimiser's step: see `overtone.ops.Rows`."""

    weight: Tensor
    tangent: bool
    unit: bool


class Plan(NamedTuple):
    """Which weights are updated row by row, how many of the method's first rules are done with that, and if others are left."""

    passes: Sequence[RowPass]
    rules: int
    all_weights: bool


def plan(method: Method, dictionary: Dictionary) -> Plan:
    """Every matrix of atoms or encoder rows under Adam, and every vector as one row, unless a rule wants to see gradients."""
    first = [*takewhile(lambda rule: type(rule) in (UnitNorm, UnitEncoder, TangentGradient), method.rules)]
    weights = {id(w): w for w in (dictionary.W_dec, dictionary.W_enc) if w.requires_grad and ops.can_update_rows(w)}
    others_look = any(fits(rule, GradientRule) for rule in method.rules[len(first) :])
    if method.optimiser != "adam" or others_look or len(weights) < 2 - dictionary.parametrisation.tied:
        return Plan((), 0, False)
    touched: dict[type[Rule], set[int]] = {kind: set() for kind in (UnitNorm, UnitEncoder, TangentGradient)}
    for rule in first:
        touched[type(rule)].add(id(dictionary.W_enc if isinstance(rule, UnitEncoder) else dictionary.W_dec))
    unit = touched[UnitNorm] | touched[UnitEncoder]
    passes = [RowPass(w, at in touched[TangentGradient], at in unit) for at, w in weights.items()]
    others = [w for w in dictionary.parameters() if w.requires_grad and id(w) not in weights]
    able = [RowPass(w, False, False) for w in others if ops.can_update_rows(w)]
    return Plan([*passes, *able], len(first), len(able) == len(others))


def add_up_gradients(
    dictionary: Dictionary, plan: Plan, sums: Sequence[list[ops.EntrySum]]
) -> Sequence[list[ops.EntrySum]]:
    """The gradients of all ranks' rows instead of this one's: `grad` in place, and the sums over entries that passes are left.

    A sum stays one over entries, and then is bit for bit that of one process that has all rows, where its tables are less to
    send than the matrix that it makes.
    """
    ranks, weights = dictionary.world.rows, [w for w in dictionary.parameters() if w.requires_grad]
    if ranks.size == 1:
        return sums
    given = _gradients_of_ranks(ranks, weights, sums)
    joined = [_joined(ranks, entries, [of.sums[i] for of in given]) for i, entries in enumerate(sums)]
    for one, entries, all_entries in zip(plan.passes, sums, joined, strict=True):
        if all_entries is None:
            for entry_sum in entries:
                made = entry_sum.summed()
                one.weight.grad = made if one.weight.grad is None else one.weight.grad.add_(made)
    made_here = {id(one.weight) for one, found in zip(plan.passes, joined, strict=True) if found is None}
    shared = [w for i, w in enumerate(weights) if id(w) in made_here or any(of.dense[i] for of in given)]
    for weight in shared:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    ranks.add_up([weight.grad for weight in shared if weight.grad is not None])
    return [entries or [] for entries in joined]


class _Given(NamedTuple):
    """The gradients that a rank has: which weights have a matrix, and per pass (tables, entries) of each sum."""

    dense: list[int]
    sums: list[list[tuple[int, int]]]


def _gradients_of_ranks(ranks: Axis, weights: Sequence[Tensor], sums: Sequence[list[ops.EntrySum]]) -> list[_Given]:
    """What every rank has: codes of different rows may be kept as lists here and as matrices there, and all must send alike."""
    words = [int(weight.grad is not None) for weight in weights]
    for entries in sums:
        shapes = [(len(one.tables), len(one.values)) for one in entries[:_MOST_SUMS]]
        words += [len(entries), *sum([*shapes, *[(0, 0)] * (_MOST_SUMS - len(shapes))], ())]
    found = []
    for said in ranks.gather(torch.tensor(words, device=weights[0].device)).tolist():
        dense, rest = said[: len(weights)], said[len(weights) :]
        per_pass = [rest[i : i + 1 + 2 * _MOST_SUMS] for i in range(0, len(rest), 1 + 2 * _MOST_SUMS)]
        found.append(_Given(dense, [[*zip(p[1::2], p[2::2], strict=True)][: p[0]] for p in per_pass]))
    return found


def _joined(
    ranks: Axis, entries: list[ops.EntrySum], of_ranks: list[list[tuple[int, int]]]
) -> list[ops.EntrySum] | None:
    """A pass's sums over the entries of all ranks; None: they are to be made into matrices."""
    tables = [[tables for tables, _ in sums] for sums in of_ranks]
    if any(other != tables[0] for other in tables) or len(tables[0]) > _MOST_SUMS:
        return None
    if not all(ops.is_better_joined(one, ranks) for one in entries):
        return None
    return [ops.join(one, [sums[i][1] for sums in of_ranks], ranks) for i, one in enumerate(entries)]


def update_rows(one: RowPass, sums: list[ops.EntrySum], optimiser: torch.optim.Optimizer) -> None:
    """The pass, with the moments and settings of Adam, which then has no gradient left to see."""
    weight = one.weight
    if weight.grad is None and not sums:
        return
    moments = optimiser.state[weight]
    if not moments:  # as torch's starts
        moments["step"] = torch.zeros(())
        moments["exp_avg"], moments["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
    moments["step"] += 1
    settings = optimiser.param_groups[0]
    shape = weight.shape if weight.ndim == 2 else (1, -1)
    matrix, mean, square = (t.view(shape) for t in (weight.detach(), moments["exp_avg"], moments["exp_avg_sq"]))
    gradient = None if weight.grad is None else weight.grad.view(shape)
    step = ops.AdamStep(settings["lr"], settings["betas"], settings["eps"], int(moments["step"]))
    ops.update_rows(ops.Rows(matrix, mean, square, one.tangent, one.unit), gradient, sums, step)
    weight.grad = None
