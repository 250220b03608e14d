"""A self-contained HTML page, one file or a folder, about trained dictionaries and their latents (docs/report.md)."""

from overtone.report.page.document import INDEX, FolderSize, page_html, write_folder, write_page
from overtone.report.page.packing import reading_json
from overtone.report.page.text import PageText, page_text
from overtone.report.page.views import Counterparts, LatentsView, Likeness, RunView, TruthView

__all__ = [
    "INDEX",
    "Counterparts",
    "FolderSize",
    "LatentsView",
    "Likeness",
    "PageText",
    "RunView",
    "TruthView",
    "page_html",
    "page_text",
    "reading_json",
    "write_folder",
    "write_page",
]
