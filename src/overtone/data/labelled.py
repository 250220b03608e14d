"""Texts that are known to be of a class: from tables, from folders, from the Hub, or from every Python's own library."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from overtone.data.text import Document
from overtone.data.text_readers import file_records, folder_texts, hub_records, lines, text_of
from overtone.data.text_stdlib import shuffled, stdlib_functions

STDLIB = "stdlib-functions"
ACCEPTED = (
    "a .csv, .tsv, .json or .jsonl file (also as .gz), a folder with a folder of texts for each class or a file for each "
    f"class with a text on each line, hub:NAME[:CONFIG], or {STDLIB}"
)


class Labelled(NamedTuple):
    """Texts with a label each, and a second one where it was asked for; in an order that depends on nothing but the source.

    Attributes:
        docs: the texts.
        label: of each text, its class.
        other: of each text, what else is known of it (a second column); empty: not asked for.
    """

    docs: list[Document]
    label: list[str]
    other: list[str]

    def classes(self) -> list[str]:
        """The classes, the most frequent first, equally frequent ones by name."""
        return by_frequency(self.label)

    def at(self, places: Iterable[int]) -> "Labelled":
        """Some of the texts."""
        chosen = list(places)
        other = [self.other[i] for i in chosen] if self.other else []
        return Labelled([self.docs[i] for i in chosen], [self.label[i] for i in chosen], other)

    def of(self, classes: Sequence[str], per_class: int | None = None) -> "Labelled":
        """The texts of these classes, of each the first `per_class`.

        Raises:
            ValueError: a class that no text has, or fewer than two.
        """
        if len(set(classes)) < 2:
            raise ValueError(
                f"probing tells classes apart and needs two at least; there is {', '.join(classes) or 'none'}"
            )
        return self.at(self.places(classes, per_class))

    def places(self, classes: Sequence[str], per_class: int | None = None) -> list[int]:
        """Where the first `per_class` texts of each of these classes are. ValueError: a class that no text has."""
        known = self.classes()
        unknown = [name for name in classes if name not in known]
        if unknown:
            raise ValueError(f"no text has the class {unknown[0]!r}; there are {', '.join(known[:20])}")
        left = dict.fromkeys(classes, len(self.label) if per_class is None else per_class)
        found = []
        for place, name in enumerate(self.label):
            if left.get(name, 0):
                left[name] -= 1
                found.append(place)
        return found

    def combined(self) -> list[str]:
        """Both labels of every text as one."""
        return [f"{one}, {two}" for one, two in zip(self.label, self.other, strict=True)]


def by_frequency(names: Sequence[str]) -> list[str]:
    """The different names, the most frequent first, equally frequent ones in the order of the alphabet."""
    return [name for name, _ in sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))]


def load_labelled(
    source: str | Path = STDLIB,
    *,
    text_field: str | None = None,
    label: str = "label",
    other: str | None = None,
    split: str = "train",
) -> Labelled:
    """Texts with their labels.

    Args:
        source: a .csv, .tsv, .json or .jsonl file (also as .gz); a folder with a folder of texts for each class, or with a
            file for each class that has a text on each line; "hub:NAME[:CONFIG]"; or "stdlib-functions", which needs no file:
            the functions of Python's own library, labelled by package, other="kind" being prose (docstring) or code.
        text_field: column of the text; by default text, story or content.
        label: column of the class (of folders, its name).
        other: column of a second label.
        split: of a Hub data set.

    Texts of nothing but white space are left out. They are shuffled, always in the same way.

    Raises:
        FileNotFoundError: nothing goes by that name.
        ValueError: a damaged file, no such column, no text, a folder without classes.
        ImportError: a Hub data set without the extra `lm`.
    """
    if source == STDLIB:
        records: Iterator[tuple[str, Any]] = ((record["name"], record) for record in stdlib_functions())
        label = "package" if label == "label" else label
    elif isinstance(source, str) and source.startswith("hub:"):
        records = hub_records(source, split, stream=False)
    elif (path := Path(source).expanduser()).is_dir():
        if other is not None:
            raise ValueError(f"texts of a folder have one label, its name; for a second, {other!r}, give a table")
        records, label, text_field = _folder(path), "label", "text"
    elif path.is_file():
        records = ((f"{path.name}[{i}]", record) for i, record in enumerate(file_records(path)))
    else:
        raise FileNotFoundError(f"no labelled texts at {str(source)!r}: no such file or folder. Accepted: {ACCEPTED}")
    wanted = [label] if other is None else [label, other]
    found: dict[str, tuple[str, str, list[str]]] = {}
    for number, (name, record) in enumerate(records):
        text = text_of(record, text_field, f"{source}, record {number}")
        if text.strip():
            found[name] = (name, text, [_value(record, column, f"{source}, record {number}") for column in wanted])
    if not found:
        raise ValueError(f"{str(source)!r} holds no text; give another")
    ordered = [found[name] for name, _ in shuffled((name, text) for name, text, _ in found.values())]
    docs = [Document(name, text) for name, text, _ in ordered]
    return Labelled(docs, [v[0] for *_, v in ordered], [v[1] for *_, v in ordered] if other is not None else [])


def _value(record: Any, column: str, where: str) -> str:
    """A label as text: numbers and truth values are labels too."""
    value = record.get(column) if isinstance(record, dict) else None
    if not isinstance(value, str | int | float) or value == "":
        found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
        what = "no label" if value is None or value == "" else f"a {type(value).__name__}"
        raise ValueError(f"{where} has {what} under {column!r} (found: {found}); name the column of the label")
    return str(value)


def _folder(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A class for each folder, or, where there is none, for each file: then each of its lines is a text."""
    seen = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders, files = [p for p in seen if p.is_dir()], [p for p in seen if p.is_file()]
    if len(folders or files) < 2:
        raise ValueError(f"{root} has not two classes: a folder, or a file of a text on each line, is needed for each")
    texts: Iterable[Iterable[tuple[str, str, str]]]
    if folders:
        texts = (((f"{p.name}/{name}", text, p.name) for name, text in folder_texts(p, None)) for p in folders)
    else:
        names = [path.name.split(".")[0] for path in files]
        labels = names if len(set(names)) == len(names) else [path.name for path in files]
        texts = (
            ((f"{path.name}:{number}", line, label) for number, line in enumerate(lines(path), 1))
            for path, label in zip(files, labels, strict=True)
        )
    for name, text, label in itertools.chain.from_iterable(texts):
        yield name, {"text": text, "label": label}
