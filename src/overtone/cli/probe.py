"""`overtone probe`: what single latents know of labels, by probes and without a judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from overtone import formats
from overtone.cli import probe_tasks as tasks
from overtone.cli.common import check_given_once, console, names_of, write_json
from overtone.cli.probed import Probed, plain, random_ones, running, scr
from overtone.cli.rows import Stored, open_store, run_at, source_of
from overtone.data.filling import plan_of
from overtone.data.labelled import STDLIB, Labelled, by_frequency, load_labelled
from overtone.data.models import load_model
from overtone.data.text import load_documents
from overtone.dictionary import Dictionary
from overtone.metrics.probing.perturbation import COUNTS, check_classes
from overtone.metrics.probing.reading import Pool
from overtone.metrics.probing.sparse import KS, check_counts
from overtone.report.probing import probing_table
from overtone.users_code import parts_named
from overtone.version import __version__

Task = Literal["sparse", "tpp", "scr", "absorption", "splitting"]
KIND = "overtone-probing"
RUNNING_TEXT = ("stdlib-docs",)
READ_RUNNING = {"absorption", "splitting"}  # tasks


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
    per_class: int = 200,
    k: tuple[int, ...] = KS,
    ablate: tuple[int, ...] = COUNTS,
    pool: Pool = "mean",
    text: tuple[str, ...] = RUNNING_TEXT,
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
    if text != RUNNING_TEXT and not READ_RUNNING & {*task}:
        raise ValueError(
            f"--text {' '.join(text)} is for absorption and splitting; labelled texts are given as --labelled"
        )
    own = parts_named(parts)
    found = {name: formats.load(run, parts=own) for name, run in zip(names_of(runs), runs, strict=True)}
    _check_dictionaries(found, task)
    check_counts("k", k, min(dictionary.latents for dictionary in found.values()))
    check_counts("ablate", ablate)
    where = _model_and_site(runs, own, model, site)
    texts = _texts(labelled, text_field, label, other, classes, per_class, task)
    docs = load_documents([*text], limit_chars=20 * tokens) if READ_RUNNING & {*task} else []
    lm = load_model(where[0])
    sample = next(iter(texts.values())).docs if texts else docs
    found |= random_ones(lm, where[1], sample, found, random, seed, context)
    probed = Probed(lm, where[1], found, context, test, seed)
    outcomes: dict[str, tasks.Outcome] = {}
    if "plain" in texts:
        outcomes |= plain(probed, texts["plain"], task, k, ablate, pool, labelled)
    if "scr" in texts:
        outcomes["scr"] = scr(probed, texts["scr"], ablate, labelled)
    if docs:
        outcomes |= running(probed, docs, task, tokens, template)
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


def _four(read: Labelled, classes: Sequence[str], values: Sequence[str], count: int) -> Labelled:
    """As many texts of each combination of two labels, which scr needs equally often."""
    pairs = {f"{a}, {b}": (a, b) for a in classes for b in values}
    combined = read.combined()
    for name, (a, b) in pairs.items():
        if name not in combined:
            raise ValueError(f"no text is of {a!r} and of {b!r}; scr needs all four combinations of the two labels")
    return read.at(Labelled(read.docs, combined, []).places([*pairs], count))


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
    if folder is None or not isinstance(source, Stored) or not isinstance(source.site, str):
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
        if "tpp" in task:
            check_classes(len(set(found["plain"].label)))
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
        found["scr"] = _four(read, two, values, max(1, per_class // 2))
    return found
