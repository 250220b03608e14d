"""What a score has to beat: any method with its atoms held where they started (arXiv 2602.14111)."""

from collections.abc import Callable
from dataclasses import replace

from overtone.method import Method
from overtone.rules import AtomsNearStart
from overtone.selection import MatchingPursuit


def frozen_decoder(method: Method) -> Method:
    """A method whose atoms stay random, so that only the encoder learns."""
    return _held(method, AtomsNearStart(1.0), "frozen")


def soft_frozen_decoder(method: Method, cosine: float = 0.8) -> Method:
    """A method whose atoms stay within a cosine of their random start.

    Args:
        cosine: least cosine with the start; the paper's 0.8.
    """
    return _held(method, AtomsNearStart(cosine), "soft-frozen")


def _held(method: Method, rule: AtomsNearStart, what: str) -> Method:
    # A pursuit has no encoder but its atoms.
    free = method if isinstance(method.select, MatchingPursuit) else method.untied()
    return replace(free, name=f"{method.name}-{what}", rules=(*free.rules, rule))


# By name, the method that is trained for it; a random dictionary is the method's own, at its start.
BASELINES: dict[str, Callable[[Method], Method] | None] = {
    "random": None,
    "frozen": frozen_decoder,
    "soft-frozen": soft_frozen_decoder,
}
