"""What was recovered of a known truth: a table per suite, beside what is published, and one of all suites. From results alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from overtone.report.tables import cell, markdown_table

Values = Mapping[str, Sequence[float]]  # score → value of every seed


class Score(NamedTuple):
    """A column.

    Attributes:
        key: name in the results.
        heading: name in tables and figures.
        form: of a value.
        factor: what a value is multiplied by to be shown.
        better: 1: more is better, -1: less is, 0: neither.
        drawn: whether figures show it.
    """

    key: str
    heading: str
    form: str = "{:.3f}"
    factor: float = 1.0
    better: int = 1
    drawn: bool = True

    def shown(self, values: Sequence[float] | None) -> str:
        """Mean ± half the range over seeds."""
        return cell(None if values is None else [self.factor * v for v in values], self.form)


def rate(key: str, heading: str) -> Score:
    """A share, shown in percent."""
    return Score(key, heading, "{:.1f}", 100.0)


class Line(NamedTuple):
    """A method of a suite.

    Attributes:
        name: in the suite; "" for what is no method, as a probe of the rows.
        label: for tables.
        found: its scores.
        variants: the same of its baselines and variants, by their label.
        published: what a paper reports of it.
    """

    name: str
    label: str
    found: Values
    variants: Mapping[str, Values]
    published: Mapping[str, float]


class Recovery(NamedTuple):
    """One suite's results.

    Attributes:
        suite: its name.
        title: what was recovered, and from what.
        caption: what the columns are.
        scores: the columns.
        headline: keys of those that stand for the suite beside others; methods are ranked by the first.
        lines: the rows.
        published: source and setting of the published values; "" where there are none.
    """

    suite: str
    title: str
    caption: str
    scores: tuple[Score, ...]
    headline: tuple[str, ...]
    lines: list[Line]
    published: str

    def score(self, key: str) -> Score:
        """The column of this name."""
        return next(score for score in self.scores if score.key == key)


def mean(values: Sequence[float]) -> float:
    """Over seeds."""
    return sum(values) / len(values)


def best(lines: Iterable[Line], score: Score) -> set[str]:
    """Names of the methods whose mean is the best one to as many digits as are shown."""
    means = {
        line.name: float(score.form.format(score.factor * mean(line.found[score.key]))) * score.better
        for line in lines
        if line.name and score.key in line.found
    }
    return {name for name, value in means.items() if score.better and value == max(means.values())}


def rows(recovery: Recovery, mark: Callable[[str], str]) -> list[list[str]]:
    """A header, a row per method, and under it its variants and what is published of it.

    Args:
        recovery: of one suite.
        mark: what a column's best value becomes.
    """
    leaders = {score.key: best(recovery.lines, score) for score in recovery.scores}
    made = [["method", *(score.heading for score in recovery.scores)]]
    for line in recovery.lines:
        others = dict(line.variants)
        if line.published:
            others["published"] = {key: [value] for key, value in line.published.items()}
        if line.found:
            cells = [(score, score.shown(line.found.get(score.key))) for score in recovery.scores]
            made.append([line.label, *(mark(c) if line.name in leaders[score.key] else c for score, c in cells)])
        for label, values in others.items():
            name = f"– {label}" if line.found else f"{line.label}, {label}"
            made.append([name, *(score.shown(values.get(score.key)) for score in recovery.scores)])
    return made


BEST = "; *: best of the column"


def table(recovery: Recovery) -> Table:
    """For a terminal."""
    caption = recovery.caption + BEST + f"\npublished: {recovery.published}" * bool(recovery.published)
    return _terminal(rows(recovery, "{}*".format), recovery.title, caption)


class Summary(NamedTuple):
    """Methods × suites.

    Attributes:
        header: suites and their scores.
        rows: a method's name and its values; a method that a suite does not have, "–".
        ranks: the same for the places that methods of a family take among a suite's methods.
    """

    header: list[str]
    rows: list[list[str]]
    ranks: list[list[str]]


def family(name: str) -> str:
    """A method without its k: "topk-30" is topk."""
    stem, _, last = name.rpartition("-")
    return stem if stem and last.isdigit() else name


def contestants(recovery: Recovery, key: str) -> dict[str, Line]:
    """One line per family of methods: of one that a suite has at several k, the best."""
    score, chosen = recovery.score(key), dict[str, Line]()
    for line in recovery.lines:
        name = family(line.name)
        if line.name and key in line.found:
            held = chosen.get(name)
            if held is None or score.better * (mean(line.found[key]) - mean(held.found[key])) > 0:
                chosen[name] = line
    return chosen


def in_order(held: Iterable[Iterable[str]]) -> list[str]:
    """Families of methods in the order of the suites, GBA's first."""
    return sorted(dict.fromkeys(name for names in held for name in names), key=lambda name: not name.startswith("gba"))


def rank(recovery: Recovery, name: str) -> tuple[int, int]:
    """Place of a method by the suite's first headline score, those with the same mean sharing one, and among how many."""
    key = recovery.headline[0]
    score, chosen = recovery.score(key), contestants(recovery, key)
    own = score.better * mean(chosen[name].found[key])
    return 1 + sum(score.better * mean(line.found[key]) > own for line in chosen.values()), len(chosen)


DEFAULT = "gba-universal"  # what is trained where nothing is told


def summary(found: Sequence[Recovery], mark: Callable[[str], str]) -> Summary:
    """Every suite's headline scores of every method, the best marked, and the places of GBA, the default one and the best."""
    columns = [(recovery, recovery.score(key)) for recovery in found for key in recovery.headline]
    held = [contestants(recovery, score.key) for recovery, score in columns]
    leaders = [best(lines.values(), score) for lines, (_, score) in zip(held, columns, strict=True)]
    names = in_order(held)
    body = []
    for name in names:
        cells = [name]
        for lines, first, (_, score) in zip(held, leaders, columns, strict=True):
            shown = score.shown(lines[name].found[score.key]) if name in lines else "–"
            cells.append(mark(shown) if name in lines and lines[name].name in first else shown)
        body.append(cells)
    ranks = [[f"place of {DEFAULT}"], ["place of the best GBA"]]
    for recovery, score in columns:
        gbas = [name for name in contestants(recovery, score.key) if name.startswith("gba")]
        first = score.key == recovery.headline[0]
        for row, some in zip(ranks, ([DEFAULT] if DEFAULT in gbas else [], gbas), strict=True):
            row.append("{} of {}".format(*min(rank(recovery, name) for name in some)) if first and some else "")
    return Summary(["method", *(f"{recovery.suite} {score.heading}" for recovery, score in columns)], body, ranks)


SUMMARY = "Recovery on every suite; of a method that a suite has at several k, the best"


def summary_table(found: Sequence[Recovery]) -> Table:
    """For a terminal."""
    made = summary(found, "{}*".format)
    shown = _terminal([made.header, *made.rows, *made.ranks], SUMMARY, BEST.removeprefix("; "))
    shown.rows[len(made.rows) - 1].end_section = True
    return shown


def _terminal(lines: Sequence[Sequence[str]], title: str, caption: str) -> Table:
    header, *body = lines
    shown = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for number, heading in enumerate(header):
        shown.add_column(
            heading, justify="right" if number else "left", overflow="fold", min_width=None if number else 12
        )
    for line in body:
        shown.add_row(*line)
    return shown


def markdown(found: Sequence[Recovery], command: str, pictures: Mapping[str, str]) -> str:
    """A page: the summary, then every suite with its picture and its table.

    Args:
        found: of every suite.
        command: what made it.
        pictures: file of a suite's figure, by its name; "all": of the summary.
    """
    made = summary(found, "**{}**".format)
    parts = [
        f"`{command}`\n",
        f"{SUMMARY}; bold: best of the column.\n",
        markdown_table([made.header, *made.rows, *made.ranks]),
        f"![{SUMMARY}]({pictures['all']})\n",
    ]
    explained = ""
    for recovery in found:
        first, _, second = recovery.title.partition("\n")
        parts += [
            f"## `overtone recover {recovery.suite}`\n",
            f"{first}. {second}.\n",
            markdown_table(rows(recovery, "**{}**".format)),
        ]
        if recovery.caption != explained:
            parts.append(f"{recovery.caption[0].upper()}{recovery.caption[1:]}.\n")
            explained = recovery.caption
        if recovery.published:
            parts.append(f"Published: {recovery.published}.\n")
        parts.append(f"![{first}]({pictures[recovery.suite]})\n")
    return "\n".join(parts)
