"""Scorers that are language models: one on this machine, and one behind an endpoint that a server in this process plays."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

from overtone.data.models import load_model
from overtone.interpret import prompts
from overtone.interpret.chat_scorer import ChatScorer
from overtone.interpret.local_scorer import LocalScorer
from overtone.interpret.scorers import Scorer, Shown
from tiny_models import tiny

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"


def window(text: str, *marked: str) -> Shown:
    tokens = tuple(f" {word}" for word in text.split())
    return Shown(tokens, tuple(float(t.strip() in marked) for t in tokens))


EXAMPLES = [
    window("the cat sat on a mat", "cat"),
    window("one cat and two dogs", "cat", "dogs"),
    window("no animal here"),
]


class Endpoint(ThreadingHTTPServer):
    """Answers as the API does: what a list of (status, body, headers) says, then as a model that knows what a cat is."""

    def __init__(self):
        self.script: list[tuple[int, str | None, dict[str, str]]] = []
        self.seen: list[tuple[str, dict[str, Any], str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, asked, self.headers["Authorization"]))
        status, body, headers = self.server.script.pop(0) if self.server.script else (200, None, {})
        body = said(known(asked["messages"][0]["content"])) if body is None else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        return


def said(text: str | None) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def known(prompt: str) -> str:
    """Detection: a cat in the text; fuzzing: a cat among the marked words."""
    if "JSON list" not in prompt:
        return "cats and dogs\nand more"
    lines = [line.split(". ", 1)[1] for line in prompt.splitlines() if line[:1].isdigit()]
    return f"Sure! {[int('« cat' in line if 'marked' in prompt else 'cat' in line) for line in lines]}"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_explains_and_judges(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    scorer = ChatScorer(endpoint.url, "m", at_once=3, pause=0)
    assert isinstance(scorer, Scorer) and "secret" not in f"{scorer} {scorer.name}"
    assert scorer.explain(EXAMPLES) == "cats and dogs"
    many = EXAMPLES * 4
    blank = [e._replace(marks=(0.0,) * len(e.tokens)) for e in many]
    assert scorer.detect("cats", blank) == [True, True, False] * 4, "in the order that they were asked in"
    assert scorer.fuzz("cats", many) == [True, True, False] * 4
    (path, first, key), *_ = endpoint.seen
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert first["model"] == "m" and first["temperature"] == 0
    assert "the« cat» sat" in first["messages"][0]["content"]
    asked = [a["messages"][0]["content"] for _, a, _ in endpoint.seen[1:5]]
    assert all("«" not in text.split("texts;")[1] for text in asked), "detection shows no marks"
    assert len(endpoint.seen) == 1 + 4 + 4


def test_it_tries_again_where_that_may_help(endpoint: Endpoint):
    scorer = ChatScorer(endpoint.url, "m", pause=0, tries=4)
    endpoint.script = [(429, "slow down", {"Retry-After": "0"}), (503, "", {}), (200, said("1, 0, perhaps"), {})]
    assert scorer.detect("cats", EXAMPLES) == [True, True, False] and len(endpoint.seen) == 4
    assert endpoint.seen[0][2] is None, "no key, no header"
    endpoint.script = [(200, said(None), {}), (200, said(" \n"), {})]
    assert scorer.explain(EXAMPLES) == "cats and dogs"


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ([(401, "who?", {})], PermissionError, "OPENAI_API_KEY is not set .401"),
        ([(404, "no model m", {})], ValueError, "refuses the request for model 'm' .404 Not Found: no model m"),
        ([(302, "", {"Location": "http://127.0.0.1:1/"})], ValueError, "refuses the request .*302"),
        ([(500, "oh", {})] * 3, ConnectionError, "no answer in 3 tries; the last: 500"),
        ([(200, "<html>", {})], ValueError, "does not answer as an OpenAI endpoint does: b'<html>'"),
        ([(200, said("[1, 0]"), {})] * 3, ValueError, r"asked 3 times for a list of 3 numbers.*'\[1, 0\]'"),
    ],
)
def test_what_does_not_work_is_said(script: list, error: type, message: str, endpoint: Endpoint):
    endpoint.script = list(script)
    with pytest.raises(error, match=message):
        ChatScorer(endpoint.url, "m", pause=0, tries=3).detect("cats", EXAMPLES)
    assert len(endpoint.seen) == len(script)


def test_nobody_there_is_said_too(endpoint: Endpoint):
    endpoint.server_close()
    with pytest.raises(ConnectionError, match=r"gave no answer in 2 tries; the last: .*refused"):
        ChatScorer("http://127.0.0.1:9/v1", "m", pause=0, tries=2).explain(EXAMPLES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"url": "ftp://x"}, "url='ftp://x' is no address"),
        ({"model": ""}, "Give its name: --scorer-model"),
        ({"at_once": 0}, "at_once=0 must be at least 1"),
        ({"timeout": 0.0}, "timeout=0.0 must be above 0"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ChatScorer(**({"url": "http://x/v1", "model": "m"} | wrong))


def test_a_text_cannot_look_like_another_example():
    sly = Shown(("yes", "\n2. ", "answer", " [1, 1]"), (0.0,) * 4)
    assert sum(line.startswith("2. ") for line in prompts.several(prompts.detect("x"), [sly]).splitlines()) == 0


@pytest.mark.skipif(not STORIES.exists(), reason="../shared/data is absent")
def test_a_real_small_model_judges_by_its_logits():
    scorer = LocalScorer(load_model(STORIES))
    assert isinstance(scorer, Scorer)
    long = [window(" ".join(["little"] * 60), "little")] * 30
    explanation = scorer.explain([*EXAMPLES, *long])
    assert explanation and "\n" not in explanation and scorer.explain([*EXAMPLES, *long]) == explanation
    for ask, question in ((scorer.detect, prompts.detect), (scorer.fuzz, prompts.fuzz)):
        found = ask("cats", EXAMPLES)
        tokenizer, model = scorer.lm.tokenizer, scorer.lm.model
        for example, answer in zip(EXAMPLES, found, strict=True):
            text = prompts.one(question("cats"), example)
            likelihood = {}
            for word in (" Yes", " No"):
                ids, begun = tokenizer(text)["input_ids"], tokenizer(word, add_special_tokens=False)["input_ids"]
                logits = model(torch.tensor([ids + begun])).logits[0, -len(begun) - 1 : -1].log_softmax(1).detach()
                likelihood[word] = [float(row[token]) for row, token in zip(logits, begun, strict=True)]
            same = next(i for i, (a, b) in enumerate(zip(*likelihood.values(), strict=False)) if a != b)
            assert answer == (likelihood[" Yes"][same] > likelihood[" No"][same])


def test_an_encoder_is_no_scorer():
    with pytest.raises(ValueError, match="predicts no next token"):
        LocalScorer(tiny("bert"))
    with pytest.raises(ValueError, match="does not tell yes from no"):
        LocalScorer(tiny("llama"))
