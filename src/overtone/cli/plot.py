"""`overtone plot`: figures for a paper from the results that the other verbs write, and their data."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from overtone import checkpoint
from overtone.cli import comparison, evaluate, recover_all, suites
from overtone.cli import experiment as experiments
from overtone.cli.common import console, finite_again, names_of, write_json
from overtone.cli.rows import rows_of
from overtone.files import check_writable, replace_text
from overtone.laboratory import EXPERIMENTS
from overtone.metrics.reconstruction import evaluate as reconstruction
from overtone.report import plots, recovery_figures
from overtone.report.comparison import Point
from overtone.report.consistency import scatter
from overtone.report.experiments import Figure, Measured
from overtone.report.frontier import frontier
from overtone.report.recovery import Recovery
from overtone.runs import CONFIG, RunFolder

Rows = list[dict[str, Any]]
Document = dict[str, Any]
TABLES = (".csv", ".json")


class Picture(NamedTuple):
    """A figure, and the numbers in it: one row for each thing that is drawn."""

    draw: Callable[[], Figure]
    data: Callable[[], Rows]


Make = Callable[[Sequence[Path], Sequence[Document]], Picture]


class Kind(NamedTuple):
    """A kind of results.

    Attributes:
        written_by: what writes it.
        figures: what can be drawn of it, the first unless another is asked for.
    """

    written_by: str
    figures: Mapping[str, Make]


def plot(
    results: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    figure: str | None = None,
    data: Path | None = None,
    title: str = "",
) -> None:
    """Draw a figure of results that overtone wrote: a recovery, an experiment, a comparison, an evaluation, or runs.

    What a file holds is known by its "format". Several of one kind are drawn together.

    Args:
        results: files of `--json`, results.json of a comparison or of `recover all`, or folders of runs and comparisons.
        out: the figure (SVG, PDF or PNG, by its name).
        figure: which one, where there are several: frontier or consistency of a comparison, training or spectrum of runs.
        data: also write the numbers in the figure to this file (CSV or JSON, by its name).
        title: of the figure (default: what the results say of themselves).
    """
    plots.check_figure(out)
    if data is not None and data.suffix not in TABLES:
        raise ValueError(
            f"{data}: the numbers go into a file whose name ends in {' or '.join(TABLES)}; give it one of them"
        )
    for path in (out, data):
        if path is not None:
            check_writable(path)
    if not results:
        raise ValueError("no results to draw; give one or several files or folders that overtone wrote")
    paths = [_description(path) for path in results]
    documents = [_read(path) for path in paths]
    kinds = list(dict.fromkeys(document["format"] for document in documents))
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(kinds)} cannot be drawn in one figure; give results of one kind")
    made = _chosen(kinds[0], figure)(paths, [document | ({"title": title} if title else {}) for document in documents])
    plots.save(made.draw, out)
    console.print(f"Figure: {out}")
    if data is not None:
        write_table(data, made.data())
        console.print(f"Its numbers: {data}")


def _description(path: Path) -> Path:
    """The file that says what a folder holds."""
    if not path.is_dir():
        return path
    names = (comparison.RESULTS, recover_all.RESULTS, CONFIG)
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path} has none of {', '.join(dict.fromkeys(names))}: no run, comparison or recovery")
    return found


def _read(path: Path) -> Document:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no results at {path}; give a file or folder that overtone wrote") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); give a file that overtone wrote") from error
    form = document.get("format") if isinstance(document, dict) else None
    if form not in KINDS:
        known = "; ".join(f"{name} ({kind.written_by})" for name, kind in KINDS.items())
        raise ValueError(f"{path} is of format {form!r}, which has no figure; those that have: {known}")
    return checkpoint.read_json(path, form, largest=evaluate.LARGEST_RESULTS)


def _chosen(form: str, figure: str | None) -> Make:
    figures = KINDS[form].figures
    if figure is not None and figure not in figures:
        raise ValueError(f"--figure {figure}: {form} has {', '.join(figures)}")
    return figures[figure or next(iter(figures))]


def write_table(path: Path, rows: Rows) -> None:
    """Rows as CSV or JSON, by the file's name; in CSV a list is written as JSON."""
    if path.suffix == ".json":
        write_json(path, {"rows": rows}, quiet=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{key: _cell(value) for key, value in row.items()} for row in rows])
    replace_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _recovery(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    found = [suites.told(document) for document in documents]
    if len(found) > 1:
        return Picture(lambda: recovery_figures.summary(found), lambda: _scores(found))
    (one,) = (r._replace(title=d.get("title") or r.title) for r, d in zip(found, documents, strict=True))
    return Picture(lambda: recovery_figures.methods(one), lambda: _scores([one]))


def _recoveries(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    return _recovery(paths, [suite for document in documents for suite in document["suites"].values()])


def _scores(found: Iterable[Recovery]) -> Rows:
    """Every score of every method, baseline and publication: one row per seed."""
    rows: Rows = []
    for recovery in found:
        for line in recovery.lines:
            published = {key: [value] for key, value in line.published.items()}
            for variant, values in {"": line.found, **line.variants, "published": published}.items():
                for score in recovery.scores:
                    about = {
                        "suite": recovery.suite,
                        "method": line.name or line.label,
                        "variant": variant,
                        "score": score.key,
                    }
                    rows += [about | {"place": i, "value": v} for i, v in enumerate(values.get(score.key, ()))]
    return rows


def _experiment(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    names = {document["experiment"] for document in documents}
    if len(names) > 1 or next(iter(names)) not in EXPERIMENTS:
        raise ValueError(
            f"{', '.join(map(str, paths))}: give the results of one of {', '.join(EXPERIMENTS)}, not of {names}"
        )
    results = [Measured(**result) for document in documents for result in document["results"]]
    chosen = EXPERIMENTS[names.pop()]
    return Picture(lambda: chosen.draw(results), lambda: [{**r.point, "seed": r.seed, **r.found} for r in results])


def _frontier(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    points = [Point(**p | {"metrics": finite_again_lists(p["metrics"])}) for d in documents for p in d["points"]]

    def rows() -> Rows:
        return [
            {"method": p.label, "line": p.line, "latents": p.latents, "seed": seed}
            | {k: v[i] for k, v in p.metrics.items()}
            for p in points
            for i, seed in enumerate(p.seeds)
        ]

    return Picture(lambda: frontier(points, title=documents[0]["title"]), rows)


def finite_again_lists(metrics: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Values over seeds as `finite` wrote them, with null as NaN again."""
    return {key: [finite_again({"": value})[""] for value in values] for key, values in metrics.items()}


def _consistency(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    found = [seeds for path in paths for seeds in comparison.Comparison.open(path.parent).alike()]
    if not found:
        raise ValueError(f"{paths[0]} has one seed of each; a comparison of several (--seeds) has a consistency")

    def rows() -> Rows:
        return [
            {"method": s.label, "latents": s.latents, "latent": m, "mcs": float(mcs)}
            | {k: float(v[m]) for k, v in s.scores[0].items()}
            for s in found
            for m, mcs in enumerate(s.consistency.each[0])
        ]

    return Picture(lambda: scatter(found, title=documents[0]["title"]), rows)


def _evaluation(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    runs = [result for document in documents for result in document["runs"]]
    names = names_of([Path(result["run"]) for result in runs])
    histograms = {name: r["distributions"]["frequency_histogram"] for name, r in zip(names, runs, strict=True)}

    def rows() -> Rows:
        return [
            {"dictionary": name, "fires on, from": end, "latents": n}
            for name, counts in histograms.items()
            for end, n in counts.items()
        ]

    title = documents[0].get("title") or "How often latents fire"
    return Picture(partial(plots.frequencies, histograms, title=title), rows)


def _training(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    folders = [path.parent for path in paths]
    records = {n: RunFolder.open(f).records() for n, f in zip(names_of(folders), folders, strict=True)}
    empty = next((name for name, some in records.items() if not some), None)
    if empty is not None:
        raise ValueError(f"{empty} has no records of its training yet")

    def rows() -> Rows:
        return [{"run": name, **record} for name, some in records.items() for record in some]

    return Picture(partial(plots.curves, records, title=documents[0].get("title") or "Training"), rows)


def _spectrum(paths: Sequence[Path], documents: Sequence[Document]) -> Picture:
    if len(paths) > 1:
        raise ValueError(f"--figure spectrum is of one run; {len(paths)} are given")
    folder = RunFolder.open(paths[0].parent)
    spectrum = folder.run.method.spectrum
    if spectrum is None:
        raise ValueError(f"{folder.path} was trained by {folder.run.method.name}, which has no target frequencies")
    (rows_to_read,) = rows_of([folder])
    reached = reconstruction(folder.dictionary(), rows_to_read.held_out()).firing.frequency.tolist()
    targets = spectrum.targets(folder.run.latents).tolist()

    def rows() -> Rows:
        return [
            {"latent": m, "target": t, "frequency": f} for m, (t, f) in enumerate(zip(targets, reached, strict=True))
        ]

    title = documents[0].get("title") or f"Activation frequencies of {folder.path.name}, held-out rows"
    return Picture(partial(plots.spectrum, reached, targets, title=title), rows)


KINDS: dict[str, Kind] = {
    suites.KIND: Kind("overtone recover SUITE --json", {"scores": _recovery}),
    recover_all.KIND: Kind("overtone recover all --json", {"summary": _recoveries}),
    experiments.KIND: Kind("overtone experiment --json", {"experiment": _experiment}),
    comparison.KIND: Kind("overtone compare", {"frontier": _frontier, "consistency": _consistency}),
    evaluate.KIND: Kind("overtone evaluate --json", {"frequencies": _evaluation}),
    "overtone-run": Kind("a run's folder", {"training": _training, "spectrum": _spectrum}),
}
