"""Readers: files, folders and data sets of the Hugging Face Hub as (name, text) pairs, one at a time.

Nothing is held beyond the piece being read, except that a .json list is one value and has to be read whole. Pickled
data are never opened.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ACCEPTED = (
    "a text file, a .json, .jsonl or .parquet file, the first three also as .gz, a folder, "
    "hub:NAME[:CONFIG] (a data set of the Hugging Face Hub), stdlib-docs or stdlib-source"
)
TEXT_FIELDS = ("text", "story", "content")
PART = 20_000  # characters; a longer text is cut, so that a book can be split into training and held-out parts
BLOCK = 1 << 16  # bytes read at a time from files of text
PARQUET_ROWS = 256  # decoded at a time: a few MiB of usual documents


def folder_texts(root: Path, text_field: str | None) -> Iterator[tuple[str, str]]:
    """Texts of all files below `root` in the order of their names; hidden and binary files are left out."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(folder, name)
            if path.is_file() and (_is_parquet(path) or not _is_binary(path)):
                yield from file_texts(path, path.relative_to(root).as_posix(), text_field)


def file_texts(path: Path, name: str, text_field: str | None) -> Iterator[tuple[str, str]]:
    """Texts of one file: parts of a text, records of .json, .jsonl and .parquet."""
    if _is_parquet(path):
        yield from _parquet_texts(path, name, text_field)
        return
    if _kind(path) not in (".json", ".jsonl"):
        yield from parts(name, _blocks(path))
        return
    for i, record in enumerate(file_records(path)):
        yield f"{name}[{i}]", text_of(record, text_field, f"{path}, record {i}")


def file_records(path: Path) -> Iterator[Any]:
    """The records of a .csv, .tsv, .json or .jsonl file, packed or not.

    Raises:
        ValueError: a file of another kind, or a damaged one.
    """
    kind = _kind(path)
    if kind in (".csv", ".tsv"):
        return _csv_rows(path, "\t" if kind == ".tsv" else ",")
    if kind not in (".json", ".jsonl"):
        raise ValueError(f"{path} is no table of records; give a .csv, .tsv, .json or .jsonl file (also as .gz)")
    return _json_lines(path) if kind == ".jsonl" else iter(_json_list(path))


def hub_texts(source: str, split: str, text_field: str | None, stream: bool) -> Iterator[tuple[str, str]]:
    """Texts of "hub:NAME[:CONFIG]". Raises what `hub_records` raises."""
    named = hub_records(source, split, stream)
    return ((name, text_of(record, text_field, f"{source}, record {i}")) for i, (name, record) in enumerate(named))


def hub_records(source: str, split: str, stream: bool) -> Iterator[tuple[str, Any]]:
    """Named records of "hub:NAME[:CONFIG]". The data set is looked up at once, its records are read one by one.

    Raises:
        ImportError: without the package datasets.
        FileNotFoundError: it cannot be loaded.
    """
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
    return ((f"{name}[{i}]", record) for i, record in enumerate(_unbroken(records, source)))


def parts(name: str, blocks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The joined blocks; when longer than PART, cut at the last paragraph (line, word) border before each PART."""
    rest, number = "", 0
    for block in blocks:
        rest += block
        while len(rest) > PART:
            borders = (rest.rfind(mark, PART // 2, PART) for mark in ("\n\n", "\n", " "))
            end = next((b for b in borders if b > 0), PART)
            yield f"{name}#{number}", rest[:end].strip("\n")
            rest, number = rest[end:], number + 1
    yield (f"{name}#{number}", rest.strip("\n")) if number else (name, rest)


def _kind(path: Path) -> str:
    return Path(path.stem if _is_gzip(path) else path.name).suffix.lower()


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _is_binary(path: Path) -> bool:
    """Whether a NUL byte, which no text holds, is among the first BLOCK bytes (unpacked).

    Binary formats have one in their header, and packed data one in every 256 bytes; reading on would mean to read every
    large text twice. What slips through is most likely not utf-8, and then refused by name.
    """
    with _opened(path) as file:
        return b"\0" in file.read(BLOCK)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    try:
        with gzip.open(path, "rb") if _is_gzip(path) else path.open("rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is truncated or not gzip ({error}); fetch it again, test it with gunzip -t, or rename it if it "
            "is not packed"
        ) from error


def _blocks(path: Path) -> Iterator[str]:
    """The text in pieces of about BLOCK characters."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    read, more = 0, True
    with _opened(path) as file:
        while more:
            raw = file.read(BLOCK)
            read, more = read + len(raw), bool(raw)
            try:
                yield decoder.decode(raw, final=not more)
            except UnicodeDecodeError as error:
                raise ValueError(_not_utf8(path, error, read)) from error


def lines(path: Path) -> Iterator[str]:
    """The lines of a text; only a line feed ends one, as JSON strings may hold the other separators."""
    read = 0
    with _opened(path) as file:
        for raw in file:
            encoding = "utf-8" if read else "utf-8-sig"
            read += len(raw)
            try:
                yield raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise ValueError(_not_utf8(path, error, read)) from error


def _not_utf8(path: Path, error: UnicodeDecodeError, read: int) -> str:
    """What to say after `read` bytes: the bytes being decoded are always the last ones read."""
    at = read - len(error.object) + error.start
    return (
        f"{path} is not utf-8 text: byte {error.object[error.start]:#04x} at position {at}; "
        "convert it first, for example with: iconv -f latin1 -t utf-8"
    )


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, str]]:
    """Rows under the names of the first line."""
    reader = csv.DictReader(lines(path), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num} is not valid CSV: {error}") from error
        if row is None:
            return
        if None in row or None in row.values():
            names = reader.fieldnames or ()
            raise ValueError(
                f"{path}, line {reader.line_num} has not the {len(names)} columns that the first line names "
                f"({', '.join(map(str, names))}); put fields with commas in them in quotes"
            )
        yield row


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number} is not valid JSON: {error}; every line of a .jsonl file is one value "
                    "(a last line may be cut off: fetch the file again)"
                ) from error
            yield record


def _json_list(path: Path) -> list[Any]:
    text = "".join(_blocks(path))
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}; if every line is a record, name it .jsonl") from error
    if not isinstance(records, list):
        kind = type(records).__name__
        raise ValueError(f"{path} holds a JSON {kind}; a list of strings or of objects is needed")
    return records


def text_of(record: Any, text_field: str | None, where: str) -> str:
    """The text of one record: the record itself, or its `text_field`; none where that holds null."""
    if isinstance(record, str):
        return record
    fields = TEXT_FIELDS if text_field is None else (text_field,)
    if isinstance(record, dict):
        held = [record[field] for field in fields if field in record]
        for value in held:
            if isinstance(value, str):
                return value
        if any(value is None for value in held):
            return ""
    found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
    raise ValueError(f"{where} has no text under {' / '.join(fields)} (found: {found}); name the key with text_field")


def _parquet_texts(path: Path, name: str, text_field: str | None) -> Iterator[tuple[str, str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f'{path} needs the package pyarrow: pip install "overtone[lm]"') from error
    number = 0
    try:
        # So set, a column of a row group is read piece by piece and not whole; a row group can be the whole file.
        with pq.ParquetFile(path, buffer_size=16 * BLOCK, pre_buffer=False) as file:
            column = _text_column(path, file.schema_arrow, text_field)
            for batch in file.iter_batches(PARQUET_ROWS, columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield f"{name}[{number}]", text or ""
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's trouble, not the file's
            raise
        raise ValueError(
            f"{path} is truncated, damaged or not Parquet, found at record {number} or after it ({error}); "
            "fetch or write it again"
        ) from error


def _text_column(path: Path, schema: Any, text_field: str | None) -> str:
    """Name of the first column of strings among the fields. Strings may be stored as a dictionary's entries."""
    fields = TEXT_FIELDS if text_field is None else (text_field,)
    types = {column.name: str(column.type) for column in schema}
    for field in fields:
        if types.get(field, "").removeprefix("dictionary<values=").startswith(("string", "large_string")):
            return field
    found = ", ".join(f"{name}: {kind}" for name, kind in types.items())
    raise ValueError(
        f"{path} has no column of strings under {' / '.join(fields)} (found: {found}); name the column with text_field, "
        "or write it as strings"
    )


def _unbroken(records: Iterable[Any], source: str) -> Iterator[Any]:
    """The records; should reading break off, the error says where."""
    number = 0
    try:
        for record in records:
            yield record
            number += 1
    except Exception as error:  # of the network, of an archive, of a parser
        raise OSError(
            f"{source} broke off after {number} records: {type(error).__name__}: {error}. Check the network and the "
            "data set, then read on from there"
        ) from error
