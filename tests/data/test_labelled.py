"""Labelled texts: tables, folders and the library that every Python carries."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from overtone.data.labelled import load_labelled
from overtone.data.text_stdlib import PACKAGES

ROWS = [{"text": f"text, number {i}", "label": i % 3, "tone": "high" if i % 2 else "low"} for i in range(30)]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.json", "t.jsonl", "t.csv.gz", "t.jsonl.gz"])
def test_tables_of_every_kind_say_the_same(name: str, tmp_path: Path):
    kind = name.split(".")[1]
    if kind == "json":
        content = json.dumps(ROWS)
    elif kind == "jsonl":
        content = "\n".join(map(json.dumps, ROWS))
    else:
        mark = "\t" if kind == "tsv" else ","
        content = "\n".join(mark.join([f'"{r["text"]}"', str(r["label"]), r["tone"]]) for r in ROWS)
        content = mark.join(ROWS[0]) + "\n" + content
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    found = load_labelled(tmp_path / name, other="tone")
    triples = {(doc.text, label, other) for doc, label, other in zip(*found, strict=True)}
    assert triples == {(r["text"], str(r["label"]), r["tone"]) for r in ROWS}
    assert found.classes() == ["0", "1", "2"] and load_labelled(tmp_path / name).other == []
    assert load_labelled(tmp_path / name, other="tone") == found, "always in the same order"
    assert Counter(found.of(["0", "2"], 4).label) == {"0": 4, "2": 4}


def test_a_folder_of_files_and_one_of_folders(tmp_path: Path):
    for name, text in {"one/rt.pos": "good\n\nbetter\n", "one/rt.neg": "bad\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = load_labelled(tmp_path / "one")
    assert {(d.text.strip(), label) for d, label in zip(found.docs, found.label, strict=True)} == {
        ("good", "rt.pos"),
        ("better", "rt.pos"),
        ("bad", "rt.neg"),
    }
    (tmp_path / "two" / "x").mkdir(parents=True)
    (tmp_path / "two" / "x" / "1.txt").write_text("a text\nof two lines")
    with pytest.raises(ValueError, match="has not two classes"):
        load_labelled(tmp_path / "two")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\n"open,1\n', "is not valid CSV"),
        ("text,label\na,b,c\n", "line 2 has not the 2 columns that the first line names"),
        ("text,label\na\n", "line 2 has not the 2 columns"),
        ("text,label\na,\n", "no label under 'label'"),
        ("words,label\na,b\n", "has no text under text"),
        ("text,label\n", "holds no text"),
    ],
)
def test_broken_tables_are_told_by_their_line(content: str, message: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_labelled(tmp_path / "t.csv")


def test_the_librarys_functions_are_prose_and_code():
    found = load_labelled(other="kind")
    counts = Counter(found.combined())
    assert set(counts) == {f"{package}, {kind}" for package in PACKAGES for kind in ("prose", "code")}
    assert min(counts.values()) > 50 and len({doc.text for doc in found.docs}) == len(found.docs)
    code, prose = (
        next(d.text for d in found.docs if d.name.endswith(f" gather, {kind}")) for kind in ("code", "prose")
    )
    assert code.startswith("def gather(") and prose[:40] not in code
