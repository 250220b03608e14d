"""Text in: one way from what a newcomer has (a file, a folder, a Hub name, nothing at all) to documents.

Two sources need no download, since every Python carries them: "stdlib-docs" (English prose: the standard
library's docstrings and pydoc's topics) and "stdlib-source" (code).
"""

import difflib
import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path
from typing import NamedTuple

from overtone.data.text_readers import ACCEPTED, file_texts, folder_texts, hub_texts, parts
from overtone.data.text_stdlib import shuffled, stdlib_docs, stdlib_sources

NAMED_SOURCES = ("stdlib-docs", "stdlib-source")


class Document(NamedTuple):
    """A text and where it came from: "argparse.ArgumentParser", "book.txt#3", "stories.json[12]"."""

    name: str
    text: str


def iter_documents(
    source: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    text_field: str | None = None,
    skip: int = 0,
) -> Iterator[Document]:
    """The documents of `source` one by one, in an order that depends on nothing but the source.

    Args:
        source: "stdlib-docs", "stdlib-source", a utf-8 text file, a .json or .jsonl file (strings or objects with
            a text field), any of these as .gz, a .parquet file, a folder (its text and .parquet files, recursively;
            no binary ones), "hub:NAME[:CONFIG]" (streamed), or a list of sources, read one after the other.
        split: of a Hub data set; ignored elsewhere.
        text_field: key of the text in .json, .jsonl, .parquet and Hub records; by default text, story or content.
        skip: begin with the document of this number, counted from 0 over what is yielded without it.

    Documents of nothing but white space (and null) are left out and not counted. Texts longer than 20 000 characters
    are cut at paragraph borders into parts named FILE#0, FILE#1, … Of a list of several sources, the names begin with
    the source's place in the list ("1:book.txt#0"), as two folders may hold files of one name.

    Memory: a block of text, a line of .jsonl, a few hundred rows of .parquet; but the whole of a .json file, and of
    the standard library. Skipped documents are read too (which of them are empty shows only then), and thrown away:
    law: list(iter_documents(s, skip=n)) == list(iter_documents(s))[n:].

    Raises:
        FileNotFoundError: nothing goes by that name; near matches are offered. At once, for every source of a list.
        ValueError: `skip` below 0, no sources. While reading: not utf-8 (file and byte named), a damaged file, no
            text field or column of strings.
        ImportError: a Hub data set or a .parquet file without the extra `lm`.
        OSError: a Hub data set broke off while it was read.
    """
    if skip < 0:
        raise ValueError(f"skip={skip} must be at least 0; it is the number of the first document wanted")
    return islice(_documents(source, split, text_field, stream=True), skip, None)


def load_documents(
    source: str | Path | Sequence[str | Path],
    *,
    split: str = "train",
    text_field: str | None = None,
    limit_chars: int | None = None,
) -> list[Document]:
    """The list of what iter_documents yields; see there for `source`, `split`, `text_field` and the order.

    Args:
        source: what to read.
        split: of a Hub data set; ignored elsewhere.
        text_field: key of the text in records; by default text, story or content.
        limit_chars: stop after so many characters (the last document is cut). A Hub data set then streams; without a
            limit it is downloaded, so that it need not be fetched again.

    Raises:
        FileNotFoundError: nothing goes by that name; near matches are offered.
        ValueError: no text in it, or what iter_documents raises.
        ImportError: a Hub data set or a .parquet file without the extra `lm`.
    """
    if limit_chars is not None and limit_chars < 1:
        raise ValueError(f"limit_chars={limit_chars} must be at least 1; leave it out to read everything")
    docs = list(_limited(_documents(source, split, text_field, stream=limit_chars is not None), limit_chars))
    if not docs:
        raise ValueError(f"text source {str(source)!r} holds no text: every document in it is empty; give another")
    return docs


def is_held_out(number: int, share: float, seed: int = 0) -> bool:
    """Whether document `number` is held out, decided without knowing how many documents there are.

    Of every 1 / share documents in a row one is held out, drawn by a hash: of n documents n · share to within one.

    Args:
        number: of the document, as counted by iter_documents.
        share: to hold out, in [0, 1).
        seed: another seed, another choice.

    Raises:
        ValueError: `share` outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share={share} must be in [0, 1), such as 0.1")
    exact = Fraction(share).limit_denominator(10**6)
    if not exact:
        return False
    run = int(number * exact)  # documents from ceil(run / share) on, one of which is held out
    first, end = ceil(run / exact), ceil((run + 1) / exact)
    # Not hash(), which need not be the same in another Python.
    digest = hashlib.sha256(f"{seed}:{run}".encode()).digest()
    return number == first + int.from_bytes(digest[:8]) % (end - first)


def split_documents(
    docs: Iterable[Document], *, held_out: float = 0.1, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents: a share `held_out` of them, drawn by `seed`, held out; order is kept.

    Whole documents are held out, so no text is on both sides, and each side has at least one. A lone document
    is cut in two at white space. Raises ValueError: `held_out` outside [0, 1), no documents, too short a one.
    """
    docs = list(docs)
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out={held_out} must be a share in [0, 1), such as 0.1")
    if not docs:
        raise ValueError("there are no documents to split; load some with load_documents")
    if held_out == 0:
        return docs, []
    if len(docs) == 1:
        return _cut_in_two(docs[0], 1 - held_out)
    count = min(max(1, round(len(docs) * held_out)), len(docs) - 1)
    held = set(random.Random(seed).sample(range(len(docs)), count))
    return [d for i, d in enumerate(docs) if i not in held], [d for i, d in enumerate(docs) if i in held]


def _cut_in_two(doc: Document, share: float) -> tuple[list[Document], list[Document]]:
    at = doc.text.find(" ", int(len(doc.text) * share))
    at = at if at > 0 else doc.text.rfind(" ")
    first, second = doc.text[: max(at, 0)].strip(), doc.text[at:].strip()
    if not first or not second:
        raise ValueError(f"document {doc.name!r}, {len(doc.text)} characters, is too short to be split in two")
    return [Document(f"{doc.name}#0", first)], [Document(f"{doc.name}#1", second)]


def _limited(docs: Iterable[Document], limit: int | None) -> Iterator[Document]:
    """The documents, cut off after `limit` characters."""
    left = float("inf") if limit is None else limit
    for doc in docs:
        yield doc if len(doc.text) <= left else Document(doc.name, doc.text[: int(left)])
        left -= len(doc.text)
        if left <= 0:
            return


def _documents(
    source: str | Path | Sequence[str | Path], split: str, text_field: str | None, stream: bool
) -> Iterator[Document]:
    """Documents that hold more than white space. All sources are looked for at once, before the first is read."""
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise ValueError(f"the list of text sources is empty; name at least one: {ACCEPTED}")
    opened = [_texts(s, split, text_field, stream) for s in sources]
    prefixes = [""] if len(sources) == 1 else [f"{place}:" for place in range(len(sources))]
    return (
        Document(prefix + name, text)
        for prefix, texts in zip(prefixes, opened, strict=True)
        for name, text in texts
        if text.strip()
    )


def _texts(source: str | Path, split: str, text_field: str | None, stream: bool) -> Iterator[tuple[str, str]]:
    if source == "stdlib-docs":
        return _from_stdlib(stdlib_docs)
    if source == "stdlib-source":
        return _from_stdlib(lambda: (part for name, code in stdlib_sources() for part in parts(name, [code])))
    if isinstance(source, str) and source.startswith("hub:"):
        return hub_texts(source, split, text_field, stream)
    path = Path(source).expanduser()
    if path.is_dir():
        return folder_texts(path, text_field)
    if path.is_file():
        return file_texts(path, path.name, text_field)
    raise FileNotFoundError(_unknown_source(source, path))


def _from_stdlib(read: Callable[[], Iterable[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """Shuffled texts, read when the first is asked for."""
    yield from shuffled(read())


def _unknown_source(source: str | Path, path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = [str(path.parent / n) for n in difflib.get_close_matches(path.name, siblings, n=3)]
    near = difflib.get_close_matches(str(source), NAMED_SOURCES, n=2) + near
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"no text source {str(source)!r}: no such file or folder.{hint} Accepted: {ACCEPTED}"
