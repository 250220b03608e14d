"""Any OpenAI-compatible endpoint as a scorer: chat completions over HTTP."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from overtone.interpret import prompts
from overtone.interpret.scorers import Shown

KEY = "OPENAI_API_KEY"
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
LARGEST_ANSWER = 4 * 2**20
ANSWERS = re.compile(r"\[[\s,01]*\]")


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key is for one host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


@dataclass(frozen=True)
class ChatScorer:
    """A model behind `URL/chat/completions`. The key is taken from the environment variable OPENAI_API_KEY, where there is one.

    Args:
        url: up to and without /chat/completions: https://api.openai.com/v1, or http://localhost:8000/v1 of a server of your own.
        model: the model's name there.
        at_once: windows that are judged in one request.
        timeout: seconds that a request may take.
        tries: how often a request is made before it is given up.
        pause: seconds before the second try; twice as many before each further one, unless the server says how many.
    """

    url: str
    model: str
    at_once: int = 5
    timeout: float = 60.0
    tries: int = 5
    pause: float = 1.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url={self.url!r} is no address of an endpoint, such as https://api.openai.com/v1")
        if not self.model:
            raise ValueError(f"which model of {self.url} is to be asked? Give its name: --scorer-model NAME")
        for name in ("at_once", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.timeout > 0 or not self.pause >= 0:
            raise ValueError(f"timeout={self.timeout} must be above 0, and pause={self.pause} at least 0")

    @property
    def name(self) -> str:
        """What results are known by."""
        return f"openai:{self.url} {self.model}"

    def explain(self, examples: Sequence[Shown]) -> str:
        """The first line of the answer."""
        for _ in range(self.tries):
            lines = self._ask(prompts.explain(examples), 100).strip().splitlines()
            if lines:
                return lines[0].strip()
        raise ValueError(f"{self.model} at {self.url} gave {self.tries} empty explanations; use another model")

    def detect(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """Whether the model says 1 to each window."""
        return self._judged(prompts.detect(explanation), examples)

    def fuzz(self, explanation: str, examples: Sequence[Shown]) -> list[bool]:
        """Whether the model says 1 to each window's marks."""
        return self._judged(prompts.fuzz(explanation), examples)

    def _judged(self, question: str, examples: Sequence[Shown]) -> list[bool]:
        said: list[bool] = []
        # Every so manieth, so that those with and without firing come in one request.
        step = -(-len(examples) // self.at_once)
        places = [i for first in range(step) for i in range(first, len(examples), step)]
        for start in range(0, len(examples), self.at_once):
            said += self._answers(question, [examples[i] for i in places[start : start + self.at_once]])
        return [answer for _, answer in sorted(zip(places, said, strict=True))]

    def _answers(self, question: str, examples: Sequence[Shown]) -> list[bool]:
        text = ""
        for _ in range(self.tries):
            text = self._ask(prompts.several(question, examples), 20 + 4 * len(examples))
            found = [
                json.loads(match)
                for match in ANSWERS.findall(text)
                if re.fullmatch(r"\[\s*[01](\s*,\s*[01])*\s*\]", match)
            ]
            if found and len(found[-1]) == len(examples):
                return [answer == 1 for answer in found[-1]]
        raise ValueError(
            f"{self.model} at {self.url} was asked {self.tries} times for a list of {len(examples)} numbers, 0 or 1, and said at "
            f"last {text[:80]!r}; use another model"
        )

    def _ask(self, prompt: str, most: int) -> str:
        """The model's answer to one message."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        body |= {"temperature": 0, "max_tokens": most}
        answer = self._posted(json.dumps(body).encode())
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self._where} does not answer as an OpenAI endpoint does: {answer[:120]!r}") from error
        return text if isinstance(text, str) else ""

    @property
    def _where(self) -> str:
        return f"{self.url.rstrip('/')}/chat/completions"

    def _posted(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        opener = urllib.request.build_opener(_Stay())
        problem = ""
        for number in range(self.tries):
            pause = self.pause * 2**number
            try:
                request = urllib.request.Request(self._where, body, headers)
                with opener.open(request, timeout=self.timeout) as response:
                    return response.read(LARGEST_ANSWER)
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"{error.code} {error.reason}: {error.read(300).decode(errors='replace')}"
                self._check(error.code, problem)
                pause = _asked_for(error.headers.get("Retry-After"), pause)
            except (OSError, HTTPException) as error:  # no connection, a broken one, or too slow
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if number + 1 < self.tries:
                time.sleep(pause)
        raise ConnectionError(f"{self._where} gave no answer in {self.tries} tries; the last: {problem}")

    def _check(self, code: int, problem: str) -> None:
        """Raise what another try would not change."""
        if code in (401, 403):
            known = "is refused" if os.environ.get(KEY) else "is not set"
            raise PermissionError(f"{self._where} wants a key, and that of {KEY} {known} ({problem})")
        if code not in AGAIN:
            raise ValueError(f"{self._where} refuses the request for model {self.model!r} ({problem})")


def _asked_for(seconds: str | None, otherwise: float) -> float:
    """What the server asks to wait, up to a minute."""
    try:
        return min(60.0, max(0.0, float(seconds or otherwise)))
    except ValueError:
        return otherwise
