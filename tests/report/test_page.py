"""What the page holds equals what was computed, and text stays text."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overtone.report.page import document, write_folder, write_page
from overtone.report.page.packing import FULL, KINDS, packed
from sample_page import HOSTILE, Sample, sample

PART, PARTS = 16, 3


@pytest.fixture(scope="module")
def made() -> Sample:
    return sample()


@pytest.fixture(autouse=True, scope="module")
def several_parts():
    """Three of each dictionary, the last one shorter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "PART", PART)
        yield


@pytest.fixture(scope="module")
def html(made: Sample, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_page(path, HOSTILE[0], made.runs) == path.stat().st_size
    return path.read_text(encoding="utf-8")


@pytest.fixture
def data(html: str) -> dict[str, Any]:
    """What the page holds, each dictionary with the details of all of its latents."""
    (core,) = re.findall(r'<script type="application/json" id="data"[^>]*>(.*?)</script>', html)
    data, found = json.loads(core), dict(re.findall(r'id="part-(\d+-\d+)">(.*?)</script>', html))
    assert len(found) == PARTS * len(data["runs"])
    for number, run in enumerate(data["runs"]):
        parts = [json.loads(found[f"{number}-{i}"]) for i in range(PARTS)]
        run["examples"] = joined([part["examples"] for part in parts])
        run["lens"] = [both for part in parts for both in part["lens"]]
        for i, beside in enumerate(run["counterparts"]):
            for by in ("by_direction", "by_firing"):
                beside[by]["codes"] = joined([part["counterparts"][i][by] for part in parts])
    return data


def joined(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([unpacked(part[name]) for part in parts]) for name in parts[0]}


def unpacked(kept: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(kept["base64"]), dtype=KINDS[kept["kind"]])


def test_every_code_on_the_page_is_that_of_its_row(data: dict[str, Any], made: Sample):
    """To half of the stated step; and no token that fires is shown as one that does not."""
    for run, view, z in zip(data["runs"], made.runs, made.z, strict=True):
        text, strings = data["texts"][run["text"]], data["texts"][run["text"]]["strings"]
        tokens = unpacked(text["tokens"])
        e, full = run["examples"], unpacked(run["full"])
        latent_of = np.repeat(np.arange(run["latents"]), e["windows"])
        entry = np.concatenate([[0], np.cumsum(e["entries"], dtype=int)])
        wanted = [w for m in range(run["latents"]) for w in _windows(view.latents, m)]
        assert len(wanted) == len(latent_of) > 0
        for w, (m, (row, start, length)) in enumerate(zip(latent_of, wanted, strict=True)):
            codes = np.zeros(length)
            part = slice(entry[w], entry[w + 1])
            codes[e["place"][part]] = e["code"][part] / FULL * float(full[m])
            true = z[start : start + length, m].numpy()
            step = float(full[m]) / FULL
            assert np.abs(codes - true).max() <= step / 2 * (1 + 1e-4) and ((codes != 0) == (true != 0)).all()
            shown = [strings[n] for n in tokens[e["start"][w] : e["start"][w] + length]]
            assert tuple(shown) == made.words[start : start + length] and e["peak"][w] == row - start


def test_codes_of_counterparts_and_of_passages_are_those_of_their_rows(data: dict[str, Any], made: Sample):
    for i, (run, view) in enumerate(zip(data["runs"], made.runs, strict=True)):
        (beside,) = run["counterparts"]
        z, e = made.z[beside["run"]], run["examples"]
        latent_of, windows = np.repeat(np.arange(run["latents"]), e["windows"]), []
        for m in range(run["latents"]):
            windows += _windows(view.latents, m)
        for kind, kept in (("by_direction", beside["by_direction"]), ("by_firing", beside["by_firing"])):
            partner, packs = unpacked(kept["latent"]), kept["codes"]
            entry = np.concatenate([[0], np.cumsum(packs["entries"], dtype=int)])
            place, code, full = (packs[name] for name in ("place", "code", "full"))
            for w, (m, (_, start, length)) in enumerate(zip(latent_of, windows, strict=True)):
                codes, part = np.zeros(length), slice(entry[w], entry[w + 1])
                codes[place[part]] = code[part] / FULL * float(full[m])
                true = z[start : start + length, int(partner[m])].numpy()
                if kind == "by_firing" and m < 20:  # the same latent as by direction: kept once
                    true = np.zeros(length)
                assert np.abs(codes - true).max() <= float(full[m]) / FULL / 2 * (1 + 1e-4)
        for passage, kept in zip(view.latents.passages, run["passages"]["codes"], strict=True):
            own = made.z[i][passage.row : passage.row + len(passage.token_ids)]
            assert unpacked(kept["active"]).tolist() == (own != 0).sum(1).tolist()
            assert unpacked(kept["latent"]).tolist() == own.nonzero()[:, 1].tolist()
            assert np.array_equal(unpacked(kept["code"]), own[own != 0].numpy())


def _windows(view: Any, m: int) -> list[tuple[int, int, int]]:
    found = []
    for windows in (view.strongest, view.sampled):
        for i in range(int((windows.row[m] >= 0).sum())):
            length = int((windows.token_ids[m, i] >= 0).sum())
            found.append((int(windows.row[m, i]), int(windows.start[m, i]), length))
    return found


def test_text_is_never_markup(html: str, data: dict[str, Any]):
    scripts = 2 + 2 * PARTS
    assert len(re.findall(r"<script", html)) == scripts and len(re.findall(r"</script", html)) == scripts
    for bad in ("<!--", "<img", "<b>", "<i>", "alert(1)</", "\u2028", "\u202e", "\x00", "\x1b", "=x onerror=alert(1)>"):
        assert bad not in html, bad
    assert set(HOSTILE) <= set(data["texts"][0]["strings"]), "and all of it is there"
    assert data["title"] == HOSTILE[0] and data["runs"][0]["lens"][1] == [[HOSTILE[0]], [HOSTILE[4]]]


def test_only_the_pages_own_script_and_style_run(html: str):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    for kind, source in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        allowed = policy[1].split(f"{kind}-src '")[1].split("'")[0].replace("&#43;", "+")
        assert allowed == f"sha256-{digest}"
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp|https?://(?!www\.w3)", script
    )
    assert not re.search(r"""(src|href)=["'](?!#)""", html) and "strict-dynamic" not in policy[1]


def test_the_words_of_a_latent_are_those_it_fires_on_most(data: dict[str, Any], made: Sample):
    for run, view in zip(data["runs"], made.runs, strict=True):
        strings, counts = data["texts"][run["text"]]["strings"], unpacked(run["words"]["count"])
        words = np.split(unpacked(run["words"]["word"]), np.cumsum(counts)[:-1])
        for m in range(run["latents"]):
            sums: dict[str, float] = {}
            for row, start, codes in _codes(view.latents, m):
                word = made.words[row].strip()
                sums[word] = sums.get(word, 0) + abs(float(codes[row - start]))
            wanted = sorted(sums, key=lambda word: -sums[word])[:12]
            assert [strings[n].strip() for n in words[m]] == wanted


def _codes(view: Any, m: int) -> list[tuple[int, int, Any]]:
    w = view.windows
    return [(int(w.row[m, i]), int(w.start[m, i]), w.codes[m, i]) for i in range(w.row.shape[1]) if w.row[m, i] >= 0]


def test_a_folder_holds_what_the_file_holds(html: str, made: Sample, tmp_path: Path):
    (tmp_path / "latents").mkdir()
    for old in ("0-3.js", "mine.js", "0-3.js.bak"):
        (tmp_path / "latents" / old).write_text("")
    size = write_folder(tmp_path, HOSTILE[0], made.runs)
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    key = re.search(r'data-key="(\w{16})"', html)
    assert key is not None and f'data-key="{key[1]}"' in index, "the same data"
    parts = dict(re.findall(r'id="part-(\d+-\d+)">(.*?)</script>', html))
    assert {f.name for f in (tmp_path / "latents").iterdir()} == {
        "mine.js",
        "0-3.js.bak",
        *(f"{name}.js" for name in parts),
    }
    for name, part in parts.items():
        called = (tmp_path / "latents" / f"{name}.js").read_text(encoding="utf-8")
        assert called.isascii() and not set(called) & set("<>&'") and called.count("\n") == 1
        found = re.fullmatch(r'arrived\("(\w+)", "(.*?)", (".*")\);\n', called)
        assert found is not None and found.groups()[:2] == (key[1], name) and json.loads(found[3]) == part
    assert "'strict-dynamic'" in index and len(re.findall("<script", index)) == 2
    sizes = [(tmp_path / "latents" / f"{name}.js").stat().st_size for name in parts]
    assert size == (len(index.encode()), sum(sizes), len(parts)) and size.opened < len(html.encode())


def test_a_latent_takes_less_room_than_30_mb_for_16384(tmp_path: Path):
    few, many = (write_page(tmp_path / "p.html", "", sample(n, 3000, runs=1).runs) for n in (40, 440))
    assert (many - few) / 400 < 30e6 / 16384


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit u8, which ends at 255"):
        packed(np.array([256]), "u8")
