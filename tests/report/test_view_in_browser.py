"""The served page in a real browser: a text of one's own lights up with the codes that Python computes, and stays text."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

import overtone
import tiny_store
from overtone.cli.pages import run_views, subjects_of
from overtone.cli.serving import PageServer
from overtone.cli.view import LONGEST, reader_of
from overtone.report.page import page_html

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store.make(tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def server(made: Path) -> Iterator[PageServer]:
    where: dict[str, Any] = {
        "store": made / "store",
        "site": ("resid.1",),
        "target": None,
        "split": "train",
        "rows": 2000,
    }
    subjects = subjects_of([made / "d0", made / "d1"], **where, seed=0, input_norm=None, parts=())
    html = page_html("served", run_views(subjects), served=LONGEST)
    with PageServer(html, reader_of(subjects), LONGEST) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def tab(server: PageServer) -> Iterator[Any]:
    """A page that must say nothing on the console and ask for nothing but its own server."""
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        tab, heard = chromium.new_page(viewport={"width": 1280, "height": 900}), []
        tab.set_default_timeout(60_000)
        tab.on("console", lambda message: "favicon" in message.text or heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: request.url.startswith(server.address) or heard.append(request.url))
        tab.goto(f"{server.address}#read")
        yield tab
        assert not heard
        chromium.close()


def test_a_text_of_ones_own(tab: Any, made: Path):
    text = "three one <script>alert(1)</script> four four ten"
    tab.fill("#asked", text)
    tab.click("#send")
    playwright.expect(tab.locator("#answer")).to_have_text("6 tokens")
    lm = overtone.load_model(made / "model")
    x = overtone.harvest(lm, "resid.1", [overtone.Document("t", text)], context=16).x
    for run in (0, 1):
        codes = overtone.load(made / f"d{run}").encode(x).z.detach()
        tokens = tab.locator(f"#reader-{run} .pick")
        assert [t.strip() for t in tokens.all_text_contents()] == ["three", "one", "[UNK]", "four", "four", "ten"]
        if run == 0:
            tokens.nth(3).click()  # in every dictionary
        listed = tab.locator(f"#reader-{run} .near li")
        found = {
            int(line.locator("a").text_content().split()[0].removeprefix("#")): float(
                line.locator(".code").text_content()
            )
            for line in listed.all()
        }
        active = codes[3].nonzero()[:, 0].tolist()
        assert sorted(found) == active and len(active) == 3 + run
        for latent, code in found.items():
            assert code == pytest.approx(float(codes[3, latent]), rel=1e-2)
        tab.fill(f"#by-{run}", str(active[0]))
        tab.keyboard.press("Tab")
        lit = tab.locator(f"#reader-{run} mark.token")
        assert lit.count() == int((codes[:, active[0]] != 0).sum())


def test_what_cannot_be_read_is_said(tab: Any):
    tab.click("#send")
    assert "some words first" in tab.locator("#answer").text_content()
    tab.fill("#asked", "one " * 2000)
    tab.click("#send")
    assert "8,000 characters, the limit is 5,000" in tab.locator("#answer").text_content()
    tab.fill("#asked", "two")
    tab.keyboard.press("Control+Enter")
    playwright.expect(tab.locator("#answer")).to_have_text("1 token")
