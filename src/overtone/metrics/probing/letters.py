"""Words by their first letter: rows of words in running text, or of single words in a template."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overtone.data.activations import Activations
from overtone.data.harvest import Progress, harvest
from overtone.data.models import LanguageModel
from overtone.data.text import Document
from overtone.seeds import generator

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = "Ġ▁"  # before tokens that begin a word, in byte-level BPE and SentencePiece
INSIDE = "##"  # before tokens that go on with one, in WordPiece


class Words(NamedTuple):
    """Rows of words that are one token.

    Attributes:
        x: rows.
        token: the token of each.
        letter: its first letter, 0 (a) … 25.
        test: whether to test on it; no token is on both sides.
    """

    x: Float[Tensor, "rows d"]
    token: Int[Tensor, " rows"]
    letter: Int[Tensor, " rows"]
    test: Bool[Tensor, " rows"]

    @property
    def occurs(self) -> Bool[Tensor, "rows 26"]:
        """Whether each letter is the first."""
        return self.letter[:, None] == torch.arange(len(LETTERS))


class Vocabulary(NamedTuple):
    """What the tokens of a tokenizer are.

    Attributes:
        word: what is spelt, of tokens that begin a word of two Latin letters or more; else "".
        letter: the first letter of these, 0 (a) … 25, and −1 of the others.
        goes_on: whether a token goes on with the word before it.
    """

    word: list[str]
    letter: Int[Tensor, " vocabulary"]
    goes_on: Bool[Tensor, " vocabulary"]

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Of any tokenizer that marks where words begin, or go on; one that does neither has whole words."""
        spelt = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        marked = any(token[:1] in tuple(MARKS) for token in spelt)
        words = [token.lstrip(MARKS) if token[:1] in tuple(MARKS) or not marked else "" for token in spelt]
        words = [word if len(word) > 1 and word.isascii() and word.isalpha() else "" for word in words]
        goes_on = [
            token[:1].isalpha() and token[0] not in MARKS if marked else token.startswith(INSIDE) for token in spelt
        ]
        letter = [LETTERS.index(word[0].lower()) if word else -1 for word in words]
        return cls(words, torch.tensor(letter), torch.tensor(goes_on))


def words_in_text(
    found: Activations, tokenizer: Any, *, occurrences: int = 4, test: float = 0.3, seed: int = 0
) -> Words:
    """Words as they were read in running text, each of them a few times at most.

    Args:
        found: harvested rows, with their tokens.
        tokenizer: of the model.
        occurrences: rows per token: the first ones.
        test: share of the tokens to test on.
        seed: of the share.

    Raises:
        ValueError: a text of too few words.
    """
    known, ids = Vocabulary.of(tokenizer), found.token_ids.long()
    # The first of several tokens of a word is no word.
    within = torch.zeros_like(ids, dtype=torch.bool)
    within[:-1] = known.goes_on[ids[1:]] & (found.context[1:] == found.context[:-1])
    seen: dict[int, int] = {}
    kept = []
    for row in ((known.letter[ids] >= 0) & ~within).nonzero().flatten().tolist():
        token = int(ids[row])
        seen[token] = seen.get(token, 0) + 1
        if seen[token] <= occurrences:
            kept.append(row)
    rows = torch.tensor(kept, dtype=torch.long)
    return _words(found.x[rows], ids[rows], known.letter[ids[rows]], test, seed, "the text")


def words_in_template(
    lm: LanguageModel,
    site: str,
    template: str,
    *,
    test: float = 0.3,
    context: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> Words:
    """Every word of the vocabulary once, in a template such as "{word} has the first letter:"; the row of the word itself.

    Words that the template does not leave one token are left out.

    Args:
        lm: from load_model.
        site: where to read.
        template: with {word} where the word goes.
        test: share of the words to test on.
        context: tokens per context, special ones counted.
        seed: of the share.
        progress: called with (rows done, rows in all).

    Raises:
        ValueError: a template without {word}.
    """
    if template.count("{word}") != 1:
        raise ValueError(f"template {template!r} must hold {{word}} once, as in '{{word}} has the first letter:'")
    known = Vocabulary.of(lm.tokenizer)
    words = sorted({word for word in known.word if word})
    docs = [Document(word, template.replace("{word}", word)) for word in words]
    found = harvest(lm, site, docs, context=context, progress=progress)
    # The word comes after as many tokens as stand before it in the template.
    before = len(lm.tokenizer(template.split("{word}")[0].rstrip(), add_special_tokens=False)["input_ids"])
    ids, of = found.token_ids.long(), found.doc_ids.long()
    rows = torch.searchsorted(of, torch.arange(len(words))) + before
    rows = rows[rows < found.rows]
    spelt = lm.tokenizer.convert_ids_to_tokens(ids[rows].tolist())
    rows = rows[
        torch.tensor([token.lstrip(MARKS) == words[int(of[row])] for token, row in zip(spelt, rows, strict=True)])
    ]
    letter = torch.tensor([LETTERS.index(words[int(of[row])][0].lower()) for row in rows], dtype=torch.long)
    return _words(found.x[rows], ids[rows], letter, test, seed, f"the vocabulary of {lm.name!r} in {template!r}")


def _words(
    x: Float[Tensor, "rows d"],
    token: Int[Tensor, " rows"],
    letter: Int[Tensor, " rows"],
    test: float,
    seed: int,
    where: str,
) -> Words:
    different = token.unique()
    count = round(test * len(different))
    if not 0 < count < len(different):
        raise ValueError(f"{where} has {len(different)} words of one token, {count} of them to test on; give more text")
    drawn = different[torch.randperm(len(different), generator=generator(seed, "words held out"))[:count]]
    return Words(x, token, letter, torch.isin(token, drawn))
