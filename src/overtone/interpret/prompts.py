"""What language models are told and asked about latents."""

from collections.abc import Sequence

from overtone.interpret.scorers import Shown

_LATENT = (
    "A latent of a neural network is active on some tokens of a text and silent on all others. In the examples, tokens on which "
    "it is active stand between « and »."
)
_ACTIVE, _SILENT = "Texts in which it is active:", "Texts in which it is silent:"


def explain(examples: Sequence[Shown]) -> str:
    """Asks for an explanation in one line."""
    active = [e for e in examples if any(e.marks)]
    silent = [e for e in examples if not any(e.marks)]
    blocks = [f"{title}\n{_numbered(found)}" for title, found in ((_ACTIVE, active), (_SILENT, silent)) if found]
    ask = (
        "Say in one short sentence on which tokens, and in which contexts, the latent is active. Answer with it alone."
    )
    return "\n\n".join([_LATENT, *blocks, ask])


def detect(explanation: str) -> str:
    """What detection is about."""
    return f"A latent of a neural network is active on this: {explanation}\n\nIs it active on any token of the text?"


def fuzz(explanation: str) -> str:
    """What fuzzing is about."""
    return (
        f"A latent of a neural network is active on this: {explanation}\n\nIn the text, some tokens are marked by « and ». Are "
        "these the tokens on which it is active?"
    )


def one(question: str, example: Shown) -> str:
    """Asks about one text; the answer is yes or no."""
    return f"{question} Answer yes or no.\n\nText: {_line(example)}\n\nAnswer:"


def several(question: str, examples: Sequence[Shown]) -> str:
    """Asks about several texts; the answer is a list of 0 and 1."""
    return (
        f"{question} There are {len(examples)} texts; judge each alone.\n\n{_numbered(examples)}\n\nAnswer with a JSON list of "
        f"{len(examples)} numbers and nothing else: 1 for yes, 0 for no, in the order of the texts."
    )


def _numbered(examples: Sequence[Shown]) -> str:
    return "\n".join(f"{i}. {_line(e)}" for i, e in enumerate(examples, start=1))


def _line(example: Shown) -> str:
    """On one line, so that a text cannot look like the next one."""
    return " ".join(example.text.split())
