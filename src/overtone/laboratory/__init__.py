"""The experiments of arXiv 2506.14002, each a value: a grid of points, what is measured at one, and how it is drawn."""

from overtone.laboratory.adaptation import ABLATION, BALANCE, CO_OCCURRENCE, PARTS
from overtone.laboratory.experiment import Experiment, Scale, grid
from overtone.laboratory.theorem import PROJECTIONS, RECURSION, RESONANCE, WIDTH

EXPERIMENTS = {
    one.name: one for one in (RESONANCE, RECURSION, CO_OCCURRENCE, WIDTH, BALANCE, PROJECTIONS, ABLATION, PARTS)
}

__all__ = ["EXPERIMENTS", "Experiment", "Scale", "grid"]
