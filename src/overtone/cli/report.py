"""`overtone report`: one HTML page to look at dictionaries and every one of their latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from overtone import formats
from overtone.cli.common import console
from overtone.cli.in_text import Split
from overtone.cli.pages import Subject, run_views, subjects_of, title_of
from overtone.files import check_writable
from overtone.report.page import write_page

LARGE = 30 * 2**20  # bytes from which on browsers take their time


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html"),
    title: str = "",
    scores: Path | None = None,
    lens: bool = True,
    store: Path | None = None,
    site: tuple[str, ...] = (),
    target: str | None = None,
    split: Split = "held_out",
    rows: int | None = None,
    seed: int = 0,
    input_norm: formats.InputNorm | None = None,
    parts: tuple[str, ...] = (),
) -> None:
    """Write one HTML page about trained dictionaries: how well they do, and every latent with the text it fires on.

    The page is one file that opens in any browser and asks no network for anything.

    Args:
        runs: run folders, those of `overtone recover --runs` among them, or dictionaries of overtone's or another tool's (then
            give --store).
        out: the file to write.
        title: of the page (default: the model, the site and the text, or the suite).
        scores: results of `overtone score --json`, for labels and detection scores.
        lens: the tokens that each latent's atom promotes and suppresses, where the model predicts tokens (logit lens).
        store: a store whose text to use instead of the run's own.
        site: which site of that store, or which several of a crosscoder (default: the run's own).
        target: which site is to be reconstructed (default: the run's own).
        split: held_out, or train.
        rows: how many rows to read, at most (default: 200,000 of a text, 20,000 of a known truth).
        seed: of the samples.
        input_norm: how rows are scaled before another tool's dictionary reads them, where its files do not say (row: to norm 1;
            rms: to norm √d).
        parts: your own Python files or modules that the methods' parts are defined in.
    """
    check_writable(out)
    subjects = subjects_of(
        runs,
        store=store,
        site=site,
        target=target,
        split=split,
        rows=rows,
        seed=seed,
        input_norm=input_norm,
        parts=parts,
    )
    write_report(out, subjects, title=title, scores=scores, lens=lens, seed=seed)


def write_report(
    out: Path,
    subjects: Sequence[Subject],
    *,
    title: str = "",
    scores: Path | None = None,
    lens: bool = False,
    seed: int = 0,
) -> None:
    """Gather what the page shows and write it; arguments as in `report`."""
    views = run_views(subjects, scores=scores, lens=lens, seed=seed)
    size = write_page(out, title or title_of(subjects[0]), views)
    console.print(f"Report: {out} ({size / 2**20:.1f} MiB) – open it in a browser")
    if size > LARGE:
        console.print("It is large: browsers take a moment to open it. Fewer dictionaries on one page make it smaller")
