"""A local language model as a scorer: explanations by generating, judgements by the logits of yes and no."""

from collections.abc import Sequence

import torch
from torch import Tensor

from overtone.data.harvest import evaluating
from overtone.data.models import LanguageModel, predicts_tokens
from overtone.interpret import prompts
from overtone.interpret.scorers import Shown


class LocalScorer:
    """A causal language model.

    A window is said to fire where the logit of yes is above that of no. A small model may always say the same, which gives a
    balanced accuracy of a half.

    Args:
        lm: from load_model; where its tokenizer has a chat template, it is used.
        words: most tokens of an explanation.

    Raises:
        ValueError: a model that predicts no next token.
    """

    def __init__(self, lm: LanguageModel, words: int = 40):
        if not predicts_tokens(lm):
            raise ValueError(
                f"model {lm.name!r} ({type(lm.model).__name__}) predicts no next token; use a causal model"
            )
        self.lm, self.words, self.name = lm, words, f"hf:{lm.name}"
        yes, no = (lm.tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" Yes", " No"))
        same = 0
        while same < min(len(yes), len(no)) and yes[same] == no[same]:
            same += 1
        if same == min(len(yes), len(no)):
            raise ValueError(f"the tokenizer of {lm.name!r} does not tell yes from no; use another model")
        self._begun, self._yes, self._no = yes[:same], yes[same], no[same]
        limits = (getattr(lm.model.config, "max_position_embeddings", None), lm.tokenizer.model_max_length)
        self._limit = min(int(n) for n in (*limits, 2**17) if n)

    def explain(self, examples: Sequence[Shown]) -> str:
        """What the model goes on with, to the end of the line; of the examples, as many as fit into its positions."""
        for count in range(len(examples), 0, -1):
            ids = self._ids(prompts.explain(spread(examples, count)))
            if len(ids) + self.words <= self._limit:
                text = self.lm.tokenizer.decode(self._generated(ids), skip_special_tokens=True).strip()
                return text.splitlines()[0] if text else "(the model says nothing)"
        raise ValueError(
            f"not one example fits into the {self._limit} positions of {self.lm.name!r}; use a model "
            "with more, or shorter windows"
        )

    def detect(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """Whether the model says yes to each window."""
        return self._judged(prompts.detect(explanation), examples)

    def fuzz(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """Whether the model says yes to each window's marks."""
        return self._judged(prompts.fuzz(explanation), examples)

    def _judged(self, question: str, examples: Sequence[Shown]) -> list[bool]:
        said = []
        for example in examples:
            ids = self._ids(prompts.one(question, example)) + self._begun
            # The window comes last: what does not fit is cut at the beginning.
            logits, _ = self._read(torch.tensor([ids[-self._limit :]]))
            said.append(bool(logits[self._yes] > logits[self._no]))
        return said

    def _ids(self, prompt: str) -> list[int]:
        tokenizer = self.lm.tokenizer
        if tokenizer.chat_template is None:
            return tokenizer(prompt)["input_ids"]
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generated(self, ids: list[int]) -> list[int]:
        """The likeliest tokens, one after the other."""
        said: list[int] = []
        logits, cache = self._read(torch.tensor([ids]))
        while len(said) < self.words and (token := int(logits.argmax())) != self.lm.tokenizer.eos_token_id:
            said.append(token)
            logits, cache = self._read(torch.tensor([[token]]), cache)
        return said

    @torch.no_grad()
    def _read(self, ids: Tensor, cache: object = None) -> tuple[Tensor, object]:
        model = self.lm.model
        with evaluating(model):
            out = model(input_ids=ids.to(next(model.parameters()).device), past_key_values=cache, use_cache=True)
        return out.logits[0, -1], out.past_key_values


def spread(examples: Sequence[Shown], count: int) -> list[Shown]:
    """So many of the examples, from those with firing and from those without in turn, the first ones first."""
    fires, silent = ([e for e in examples if any(e.marks) == kind] for kind in (True, False))
    of_fires = max(min(len(fires), (count + 1) // 2), count - len(silent))
    return fires[:of_fires] + silent[: count - of_fires]
