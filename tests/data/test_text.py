import gzip
import json
from pathlib import Path

import pytest
import torch

from overtone.data.text import Document, is_held_out, iter_documents, load_documents, split_documents

WIKITEXT = Path(__file__).parents[2].parent / "shared" / "data" / "text" / "wikitext2"


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


TEXTS = ["one", None, "two", " \n", "three", "", "\u00e9\u2028four", "five"]
SOURCES = ["text", "book", "jsonl", "json", "parquet", "gzip", "folder", "hub", "list"]


def _write_parquet(path, columns, **options):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)


@pytest.fixture
def source(request, tmp_path, monkeypatch):
    """Every kind of source, with empty documents among the others."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    records = [{"text": t} for t in TEXTS]
    (root / "a.txt").write_text("A text.")
    (root / "book.md").write_text("\n\n".join(f"Paragraph {i}. " + "word " * 300 for i in range(60)) + "\n" * 50_000)
    (root / "c.jsonl").write_text("\n".join(map(json.dumps, records)))
    (root / "d.json").write_text(json.dumps(records))
    (root / "e.jsonl.gz").write_bytes(gzip.compress((root / "c.jsonl").read_bytes()))
    (root / "f.bin").write_bytes(b"\0")
    if request.param in ("parquet", "folder", "hub", "list"):
        _write_parquet(root / "sub" / "train-0.parquet", {"id": range(len(TEXTS)), "text": TEXTS}, row_group_size=3)
        _write_parquet(root / "sub" / "train-1.parquet", {"text": ["six", None, "seven"]})
    if request.param == "hub":
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return {
        "text": root / "a.txt",
        "book": str(root / "book.md"),
        "jsonl": root / "c.jsonl",
        "json": root / "d.json",
        "parquet": root / "sub" / "train-0.parquet",
        "gzip": root / "e.jsonl.gz",
        "folder": root,
        "hub": f"hub:{root / 'sub'}",  # the real package datasets, reading a local folder as it reads a Hub one
        "list": [root / "c.jsonl", str(root / "sub"), root / "c.jsonl"],
    }[request.param]


@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_iterating_gives_what_loading_gives(source):
    docs = list(iter_documents(source))
    assert docs == load_documents(source) and all(d.text.strip() for d in docs)
    assert len({d.name for d in docs}) == len(docs)


@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_skipping_n_gives_the_documents_from_n_on(source):
    docs = list(iter_documents(source))
    assert docs
    for n in range(len(docs) + 2):
        assert list(iter_documents(source, skip=n)) == docs[n:]


def test_skip_must_not_be_negative(tmp_path):
    with pytest.raises(ValueError, match="skip=-1 must be at least 0"):
        iter_documents(tmp_path, skip=-1)


@pytest.mark.parametrize("source", ["parquet"], indirect=True)
def test_parquet_nulls_are_empty_and_numbered(source):
    names = [d.name for d in iter_documents(source)]
    assert names == [f"train-0.parquet[{i}]" for i in (0, 2, 4, 6, 7)]


@pytest.mark.parametrize("source", ["folder"], indirect=True)
def test_a_folder_holds_texts_records_and_parquet_shards(source):
    files = [d.name.partition("[")[0].partition("#")[0] for d in iter_documents(source)]
    shards = ["sub/train-0.parquet", "sub/train-1.parquet"]
    assert list(dict.fromkeys(files)) == ["a.txt", "book.md", "c.jsonl", "d.json", "e.jsonl.gz", *shards]


def test_several_sources_are_read_in_their_order(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    sources = (tmp_path / "b.txt", str(tmp_path / "a.txt"))
    assert list(iter_documents(sources)) == [Document("0:b.txt", "b"), Document("1:a.txt", "a")]
    assert list(iter_documents(sources[:1])) == list(iter_documents(sources[0]))
    with pytest.raises(FileNotFoundError, match="no text source"):  # before the first is read, not after it
        iter_documents([*sources, tmp_path / "absent.txt"])
    with pytest.raises(ValueError, match="list of text sources is empty"):
        iter_documents([])


def test_held_out_is_decided_by_number_and_seed():
    first = {seed: [n for n in range(60) if is_held_out(n, 0.1, seed)] for seed in (0, 1)}
    assert first == {0: [9, 17, 23, 39, 42, 50], 1: [0, 13, 23, 31, 43, 50]}
    for share in (0.0, 0.01, 0.07, 0.1, 0.5, 0.8, 0.99):
        held = [is_held_out(n, share) for n in range(20_000)]
        for count in (1, 7, 10, 333, 20_000):
            assert abs(sum(held[:count]) - count * share) <= 1
    both = sum(is_held_out(n, 0.5, 0) and is_held_out(n, 0.5, 1) for n in range(20_000))
    assert abs(both - 5000) < 250  # seeds choose independently
    places = torch.tensor([n % 10 for n in range(50_000) if is_held_out(n, 0.1)]).bincount(minlength=10)
    assert float((places - 500).abs().max()) < 4 * (500 * 0.9) ** 0.5  # any of the ten is as likely
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"share={share} must be in"):
            is_held_out(0, share)


@pytest.mark.skipif(not WIKITEXT.exists(), reason="../shared/data is absent")
def test_wikitext_splits_into_many_documents():
    docs = load_documents(WIKITEXT / "valid.txt")
    assert len(docs) > 40
    train, held = split_documents(docs)
    assert train and held
