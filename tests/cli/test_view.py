"""The local server: it serves its page and reads texts, to its own pages alone."""

import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from overtone.cli.serving import HOST, PageServer

MOST = 50
JSON = {"Content-Type": "application/json"}


def answer(text: str) -> dict[str, Any]:
    if "!" in text:
        raise ValueError("no exclamations")
    return {"tokens": list(text), "runs": []}


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with PageServer("<p>é</p>", answer, MOST) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server: PageServer, method: str, path: str, body: Any = None, **headers: str | None):
    """(status, headers, body) of one request; a header of None is left out."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=10)
    given = {"Host": f"{HOST}:{server.server_port}"} | {name.replace("_", "-"): v for name, v in headers.items()}
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.putrequest(method, path, skip_host=True)
    if body is not None and "Content-Length" not in given:
        given["Content-Length"] = str(len(body))
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def read(server: PageServer, body: Any, **headers: str | None):
    status, _, found = ask(server, "POST", "/read", body, **{**JSON, **headers})
    return status, json.loads(found)


def test_it_listens_on_this_machine_alone(server: PageServer):
    assert server.server_address[0] == HOST == "127.0.0.1" and server.server_port > 0


def test_the_page_and_nothing_else(server: PageServer):
    status, headers, body = ask(server, "GET", "/")
    assert status == 200 and body.decode() == "<p>é</p>" and headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    for path in ("/etc/passwd", "/../x", "//evil", "/read", "/<script>"):
        status, headers, body = ask(server, "GET", path)
        assert status == 404 and headers["Content-Type"] == "application/json"
    assert ask(server, "OPTIONS", "/read", Origin="http://evil.example")[0] == 501, "no leave for other sites' pages"


def test_texts_are_answered(server: PageServer):
    assert read(server, {"text": "<b>é👩"}) == (200, {"tokens": ["<", "b", ">", "é", "👩"], "runs": []})
    assert read(server, {"text": "no!"}) == (422, {"error": "no exclamations"})
    assert read(server, {"text": "👩" * MOST})[0] == 200, "as many characters as are allowed, as escapes"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", None])
def test_another_name_for_this_machine_is_refused(server: PageServer, host: str | None):
    """DNS rebinding: a name of somebody's that points here."""
    given = host and host.format(port=server.server_port)
    for method, path, body in (("GET", "/", None), ("POST", "/read", {"text": "a"})):
        status, _, found = ask(server, method, path, body, Host=given, **JSON)
        assert status == 403 and b"<p>" not in found and b"tokens" not in found


def test_other_sites_pages_are_refused(server: PageServer):
    port = server.server_port
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"):
        status, headers, _ = ask(server, "POST", "/read", {"text": "a"}, Origin=origin, **JSON)
        assert status == 403 and not any(name.lower().startswith("access-control") for name in headers)
    for own in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert read(server, {"text": "a"}, Origin=own)[0] == 200
    for simple in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        assert read(server, {"text": "a"}, **{"Content-Type": simple})[0] == 415, "a form of another site's"


def test_broken_requests_get_a_clear_answer(server: PageServer):
    for body in (b"", b"{", b"[]", b'{"other": 1}', b"null", b"\xff\xfe", b"[" * 400):
        status, found = read(server, body)
        assert status == 400 and "no JSON like" in found["error"]
    status, found = read(server, {"text": 3})
    assert status == 400 and "not a string" in found["error"]
    status, found = read(server, {"text": "x" * 3000})
    assert status == 413 and "50 characters" in found["error"]
    assert read(server, None, Content_Length=None)[0] == 411
    for length in ("-1", "1e3", "999999999999"):
        status, _, _ = ask(server, "POST", "/read", None, Content_Length=length, **JSON)
        assert status in (411, 413)


def test_a_port_that_is_taken(server: PageServer):
    with pytest.raises(OSError, match=f"port {server.server_port} .*give another --port"):
        PageServer("", answer, MOST, server.server_port)
