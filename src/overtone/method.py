"""A method is a value: selection × loss terms × after-step rules × parametrisation. overtone.methods has the named ones."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from overtone.losses import LossTerm, Matryoshka, RarestFirst
from overtone.parametrisation import Parametrisation
from overtone.rules import Rule, UnitEncoder, UnitNorm
from overtone.selection import MatchingPursuit, Selection
from overtone.spectrum import Spectrum
from overtone.steering import BiasAdaptation, Release


@dataclass(frozen=True)
class Method:
    """What is trained, apart from sizes, data and length of the run.

    Args:
        name: how tables call it.
        select: selection rule (overtone.selection).
        losses: loss terms, summed (overtone.losses).
        rules: after-step rules, in order (overtone.rules).
        parametrisation: which weights exist.
        optimiser: "adam", or "sgd" (on unit rows: w ← normalise(w + η g), spherical gradient steps).
        lr: learning rate the method wants where a run does not set one.
    """

    name: str
    select: Selection
    losses: tuple[LossTerm, ...]
    rules: tuple[Rule, ...] = (UnitNorm(),)
    parametrisation: Parametrisation = field(default_factory=Parametrisation)
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3

    def __post_init__(self):
        if not self.losses:
            raise ValueError(f"method {self.name!r} has no loss term; give at least Reconstruction()")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr} must be positive and finite")

    def check(self, latents: int) -> None:
        """Raise a ValueError where this method cannot have so many latents."""
        k = getattr(self.select, "k", None)
        if k is not None and k > latents:
            raise ValueError(f"k={k} exceeds latents={latents}; lower k or widen the dictionary")
        if self.spectrum is not None:
            self.spectrum.targets(latents)
        for term in self.losses:
            if isinstance(term, Matryoshka):
                term.sizes(latents)
        if isinstance(self.select, MatchingPursuit):
            p = self.parametrisation
            if not p.tied or p.scale or p.bias == "trained" or self.spectrum is not None:
                raise ValueError(
                    f"method {self.name!r} pursues with other atoms than it decodes with, or has a bias to train or steer; "
                    "MatchingPursuit needs Parametrisation(tied=True, scale=False, bias='steered') and no BiasAdaptation"
                )
        staged = {term.spectrum for term in self.losses if isinstance(term, RarestFirst)}
        if staged - {self.spectrum}:
            raise ValueError(
                f"method {self.name!r} explains by the stages of one spectrum and steers to another; give RarestFirst and "
                "BiasAdaptation the same"
            )

    def untied(self) -> "Method":
        """The form with encoder rows of its own.

        Where the bias is steered (GBA and its kin) these are kept on the unit sphere, so that its thresholds, quantile start and
        peaks mean what they mean with tied weights.
        """
        steered = self.parametrisation.bias == "steered" and not any(isinstance(r, UnitEncoder) for r in self.rules)
        rules = (UnitEncoder(), *self.rules) if steered else self.rules
        return replace(self, parametrisation=replace(self.parametrisation, tied=False), rules=rules)

    @property
    def spectrum(self) -> Spectrum | None:
        """The target spectrum, where a rule steers frequencies."""
        return next((rule.spectrum for rule in self.rules if isinstance(rule, (BiasAdaptation, Release))), None)
