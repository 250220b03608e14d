"""The page in a real browser: found, sorted, looked at, noted; nothing executed, nothing asked for."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overtone.report.page import document, write_folder, write_page
from sample_page import HOSTILE, Sample, sample, truth_view

playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")]


@pytest.fixture(scope="module")
def made() -> Sample:
    return sample(rows=2500)


@pytest.fixture(scope="module", params=["a file", "a folder"])
def file(made: Sample, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    """The page, all tests of which hold for both of its forms."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "PART", 16)
        if request.param == "a file":
            write_page(folder / "report.html", HOSTILE[0], made.runs)
            return (folder / "report.html").as_uri()
        write_folder(folder, HOSTILE[0], made.runs)
        return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, file: str) -> Iterator[Any]:
    """A page that must say nothing on the console, ask for nothing but itself, and open no dialogue."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    context.set_default_timeout(60_000)
    tab, heard = context.new_page(), []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
    own = (file, "blob:", *([file.replace("index.html", "latents/")] if file.endswith("index.html") else []))
    tab.on("request", lambda request: request.url.startswith(own) or heard.append(request.url))
    tab.goto(f"{file}#latents")
    yield tab
    assert not heard
    context.close()


def shown(tab: Any, latent: int) -> None:
    """Wait until a latent is shown. The page's policy forbids Playwright to wait for a function of its own."""
    tab.locator("#latent-title", has_text=f"Latent {latent} ").wait_for()


def order(tab: Any) -> list[int]:
    tab.wait_for_selector(".row")
    return [int(text[1:]) for text in tab.locator(".row .number").all_text_contents()]


def test_sorted_and_searched(tab: Any, made: Sample):
    assert order(tab)[:3] == [39, 38, 37], "by Z-score"
    tab.select_option("#sort", "frequency")
    frequency = made.runs[0].latents.frequency
    wanted = frequency.argsort(descending=True, stable=True).tolist()
    assert order(tab)[:8] == wanted[:8]
    tab.click("#direction")
    assert order(tab)[0] == next(m for m in reversed(wanted) if frequency[m] > 0)
    tab.fill("#search", "#17")
    assert 17 in order(tab)
    tab.fill("#search", "BOLD label")
    assert order(tab) == [5] and tab.locator(".row .said").text_content() == "machine-made <b>bold</b> label"
    tab.fill("#search", "nothing has this")
    assert "None of 40" in tab.locator("#found").text_content()
    tab.fill("#search", "0")
    tab.check("#silent")
    assert 0 in order(tab)


def test_switched_by_keys_and_links(tab: Any):
    tab.keyboard.press("j")
    shown(tab, 38)
    tab.keyboard.press("k")
    shown(tab, 39)
    tab.focus("#list")
    tab.keyboard.press("ArrowDown")
    shown(tab, 38)
    assert tab.get_attribute("#list", "aria-activedescendant") == "row-38"
    tab.keyboard.press("/")
    playwright.expect(tab.locator("#search")).to_be_focused()
    link = tab.locator(".near a", has_text="<i>run</i> 1 #38")
    link.click()
    tab.wait_for_url("**#latent/1/38")
    playwright.expect(tab.locator("#run")).to_have_value("1")


def test_values_on_hover_are_the_codes_that_python_computed(tab: Any, made: Sample):
    for m in (39, 3):
        tab.evaluate(f"location.hash = '#latent/0/{m}'")
        shown(tab, m)
        view, z = made.runs[0].latents, made.z[0]
        for i in range(2):
            start, row = int(view.strongest.start[m, i]), int(view.strongest.row[m, i])
            line = tab.locator(".examples").first.locator("li").nth(i)
            for place in (row - start, 0):
                token = line.locator(".token").nth(place)
                token.scroll_into_view_if_needed()
                token.hover()
                said = tab.locator("#tip strong").text_content()
                assert float(said) == pytest.approx(float(z[start + place, m]), rel=1e-4, abs=1e-4)
    strongest = tab.locator("mark.strongest").first
    strongest.focus()
    assert tab.locator("#tip").is_visible() and strongest.get_attribute("aria-describedby") == "tip"
    tab.keyboard.press("Escape")
    assert tab.locator("#tip").is_hidden()


def test_hostile_text_is_shown_as_text(tab: Any):
    """Every token of every latent, as Python knows it; hidden characters as their names."""
    shown = tab.evaluate("""() => {
        const found = new Set();
        for (let m = 0; m < state.run.latents; m++) {
            showLatent(state.run, m);
            for (const token of document.querySelectorAll(".token")) found.add(token.firstChild?.nodeValue ?? "");
        }
        return [...found];
    }""")
    expected = {t for t in HOSTILE if t.isprintable() and len(t) < 48 and t != "👩‍🔬"}
    named = {"⟨U+2028⟩⟨U+2029⟩", "␀␇␛[31m", "⟨U+202E⟩ltr⟨U+202C⟩", "↵⇥", "⟨U+D800⟩", "👩‍🔬", "x" * 48 + "…"}
    assert expected | named <= set(shown)
    assert tab.locator("article img, article script, article b, article i").count() == 0
    long = tab.locator(".token", has_text=re.compile("x{48}")).first
    if not long.count():
        tab.evaluate("showLatent(state.run, [...Array(40).keys()].find((m) => examplesOf(state.run, m).strongest.some("
                     "(e) => e.tokens.some((t) => t.length > 9999))))")  # fmt: skip
    long.evaluate("token => token.click()")
    assert "x" * 10_000 in long.text_content()


def test_two_dictionaries_beside_each_other(tab: Any, made: Sample):
    """Shaded by both, with the codes that Python computed; sorted by cosine and by firing; a note on either side."""
    tab.evaluate("location.hash = '#compare'")
    tab.wait_for_selector("#pair-title")
    listed = tab.locator("#pair-rows .row .number").all_text_contents()
    assert listed[:3] == ["#39", "#38", "#37"], "by cosine"
    tab.select_option("#pair-sort", "phi")
    assert tab.locator("#pair-rows .row .number").first.text_content() == "#1", "the most alike by firing that fires"
    view, (a, b) = made.runs[0].latents, made.z
    for by, m, n in (("by_direction", 30, 30), ("by_firing", 30, 29), ("by_firing", 10, 10)):
        tab.select_option("#pair-by", by)
        tab.evaluate(f"location.hash = '#compare/0/1/{m}'")
        tab.locator("#pair-title", has_text=f"#{m} and #{n} ").wait_for()
        start, row = int(view.strongest.start[m, 0]), int(view.strongest.row[m, 0])
        for side, z, latent in ((0, a, m), (1, b, n)):
            tokens = tab.locator(".both").first.locator(".side").nth(side).locator(".token")
            for place in (row - start, 1, 2):
                tokens.nth(place).hover()
                said = float(tab.locator("#tip strong").text_content())
                assert said == pytest.approx(float(z[start + place, latent]), rel=1e-4, abs=1e-4)
    tab.keyboard.press("Escape")
    tab.fill("#note-right", "like the other")
    tab.evaluate("location.hash = '#latent/1/10'")
    playwright.expect(tab.locator("#note")).to_have_value("like the other")
    tab.get_by_role("link", name="Compare #10 with its counterpart in").click()
    tab.locator("#pair-title", has_text="#10 and #10 ").wait_for()
    assert tab.evaluate("location.hash") == "#compare/1/0/10"


def test_a_passage_token_by_token(tab: Any, made: Sample):
    tab.evaluate("location.hash = '#read/2'")
    tab.wait_for_selector("#reader-1 .pick")
    for run in (0, 1):
        passage = made.runs[run].latents.passages[2]
        codes = passage.codes.dense()
        token = int((codes != 0).sum(1).argmax())
        tab.locator(f"#reader-{run} .pick").nth(token).click()
        listed = tab.locator(f"#reader-{run} .near li")
        active = codes[token].nonzero()[:, 0].tolist()
        assert listed.count() == min(12, len(active)) > 1
        for i in range(2):
            line = listed.nth(i)
            latent = int(line.locator("a").text_content().split()[0].removeprefix("#"))
            assert float(line.locator(".code").text_content()) == pytest.approx(float(codes[token, latent]), rel=1e-2)
        line.locator("button").click()
        shaded = tab.locator(f"#reader-{run} mark.token").count()
        assert shaded == int((codes[:, latent] != 0).sum()) > 0, "by that latent alone"
        tab.locator(f"#reader-{run} .pick").nth(token).hover()
        assert float(tab.locator("#tip strong").text_content()) == pytest.approx(float(codes[token, latent]), rel=1e-4)
    tab.click("#passage-on")
    following = made.runs[0].latents.passages[3]
    playwright.expect(tab.locator("#passage")).to_have_value("3")
    playwright.expect(tab.locator("#reader-0 .pick")).to_have_count(len(following.token_ids))


def test_the_overview_shows_frontier_and_consistency(tab: Any):
    tab.evaluate("location.hash = '#overview'")
    tab.wait_for_selector("#against")
    titles = tab.locator("#charts h3").all_text_contents()
    assert "Explained variance against L0" in titles and any("Consistency" in title for title in titles)
    before = tab.locator("#charts .dots").first.get_attribute("d")
    tab.focus("#against")
    tab.select_option("#against", "z_score")
    assert tab.locator("#charts .dots").count() == 2
    assert tab.locator("#charts .dots").first.get_attribute("d") != before
    playwright.expect(tab.locator("#against")).to_be_focused()
    assert "Consistency" in tab.locator("figure:has(#against) > :first-child h3").text_content(), (
        "the heading comes first"
    )
    assert before.count("M") == 39, "every latent that fires"


def test_numbers_and_labels_are_said_well(tab: Any):
    told = {
        "scale([0.14, 0.45], [0, 1], true).ticks.map((value) => number(value))": ["0.15", "0.2", "0.3"],
        "scale([1e-4, 1], [0, 1], true).ticks.length": 5,
        "[0.5, -0.00089, 1, NaN].map((value) => alike(value))": ["0.50", "0.00", "1.00", "–"],
        "tickTexts([1e-4, 1e-3, 0.01, 0.1, 1])": ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"],
        "tickTexts([0, 2e-4, 4e-4])": ["0", "2·10⁻⁴", "4·10⁻⁴"],
        "tickTexts([0, 0.1 + 0.2, 100])": ["0", "0.3", "100"],
        "tickTexts([1, 1e3, 1e6])": ["1", "10³", "10⁶"],
        "[1, 0.123, 1e-5, 1e-6, 1.3e-7, 0].map(percent)": [
            "100 %",
            "12.3 %",
            "0.001 %",
            "0.0001 %",
            "0.000013 %",
            "0 %",
        ],
        "[1.234e-5, -1e-4, 0.5, 2e7].map((value) => readable(value))": ["1.23·10⁻⁵", "-10⁻⁴", "0.5", "2·10⁷"],
        "saidElements(openRun(0), 5, 4).map((part) => part.textContent ?? part).join('')": "machine-made <b>bold</b> label",
    }
    assert {asked: tab.evaluate(asked) for asked in told} == told


def test_notes_are_kept_and_exported(tab: Any, tmp_path: Path):
    tab.keyboard.press("n")
    tab.keyboard.type("a <note> j/k")
    assert tab.locator("#row-39 .said").text_content() == "a <note> j/k"
    tab.reload()
    assert tab.input_value("#note") == "a <note> j/k"
    with tab.expect_download() as download:
        tab.click("#export")
    download.value.save_as(tmp_path / "notes.json")
    found = json.loads((tmp_path / "notes.json").read_text())
    one = {"run": "<i>run</i> 0", "weights": "key0", "latent": 39, "note": "a <note> j/k"}
    assert found["format"] == "overtone-notes" and found["notes"] == [one]


def test_themes_and_widths(tab: Any):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    tab.emulate_media(color_scheme="dark")
    dark = tab.evaluate(ground)
    assert light != dark
    tab.click("#theme")
    assert tab.evaluate(ground) == light, "chosen"
    tab.click("#theme")
    tab.emulate_media(color_scheme="light")
    assert tab.evaluate(ground) == dark
    for width in (360, 1440):
        tab.set_viewport_size({"width": width, "height": 740})
        for view in ("#overview", "#latents", "#compare", "#read"):
            tab.evaluate(f"location.hash = '{view}'")
            tab.locator(f"#view-{view[1:]}").wait_for()
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("#charts svg").count() >= 5


def test_latents_beside_known_features(browser: Any, tmp_path: Path):
    """Sorted by their cosine with the nearest one, which stands first in every row that it is part of."""
    made, truth = sample(rows=900, runs=1), truth_view(40)
    own = truth.feature.tolist()
    strings = [f"0.5·v{i % 40} + 0.25·v{(i + 1) % 40}" for i in range(len(made.runs[0].text.strings))]
    text = made.runs[0].text._replace(strings=strings, unit="rows")
    run = made.runs[0]._replace(
        text=text, latents=made.runs[0].latents._replace(truth=truth), metrics={"frr_0.8": 0.25}
    )
    write_page(tmp_path / "t.html", "", [run])
    tab = browser.new_page()
    tab.goto(f"{(tmp_path / 't.html').as_uri()}#latents")
    tab.select_option("#sort", "feature_cosine")
    wanted = truth.cosine.argsort(descending=True, stable=True).tolist()
    assert order(tab)[:5] == [m for m in wanted if m][:5], "latent 0 never fires"
    tab.select_option("#sort", "feature_frequency")
    frequency = truth.frequency[truth.feature]
    assert order(tab)[0] == next(m for m in frequency.argsort(descending=True, stable=True).tolist() if m)
    tab.evaluate("location.hash = '#latent/0/7'")
    shown(tab, 7)
    facts = tab.locator("#latent .facts").text_content()
    assert f"v{own[7]}" in facts and f"{float(truth.cosine[7]):.3f}" in facts
    for line in tab.locator("#latent .token").all_text_contents():
        assert line.startswith((f"0.5·v{own[7]} ", f"0.25·v{own[7]} ", f"without v{own[7]}: "))
    tab.fill("#search", f"v{own[7]}")
    assert set(order(tab)) == {m for m in range(1, 40) if own[m] == own[7]}
    tab.evaluate("location.hash = '#overview'")
    tab.locator("h3", has_text="Known features found").wait_for()
    assert "25.0%" in tab.locator("#view-overview .numbers").text_content()
    assert "Known features by frequency" in tab.locator("#charts").text_content()
    tab.close()


def test_a_folder_is_read_as_latents_are_looked_at(browser: Any, made: Sample, tmp_path: Path, monkeypatch: Any):
    """What is missing, or of another page, is said to be, and asked for again once it is there."""
    monkeypatch.setattr(document, "PART", 16)
    write_folder(tmp_path, "", made.runs)
    parts, tab, asked = tmp_path / "latents", browser.new_page(), []
    tab.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1].split("#")[0]))
    missing, kept = parts / "0-1.js", (parts / "0-1.js").read_text()
    missing.unlink()
    tab.goto((tmp_path / "index.html").as_uri())
    tab.locator("#charts figure").first.wait_for()
    assert asked == ["index.html"], "no latent has been looked at"
    tab.evaluate("location.hash = '#latent/0/5'")
    tab.locator("#latent .examples").first.wait_for()
    tab.evaluate("location.hash = '#latent/0/6'")
    shown(tab, 6)
    tab.evaluate("location.hash = '#latent/0/5'")
    assert asked == ["index.html", "0-0.js"], "each part once"
    tab.evaluate("location.hash = '#latent/0/17'")
    said = tab.locator("#latent .note")
    playwright.expect(said).to_contain_text(
        "The file latents/0-1.js cannot be read: the details of this latent are missing."
    )
    assert tab.locator("#latent .facts").count() == 1, "what is known of it is there"
    tab.evaluate("location.hash = '#compare/0/1/17'")
    playwright.expect(tab.locator("#pair .note")).to_contain_text("latents/0-1.js cannot be read")
    missing.write_text(kept.replace('arrived("', 'arrived("other'))
    tab.evaluate("location.hash = '#latent/0/18'")
    shown(tab, 18)
    playwright.expect(said).to_contain_text("latents/0-1.js is of another report than this page")
    missing.write_text(kept)
    tab.evaluate("location.hash = '#latent/0/19'")
    shown(tab, 19)
    tab.locator("#latent .examples").first.wait_for()
    tab.close()
