"""Scorers: what says in words where a latent fires, and from the words where it would fire.

The scores are those of Paulo et al., *Automatically Interpreting Millions of Features in Large Language Models*, arXiv
2410.13928.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable


class Shown(NamedTuple):
    """A window of text as a scorer sees it.

    Attributes:
        tokens: the text of its tokens; joined, they read as the text does.
        marks: one number per token. Where a latent is to be explained, its code over its peak. Where firing is to be detected,
            0 everywhere. Where marks are to be judged, 1 on the marked tokens.
    """

    tokens: tuple[str, ...]
    marks: tuple[float, ...]

    @property
    def text(self) -> str:
        """The text, marked tokens within « »."""
        words = (f"«{token}»" if mark else token for token, mark in zip(self.tokens, self.marks, strict=True))
        return "".join(words).replace("»«", "")


@runtime_checkable
class Scorer(Protocol):
    """What explains latents and judges explanations. All it knows of a latent when it judges is the explanation."""

    @property
    def name(self) -> str:
        """What results are known by."""
        ...

    def explain(self, examples: Sequence[Shown]) -> str:
        """In words, where a latent fires: `examples` are windows in which it does, strongest first, then some in which not."""
        ...

    def detect(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """For each window, whether a latent so explained fires anywhere in it."""
        ...

    def fuzz(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """For each window, whether the marked tokens are those on which a latent so explained fires."""
        ...


class _Counts(NamedTuple):
    """How often each token is where the latent fires, and how often it is there at all."""

    fires: Counter[str]
    seen: Counter[str]

    def weight(self, token: str, base: float, weight: float, without: "_Counts | None" = None) -> float:
        """log-odds of firing on this token, less those of any token, with `weight` observations at the base rate."""
        fires, seen = self.fires[token], self.seen[token]
        if without is not None:
            fires, seen = fires - without.fires[token], seen - without.seen[token]
        share = (fires + weight * base) / (seen + weight)
        return math.log(share / (1 - share)) - math.log(base / (1 - base))


class _Window(NamedTuple):
    """Words of a window, and which of them the latent fires on."""

    words: list[str]
    fires: list[bool]

    def counts(self) -> tuple[_Counts, _Counts]:
        """Of the words themselves, and of the words before them."""
        here, before = _Counts(Counter(), Counter()), _Counts(Counter(), Counter())
        for i, (word, fires) in enumerate(zip(self.words, self.fires, strict=True)):
            pairs = [(here, word)] + ([(before, self.words[i - 1])] if i else [])
            for counts, of in pairs:
                counts.seen[of] += 1
                counts.fires[of] += fires
        return here, before


@dataclass(frozen=True)
class TokenScorer:
    """The scorer that costs nothing: an explanation is the tokens that a latent fires on and after (maths.md eq. I1).

    It knows words and not meanings, so it is a lower bound: a latent that it scores well fires on few words.

    Args:
        weight: observations at the base rate that every token is given beforehand.
        most: tokens in an explanation, and as many before them: those that say most.
    """

    weight: float = 2.0
    most: int = 100
    name: str = "tokens"

    def __post_init__(self):
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be above 0: a token seen once would be certain")
        if self.most < 1:
            raise ValueError(f"most={self.most} must be at least 1")

    def explain(self, examples: Sequence[Shown]) -> str:
        """A JSON object: log-odds of tokens and of tokens before, and above which sum of both a token, or a window, counts.

        Both borders are set on windows whose own tokens were left out of the counts.
        """
        windows = [_Window(_words(e.tokens), [mark != 0 for mark in e.marks]) for e in examples]
        parts = [window.counts() for window in windows]
        total = tuple(_sum(part[side] for part in parts) for side in (0, 1))
        fired = sum(total[0].fires.values())
        seen = sum(total[0].seen.values())
        if not 0 < fired < seen:
            raise ValueError(
                f"the latent fires on {fired} of the {seen} tokens shown; show windows with and without it"
            )
        base = fired / seen
        scores = []
        for window, own in zip(windows, parts, strict=True):
            sides = [
                {word: counts.weight(word, base, self.weight, left_out) for word in left_out.seen}
                for counts, left_out in zip(total, own, strict=True)
            ]
            scores.append(_scores(window.words, *sides))
        on = [
            s
            for window, found in zip(windows, scores, strict=True)
            for s, f in zip(found, window.fires, strict=True)
            if f
        ]
        off = [
            s
            for window, found in zip(windows, scores, strict=True)
            for s, f in zip(found, window.fires, strict=True)
            if not f
        ]
        active = [max(found) for window, found in zip(windows, scores, strict=True) if any(window.fires)]
        silent = [max(found) for window, found in zip(windows, scores, strict=True) if not any(window.fires)]
        here, before = (self._strongest(counts, base) for counts in total)
        explanation = {"fires on": here, "after": before, "window": border(active, silent), "token": border(on, off)}
        return json.dumps(explanation, ensure_ascii=False)

    def _strongest(self, counts: _Counts, base: float) -> dict[str, float]:
        weights = {word: counts.weight(word, base, self.weight) for word in counts.seen}
        # Those that speak for firing first; equal ones in the order of the alphabet, not of the text.
        ranked = sorted(weights, key=lambda word: (-abs(weights[word]), word))[: self.most]
        return {word: round(weights[word], 2) for word in sorted(ranked, key=lambda word: (-weights[word], word))}

    def detect(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """Whether any token's sum is above the border for windows."""
        found = _read(explanation)
        return [max(_scores(_words(e.tokens), found["fires on"], found["after"])) > found["window"] for e in examples]

    def fuzz(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """Whether the marked tokens' sums are, in the mean, above the border for tokens."""
        found, said = _read(explanation), []
        for e in examples:
            scores = _scores(_words(e.tokens), found["fires on"], found["after"])
            marked = [score for score, mark in zip(scores, e.marks, strict=True) if mark]
            said.append(sum(marked) > found["token"] * len(marked))
        return said


def summary(explanation: str, most: int = 6) -> str:
    """An explanation in a line: of the token scorer's, the tokens that speak for firing."""
    try:
        found = _read(explanation)
    except ValueError:
        return explanation
    here, before = ([w for w, score in found[side].items() if score > 1][:most] for side in ("fires on", "after"))
    return " ".join(here) + (f" · after {' '.join(before)}" if before else "")


def border(above: Sequence[float], below: Sequence[float]) -> float:
    """Between which two of these numbers a border parts them best, by balanced accuracy; halfway between the two.

    Infinite where there is nothing to part, so that nothing is ever above.
    """
    if not above or not below:
        return math.inf
    ranked = sorted([(value, 1 / len(above)) for value in above] + [(value, -1 / len(below)) for value in below])
    best, where, gained = 0.0, math.inf, 0.0
    for (low, weight), (high, _) in pairwise(ranked):
        gained -= weight  # by having all up to here below the border
        if high > low and gained > best:
            best, where = gained, (low + high) / 2
    return where


def _sum(parts: Iterable[_Counts]) -> _Counts:
    total = _Counts(Counter(), Counter())
    for part in parts:
        total.fires.update(part.fires)
        total.seen.update(part.seen)
    return total


def _words(tokens: Iterable[str]) -> list[str]:
    """Tokens without white space around them and in lower case; those of white space alone as they are."""
    return [token.strip().casefold() or token for token in tokens]


def _scores(words: Sequence[str], here: dict[str, float], before: dict[str, float]) -> list[float]:
    """Of every token, the log-odds of itself and of the one before it."""
    return [here.get(w, 0.0) + (before.get(words[i - 1], 0.0) if i else 0.0) for i, w in enumerate(words)]


def _read(explanation: str) -> dict:
    try:
        found = json.loads(explanation)
        if set(found) != {"fires on", "after", "window", "token"}:
            raise TypeError
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{explanation[:60]!r} is no explanation of the token scorer; use the scorer that wrote it"
        ) from error
    return found
