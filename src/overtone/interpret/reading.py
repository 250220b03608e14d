"""A text of anyone's, read by the model that dictionaries were trained on: its tokens, and every dictionary's codes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from overtone.data.contexts import contexts_of
from overtone.data.filling import HarvestPlan
from overtone.data.harvest import Rows, read_sites
from overtone.data.models import LanguageModel
from overtone.data.sites import resolve_site
from overtone.data.text import Document
from overtone.dictionary import Dictionary
from overtone.interpret.alongside import part_of
from overtone.interpret.detection import TokenText
from overtone.layout import Block, side_by_side
from overtone.ops import SparseCodes


class Reading(NamedTuple):
    """A text token by token.

    Attributes:
        words: the text that each token adds.
        codes: of every dictionary, row by row.
    """

    words: list[str]
    codes: list[SparseCodes]


class Reader:
    """Reads texts as the rows were read that dictionaries were trained on.

    Args:
        lm: the model.
        plan: how it was read: the length of contexts, the precision.
        dictionaries: each with the sites that it reads.
        most: characters of a text, at most.
    """

    def __init__(
        self,
        lm: LanguageModel,
        plan: HarvestPlan,
        dictionaries: Sequence[tuple[Dictionary, Sequence[Block]]],
        most: int = 5000,
    ):
        self.lm, self.plan, self.dictionaries, self.most = lm, plan, dictionaries, most
        names = dict.fromkeys(block.site for _, blocks in dictionaries for block in blocks)
        self.sites = [resolve_site(lm.model, name) for name in names]
        self._words = TokenText(lm.tokenizer)

    @torch.no_grad()
    def read(self, text: str) -> Reading:
        """The tokens of a text and what each dictionary says of them; special tokens have none.

        Contexts are cut as long as those of the plan and do not know of each other.

        Raises:
            ValueError: a text that is too long, or without a token.
        """
        if len(text) > self.most:
            raise ValueError(f"the text has {len(text):,} characters, the limit is {self.most:,}; give less of it")
        document = Document("the text", text)
        contexts = [c for c in contexts_of(self.lm, [document], context=self.plan.context) if c.keep.any()]
        if not contexts:
            raise ValueError("the text has no token that the model reads; write some words")
        rows, found = Rows.of(contexts), {}
        batch_tokens = self.plan.batch * self.plan.context
        parts = read_sites(
            self.lm,
            self.sites,
            contexts,
            {0: document.name},
            batch_tokens=batch_tokens,
            compute_dtype=self.plan.compute_dtype,
        )
        for at, values in parts:
            for site, value in zip(self.sites, values, strict=True):
                found.setdefault(site.name, torch.empty(len(rows.token_ids), value.shape[1]))[at] = value
        words = self._words.words(rows.token_ids.tolist())
        return Reading([*words], [self._codes(*one, found) for one in self.dictionaries])

    def _codes(self, dictionary: Dictionary, reads: Sequence[Block], rows: dict[str, torch.Tensor]) -> SparseCodes:
        codes = dictionary.encode(side_by_side(reads, rows)).entries.sparse()
        return part_of(codes, 0, codes.rows_total)
