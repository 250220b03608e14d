"""Frozen configurations ↔ JSON. Reading builds only classes named in an explicit table: data never names code to run."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from overtone.gating import Gated, LatentThreshold, ThresholdJumpReLU
from overtone.guidance import Anchoring, AuxK, Orthogonality
from overtone.layout import Block, Layout
from overtone.losses import (
    Alignment,
    Matryoshka,
    NormalisedMSE,
    RarestFirst,
    Reconstruction,
    RelativeError,
    SampledMatryoshka,
)
from overtone.method import Method
from overtone.model_loss import EndToEnd
from overtone.parametrisation import Parametrisation
from overtone.penalties import L0, L1, GateL1, GateReconstruction, Lp, PreActivation, Tanh
from overtone.revival import CountIdle, DeadResampling, SurplusResampling
from overtone.rules import (
    AtomsNearStart,
    CentreAtMean,
    TangentGradient,
    ThresholdEMA,
    UnitEncoder,
    UnitNorm,
    WhitenedEncoder,
)
from overtone.schedules import Ramp
from overtone.selection import (
    AbsTopK,
    BatchTopK,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    SmoothReLU,
    Threshold,
    TopK,
)
from overtone.spectrum import Spectrum
from overtone.steering import BiasAdaptation, FixedBias, Release

PARTS: tuple[type, ...] = (
    *(Method, Parametrisation, Spectrum),
    *(ReLU, JumpReLU, SmoothReLU, TopK, BatchTopK),
    *(AbsTopK, GroupMax, MatchingPursuit, Threshold),
    *(ThresholdJumpReLU, LatentThreshold, Gated),
    *(Reconstruction, RarestFirst, Matryoshka, SampledMatryoshka, Alignment, NormalisedMSE, RelativeError),
    *(L1, Lp, L0, Tanh, PreActivation, GateL1, GateReconstruction, AuxK, Orthogonality, Anchoring, EndToEnd, Ramp),
    *(UnitNorm, BiasAdaptation, Release, CentreAtMean, FixedBias, ThresholdEMA, WhitenedEncoder),
    *(TangentGradient, CountIdle, DeadResampling, SurplusResampling),
    *(UnitEncoder, AtomsNearStart, Layout, Block),
)


def to_json(value: Any) -> Any:
    """A JSON-able tree; every dataclass carries its class name under "type"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{value!r} of type {type(value).__name__} cannot be written to a configuration; "
        "use frozen dataclasses of numbers and strings"
    )


def classes_in(value: Any) -> set[type]:
    """The dataclasses that a value is made of: what `from_json` needs to know to read it back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (getattr(value, f.name) for f in dataclasses.fields(value))
        return {type(value)}.union(*map(classes_in, fields))
    return set().union(*map(classes_in, value)) if isinstance(value, (list, tuple)) else set()


def from_json(data: Any, extra: Iterable[type] = ()) -> Any:
    """The value that `to_json` wrote. `extra`: classes of your own that it may contain."""
    table = {cls.__name__: cls for cls in (*PARTS, *extra)}
    if isinstance(data, list):
        return tuple(from_json(item, extra) for item in data)
    if not isinstance(data, dict):
        return data
    if "type" not in data:
        return {key: from_json(item, extra) for key, item in data.items()}
    cls = table.get(data["type"])
    if cls is None:
        raise ValueError(
            f"configuration names an unknown part {data['type']!r}; known: {', '.join(sorted(table))}. "
            "Pass your own classes with parts=[…] (on the command line: --parts FILE.py), or update overtone"
        )
    known = {f.name for f in dataclasses.fields(cls)}
    values = {key: from_json(item, extra) for key, item in data.items() if key != "type"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{data['type']} has no field {', '.join(unknown)}; it was written by another version of overtone"
        )
    return cls(**values)
