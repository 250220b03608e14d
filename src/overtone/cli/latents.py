"""`overtone latents`: single latents of a dictionary, with the tokens they fire on and what they do to the model."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.markup import escape
from rich.table import Table

from overtone import formats
from overtone.cli.common import console, one_line, token_progress, write_json
from overtone.cli.in_text import InText, Split, examples_of, in_text
from overtone.cli.rows import EVALUATED, held_out_documents, model_of
from overtone.dictionary import Dictionary
from overtone.interpret.detection import TokenText
from overtone.interpret.examples import Example, ExamplePlan, LatentExamples
from overtone.metrics.ablation import latent_effects
from overtone.metrics.lens import logit_lens
from overtone.users_code import parts_named

Order = Literal["z_score", "frequency", "peak", "rarest", "random"]
SHOWN = 6  # tokens in a cell
LEFT, RIGHT = 28, 16  # characters around a token
PLAN = ExamplePlan(top=8, sample=32, pool=1)


def latents(
    run: Annotated[Path, tyro.conf.Positional],
    which: tuple[int, ...] = (),
    top: int = 20,
    sort: Order = "z_score",
    lens: bool = False,
    effects: bool = False,
    contexts: int = 64,
    store: Path | None = None,
    site: tuple[str, ...] = (),
    split: Split = "held_out",
    rows: int = EVALUATED,
    seed: int = 0,
    input_norm: formats.InputNorm | None = None,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
) -> None:
    """Show latents of a dictionary: how often they fire and on which tokens, and what they do to the model's predictions.

    Args:
        run: a run folder, or a dictionary of overtone's or another tool's (then give --store).
        which: the latents to show, by number (default: the first --top by --sort).
        top: how many to show.
        sort: largest Z-score first, or most frequent, highest peak, rarest of those that fire, or a random choice.
        lens: the tokens that each latent's atom promotes and suppresses (logit lens; causal models).
        effects: what the model loses without each latent: KL and rise of the cross entropy (causal models).
        contexts: how many pieces of held-out text for --effects.
        store: a store whose text to use instead of the run's own.
        site: which site of that store, or which several of a crosscoder (default: the run's own).
        split: held_out, or train.
        rows: how many rows of text to read, at most.
        seed: of the random choice.
        input_norm: how rows are scaled before another tool's dictionary reads them, where its files do not say (row: to norm 1;
            rms: to norm √d).
        parts: your own Python files or modules that the method's parts are defined in.
        json: write the latents, with examples, to this file.
    """
    if top < 1:
        raise ValueError(f"top={top} must be at least 1")
    own = parts_named(parts)
    dictionary = formats.load(run, parts=own, input_norm=input_norm)
    wrong = [m for m in which if not 0 <= m < dictionary.latents]
    if wrong:
        raise ValueError(f"--which {wrong[0]}: {run} has latents 0 … {dictionary.latents - 1}")
    text = in_text(run, dictionary, store=store, site=site, split=split, rows=rows, parts=tuple(own))
    examples = examples_of(run.name, dictionary, text, PLAN, z_scores=True)
    chosen = list(dict.fromkeys(which)) or ranked(examples, sort, seed)[:top]
    if not chosen:
        raise ValueError(f"no latent of {run} fires on the {int(examples.seen.rows):,} {text.where}; read more --rows")
    found = [_described(examples, m, TokenText(text.tokenizer)) for m in chosen]
    if lens or effects:
        _add_effects(found, dictionary, chosen, text, lens, contexts if effects else 0)
    console.print(_table(found, f"{run.name}: {len(found)} of {dictionary.latents:,} latents on {text.where}"))
    result = {"run": str(run), "where": text.where, "rows": int(examples.seen.rows), "sort": sort, "latents": found}
    write_json(json, result)


def ranked(examples: LatentExamples, sort: Order, seed: int) -> list[int]:
    """The latents that fire, in the order asked for."""
    assert examples.z_score is not None
    alive = examples.seen.alive.nonzero()[:, 0]
    frequency = examples.seen.frequency
    keys = {"z_score": examples.z_score, "frequency": frequency, "peak": examples.seen.peak, "rarest": -frequency}
    if sort == "random":
        return alive[torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))].tolist()
    return alive[keys[sort][alive].argsort(descending=True, stable=True)].tolist()


def _described(examples: LatentExamples, latent: int, text: TokenText) -> dict[str, Any]:
    assert examples.z_score is not None
    strongest, sampled = examples.strongest(latent), examples.sampled(latent)
    tokens: dict[str, float] = defaultdict(float)
    for e in {e.row: e for e in (*strongest, *sampled)}.values():
        tokens[_split(e, text)[1].strip()] += abs(_code(e))  # by strength: weak firings are many, and say little
    return {
        "latent": latent,
        "frequency": float(examples.seen.frequency[latent]),
        "peak": float(examples.seen.peak[latent]),
        "z_score": float(examples.z_score[latent]),
        "tokens": [token for token in sorted(tokens, key=lambda t: -tokens[t])[:SHOWN]],
        "examples": [
            dict(zip(("left", "token", "right"), _split(e, text), strict=True))
            | {"code": float(e.codes[e.row - e.start])}
            for e in strongest
        ],
    }


def _code(example: Example) -> float:
    return float(example.codes[example.row - example.start])


def _split(example: Example, text: TokenText) -> tuple[str, str, str]:
    words, here = text.words(example.token_ids.tolist()), example.row - example.start
    return "".join(words[:here]), words[here], "".join(words[here + 1 :])


def _add_effects(
    found: Sequence[dict[str, Any]],
    dictionary: Dictionary,
    chosen: Sequence[int],
    text: InText,
    lens: bool,
    contexts: int,
) -> None:
    lm, plan = model_of(text.store)
    if lens:
        promoted = logit_lens(lm, dictionary.effective_atoms[torch.tensor(chosen)], k=SHOWN)
        for i, latent in enumerate(found):
            latent["promoted"], latent["suppressed"] = promoted.words(lm.tokenizer, i)
    if contexts:
        if not isinstance(text.site, str):
            raise ValueError(f"--effects takes latents out of one site, and {dictionary.layout} has several; drop it")
        docs = held_out_documents(text.store, plan, contexts)
        with token_progress("Taking latents out, one by one") as progress:
            effects = latent_effects(
                lm, text.site, docs, dictionary, chosen, contexts=contexts, context=plan.context, progress=progress
            )
        for i, latent in enumerate(found):
            latent["kl"], latent["ce"] = float(effects.kl[i]), float(effects.ce[i])
            latent["kl_per_firing"] = float(effects.kl_per_firing[i])


def _table(found: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    more = [(key, label) for key, label in (("promoted", "promotes"), ("suppressed", "suppresses")) if key in found[0]]
    numbers = [
        (key, label) for key, label in (("kl_per_firing", "KL a firing, mnat"), ("ce", "CE, mnat")) if key in found[0]
    ]
    for label in ("latent", "fires on", "peak", "Z"):
        table.add_column(label, justify="right", no_wrap=True)
    for label in ("tokens", "strongest", *(label for _, label in more)):
        table.add_column(label)
    for _, label in numbers:
        table.add_column(label, justify="right")
    for latent in found:
        table.add_row(
            str(latent["latent"]),
            f"{latent['frequency']:.2%}",
            f"{latent['peak']:.2f}",
            f"{latent['z_score']:.1f}",
            _words(latent["tokens"]),
            "\n".join(_line(e) for e in latent["examples"][:2]),
            *(_words(latent[key]) for key, _ in more),
            *(f"{1000 * latent[key]:.2f}" for key, _ in numbers),
        )
    return table


def _words(tokens: Sequence[str]) -> str:
    return escape(" ".join(one_line(token).strip() or "␣" for token in tokens))


def _line(example: dict[str, Any]) -> str:
    left, token, right = (
        escape(one_line(part)) for part in (example["left"][-LEFT:], example["token"], example["right"][:RIGHT])
    )
    return f"[dim]{left}[/dim][bold]{token}[/bold][dim]{right}[/dim]"
