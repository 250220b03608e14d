"""`overtone probe`: what single latents know of labels, by probes and without a judge."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro
from rich.progress import TextColumn
from torch import Tensor

from overtone import formats
from overtone.cli import probe_tasks as tasks
from overtone.cli.common import check_given_once, console, names_of, progress_bar, token_progress, write_json
from overtone.cli.rows import open_store, run_at, source_of
from overtone.data.filling import plan_of
from overtone.data.harvest import harvest
from overtone.data.labelled import STDLIB, Labelled, by_frequency, load_labelled
from overtone.data.models import LanguageModel, load_model
from overtone.data.source import FileSource
from overtone.data.text import Document, load_documents
from overtone.dictionary import Dictionary
from overtone.metrics.probing.columns import Columns
from overtone.metrics.probing.letters import words_in_template, words_in_text
from overtone.metrics.probing.perturbation import COUNTS
from overtone.metrics.probing.reading import Pool, Read, directions, encode_rows, random_dictionary, read_texts
from overtone.metrics.probing.sparse import KS
from overtone.metrics.probing.tasks import held_out, one_against_rest
from overtone.report.probing import probing_table
from overtone.users_code import parts_named
from overtone.version import __version__

Task = Literal["sparse", "tpp", "scr", "absorption", "splitting"]
KIND = "overtone-probing"
RANDOM = "random "
SAMPLE = 4000  # rows from which random dictionaries take their centre, and how many latents to have active


class Probed(NamedTuple):
    """What is probed, and how.

    Attributes:
        lm, site: whose rows.
        dictionaries: by name, the random ones too.
        context: tokens per context.
        test: share to test on.
        seed: of the parts.
    """

    lm: LanguageModel
    site: str
    dictionaries: dict[str, Dictionary]
    context: int
    test: float
    seed: int

    @property
    def where(self) -> str:
        """For titles."""
        return f"{self.site} of {self.lm.name}"

    @property
    def atoms(self) -> dict[str, Tensor]:
        """Unit atoms."""
        return {name: directions(dictionary)[0] for name, dictionary in self.dictionaries.items()}

    def read(self, texts: Labelled, source: str, pool: Pool = "mean") -> Read:
        """A row for every text, behind a progress bar."""
        with progress_bar(TextColumn("{task.completed:,.0f} texts")) as progress:
            bar = progress.add_task(f"Reading {source}", total=len(texts.docs))
            return read_texts(
                *(self.lm, self.site, texts.docs, self.dictionaries), context=self.context, pool=pool,
                progress=lambda done, _: progress.update(bar, completed=done),
            )  # fmt: skip

    def encoded(self, x: Tensor, what: str) -> dict[str, Columns]:
        """What every dictionary makes of rows, behind a progress bar."""
        with progress_bar(TextColumn("{task.completed:,.0f} rows")) as progress:
            bar = progress.add_task(f"Encoding {what}", total=len(x) * len(self.dictionaries))
            return encode_rows(x, self.dictionaries, progress=lambda rows: progress.advance(bar, rows))


def probe(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    task: tuple[Task, ...] = ("sparse",),
    model: str | None = None,
    site: str | None = None,
    labelled: str = STDLIB,
    text_field: str | None = None,
    label: str = "label",
    other: str | None = None,
    classes: tuple[str, ...] = (),
    per_class: int = 400,
    k: tuple[int, ...] = KS,
    ablate: tuple[int, ...] = COUNTS,
    pool: Pool = "mean",
    text: tuple[str, ...] = ("stdlib-docs",),
    tokens: int = 50_000,
    template: str | None = None,
    context: int = 128,
    test: float = 0.3,
    random: int = 1,
    seed: int = 0,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
) -> None:
    """Probe dictionaries, several side by side, with random ones beside them: no judge and no network needed.

    sparse: how well the k best latents tell classes of text apart. tpp: whether taking a class's latents out hurts the probe of
    this class and no other. scr: what a probe with a spurious cue regains without the cue's latents. absorption: words whose
    first letter the latents for that letter leave to others. splitting: what became of a narrow dictionary's latents in a
    wider one. Dictionaries whose names differ in -seed-N are shown together. docs/evaluation.md has the definitions.

    Args:
        runs: run folders, or dictionaries of overtone's or another tool's (then give --model and --site).
        task: one or several.
        model: "minilm" (extra `demo`), a local folder, or a Hugging Face model name (default: the runs' own).
        site: where it is read (default: the runs' own).
        labelled: texts with classes: a .csv, .tsv, .json or .jsonl file, a folder with a folder of texts (or a file with a text
            on each line) for each class, hub:NAME[:CONFIG], or stdlib-functions, the functions of Python's library by package.
        text_field: column of the text (default: text, story or content).
        label: column of the class.
        other: for scr, column of a second label (of stdlib-functions: kind, prose or code).
        classes: which classes (default: all; for scr the two most frequent ones).
        per_class: texts of each class, at most.
        k: for sparse, how many latents.
        ablate: for tpp and scr, how many latents to take out.
        pool: a text is the mean over its tokens, or their max (for sparse).
        text: for absorption and splitting: running text, as in `overtone harvest`.
        tokens: of the running text.
        template: for absorption, read single words in a template such as "{word} has the first letter:" instead.
        context: tokens per context, and the most that is read of a labelled text, special ones counted.
        test: share of the texts, or words, to test on.
        random: how many random dictionaries of each width to measure beside.
        seed: of the parts, of the rows left out, and of the random dictionaries.
        parts: your own Python files or modules that the methods' parts are defined in.
        json: write the results to this file.
    """
    _check_options(runs, task, per_class, random, pool)
    own = parts_named(parts)
    found = {name: formats.load(run, parts=own) for name, run in zip(names_of(runs), runs, strict=True)}
    _check_dictionaries(found, task)
    where = _model_and_site(runs, own, model, site)
    texts = _texts(labelled, text_field, label, other, classes, per_class, task)
    docs = load_documents([*text], limit_chars=20 * tokens) if {"absorption", "splitting"} & {*task} else []
    lm = load_model(where[0])
    sample = next(iter(texts.values())).docs if texts else docs
    found |= _random_ones(lm, where[1], sample, found, random, seed, context)
    probed = Probed(lm, where[1], found, context, test, seed)
    outcomes: dict[str, tasks.Outcome] = {}
    if "plain" in texts:
        outcomes |= _plain(probed, texts["plain"], task, k, ablate, pool, labelled)
    if "scr" in texts:
        outcomes["scr"] = _scr(probed, texts["scr"], ablate, labelled)
    if docs:
        outcomes |= _running(probed, docs, task, tokens, template)
    for name in task:
        console.print(probing_table(outcomes[name].results, outcomes[name].columns, outcomes[name].title))
    settings = {
        "model": where[0],
        "site": where[1],
        "labelled": labelled,
        "label": label,
        "other": other,
        "classes": [*classes],
    }
    settings |= {"per_class": per_class, "pool": pool, "text": [*text], "tokens": tokens, "template": template}
    settings |= {"context": context, "test": test, "seed": seed}
    results = {name: {**outcomes[name].about, "results": outcomes[name].results} for name in task}
    write_json(json, {"format": KIND, "version": 1, "overtone": __version__, "settings": settings, "tasks": results})


def _check_options(runs: Sequence[Path], task: Sequence[str], per_class: int, random: int, pool: Pool) -> None:
    check_given_once(runs)
    if "tpp" in task and pool != "mean":
        raise ValueError(f"--pool {pool} is for sparse: tpp takes out what latents add to a mean over tokens; drop it")
    if not task or len(set(task)) < len(task):
        raise ValueError(f"--task {' '.join(task)}: give one or several tasks, each of them once")
    for name, value, least in (("per_class", per_class, 1), ("random", random, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")


def _check_dictionaries(found: dict[str, Dictionary], task: Sequence[str]) -> None:
    others = [name for name in task if name != "sparse"]
    for name, dictionary in found.items():
        if len(dictionary.layout.reads) > 1:
            raise ValueError(f"{name} reads several sites ({dictionary.layout}); probes read one")
        if others and not dictionary.layout.plain:
            raise ValueError(
                f"--task {others[0]} compares atoms with what was read, but {name} is of {dictionary.layout}; use --task sparse"
            )
    if "splitting" in task and len({dictionary.latents for dictionary in found.values()}) < 2:
        raise ValueError("--task splitting compares dictionaries of different widths; give two of them at least")


def _model_and_site(runs: Sequence[Path], own: Sequence[type], model: str | None, site: str | None) -> tuple[str, str]:
    """What all of the runs read, where it is not given."""
    if model is not None and site is not None:
        return model, site
    known = [_trained_on(run, own) for run in runs]
    models, sites = {model or name for name, _ in known}, {site or name for _, name in known}
    for what, names in (("model", models), ("site", sites)):
        if len(names) > 1:
            raise ValueError(f"the runs are of more than one {what} ({', '.join(sorted(names))}); give --{what}")
    (one_model,), (one_site,) = models, sites
    return one_model, one_site


def _trained_on(run: Path, own: Sequence[type]) -> tuple[str, str]:
    folder = run_at(run, own)
    source = source_of(folder) if folder is not None else None
    if folder is None or source is None or isinstance(source, FileSource) or not isinstance(source.site, str):
        raise ValueError(f"{run} does not say which model and site its rows came from; give --model and --site")
    if "harvest" in folder.data:
        return folder.data["harvest"]["model"], source.site
    store = open_store(folder)
    if store.manifest.source.get("kind") != "harvest":
        raise ValueError(
            f"{store.path}, which {run} was trained on, was not harvested from a model; give --model and --site"
        )
    return plan_of(store.manifest, store.path).model, source.site


def _texts(
    source: str,
    text_field: str | None,
    label: str,
    other: str | None,
    classes: Sequence[str],
    per_class: int,
    task: Sequence[str],
) -> dict[str, Labelled]:
    """The labelled texts of the tasks that need them."""
    found: dict[str, Labelled] = {}
    other = "kind" if source == STDLIB and other is None else other
    if {"sparse", "tpp"} & {*task}:
        read = load_labelled(source, text_field=text_field, label=label)
        found["plain"] = read.of(classes or read.classes(), per_class)
    if "scr" in task:
        if other is None:
            raise ValueError("--task scr needs a second label of every text; name its column with --other")
        read = load_labelled(source, text_field=text_field, label=label, other=other)
        two = list(classes or read.classes()[:2])
        values = by_frequency(read.of(two).other)
        if len(two) != 2 or len(values) != 2:
            raise ValueError(
                f"--task scr takes two classes with a second label of two values, not {', '.join(two)} with "
                f"{', '.join(values[:9])}; choose with --classes"
            )
        # Evenly of the four combinations, which it needs equally often.
        combined = Labelled(read.docs, read.combined(), [])
        found["scr"] = read.at(combined.places([f"{a}, {b}" for a in two for b in values], max(1, per_class // 2)))
    return found


def _random_ones(
    lm: LanguageModel,
    site: str,
    docs: Sequence[Document],
    found: dict[str, Dictionary],
    count: int,
    seed: int,
    context: int,
) -> dict[str, Dictionary]:
    """Random dictionaries of every width, with as many active latents as the given ones of that width have."""
    if not count:
        return {}
    x = harvest(lm, site, docs[:SAMPLE], tokens=SAMPLE, context=context).x
    made: dict[str, Dictionary] = {}
    for width in sorted({dictionary.latents for dictionary in found.values()}):
        same = [dictionary for dictionary in found.values() if dictionary.latents == width]
        with torch.no_grad():
            k = round(sum(float(d.encode(x).entries.sparse().nonzero().l0().double().mean()) for d in same) / len(same))
        made |= {f"{RANDOM}{width}-seed-{s}": random_dictionary(x, width, k, seed=s) for s in range(seed, seed + count)}
    return made


def _plain(
    probed: Probed,
    texts: Labelled,
    task: Sequence[str],
    ks: Sequence[int],
    counts: Sequence[int],
    pool: Pool,
    source: str,
) -> dict[str, tasks.Outcome]:
    """The tasks on texts with one label."""
    asked = one_against_rest(texts.label, held_out(texts.label, probed.test, probed.seed), seed=probed.seed)
    where = f"{len(texts.docs):,} texts of {source}, {len(set(texts.label))} classes, {probed.where}"
    read = probed.read(texts, source, pool)
    outcomes = {}
    if "sparse" in task:
        outcomes["sparse"] = tasks.sparse(read, asked, ks, where)
    if "tpp" in task:
        outcomes["tpp"] = tasks.tpp(read, probed.atoms, asked, counts, where)
    return outcomes


def _scr(probed: Probed, texts: Labelled, counts: Sequence[int], source: str) -> tasks.Outcome:
    """Either label as the spurious one."""
    tested = held_out(texts.combined(), probed.test, probed.seed)
    names = [sorted(set(values)) for values in (texts.label, texts.other)]
    first, second = tasks.flags(texts.label, names[0][0]), tasks.flags(texts.other, names[1][0])
    labels = {" / ".join(names[1]): (first, second), " / ".join(names[0]): (second, first)}
    where = f"{len(texts.docs):,} texts of {source}, {probed.where}"
    return tasks.scr(probed.read(texts, source), probed.atoms, labels, tested, counts, probed.seed, where)


def _running(
    probed: Probed, docs: Sequence[Document], task: Sequence[str], tokens: int, template: str | None
) -> dict[str, tasks.Outcome]:
    """The tasks on single tokens."""
    lm, site, test, seed = probed.lm, probed.site, probed.test, probed.seed
    outcomes, read = {}, None
    if "splitting" in task or template is None:
        with token_progress("Reading text") as progress:
            read = harvest(lm, site, docs, tokens=tokens, context=probed.context, progress=progress)
    if "absorption" in task:
        if read is None or template is not None:
            with token_progress("Reading words") as progress:
                words = words_in_template(
                    lm, site, template or "{word}", test=test, context=probed.context, seed=seed, progress=progress
                )
        else:
            words = words_in_text(read, lm.tokenizer, test=test, seed=seed)
        outcomes["absorption"] = tasks.absorption(words, probed.encoded(words.x, "words"), probed.atoms, probed.where)
    if "splitting" in task and read is not None:
        where = f"{read.rows:,} tokens, {probed.where}"
        outcomes["splitting"] = tasks.split(
            probed.encoded(read.x, "text"), probed.atoms, _pairs(probed.dictionaries), where
        )
    return outcomes


def _pairs(found: dict[str, Dictionary]) -> list[tuple[str, str]]:
    """(narrow, wide) with no width between: those whose names differ in the width alone, or else any; random ones apart."""
    widths = sorted({dictionary.latents for dictionary in found.values()})
    wider = dict(pairwise(widths))
    pairs = [
        (a, b) for a, narrow in found.items() for b, wide in found.items() if wider.get(narrow.latents) == wide.latents
    ]
    alike = [(a, b) for a, b in pairs if a.replace(str(found[a].latents), "") == b.replace(str(found[b].latents), "")]
    drawn = [pair for pair in alike if pair[0].startswith(RANDOM)]
    given = [pair for pair in alike if pair not in drawn]
    return (given or [(a, b) for a, b in pairs if not (a.startswith(RANDOM) or b.startswith(RANDOM))]) + drawn
