"""Text in: one way from what a newcomer has (a file, a folder, a Hub name, nothing at all) to documents.

Two sources need no download, since every Python carries them: "stdlib-docs" (English prose: the standard
library's docstrings and pydoc's topics) and "stdlib-source" (code). Nothing is imported to read them.
"""

import ast
import contextlib
import difflib
import inspect
import json
import os
import random
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAMED_SOURCES = ("stdlib-docs", "stdlib-source")
TEXT_FIELDS = ("text", "story", "content")
ACCEPTED = (
    "a text file, a .json or .jsonl file, a folder, hub:NAME[:CONFIG] (a data set of the Hugging Face Hub), "
    "stdlib-docs or stdlib-source"
)
MIN_DOCSTRING = 40  # characters; shorter ones say little
SMALL_CLASS = 600  # characters; a class with less to say goes into its module's document
PART = 20_000  # characters; a longer text is cut, so that a book can be split into training and held-out parts
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Document(NamedTuple):
    """A text and where it came from: "argparse.ArgumentParser", "book.txt#3", "stories.json[12]"."""

    name: str
    text: str


def load_documents(
    source: str | Path,
    *,
    split: str = "train",
    text_field: str | None = None,
    limit_chars: int | None = None,
) -> list[Document]:
    """Read `source` into documents, in an order that depends on nothing but the source.

    Args:
        source: "stdlib-docs", "stdlib-source", a utf-8 text file, a .json or .jsonl file (strings or objects
            with a text field), a folder (its text files, recursively; no binary ones) or "hub:NAME[:CONFIG]".
        split: of a Hub data set; ignored elsewhere.
        text_field: key of the text in .json, .jsonl and Hub records; by default text, story or content.
        limit_chars: stop after so many characters (the last document is cut). A Hub data set then streams.

    Texts longer than 20 000 characters are cut at paragraph borders into parts named FILE#0, FILE#1, …

    Raises:
        FileNotFoundError: nothing goes by that name; near matches are offered.
        ValueError: no text in it, not utf-8 (file and byte named), or no text field.
        ImportError: a Hub data set without the extra `lm`.
    """
    if limit_chars is not None and limit_chars < 1:
        raise ValueError(f"limit_chars={limit_chars} must be at least 1; leave it out to read everything")
    docs = list(_limited(_documents(source, split, text_field, limit_chars is not None), limit_chars))
    if not docs:
        raise ValueError(f"text source {str(source)!r} holds no text: every document in it is empty; give another")
    return docs


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
    """Documents that hold more than white space, cut off after `limit` characters."""
    left = float("inf") if limit is None else limit
    for doc in docs:
        if doc.text.strip():
            yield doc if len(doc.text) <= left else Document(doc.name, doc.text[: int(left)])
            left -= len(doc.text)
            if left <= 0:
                return


def _documents(source: str | Path, split: str, text_field: str | None, stream: bool) -> Iterable[Document]:
    if source == "stdlib-docs":
        return _shuffled(_stdlib_docs())
    if source == "stdlib-source":
        return _shuffled(part for name, code in _stdlib_sources() for part in _parts(name, code))
    if isinstance(source, str) and source.startswith("hub:"):
        return _hub(source, split, text_field, stream)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, text_field)
    if path.is_file():
        return _file(path, path.name, text_field)
    raise FileNotFoundError(_unknown_source(source, path))


def _unknown_source(source: str | Path, path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = [str(path.parent / n) for n in difflib.get_close_matches(path.name, siblings, n=3)]
    near = difflib.get_close_matches(str(source), NAMED_SOURCES, n=2) + near
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"no text source {str(source)!r}: no such file or folder.{hint} Accepted: {ACCEPTED}"


def _folder(root: Path, text_field: str | None) -> Iterator[Document]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(folder, name)
            # A text holds no NUL byte; nearly every binary file does.
            if path.is_file() and b"\0" not in path.read_bytes():
                yield from _file(path, path.relative_to(root).as_posix(), text_field)


def _file(path: Path, name: str, text_field: str | None) -> Iterator[Document]:
    text = _read_utf8(path)
    if path.suffix not in (".json", ".jsonl"):
        yield from _parts(name, text)
        return
    for i, record in enumerate(_json_records(path, text)):
        yield Document(f"{name}[{i}]", _text_of(record, text_field, f"{path}, record {i}"))


def _read_utf8(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not utf-8 text: byte {raw[error.start]:#04x} at position {error.start}; "
            "convert it first, for example with: iconv -f latin1 -t utf-8"
        ) from error


def _json_records(path: Path, text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else [text]
    try:
        records = [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if path.suffix == ".jsonl":
        return records
    if not isinstance(records[0], list):
        kind = type(records[0]).__name__
        raise ValueError(f"{path} holds a JSON {kind}; a list of strings or of objects is needed")
    return records[0]


def _text_of(record: Any, text_field: str | None, where: str) -> str:
    """The text of one record: the record itself, or its `text_field`."""
    if isinstance(record, str):
        return record
    fields = TEXT_FIELDS if text_field is None else (text_field,)
    if isinstance(record, dict):
        for field in fields:
            if isinstance(record.get(field), str):
                return record[field]
    found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
    raise ValueError(f"{where} has no text under {' / '.join(fields)} (found: {found}); name the key with text_field")


def _parts(name: str, text: str) -> Iterator[Document]:
    """The text; when longer than PART, cut at the last paragraph (line, word) border before each PART."""
    if len(text) <= PART:
        yield Document(name, text)
        return
    start = number = 0
    while start < len(text):
        end = start + PART
        if end < len(text):
            borders = (text.rfind(mark, start + PART // 2, end) for mark in ("\n\n", "\n", " "))
            end = next((b for b in borders if b > 0), end)
        yield Document(f"{name}#{number}", text[start:end].strip("\n"))
        start, number = end, number + 1


def _shuffled(docs: Iterable[Document]) -> list[Document]:
    """Sorted, then shuffled, always the same way: any prefix is a fair sample of the whole."""
    docs = sorted(docs)
    random.Random(0).shuffle(docs)
    return docs


def _stdlib_sources() -> Iterator[tuple[str, str]]:
    """(file name within the library, source) of the standard library's modules, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s not in _SKIPPED_FOLDERS)
        for path in (Path(folder, n) for n in sorted(names) if n.endswith(".py")):
            # A distribution's oddly encoded file is no reason to stop.
            with contextlib.suppress(SyntaxError, UnicodeDecodeError), tokenize.open(path) as file:
                yield path.relative_to(root).as_posix(), file.read()


def _stdlib_docs() -> list[Document]:
    """A document per module (its functions and small classes with it), per larger class, per pydoc topic."""
    seen: set[str] = set()
    docs: list[Document] = []
    for name, source in _stdlib_sources():
        if name == "pydoc_data/topics.py":
            unique = {text: key for key, text in reversed(_topics(source).items())}  # some topics share a text
            docs += [Document(f"topics.{key}", text) for text, key in unique.items()]
            continue
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        texts: dict[str, list[str]] = {module: []}
        for owner, docstrings in _docstrings(source, module).items():
            fresh = [d for d in dict.fromkeys(docstrings) if len(d) >= MIN_DOCSTRING and d not in seen]
            seen.update(fresh)
            texts.setdefault(owner if sum(map(len, fresh)) >= SMALL_CLASS else module, []).extend(fresh)
        docs += [Document(owner, "\n\n".join(parts)) for owner, parts in texts.items() if parts]
    return docs


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():  # an old escape in someone's docstring is not this caller's business
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except SyntaxError:
            return ast.Module(body=[], type_ignores=[])


def _docstrings(source: str, module: str) -> dict[str, list[str]]:
    """{owner: its docstrings}: a function's go to the module or class it stands in. Parsed, never run."""
    found: dict[str, list[str]] = {}
    todo: list[tuple[ast.AST, str]] = [(_parse(source), module)]
    while todo:
        node, owner = todo.pop()
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            found.setdefault(owner, []).append(text)
        children = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt | ast.excepthandler)]
        for child in reversed(children):
            todo.append((child, f"{owner}.{child.name}" if isinstance(child, ast.ClassDef) else owner))
    return found


def _topics(source: str) -> dict[str, str]:
    """pydoc's help topics, read from the literal `topics = {…}`."""
    for node in _parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {str(k): inspect.cleandoc(v) for k, v in ast.literal_eval(node.value).items()}
    return {}


def _hub(source: str, split: str, text_field: str | None, stream: bool) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f'{source} needs the package datasets: pip install "overtone[lm]"') from error
    name, _, config = source.removeprefix("hub:").partition(":")
    try:
        records = datasets.load_dataset(name, config or None, split=split, streaming=stream)
    except Exception as error:  # of a dozen kinds, each meaning: this data set cannot be had
        raise FileNotFoundError(
            f"data set {name!r} (config {config or 'default'}, split {split!r}) could not be loaded from the "
            f"Hugging Face Hub: {type(error).__name__}: {error}. Check its name and the network, or give a "
            f"local file: {ACCEPTED}"
        ) from error
    for i, record in enumerate(records):
        yield Document(f"{name}[{i}]", _text_of(record, text_field, f"{source}, record {i}"))
