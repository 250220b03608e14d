"""The page, as one file or as a folder: data, script and style within it, and nothing that it could ask a network for."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from overtone.files import replace_text
from overtone.report.page.packing import narrowest
from overtone.report.page.text import PageText
from overtone.report.page.views import RunView
from overtone.report.tables import metric_lines
from overtone.version import __version__

SCRIPTS = (
    "data.js", "parts.js", "charts.js", "truth.js", "overview.js", "latent.js", "lister.js", "list.js", "compare.js", "read.js",
    "notes.js", "main.js",
)  # fmt: skip
ASK = "ask.js"  # only of a page that is served: it asks the server about a text
FORMAT = 3
PART = 256  # latents whose details come together
INDEX, FOLDER = "index.html", "latents"  # of a page that is a folder
PART_FILE = re.compile(r"\d+-\d+\.js")
SOUGHT = {"tokens": "a token", "rows": "v3"}


class FolderSize(NamedTuple):
    """How large a page is that is a folder.

    Attributes:
        opened: bytes of the file that is opened.
        beside: bytes of the files beside it.
        files: how many of these.
    """

    opened: int
    beside: int
    files: int


def write_page(path: Path, title: str, runs: Sequence[RunView]) -> int:
    """Write the page as one file and give its size in bytes.

    Args:
        path: the file.
        title: what it is about.
        runs: the dictionaries, the first shown first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page_html(title, runs))
    return path.stat().st_size


def write_folder(path: Path, title: str, runs: Sequence[RunView]) -> FolderSize:
    """Write the page as `index.html` and files of latents' details beside it, which it reads when one is looked at.

    A page that was there before is replaced, its index last: until then it says of details that they are of another page.

    Args:
        path: the folder.
        title: what it is about.
        runs: the dictionaries, the first shown first.
    """
    data, parts = _data(title, runs), path / FOLDER
    key = _key(data)
    parts.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    for name, part in _parts(runs):
        file = parts / f"{name}.js"
        # As a script, because a page from a disk may read no other file; as text in it, so that it is read like any other data.
        replace_text(file, f'arrived("{key}", "{name}", {_script_json(str(part))});\n')
        sizes[file.name] = file.stat().st_size
    replace_text(path / INDEX, _html(title, runs, data, folder=FOLDER))
    for file in parts.iterdir():
        if PART_FILE.fullmatch(file.name) and file.name not in sizes:
            file.unlink()
    return FolderSize((path / INDEX).stat().st_size, sum(sizes.values()), len(sizes))


def page_html(title: str, runs: Sequence[RunView], *, served: int | None = None) -> str:
    """The page as one text.

    Args:
        title: what it is about.
        runs: the dictionaries, the first shown first.
        served: of a page whose server reads texts (`overtone view`): how many characters it takes at most.
    """
    return _html(title, runs, _data(title, runs), parts=_parts(runs), served=served)


def _html(
    title: str,
    runs: Sequence[RunView],
    data: str,
    *,
    parts: Iterable[tuple[str, str]] = (),
    served: int | None = None,
    folder: str | None = None,
) -> str:
    environment = _environment()
    sources = files("overtone.report.page")
    style = sources.joinpath("page.css").read_text(encoding="utf-8")
    names = SCRIPTS if served is None else (*SCRIPTS[:-1], ASK, SCRIPTS[-1])
    script = '"use strict";\n' + "".join(sources.joinpath(name).read_text(encoding="utf-8") for name in names)
    markup = _markup()
    html = environment.from_string(sources.joinpath("page.html.j2").read_text(encoding="utf-8")).render(
        title=title,
        version=__version__,
        runs=runs,
        served=served,
        folder=folder,
        sought=" or ".join(SOUGHT[unit] for unit in sorted({run.text.unit for run in runs})),
        compared=any(run.latents.counterparts for run in runs),
        read=served is not None or any(run.latents.passages for run in runs),
        about=_about(runs),
        metrics=metric_lines({f"{i}": run.metrics for i, run in enumerate(runs)}),
        data=markup(data),
        key=_key(data),
        parts=((name, markup(part)) for name, part in parts),
        style=markup(style),
        script=markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    # Lone surrogates, which tokenisers may leave behind, have no bytes.
    return html.encode("utf-8", "replace").decode("utf-8")


def _about(runs: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for run in runs for name in run.about)
    return [(name, [run.about.get(name, "–") for run in runs]) for name in names]


def _data(title: str, runs: Sequence[RunView]) -> str:
    """What the script needs from the start."""
    texts: list[PageText] = list({id(run.text): run.text for run in runs}.values())
    numbers = {id(text): number for number, text in enumerate(texts)}
    return _script_json(
        {
            "format": FORMAT,
            "title": title,
            "part": PART,
            "texts": [{"strings": text.strings, "tokens": narrowest(text.tokens), "unit": text.unit} for text in texts],
            "runs": [run.to_json(numbers[id(run.text)]) for run in runs],
        }
    )


def _parts(runs: Sequence[RunView]) -> Iterator[tuple[str, str]]:
    """(name, data) of what is shown of latents when they are looked at, some latents of a dictionary at a time."""
    for number, run in enumerate(runs):
        for i, first in enumerate(range(0, len(run.latents.frequency), PART)):
            part = run.latents.part_json(slice(first, first + PART), run.text)
            yield f"{number}-{i}", _script_json(part)


def _script_json(value: Any) -> str:
    """Data as JSON that can stand in a script element or in a script: without any character that markup begins or ends with."""
    text = json.dumps(_finite(value), separators=(",", ":"))
    for character in "<>&'":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _key(data: str) -> str:
    """What a page and the files of its latents know each other by."""
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def _finite(value: Any) -> Any:
    """The data with null for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash(text: str) -> str:
    """What the page's policy names its own script and style by, so that no other one is ever run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _environment() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError('the page needs jinja2: pip install "overtone[report]"') from error
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _markup() -> Any:
    from markupsafe import Markup

    return Markup
