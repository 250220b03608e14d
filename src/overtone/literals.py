"""Literal values against annotations: is 32 an `int | None`, ("a", 1) a `tuple[str, ...]`?"""

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def fit(value: Any, annotation: Any) -> Any:
    """The value as the annotation has it: unchanged, or an int made the float that was asked for. TypeError: it does not fit."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, UnionType):
        return _first(value, inner)
    if origin is Literal:
        if value in inner:
            return value
    elif origin is tuple and isinstance(value, tuple):
        if inner[-1:] == (...,):
            return tuple(fit(item, inner[0]) for item in value)
        if len(inner) == len(value):
            return tuple(fit(item, kind) for item, kind in zip(value, inner, strict=True))
    elif annotation in (float, int):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and (annotation is float or float(value).is_integer()):
            return annotation(value)
    elif annotation is None or annotation is NoneType:
        if value is None:
            return None
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    raise TypeError(f"{value!r} is no {name(annotation)}")


def _first(value: Any, kinds: tuple[Any, ...]) -> Any:
    # A value of exactly one of the kinds first: 3 is an int before it is a float in `float | int`.
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        try:
            return fit(value, kind)
        except TypeError:
            continue
    raise TypeError(f"{value!r} is none of {', '.join(map(name, kinds))}")


def name(annotation: Any) -> str:
    """How a user reads an annotation: "float or None", "'jumprelu' or 'relu'"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(map(name, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return f"tuple of {name(inner[0])}" if inner[-1:] == (...,) else f"({', '.join(map(name, inner))})"
    if annotation is NoneType:
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
