"""One self-contained HTML page about trained dictionaries and their latents (docs/report.md)."""

from overtone.report.page.document import page_html, write_page
from overtone.report.page.packing import reading_json
from overtone.report.page.text import PageText, page_text
from overtone.report.page.views import Counterparts, LatentsView, Likeness, RunView, TruthView

__all__ = [
    "Counterparts",
    "LatentsView",
    "Likeness",
    "PageText",
    "RunView",
    "TruthView",
    "page_html",
    "page_text",
    "reading_json",
    "write_page",
]
