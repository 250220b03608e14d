"""`overtone view`: the report's page behind a server of this machine's own, which reads texts of yours, too."""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from overtone import formats
from overtone.cli.common import console
from overtone.cli.in_text import InText, Split
from overtone.cli.pages import Subject, run_views, subjects_of, title_of
from overtone.cli.rows import model_of
from overtone.cli.serving import Answer, PageServer
from overtone.data.filling import plan_of
from overtone.interpret.reading import Reader
from overtone.report.page import page_html, reading_json

LONGEST = 5000  # characters of a text


def view(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    port: int = 0,
    browser: bool = False,
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
    """Serve the page of `overtone report` to this machine's browser, and read texts of yours: their tokens light up.

    Your text is read by the model that the rows come from, and coded by every dictionary. The server listens on 127.0.0.1 alone,
    keeps no text, and ends with Ctrl-C.

    Args:
        runs: run folders, or dictionaries of overtone's or another tool's (then give --store); all of one model.
        port: where to listen (0: a free port).
        browser: open the page in a browser.
        title: of the page (default: the model, the site and the text).
        scores: results of `overtone score --json`, for labels and detection scores.
        lens: the tokens that each latent's atom promotes and suppresses, where the model predicts tokens (logit lens).
        store: a store whose text to use instead of the run's own.
        site: which site of that store, or which several of a crosscoder (default: the run's own).
        target: which site is to be reconstructed (default: the run's own).
        split: held_out, or train.
        rows: how many rows of text to read for the page, at most (default: 200,000).
        seed: of the samples.
        input_norm: how rows are scaled before another tool's dictionary reads them, where its files do not say (row: to norm 1;
            rms: to norm √d).
        parts: your own Python files or modules that the methods' parts are defined in.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port={port} must be 0 (a free one) to {2**16 - 1}")
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
    answer = reader_of(subjects)
    views = run_views(subjects, scores=scores, lens=lens, seed=seed)
    html = page_html(title or title_of(subjects[0]), views, served=LONGEST)
    with PageServer(html, answer, LONGEST, port) as server:
        console.print(f"The page is at {server.address} – for browsers of this machine; Ctrl-C ends it", soft_wrap=True)
        if browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print("Ended")


def reader_of(subjects: Sequence[Subject]) -> Answer:
    """What reads a text for the page.

    Raises:
        ValueError: dictionaries of a truth, which has no text, or of different models, whose tokens are not the same.
    """
    texts = [subject.text for subject in subjects if isinstance(subject.text, InText)]
    if len(texts) < len(subjects):
        bare = next(subject.name for subject in subjects if not isinstance(subject.text, InText))
        raise ValueError(f"{bare} was trained on a known truth, and no model reads text for it; use overtone report")
    models = [plan_of(text.store.manifest, text.store.path).model for text in texts]
    other = next((i for i, model in enumerate(models) if model != models[0]), None)
    if other is not None:
        raise ValueError(
            f"{subjects[0].name} is of the model {models[0]}, {subjects[other].name} of {models[other]}; a text is read by one "
            "model, so view them one after the other"
        )
    lm, plan = model_of(texts[0].store)
    read = [(s.dictionary, text.store.layout(text.site).reads) for s, text in zip(subjects, texts, strict=True)]
    reader = Reader(lm, plan, read, LONGEST)

    def answer(text: str) -> dict[str, Any]:
        return reading_json(*reader.read(text))

    return answer
