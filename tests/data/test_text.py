import json
import sys
from pathlib import Path

import pytest

from overtone.data import text
from overtone.data.text import Document, load_documents, split_documents

WIKITEXT = Path(__file__).parents[2].parent / "shared" / "data" / "text" / "wikitext2"


@pytest.fixture(scope="module")
def docs():
    return load_documents("stdlib-docs")


def test_stdlib_docs_are_prose_in_a_fixed_order(docs):
    assert docs == load_documents("stdlib-docs")
    assert sum(len(d.text) for d in docs) > 1_000_000
    assert len({d.name for d in docs}) == len(docs)
    names = {d.name for d in docs}
    assert {"argparse", "argparse.ArgumentParser", "topics.assert"} <= names
    assert not any(n.startswith(("test.", "lib2to3", "site-packages")) for n in names)
    assert min(len(d.text) for d in docs) >= text.MIN_DOCSTRING


def test_stdlib_docs_hold_no_docstring_twice(docs):
    blocks = [d.text for d in docs]
    assert len(set(blocks)) == len(blocks)


def test_stdlib_docs_are_a_fair_sample_at_any_prefix(docs):
    topics = [d.name.startswith("topics.") for d in docs]
    half = len(docs) // 2
    assert 0.25 < sum(topics[:half]) / sum(topics) < 0.75
    assert [d.name for d in docs] != sorted(d.name for d in docs)


def test_stdlib_is_read_without_importing_it():
    assert "turtledemo.chaos" not in sys.modules and "antigravity" not in sys.modules


def test_stdlib_source_is_code_in_parts():
    docs = load_documents("stdlib-source", limit_chars=500_000)
    assert docs == load_documents("stdlib-source", limit_chars=500_000)
    assert sum(len(d.text) for d in docs) == 500_000
    assert any("def " in d.text for d in docs) and max(len(d.text) for d in docs) <= text.PART


def test_docstrings_go_to_their_module_or_class():
    lines = [
        '"""Module."""',
        "def f():",
        '    """F',
        '       is."""',
        "if 1:",
        "    class C:",
        '        """C."""',
    ]
    source = "\n".join([*lines, '        def m(self): "M."'])
    assert text._docstrings(source, "mod") == {"mod": ["Module.", "F\nis."], "mod.C": ["C.", "M."]}
    assert text._docstrings("def broken(", "mod") == {}


def test_a_text_file_and_its_long_parts(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("A short text.", encoding="utf-8")
    assert load_documents(path) == [Document("book.txt", "A short text.")]
    paragraphs = "\n\n".join(f"Paragraph {i}. " + "word " * 200 for i in range(100))
    path.write_text(paragraphs, encoding="utf-8")
    docs = load_documents(str(path))
    assert len(docs) > 4 and docs[1].name == "book.txt#1"
    assert all(d.text.startswith("Paragraph") and len(d.text) <= text.PART for d in docs)
    assert "".join("".join(d.text.split()) for d in docs) == "".join(paragraphs.split())


def test_a_long_text_without_borders_is_cut_hard(tmp_path):
    (tmp_path / "a.txt").write_text("x" * (2 * text.PART + 5))
    assert [len(d.text) for d in load_documents(tmp_path / "a.txt")] == [text.PART, text.PART, 5]


def test_bad_utf8_names_file_and_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"latin\.txt is not utf-8 text: byte 0xe9 at position 3"):
        load_documents(path)


def test_json_and_jsonl(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["one", {"story": "two"}, {"body": 1, "content": "three"}]))
    assert [d.text for d in load_documents(tmp_path / "a.json")] == ["one", "two", "three"]
    (tmp_path / "b.jsonl").write_text('{"body": "x\\u2028y"}\n\n{"body": "z"}\n')
    found = load_documents(tmp_path / "b.jsonl", text_field="body")
    assert found == [Document("b.jsonl[0]", "x\u2028y"), Document("b.jsonl[1]", "z")]
    with pytest.raises(ValueError, match=r"record 0 has no text under text / story / content \(found: \['body'\]\)"):
        load_documents(tmp_path / "b.jsonl")


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ('{"text": "a"}', "holds a JSON dict")])
def test_wrong_json_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_documents(tmp_path / "a.json")


def test_a_folder_is_read_recursively_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "sub" / "c.py").write_text("c = 1")
    (tmp_path / "b.md").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0\0")
    assert [d.name for d in load_documents(tmp_path)] == ["a.txt", "b.md", "sub/c.py"]


@pytest.mark.parametrize("content", ["", "  \n\t "])
def test_empty_text_names_the_source(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(ValueError, match=r"empty\.txt' holds no text"):
        load_documents(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="holds no text"):
        load_documents(tmp_path)


def test_unknown_sources_offer_near_matches(tmp_path):
    (tmp_path / "story.txt").write_text("a")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*story\.txt\? Accepted: a text file"):
        load_documents(tmp_path / "stori.txt")
    with pytest.raises(FileNotFoundError, match="Did you mean stdlib-docs"):
        load_documents("stdlib-doc")


def test_hub_without_network_is_a_clear_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match=r"data set 'some/set' \(config small, split 'test'\).*no network"):
        load_documents("hub:some/set:small", split="test")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "overtone\[lm\]"'):
        load_documents("hub:some/set")


def test_hub_records_are_documents(monkeypatch):
    datasets = pytest.importorskip("datasets")
    calls = []

    def give(*args, **kwargs):
        calls.append((args, kwargs))
        return [{"text": "abc"}, {"text": ""}, {"text": "defg"}]

    monkeypatch.setattr(datasets, "load_dataset", give)
    assert load_documents("hub:a/b") == [Document("a/b[0]", "abc"), Document("a/b[2]", "defg")]
    assert load_documents("hub:a/b", limit_chars=4)[1].text == "d"
    assert [k["streaming"] for _, k in calls] == [False, True]


def test_limit_must_be_positive():
    with pytest.raises(ValueError, match="limit_chars=0"):
        load_documents("stdlib-docs", limit_chars=0)


def test_split_is_a_partition_by_document():
    docs = [Document(f"d{i}", "word " * i) for i in range(50)]
    train, held = split_documents(docs, held_out=0.1, seed=3)
    assert len(held) == 5 and sorted(train + held) == sorted(docs)
    assert train == [d for d in docs if d in set(train)]
    assert (train, held) == split_documents(docs, held_out=0.1, seed=3)
    assert held != split_documents(docs, held_out=0.1, seed=4)[1]
    assert split_documents(docs, held_out=0.0) == (docs, [])


def test_split_leaves_both_sides_something():
    two = [Document("a", "x"), Document("b", "y")]
    assert [len(side) for side in split_documents(two, held_out=0.01)] == [1, 1]
    assert [len(side) for side in split_documents(two, held_out=0.99)] == [1, 1]
    (train,), (held,) = split_documents([Document("a", "one two three four")], held_out=0.3)
    assert f"{train.text} {held.text}" == "one two three four"
    assert (train.name, held.name) == ("a#0", "a#1")
    with pytest.raises(ValueError, match="'a', 3 characters, is too short"):
        split_documents([Document("a", "one")])
    with pytest.raises(ValueError, match=r"held_out=1\.5"):
        split_documents(two, held_out=1.5)
    with pytest.raises(ValueError, match="no documents"):
        split_documents([])


@pytest.mark.skipif(not WIKITEXT.exists(), reason="../shared/data is absent")
def test_wikitext_splits_into_many_documents():
    docs = load_documents(WIKITEXT / "valid.txt")
    assert len(docs) > 40
    train, held = split_documents(docs)
    assert train and held
