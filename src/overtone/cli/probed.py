"""What `overtone probe` reads with the model, for which tasks, and what it stands beside."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from rich.progress import TextColumn
from torch import Tensor

from overtone.cli import probe_tasks as tasks
from overtone.cli.common import progress_bar, token_progress
from overtone.data.activations import Activations
from overtone.data.harvest import harvest
from overtone.data.labelled import Labelled
from overtone.data.models import LanguageModel
from overtone.data.text import Document
from overtone.dictionary import Dictionary
from overtone.metrics.probing.columns import Columns
from overtone.metrics.probing.letters import Words, words_in_template, words_in_text
from overtone.metrics.probing.reading import Pool, Read, directions, encode_rows, random_dictionary, read_texts
from overtone.metrics.probing.tasks import held_out, one_against_rest
from overtone.report.probing import SEED

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


def random_ones(
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


def plain(
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


def scr(probed: Probed, texts: Labelled, counts: Sequence[int], source: str) -> tasks.Outcome:
    """Either label as the spurious one."""
    tested = held_out(texts.combined(), probed.test, probed.seed)
    names = [sorted(set(values)) for values in (texts.label, texts.other)]
    first, second = tasks.flags(texts.label, names[0][0]), tasks.flags(texts.other, names[1][0])
    labels = {" / ".join(names[1]): (first, second), " / ".join(names[0]): (second, first)}
    where = f"{len(texts.docs):,} texts of {source}, {probed.where}"
    return tasks.scr(probed.read(texts, source), probed.atoms, labels, tested, counts, probed.seed, where)


def running(
    probed: Probed, docs: Sequence[Document], task: Sequence[str], tokens: int, template: str | None
) -> dict[str, tasks.Outcome]:
    """The tasks on single tokens."""
    outcomes, read = {}, None
    if "splitting" in task or template is None:
        with token_progress("Reading text") as progress:
            read = harvest(probed.lm, probed.site, docs, tokens=tokens, context=probed.context, progress=progress)
    if "absorption" in task:
        words = _words(probed, template, read)
        outcomes["absorption"] = tasks.absorption(words, probed.encoded(words.x, "words"), probed.atoms, probed.where)
    if "splitting" in task and read is not None:
        where = f"{read.rows:,} tokens, {probed.where}"
        widths = {name: dictionary.latents for name, dictionary in probed.dictionaries.items()}
        outcomes["splitting"] = tasks.split(probed.encoded(read.x, "text"), probed.atoms, pairs(widths), where)
    return outcomes


def _words(probed: Probed, template: str | None, read: Activations | None) -> Words:
    """Words in the text that was read, unless they are to be read in a template."""
    if template is None:
        assert read is not None
        return words_in_text(read, probed.lm.tokenizer, test=probed.test, seed=probed.seed)
    options: dict[str, Any] = {"test": probed.test, "context": probed.context, "seed": probed.seed}
    with token_progress("Reading words") as progress:
        return words_in_template(probed.lm, probed.site, template, progress=progress, **options)


def pairs(widths: Mapping[str, int]) -> list[tuple[str, str]]:
    """(narrow, wide) with no width between: those whose names differ in width and seed alone, or else any; random ones apart.

    Of several seeds those that differ: with the same one, the first latents of both started from the same atoms.

    Args:
        widths: name → number of latents.
    """
    wider = dict(pairwise(sorted(set(widths.values()))))
    every = [(a, b) for a in widths for b in widths if wider.get(widths[a]) == widths[b]]
    alike = [(a, b) for a, b in every if _line(a, widths[a]) == _line(b, widths[b])]
    drawn = [pair for pair in alike if pair[0].startswith(RANDOM)]
    by_name = [pair for pair in alike if pair not in drawn]
    given = by_name or [pair for pair in every if not any(name.startswith(RANDOM) for name in pair)]
    apart = [(a, b) for a, b in given if SEED.findall(a) != SEED.findall(b)]
    return (apart or given) + drawn


def _line(name: str, latents: int) -> str:
    """A name without its width and seed."""
    return SEED.sub("", name).replace(str(latents), "")
