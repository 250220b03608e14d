"""The optimiser of a run. Where the matrices' rows can be updated in one pass, that pass also does what rules do to rows."""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from overtone import ops
from overtone.dictionary import Dictionary
from overtone.method import Method
from overtone.protocols import fits
from overtone.rules import GradientRule, Rule, TangentGradient, UnitEncoder, UnitNorm


def make_optimiser(method: Method, dictionary: Dictionary, lr: float) -> torch.optim.Optimizer:
    """The method's optimiser over every parameter that takes a gradient."""
    weights = [p for p in dictionary.parameters() if p.requires_grad]
    if method.optimiser == "sgd":
        return torch.optim.SGD(weights, lr=lr, fused=True)
    return torch.optim.Adam(weights, lr=lr, fused=True)


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
