"""The tasks of `overtone probe`: what each measures of every dictionary, and its table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from overtone.metrics.probing.columns import Columns
from overtone.metrics.probing.first_letter import Truth, first_letter_absorption
from overtone.metrics.probing.letters import LETTERS, Words
from overtone.metrics.probing.perturbation import LEAST_GAP, probe_perturbation, spurious_removal
from overtone.metrics.probing.reading import Read
from overtone.metrics.probing.sparse import dense_probe, sparse_probe
from overtone.metrics.probing.splitting import splitting
from overtone.metrics.probing.tasks import Answered, Question
from overtone.report.probing import Column

DENSE, NEURONS = "the model, all dimensions", "the model, k best dimensions"
Results = dict[str, dict[str, Any]]


class Outcome(NamedTuple):
    """What a task found: results by name, the columns of its table, its title, and what the numbers are of."""

    results: Results
    columns: list[Column]
    title: str
    about: dict[str, Any]


def sparse(read: Read, asked: Sequence[Question], ks: Sequence[int], where: str) -> Outcome:
    """Sparse probes of every dictionary, beside the model's own dimensions."""
    named = {NEURONS: Columns.of(read.x), **read.u}
    results: Results = {DENSE: {"all": _answers(dense_probe(read.x, asked), asked)}}
    for name, u in named.items():
        probes = sparse_probe(u, asked, [k for k in ks if k <= u.shape[1]])
        results[name] = {str(k): _answers(found, asked) for k, found in probes.items()}
    # All dimensions are one probe, in the first column.
    results[DENSE] |= {str(ks[0]): results[DENSE]["all"]}
    columns = [Column(f"{what}, k = {k}", (str(k), key)) for key, what in MEASURES.items() for k in ks]
    return Outcome(results, columns, f"Sparse probing: {where}", {"classes": [q.name for q in asked]})


MEASURES = {"accuracy": "accuracy", "auroc": "AUROC"}


def _answers(found: Sequence[Answered], asked: Sequence[Question]) -> dict[str, Any]:
    by_class = {question.name: answer._asdict() for question, answer in zip(asked, found, strict=True)}
    return {key: sum(a[key] for a in by_class.values()) / len(by_class) for key in MEASURES} | {"classes": by_class}


def tpp(
    read: Read, atoms: Mapping[str, Tensor], asked: Sequence[Question], counts: Sequence[int], where: str
) -> Outcome:
    """Targeted probe perturbation of every dictionary."""
    results: Results = {}
    accuracy: dict[str, float] = {}
    for name, u in read.u.items():
        found = probe_perturbation(read.x, u, atoms[name], asked, counts)
        accuracy = dict(zip(found.names, found.clean.tolist(), strict=True))
        results[name] = {
            str(n): {
                "score": found.score(n),
                "intended": found.intended(n),
                "unintended": found.unintended(n),
                "accuracy": found.ablated[n].tolist(),
            }
            for n in counts
        }
    columns = [Column(f"n = {n}", (str(n), "score")) for n in counts]
    return Outcome(results, columns, f"Targeted probe perturbation: {where}", {"clean_accuracy": accuracy})


def scr(
    read: Read,
    atoms: Mapping[str, Tensor],
    labels: Mapping[str, tuple[Tensor, Tensor]],
    test: Tensor,
    counts: Sequence[int],
    seed: int,
    where: str,
) -> Outcome:
    """Spurious correlation removal, either label being the spurious one: the score is that of the worse biased probe.

    `labels`: what is removed → (the label that is wanted, the spurious one).
    """
    results: Results = {}
    about: dict[str, Any] = {"least_gap": LEAST_GAP}
    for name, u in read.u.items():
        ways = {
            removed: spurious_removal(read.x, u, atoms[name], *pair, test, counts=counts, seed=seed)
            for removed, pair in labels.items()
        }
        about["probes"] = {removed: {"biased": way.biased, "oracle": way.oracle} for removed, way in ways.items()}
        worse = min(ways, key=lambda removed: ways[removed].biased)
        results[name] = {
            str(n): {"score": ways[worse].score(n), **{removed: way.score(n) for removed, way in ways.items()}}
            for n in counts
        }
        about["removed"] = worse
    columns = [Column(f"n = {n}", (str(n), "score")) for n in counts]
    gap = "; ".join(
        f"without {removed}: biased {way['biased']:.3f}, oracle {way['oracle']:.3f}"
        for removed, way in about["probes"].items()
    )
    title = f"Spurious correlation removal ({about['removed']} removed): {where}\n{gap}"
    return Outcome(results, columns, title, about)


def absorption(words: Words, coded: Mapping[str, Columns], atoms: Mapping[str, Tensor], where: str) -> Outcome:
    """First-letter absorption of every dictionary."""
    truth = Truth.of(words.x, words.occurs, words.test)
    results: Results = {}
    for name, u in coded.items():
        found = first_letter_absorption(truth, u, atoms[name])
        by_letter = {
            letter: {key: float(getattr(found, key)[i]) for key in ("probe_f1", "f1", "latents", "full", "share")}
            | {"main": found.main[i]}
            for i, letter in enumerate(LETTERS)
        }
        results[name] = found.summary() | {"letters": by_letter}
    columns = [
        Column("F1 of the truth's probe", ("probe_f1",)),
        Column("F1 of main latents", ("f1",)),
        Column("main latents per letter", ("latents",), "{:.2f}"),
        Column("fully absorbed", ("full",), "{:.1%}"),
        Column("absorbed share", ("share",), "{:.1%}"),
        Column("letters", ("features",), "{:.0f}"),
    ]
    count = f"{len(words.token.unique()):,} words in {len(words.token):,} rows"
    return Outcome(results, columns, f"First-letter absorption: {count}, {where}", {"rows": len(words.token)})


def split(
    coded: Mapping[str, Columns], atoms: Mapping[str, Tensor], pairs: Sequence[tuple[str, str]], where: str
) -> Outcome:
    """Every narrower dictionary beside the next wider one."""
    results: Results = {}
    for narrow, wide in pairs:
        found = splitting((atoms[narrow], coded[narrow]), (atoms[wide], coded[wide]))
        results[f"{narrow} → {wide}"] = found.summary()
    columns = [
        Column("nearest of so many", ("children",), "{:.2f}"),
        Column("cosine", ("cosine",)),
        Column("fires within", ("within",)),
        Column("… by chance", ("by_chance",)),
        Column("no wide latent within", ("none",), "{:.1%}"),
        Column("one", ("one",), "{:.1%}"),
        Column("several", ("several",), "{:.1%}"),
    ]
    return Outcome(results, columns, f"Splitting across widths: {where}", {})


def flags(values: Sequence[str], name: str) -> Tensor:
    """Whether each value is this one."""
    return torch.tensor([value == name for value in values])
