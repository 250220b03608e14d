import gzip
import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overtone.data import text_readers
from overtone.data.text import Document, iter_documents, load_documents

TEXTS = ["one", None, "two", " \n", "three", "", "\u00e9\u2028four", "five"]


def _write_parquet(path, columns, **options):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)


def test_a_text_file_and_its_long_parts(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("A short text.", encoding="utf-8")
    assert load_documents(path) == [Document("book.txt", "A short text.")]
    paragraphs = "\n\n".join(f"Paragraph {i}. " + "word " * 200 for i in range(100))
    path.write_text(paragraphs, encoding="utf-8")
    docs = load_documents(str(path))
    assert len(docs) > 4 and docs[1].name == "book.txt#1"
    assert all(d.text.startswith("Paragraph") and len(d.text) <= text_readers.PART for d in docs)
    assert "".join("".join(d.text.split()) for d in docs) == "".join(paragraphs.split())


def test_a_long_text_without_borders_is_cut_hard(tmp_path):
    (tmp_path / "a.txt").write_text("x" * (2 * text_readers.PART + 5))
    assert [len(d.text) for d in load_documents(tmp_path / "a.txt")] == [text_readers.PART, text_readers.PART, 5]


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


@given(text=st.text("ab \n\u00e9\r", max_size=200), size=st.integers(1, 7))
def test_parts_do_not_depend_on_the_blocks(text, size):
    def whole(part):  # the slow twin: the text at once, cut by position
        start, number = 0, 0
        while start < len(text):
            end = start + part
            if end < len(text):
                borders = (text.rfind(mark, start + part // 2, end) for mark in ("\n\n", "\n", " "))
                end = next((b for b in borders if b > 0), end)
            yield f"t#{number}", text[start:end].strip("\n")
            start, number = end, number + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_readers, "PART", 10)
        found = list(text_readers.parts("t", [text[i : i + size] for i in range(0, len(text), size)]))
    assert found == (list(whole(10)) if len(text) > 10 else [("t", text)])


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.txt.gz"])
def test_a_bad_byte_is_found_wherever_it_is(tmp_path, name, bom):
    pack = gzip.compress if name.endswith(".gz") else bytes
    for at in (0, 5, text_readers.BLOCK - 4, text_readers.BLOCK - 3, 3 * text_readers.BLOCK):
        good = bom + ('"é"\n' * (at // 5)).encode() + b" " * (at % 5)
        (tmp_path / name).write_bytes(pack(good + b"\xe9 and so on"))
        with pytest.raises(ValueError, match=f"{name} is not utf-8 text: byte 0xe9 at position {len(good)};"):
            list(iter_documents(tmp_path / name))
    (tmp_path / name).write_bytes(pack(bom + b"ab\xc3"))  # half a letter at the end
    with pytest.raises(ValueError, match=f"byte 0xc3 at position {len(bom) + 2};"):
        list(iter_documents(tmp_path / name))


def test_json_lines_name_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff"one"\n\n"two"\n{"text": "thr', encoding="utf-8")
    docs = iter_documents(tmp_path / "a.jsonl")
    assert [next(docs).text, next(docs).text] == ["one", "two"]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 4 is not valid JSON.*fetch the file again"):
        next(docs)
    (tmp_path / "a.json").write_text('{"text": "one"}\n{"text": "two"}')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON.*name it \.jsonl"):
        list(iter_documents(tmp_path / "a.json"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json is not valid JSON"):
        list(iter_documents(tmp_path / "deep.json"))


@pytest.mark.parametrize(
    ("columns", "field", "message"),
    [
        ({"id": [1], "body": ["x"]}, None, r"text / story / content \(found: id: int64, body: string\)"),
        ({"text": [1]}, None, r"found: text: int64"),
        ({"text": [["x"]]}, None, r"found: text: list<"),
        ({"text": [b"x"]}, "text", r"under text \(found: text: binary\)"),
        ({"text": ["x"]}, "body", r"under body \(found: text: string\); name the column with text_field"),
    ],
)
def test_parquet_without_a_column_of_strings(tmp_path, columns, field, message):
    _write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(ValueError, match=r"a\.parquet has no column of strings .*" + message):
        list(iter_documents(tmp_path / "a.parquet", text_field=field))


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_strings_of_every_kind(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    column = pa.array(TEXTS).dictionary_encode() if kind == "dictionary" else pa.array(TEXTS, getattr(pa, kind)())
    _write_parquet(tmp_path / "a.parquet", {"text": [0] * len(TEXTS), "body": column})
    found = [d.text for d in iter_documents(tmp_path / "a.parquet", text_field="body")]
    assert found == [t for t in TEXTS if t and t.strip()]


def test_parquet_takes_the_first_field_that_holds_strings(tmp_path):
    _write_parquet(tmp_path / "a.parquet", {"content": ["c"], "text": [1], "story": ["s"]})
    assert load_documents(tmp_path / "a.parquet") == [Document("a.parquet[0]", "s")]


def test_damaged_files_are_named(tmp_path):
    path, packed = tmp_path / "a.parquet", tmp_path / "a.txt.gz"
    _write_parquet(path, {"text": [f"number {i}" for i in range(999)]}, row_group_size=100, compression="none")
    whole = path.read_bytes()
    bad_text = whole.replace(b"number 555", b"number \xff55")
    unreadable = [whole[:n] for n in (0, 3, 8, len(whole) // 2, len(whole) - 1)]
    for damaged in [*unreadable, bad_text, b"\0" * 2000 + whole[2000:]]:
        path.write_bytes(damaged)
        for source in (path, tmp_path):
            with pytest.raises(ValueError, match=r"a\.parquet is truncated, damaged or not Parquet"):
                list(iter_documents(source))
    path.unlink()
    whole = gzip.compress(json.dumps(list(range(9999))).encode())
    for damaged in (whole[: len(whole) // 2], b"not packed", whole[:200] + b"\0\0\0" + whole[203:]):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.txt\.gz is truncated or not gzip"):
            list(iter_documents(packed))


def test_parquet_without_pyarrow_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'a\.parquet needs the package pyarrow: pip install "overtone\[lm\]"'):
        list(iter_documents(tmp_path / "a.parquet"))


def _most_memory(docs) -> tuple[int, int]:
    """(documents, bytes held by Python at most while they were read)."""
    tracemalloc.start()
    try:
        return sum(1 for _ in docs), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    raw = (json.dumps({"text": "words " * 50}) + "\n").encode() * 15_000
    (tmp_path / name).write_bytes(gzip.compress(raw, 1) if name.endswith(".gz") else raw)
    count, most = _most_memory(iter_documents(tmp_path, skip=5))
    assert count > 200 and most < len(raw) / 10


def test_memory_of_parquet_is_a_batch_even_within_one_row_group(tmp_path):
    pa = pytest.importorskip("pyarrow")
    rows = [f"{i} " * 400 for i in range(10_000)]
    _write_parquet(tmp_path / "a.parquet", {"text": rows, "other": rows}, use_dictionary=False, compression="none")
    size, most, before = (tmp_path / "a.parquet").stat().st_size / 2, 0, pa.total_allocated_bytes()
    for _ in iter_documents(tmp_path / "a.parquet"):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < size / 3


def test_the_start_of_a_stream_is_read_alone(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    read, calls = [], []

    def rows():
        for i in range(1000):
            read.append(i)
            yield {"id": i, "text": None if i % 2 else f"row {i}"}

    def give(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", give)
    docs = iter_documents("hub:a/b:c", split="test", skip=2)
    assert next(docs) == Document("a/b[4]", "row 4") and len(read) < 10
    assert calls == [(("a/b", "c"), {"split": "test", "streaming": True})]


def test_a_stream_that_breaks_off_says_where(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def rows():
        yield {"text": "one"}
        raise ConnectionError("cable cut")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows())
    docs = iter_documents("hub:a/b")
    assert next(docs).text == "one"
    with pytest.raises(OSError, match="hub:a/b broke off after 1 records: ConnectionError: cable cut"):
        next(docs)
