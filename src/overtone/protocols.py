"""Which values are of a protocol: asked once a class, since asking the protocol itself takes as long as a tensor operation."""

from functools import cache
from typing import TypeGuard, TypeVar

T = TypeVar("T")


def fits(value: object, protocol: type[T]) -> TypeGuard[T]:
    """isinstance(value, protocol) of a protocol of methods, by the value's class alone."""
    return _fits(type(value), protocol)


@cache
def _fits(kind: type, protocol: type) -> bool:
    return issubclass(kind, protocol)
