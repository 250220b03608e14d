"""What the theory of Group Bias Adaptation says, computable: conditions, identifiability, the recoverable band, the dynamics.

Everything here takes coefficients H and features V, or numbers; nothing knows how dictionaries are trained. The page that
belongs to it is docs/theory.md.
"""

from overtone.theory.conditions import Conditions, Tally, coherence, conditions, random_coherence, tally
from overtone.theory.dynamics import Mixture, ModifiedBA, Path, advance, bias_of, follow, mixture, random_projections
from overtone.theory.identifiability import (
    Ambiguity,
    Decomposition,
    Difference,
    ambiguity,
    difference,
    sheared,
    split,
)
from overtone.theory.resonance import Band, Octave, Predicted, Setting, by_octave, predict

__all__ = [
    "Ambiguity",
    "Band",
    "Conditions",
    "Decomposition",
    "Difference",
    "Mixture",
    "ModifiedBA",
    "Octave",
    "Path",
    "Predicted",
    "Setting",
    "Tally",
    "advance",
    "ambiguity",
    "bias_of",
    "by_octave",
    "coherence",
    "conditions",
    "difference",
    "follow",
    "mixture",
    "predict",
    "random_coherence",
    "random_projections",
    "sheared",
    "split",
    "tally",
]
