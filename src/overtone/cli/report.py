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
from overtone.report.page import INDEX, write_folder, write_page

LARGE = 30 * 2**20  # bytes from which on browsers take their time


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    folder: Path | None = None,
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

    The page is one file that opens in any browser and asks no network for anything; or a folder, for dictionaries so wide that
    one file takes long to open.

    Args:
        runs: run folders, those of `overtone recover --runs` among them, or dictionaries of overtone's or another tool's (then
            give --store).
        out: the file to write (default: report.html).
        folder: write a folder instead, whose index.html reads the details of latents from files beside it, as they are looked at.
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
    if out is not None and folder is not None:
        raise ValueError(f"-o {out} asks for one file, --folder {folder} for a folder; give one of the two")
    page = folder / INDEX if folder is not None else out or Path("report.html")
    check_writable(page)
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
    write_report(page, subjects, folder=folder is not None, title=title, scores=scores, lens=lens, seed=seed)


def write_report(
    out: Path,
    subjects: Sequence[Subject],
    *,
    folder: bool = False,
    title: str = "",
    scores: Path | None = None,
    lens: bool = False,
    seed: int = 0,
) -> None:
    """Gather what the page shows and write it; `folder`: with latents' details in files beside it; others as in `report`."""
    views = run_views(subjects, scores=scores, lens=lens, seed=seed)
    title = title or title_of(subjects[0])
    if folder:
        size = write_folder(out.parent, title, views)
        files = "1 file" if size.files == 1 else f"{size.files:,} files"
        beside = f"{files} beside it ({_mib(size.beside)})"
        console.print(f"Report: {out} ({_mib(size.opened)}) and {beside} – open it in a browser")
        return
    size = write_page(out, title, views)
    console.print(f"Report: {out} ({_mib(size)}) – open it in a browser")
    if size > LARGE:
        console.print(
            "It is large: browsers take a moment to open it. With --folder DIR, latents are read as they are looked at"
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
