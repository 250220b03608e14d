"""A page and a reader of texts behind a server for the browsers of this machine alone."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
SECONDS = 30  # a connection may be silent
BYTES_PER_CHARACTER = 12  # in JSON at most: a surrogate pair as two escapes
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Answer = Callable[[str], dict[str, Any]]


class Refused(Exception):
    """A request that is answered with an error: a status and words."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves one page at `/` and answers texts at `/read`, one at a time, to pages that it has served itself.

    It listens on this machine's loopback address alone. A request has to name that address as its host, so that a name which
    somebody lets point here (DNS rebinding) is of no use, and no other site's page may read an answer: nothing is shared across
    origins.

    Args:
        html: the page.
        answer: what is known of a text; a ValueError of it is told to the reader.
        most: characters of a text, at most.
        port: 0: a free one.
    """

    daemon_threads = True

    def __init__(self, html: str, answer: Answer, most: int, port: int = 0):
        self.page, self.answer, self.most = html.encode(), answer, most
        self._one_at_a_time = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise OSError(f"port {port} of {HOST}: {error.strerror}; give another --port, or none") from error
        self.hosts = {f"{name}:{self.server_port}" for name in NAMES} | (
            set(NAMES) if self.server_port == 80 else set()
        )

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def answered(self, text: str) -> dict[str, Any]:
        """What is known of a text; while it is worked on, others wait."""
        with self._one_at_a_time:
            return self.answer(text)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = SECONDS
    server_version, sys_version = "overtone", ""

    def do_GET(self) -> None:
        self._guarded(self._show)

    def do_POST(self) -> None:
        self._guarded(self._read)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: texts and what is asked of them are nobody's business."""

    def _guarded(self, respond: Callable[[], None]) -> None:
        try:
            self._check()
            respond()
        except Refused as refused:
            self._send(refused.status, "application/json", json.dumps({"error": str(refused)}).encode())

    def _check(self) -> None:
        """Refuse what does not come from a page of this server, opened by its own address."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(403, f"this server is {self.server.address}; open it by that address")
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self.server.hosts}:
            raise Refused(403, "only the page of this server may ask it")

    def _show(self) -> None:
        if self.path.split("?")[0] != "/":
            raise Refused(404, f"there is nothing at {self.path[:200]!r}; the page is at /")
        self._send(200, "text/html; charset=utf-8", self.server.page)

    def _read(self) -> None:
        if self.path != "/read":
            raise Refused(404, f"there is nothing to ask at {self.path[:200]!r}; texts are read at /read")
        text = self._asked()
        try:
            answer = self.server.answered(text)
        except ValueError as error:
            raise Refused(422, str(error)) from error
        self._send(200, "application/json", json.dumps(answer).encode())

    def _asked(self) -> str:
        """The text of a request: JSON, which no other site's page can send without asking first, and in vain."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, 'a text comes as JSON, {"text": "…"}, with Content-Type: application/json')
        limit = BYTES_PER_CHARACTER * self.server.most + 100
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError as error:
            raise Refused(411, "say how long the request is: Content-Length is missing") from error
        if not 0 <= length <= limit:
            raise Refused(413, f"the request has {length:,} bytes; a text may have {self.server.most:,} characters")
        try:
            text = json.loads(self.rfile.read(length))["text"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise Refused(400, 'the request is no JSON like {"text": "…"}') from error
        if not isinstance(text, str):
            raise Refused(400, "the text is not a string")
        return text

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
