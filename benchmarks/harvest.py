"""Harvesting into a store against the model's bare forward pass, and the memory that a harvest takes.

    python benchmarks/harvest.py [--model minilm] [--text stdlib-docs] [--tokens 20000] [--rounds 5]
                                 [--sites resid.3 mlp_in.3 mlp_out.3] [--shard-mib 8] [--folder DIR] [--json PATH]

Speed: in turns, the forward pass over the same contexts in the same batches, stopped behind the last site and nothing kept,
and `harvest_store` of these rows into a new store: tokenising, forward passes, statistics, hashing, writing. First with the
first site alone, then with all of them.

Memory: of a harvest (first site) that makes a store at least 20 times as large as its shards, in a process of its own, above
what that holds after one forward pass of a full batch. Beside it the same for the bare pass over 20 000 of these tokens: what
the model's temporaries and the allocator take anyway.

The text is put into a file of JSON lines first: parsing Python's library for "stdlib-docs" takes seconds and much memory.
"""

import json as json_module
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
from common import Spread, in_new_process, show, timed
from process import MIB, peak_mib, restart_peak

from overtone import HarvestPlan, LanguageModel, Store, harvest_store, load_documents, load_model
from overtone.cli.common import write_json
from overtone.data.contexts import Context, batches_of, contexts_of, model_inputs, pad_id
from overtone.data.filling import site_widths
from overtone.data.harvest import evaluating
from overtone.data.sites import capture, resolve_site
from overtone.data.text import iter_documents

LARGER = 20  # times the shard
BARE_TOKENS = 20_000  # of the bare pass whose memory is measured


def contexts_for(lm: LanguageModel, plan: HarvestPlan) -> list[Context]:
    """The contexts that a harvest by the plan reads, where its rows fit into one shard."""
    docs = load_documents(plan.text)
    return [c for c in contexts_of(lm, docs, context=plan.context, tokens=plan.tokens) if c.keep.any()]


def forward(lm: LanguageModel, plan: HarvestPlan, contexts: Sequence[Context]) -> None:
    """The forward passes of a harvest, stopped where it stops; nothing is kept."""
    sites = [resolve_site(lm.model, name) for name in plan.sites]
    with evaluating(lm.model, plan.compute_dtype), torch.inference_mode():
        for part in batches_of(contexts, tokens=plan.batch * plan.context, pad=pad_id(lm.tokenizer)):
            with capture(lm.model, sites, stop=True) as got:
                lm.model(**model_inputs(lm, part))
            got.take()


def speed(lm: LanguageModel, plan: HarvestPlan, rounds: int, folder: Path) -> dict[str, Any]:
    """Rows per second of the bare pass and of the harvest, in turns."""
    contexts = contexts_for(lm, plan)
    rows = sum(int(c.keep.sum()) for c in contexts)
    forward(lm, plan, contexts)  # loads what torch loads on first use
    bare, stored = [], []
    for number in range(rounds):
        path = folder / f"{len(plan.sites)} sites, round {number}"
        bare.append(timed(lambda: forward(lm, plan, contexts)).seconds)
        stored.append(timed(lambda p=path: harvest_store(lm, plan, p)).seconds)
        store = Store(path)
        if store.rows() != rows or len(store.manifest.shards) > 1:
            raise SystemExit(f"{rows} tokens do not fit into one shard, so the batches differ; lower --tokens")
    return {
        "sites": list(plan.sites),
        "rows": rows,
        "bare_rows_per_s": Spread.of([rows / t for t in bare])._asdict(),
        "harvest_rows_per_s": Spread.of([rows / t for t in stored])._asdict(),
        "ratio": Spread.of([a / b for a, b in zip(bare, stored, strict=True)])._asdict(),
    }


def peak_above_model(plan: HarvestPlan, path: Path | None) -> float:
    """Peak memory of a harvest into `path` (None: of a bare pass) above what is held after one forward pass, in MiB."""
    lm = load_model(plan.model)
    few = replace(plan, tokens=BARE_TOKENS)
    contexts = contexts_for(lm, few)
    longest = sorted(contexts, key=lambda c: -len(c.ids))[: plan.batch]
    forward(lm, plan, longest)
    before = restart_peak()
    if path is None:
        forward(lm, few, contexts)
    else:
        harvest_store(lm, plan, path)
    return peak_mib() - before


def memory(lm: LanguageModel, plan: HarvestPlan, shard_mib: float, folder: Path) -> dict[str, Any]:
    """Peak memory of a harvest whose store is so many times larger than its shards."""
    (d,) = site_widths(lm, [resolve_site(lm.model, name) for name in plan.sites], plan).values()
    tokens = math.ceil(LARGER * shard_mib * MIB / (d * 2))
    path, plan = folder / "memory", replace(plan, shard_mib=shard_mib, tokens=tokens)
    found = {"bare_peak_mib": in_new_process(peak_above_model, plan, None)}
    found["harvest_peak_mib"] = in_new_process(peak_above_model, plan, path)
    rows = Store(path).rows()
    if rows < tokens:
        raise SystemExit(f"the text has {rows} tokens, a store of {LARGER} shards takes {tokens}; lower --shard-mib")
    return {"shard_mib": shard_mib, "store_mib": rows * d * 2 / MIB, "rows": rows, **found}


def write_text(text: str, path: Path) -> None:
    """Put a source's documents into a file of JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for doc in iter_documents(text):
            file.write(json_module.dumps({"text": doc.text}) + "\n")


def show_results(speeds: list[dict[str, Any]], found: dict[str, Any]) -> None:
    lines = [
        [
            ", ".join(case["sites"]),
            f"{case['rows']:,}",
            *(Spread(**case[name]).shown(",.0f") for name in ("bare_rows_per_s", "harvest_rows_per_s")),
            Spread(**case["ratio"]).shown(),
        ]
        for case in speeds
    ]
    columns = ("sites", "rows", "forward pass alone, rows/s", "harvest, rows/s", "harvest : forward pass")
    show("Speed: medians (ranges)", columns, lines)
    names = ("store_mib", "shard_mib", "harvest_peak_mib", "bare_peak_mib")
    columns = ("store", "shard (the bound)", "peak of the harvest", "peak of forward passes alone")
    show("Memory above one forward pass, MiB", columns, [[f"{found[name]:,.1f}" for name in names]])


def main(
    model: str = "minilm",
    text: str = "stdlib-docs",
    tokens: int = 20_000,
    rounds: int = 5,
    sites: tuple[str, ...] = ("resid.3", "mlp_in.3", "mlp_out.3"),
    shard_mib: float = 8,
    folder: Path | None = None,
    json: Path | None = None,
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file = Path(scratch, "text.jsonl")
        write_text(text, file)
        lm = load_model(model)
        plan = HarvestPlan(model, sites[:1], (str(file),), tokens=tokens, held_out=0)
        cases = [plan] if len(sites) == 1 else [plan, replace(plan, sites=sites)]
        speeds = [speed(lm, case, rounds, Path(scratch)) for case in cases]
        found = memory(lm, plan, shard_mib, Path(scratch))
    show_results(speeds, found)
    write_json(json, {"model": model, "text": text, "rounds": rounds, "speed": speeds, "memory": found})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
