"""A comparison on disk: a folder with a run folder for each dictionary, what they came to, the table and the picture."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from overtone import checkpoint
from overtone.cli import consistency
from overtone.cli.common import console, finite, finite_again, follow
from overtone.cli.evaluate import downstream_scores
from overtone.cli.rows import Member, Wanted, new_folders, rows_of
from overtone.data.models import LanguageModel
from overtone.files import replace_text
from overtone.metrics.reconstruction import evaluate
from overtone.report import comparison
from overtone.report.consistency import Seeds, lines
from overtone.report.frontier import frontier
from overtone.report.plots import save
from overtone.report.tables import markdown_table, metrics_table
from overtone.runs import RunFolder, execute_together
from overtone.training import Run
from overtone.version import __version__

PLAN, METRICS, RESULTS, TABLE, PICTURE = "comparison.json", "metrics.json", "results.json", "comparison.md", "frontier"
KIND, VERSION = "overtone-comparison", 1
FLOATS_PER_WEIGHT = 4  # the weight, its gradient, Adam's two moments


class Contestant(NamedTuple):
    """One dictionary of a comparison.

    Attributes:
        folder: name of its run folder.
        line: its method, without the option that moves along the frontier.
        label: its method with all its options.
        latents: width.
        seed: of the initial weights.
    """

    folder: str
    line: str
    label: str
    latents: int
    seed: int


class Comparison:
    """What is compared, in a folder.

    Args:
        path: the folder.
        contestants: the dictionaries, in the order of tables.
        folders: the run folder of each.
        at_once: how many are held in memory together.
        contexts: pieces of text for downstream metrics; None: not measured.
        d: width of the rows that are read, of all sites together.
        rows: what the rows are, for titles.
    """

    def __init__(
        self,
        path: Path,
        contestants: Sequence[Contestant],
        folders: Sequence[RunFolder],
        *,
        at_once: int,
        contexts: int | None,
        d: int,
        rows: str,
    ):
        self.path, self.contestants, self.folders = path, contestants, folders
        self.at_once, self.contexts, self.d, self.rows = at_once, contexts, d, rows

    @classmethod
    def create(
        cls,
        path: Path,
        wanted: Wanted,
        runs_of: Callable[[dict[str, int]], Sequence[tuple[Contestant, Run]]],
        *,
        at_once: int | None,
        contexts: int | None,
        rows: str,
    ) -> tuple["Comparison", LanguageModel | None]:
        """Lay out a new folder; `runs_of` is told site → d. An error in the settings leaves nothing behind."""
        site = wanted.sites[0] if len(wanted.sites) == 1 else wanted.sites
        contestants, widths = [], {}

        def members_of(found: dict[str, int]) -> list[Member]:
            widths.update({name: found[name] for name in wanted.sites})
            pairs = runs_of(found)
            contestants.extend(contestant for contestant, _ in pairs)
            _check_memory([run for _, run in pairs], at_once or len(pairs), sum(widths.values()))
            return [Member(contestant.folder, run, site, wanted.target) for contestant, run in pairs]

        folders, lm = new_folders(path, wanted, members_of)
        new = cls(
            path, contestants, folders,
            at_once=min(at_once or len(folders), len(folders)), contexts=contexts, d=sum(widths.values()), rows=rows,
        )  # fmt: skip
        # Last, so that a folder with a plan has all its runs.
        replace_text(path / PLAN, json.dumps(new._description(), indent=2) + "\n")
        return new, lm

    @classmethod
    def open(cls, path: Path, parts: Iterable[type] = ()) -> "Comparison":
        """An existing folder. `parts`: the user's own, as in `RunFolder.open`."""
        if not (path / PLAN).is_file():
            raise FileNotFoundError(
                f"no comparison at {path} (no {PLAN}); give the folder that `overtone compare` wrote, or start again "
                "with another --out"
            )
        plan = checkpoint.read_json(path / PLAN, KIND)
        contestants = [Contestant(**contestant) for contestant in plan["contestants"]]
        folders = [RunFolder.open(path / contestant.folder, parts) for contestant in contestants]
        settings = {key: plan[key] for key in ("at_once", "contexts", "d", "rows")}
        return cls(path, contestants, folders, **settings)

    def _description(self) -> dict[str, Any]:
        return {
            "format": KIND,
            "version": VERSION,
            "overtone": __version__,
            "rows": self.rows,
            "d": self.d,
            "at_once": self.at_once,
            "contexts": self.contexts,
            "contestants": [contestant._asdict() for contestant in self.contestants],
        }

    def carry_out(self, lm: LanguageModel | None = None) -> None:
        """Train and measure what is not yet; every group reads the same rows in the same order."""
        numbers = range(len(self.folders))
        groups = [numbers[i : i + self.at_once] for i in numbers[:: self.at_once]]
        for number, group in enumerate(groups, 1):
            left = [i for i in group if not self._is_measured(i)]
            if left:
                size = state_bytes([self.folders[i].run for i in left], self.d) / 2**20
                of = f"Group {number} of {len(groups)}: " if len(groups) > 1 else ""
                console.print(f"{of}{len(left)} dictionaries side by side, {size:,.0f} MiB of training state")
                self._train(left, lm)

    @property
    def _seeds(self) -> dict[str, list[int]]:
        """Name → the runs that differ in their seed alone, where there are several."""
        groups: dict[str, list[int]] = {}
        for i, contestant in enumerate(self.contestants):
            groups.setdefault(contestant.folder.removesuffix(f"-seed-{contestant.seed}"), []).append(i)
        return {name: same for name, same in groups.items() if len(same) > 1}

    def _is_measured(self, number: int) -> bool:
        wanted = (METRICS, consistency.SCORES) if self._seeds else (METRICS,)
        return all((self.folders[number].path / name).exists() for name in wanted)

    def _train(self, group: Sequence[int], lm: LanguageModel | None) -> None:
        folders, named = [self.folders[i] for i in group], [self.contestants[i] for i in group]
        rows = rows_of(folders, lm)
        records = execute_together([(folder, part.stream) for folder, part in zip(folders, rows, strict=True)])
        follow(records, [(c.folder, folder.run) for c, folder in zip(named, folders, strict=True)])
        dictionaries = {c.folder: folder.dictionary() for c, folder in zip(named, folders, strict=True)}
        further = downstream_scores(folders[0], dictionaries, self.contexts) if self.contexts else {}
        several = bool(self._seeds)
        for contestant, folder, part in zip(named, folders, rows, strict=True):
            stats = evaluate(dictionaries[contestant.folder], part.held_out())
            found: dict[str, Any] = stats.summary()
            found |= {"rows_per_s": _speed(folder), **further.get(contestant.folder, {})}
            if several:
                consistency.write_scores(folder, dictionaries[contestant.folder], stats.firing, part.held_out)
            replace_text(folder.path / METRICS, json.dumps(finite(found), indent=2, allow_nan=False) + "\n")

    def alike(self) -> list[Seeds]:
        """How alike the seeds of every method and width are; none where there is one seed of each."""
        groups = [
            (name, self.contestants[same[0]].label, self.contestants[same[0]].latents, [self.folders[i] for i in same])
            for name, same in self._seeds.items()
        ]
        return consistency.measured(self.path, groups) if groups else []

    def report(self, command: str) -> dict[str, Any]:
        """Print the table, write the table and the picture, and return everything as JSON.

        Args:
            command: what carries the comparison on, for the readers of the folder.
        """
        found = comparison.points(
            [
                comparison.Result(c.line, c.label, c.latents, c.seed, _read(folder.path / METRICS))
                for c, folder in zip(self.contestants, self.folders, strict=True)
            ]
        )
        run, seeds = self.folders[0].run, len({c.seed for c in self.contestants})
        title = (
            f"{self.rows} · d = {self.d} · {run.steps:,} steps of {run.batch} rows · {seeds} seed{'s' * (seeds > 1)}"
        )
        measured = f"{found[0].metrics['rows'][0]:,} held-out rows"
        console.print(metrics_table(comparison.shown(found), f"{title}\n{measured}; ± half the range over seeds"))
        result = {**self._description(), "title": title, "points": comparison.to_json(found)}
        page = PAGE.format(title=title, measured=measured, table=comparison.markdown(found), command=command)
        if self._seeds:
            alike = self.alike()
            consistency.show(self.path, alike, title)
            result |= {"consistency": [one.to_json() for one in alike]}
            page += CONSISTENCY.format(table=markdown_table(lines(alike)))
        replace_text(self.path / RESULTS, json.dumps(finite(result), indent=2, allow_nan=False) + "\n")
        replace_text(self.path / TABLE, page)
        console.print(f"Table: {self.path / TABLE}   Values: {self.path / RESULTS}")
        pictures = [self.path / f"{PICTURE}.{kind}" for kind in ("svg", "png")]
        try:
            for picture in pictures:
                save(lambda: frontier(found, title=title), picture)
        except ImportError as error:
            console.print(f"No picture: {error}; then {command} draws it", markup=False)
        else:
            console.print(f"Frontier: {' and '.join(map(str, pictures))}")
        return result


def state_bytes(runs: Sequence[Run], d: int) -> int:
    """What training the runs side by side keeps: weights, gradients and optimiser states in float32 (maths.md, symbol table)."""
    matrices = (run.latents * d * (1 if run.method.parametrisation.tied else 2) for run in runs)
    return 4 * FLOATS_PER_WEIGHT * sum(matrices)


def _check_memory(runs: Sequence[Run], at_once: int, d: int) -> None:
    """Raise where the machine is too small for so many dictionaries."""
    if not hasattr(os, "sysconf"):
        return
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    largest = sorted((state_bytes([run], d) for run in runs), reverse=True)
    if sum(largest[:at_once]) > there:
        fit = next(n for n in range(at_once, -1, -1) if sum(largest[:n]) <= there // 2)
        remedy = f"train in groups with --at-once {fit}" if fit else "lower --latents"
        raise ValueError(
            f"{at_once} dictionaries at once need {sum(largest[:at_once]) / 2**30:.1f} GiB of training state, this machine has "
            f"{there / 2**30:.1f} GiB; {remedy}"
        )


def _speed(folder: RunFolder) -> float:
    """Rows per second of the run's own steps: the median over its records, reading and the other runs left out."""
    records = folder.records()
    steps = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *records], records, strict=False)]
    return median(n * folder.run.batch / max(r["step_seconds"], 1e-9) for n, r in zip(steps, records, strict=True))


def _read(path: Path) -> dict[str, float]:
    """Metrics as written; null is nan again."""
    return finite_again(json.loads(path.read_text()))


PAGE = """# {title}

![explained variance against L0](frontier.svg)

Measured on {measured}; ± is half the range over seeds of the initial weights. All dictionaries saw the same rows in the same
order. Speeds are of a dictionary's own steps while others are trained beside it.

{table}
Every folder here is a run: `overtone evaluate FOLDER`, `overtone.load("FOLDER")`. Again: `{command}`
"""
CONSISTENCY = """
## Consistency

![Z-score, peak and consistency of every latent](consistency.svg)

MCS: mean, over the latents of one run, of the largest cosine with the atoms of another; > 0.9: share of latents where it is
above, of all and of the top ones; PW-MCC: mean |cos|, matched one to one. Over all pairs of seeds; ± is half the range. Random
atoms are uniform directions: what chance has.

{table}
"""
