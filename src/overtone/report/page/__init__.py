"""One self-contained HTML page about trained dictionaries and their latents (docs/report.md)."""

from overtone.report.page.document import write_page
from overtone.report.page.text import PageText, page_text
from overtone.report.page.views import Counterparts, LatentsView, Likeness, RunView

__all__ = ["Counterparts", "LatentsView", "Likeness", "PageText", "RunView", "page_text", "write_page"]
