"""The page as one file: data, script and style within it, and nothing that it could ask a network for."""

import base64
import hashlib
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from overtone.files import replace_text
from overtone.report.page.packing import narrowest
from overtone.report.page.views import RunView
from overtone.report.tables import metric_lines
from overtone.version import __version__

SCRIPTS = (
    "data.js", "charts.js", "truth.js", "overview.js", "latent.js", "lister.js", "list.js", "compare.js", "read.js", "notes.js",
    "main.js",
)  # fmt: skip
ASK = "ask.js"  # only of a page that is served: it asks the server about a text
FORMAT = 2


def write_page(path: Path, title: str, runs: Sequence[RunView]) -> int:
    """Write the page and give its size in bytes.

    Args:
        path: the file.
        title: what it is about.
        runs: the dictionaries, the first shown first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page_html(title, runs))
    return path.stat().st_size


def page_html(title: str, runs: Sequence[RunView], *, served: int | None = None) -> str:
    """The page as text.

    Args:
        title: what it is about.
        runs: the dictionaries, the first shown first.
        served: of a page whose server reads texts (`overtone view`): how many characters it takes at most.
    """
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
        sought=" or ".join(
            {"tokens": "a token", "rows": "a feature, as v3"}[unit] for unit in sorted({run.text.unit for run in runs})
        ),
        compared=any(run.latents.counterparts for run in runs),
        read=served is not None or any(run.latents.passages for run in runs),
        about=_about(runs),
        metrics=metric_lines({f"{i}": run.metrics for i, run in enumerate(runs)}),
        data=_data(title, runs),
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


def _data(title: str, runs: Sequence[RunView]) -> dict[str, Any]:
    texts = list({id(run.text): run.text for run in runs}.values())
    numbers = {id(text): number for number, text in enumerate(texts)}
    return _finite(
        {
            "format": FORMAT,
            "title": title,
            "texts": [{"strings": text.strings, "tokens": narrowest(text.tokens), "unit": text.unit} for text in texts],
            "runs": [run.to_json(numbers[id(run.text)]) for run in runs],
        }
    )


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
