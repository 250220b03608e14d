"""A page of latents that nobody has trained, in text as hostile as text can be."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from overtone import firing
from overtone.data.text_rows import TextRows
from overtone.firing import FiringStats
from overtone.interpret.alongside import Alongside, Passages
from overtone.interpret.examples import Collector, ExamplePlan
from overtone.interpret.histograms import CodeHistograms
from overtone.interpret.neighbours import FiredTogether, by_direction
from overtone.ops import SparseCodes
from overtone.report.page import Counterparts, LatentsView, Likeness, PageText, RunView, TruthView, page_text

PLAN = ExamplePlan(top=4, sample=5, width=12, before=7, pool=1)
HOSTILE = (
    "<script>alert(1)</script>", "</script>", "<!--", "-->", "<img src=x onerror=alert(1)>", "&lt;b&gt;", "'\"`${alert(1)}",
    "{{ 7 * 7 }}{% raw %}", "\u2028\u2029", "\x00\x07\x1b[31m", "\u202eltr\u202c", "مرحبا", "שלום", "👩‍🔬", "\ud800", "\\u003c",
    "", " ", "\n\t", "x" * 10_000, "javascript:alert(1)", "]]>", "__proto__", "constructor",
)  # fmt: skip


class Sample(NamedTuple):
    """What the page is made from."""

    z: list[torch.Tensor]
    text: TextRows
    words: tuple[str, ...]
    runs: list[RunView]


def word(token: int) -> str:
    """Of a token: the hostile ones first, then plain ones."""
    return HOSTILE[token] if token < len(HOSTILE) else f" word{token}"


def words(ids: Sequence[int]) -> list[str]:
    """Of some tokens, each the same wherever it stands."""
    return [word(token) for token in ids]


def sample(latents: int = 40, rows: int = 900, runs: int = 2, seed: int = 0) -> Sample:
    """Two dictionaries' codes of the same text: latent 0 never fires, latent 3 has codes of either sign."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(HOSTILE) + 60, (rows,), generator=rng)
    text = TextRows(torch.zeros(rows, 1), ids, torch.arange(rows) // 30)
    rates = torch.linspace(0, 0.2, latents)
    codes, atoms, views = [], torch.randn(runs, latents, 6, generator=rng), []
    for _ in range(runs):
        z = torch.rand(rows, latents, generator=rng).exp() * (torch.rand(rows, latents, generator=rng) < rates)
        z[:, 3] *= torch.randn(rows, generator=rng).sign()
        codes.append(z)
        views.append(latents_view(z, text, atoms[len(views)]))
    windows = [w for v in views for w in (v.strongest, v.sampled, *(passage.window() for passage in v.passages))]
    shared: PageText = page_text(windows, words)
    targets = torch.linspace(0.2, 0.01, 4).repeat_interleave(latents // 4)
    records = [{"rows": 100 * i, "l0": 4.0 + i, "loss": 1 / i, "explained_variance": 1 - 1 / i} for i in range(1, 9)]
    found = []
    for i, view in enumerate(views):
        other = [counterparts(view, j, codes[j], text) for j in range(runs) if j != i]
        labels = {5: "<b>bold</b> label"} if i == 0 else None
        view = view._replace(counterparts=other, labels=labels, lens=[([word(0)], [word(4)])] * latents)
        name, metrics = f"<i>run</i> {i}", {"rows": rows, "explained_variance": 0.5, "l0": 4.0 + i}
        found.append(RunView(name, f"key{i}", {"text": HOSTILE[0]}, metrics, records, targets, view, shared))
    return Sample(codes, text, tuple(map(word, ids.tolist())), found)


def counterparts(view: LatentsView, other: int, z: torch.Tensor, text: TextRows) -> Counterparts:
    """By direction each latent's own number, by firing the same for those below 20 and the one before for the others."""
    own, rising = torch.arange(z.shape[1]), torch.linspace(0, 1, z.shape[1])
    before = torch.where(own < 20, own, own - 1)
    beside = []
    for latent in (own, torch.where(before == own, -1, before)):
        watch = Alongside(view.windows, latent)
        watch.add(SparseCodes.from_dense(z), text)
        beside.append(watch.codes)
    return Counterparts(
        other, Likeness(own, rising, 1 - rising, beside[0]), Likeness(before, rising / 2, rising.sqrt(), beside[1])
    )


def latents_view(z: torch.Tensor, text: TextRows, atoms: torch.Tensor) -> LatentsView:
    """Of dense codes."""
    latents = z.shape[1]
    collector, sizes, together = Collector(latents, PLAN), CodeHistograms(latents), FiredTogether(latents)
    sparse = SparseCodes.from_dense(z)
    collector.add(sparse, text)
    sizes.add(sparse)
    together.add(sparse, 0)
    passages = Passages(6, 20)
    passages.add(sparse, text)
    seen = FiringStats(torch.tensor(len(z)), (z != 0).sum(0), z.amax(0))
    examples = collector.examples(firing.merge(firing.empty(latents), seen))
    return LatentsView(
        seen.frequency, seen.peak, torch.arange(latents).float(), examples.top, examples.sample, sizes.counts, sizes.width,
        by_direction(atoms), together.neighbours(), passages=passages.passages(),
    )  # fmt: skip


def truth_view(latents: int, features: int = 12, seed: int = 0) -> TruthView:
    """Known features that nobody has looked for, the first the most frequent."""
    rng = torch.Generator().manual_seed(seed)
    feature, best = torch.randint(features, (latents,), generator=rng), torch.rand(features, generator=rng)
    cosine, f1 = torch.rand(latents, generator=rng) * 2 - 1, torch.rand(latents, generator=rng)
    frequency = torch.linspace(0.4, 0.05, features)
    return TruthView(feature, cosine, f1, frequency, best, torch.arange(features), best / 2)
