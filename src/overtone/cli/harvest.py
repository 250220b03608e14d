"""`overtone harvest`: activations of a model over a text, once, for any number of runs."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from overtone.cli.common import console, write_json
from overtone.cli.rows import check_plan, harvest_into
from overtone.cli.store import describe, store_table
from overtone.cli.train import located
from overtone.data.filling import Plan, plan_of
from overtone.data.models import load_model
from overtone.data.store import Store
from overtone.runs import claim_folder

DType = Literal["float32", "bfloat16", "float16"]


def harvest(
    model: str | None = None,
    sites: tuple[str, ...] = (),
    text: tuple[str, ...] = (),
    out: Path | None = None,
    tokens: int | None = None,
    held_out: float = 0.1,
    text_field: str | None = None,
    context: int = 128,
    packed: bool = False,
    batch: int = 16,
    drop_first: int = 0,
    outlier_factor: float = 10.0,
    drop_outliers: bool = False,
    dtype: DType = "bfloat16",
    compute_dtype: DType = "float32",
    shard_mib: float = 256,
    seed: int = 0,
    resume: Path | None = None,
    json: Path | None = None,
) -> None:
    """Read a text with a model and keep the activations at any number of sites in a store, in one pass.

    A harvest that was stopped, however abruptly, goes on with `--resume STORE` and ends with the same bytes; with a larger
    `--tokens` it also makes a finished store longer. Memory stays within that of the model and one shard.

    Args:
        model: "minilm" (extra `demo`), a local folder, or a Hugging Face model name.
        sites: where to read: resid.3, mlp_in.3, mlp_out.3, attn_in.3, attn_out.3, z.3 (head outputs), a module path (its
            output) or in:PATH (its input); several at once.
        text: stdlib-docs, stdlib-source, a file (text, JSON, JSONL, Parquet), a folder, or hub:NAME[:CONFIG]; several at once.
        out: the store to create.
        tokens: stop after so many tokens to train on (default: at the end of the text).
        held_out: share of the documents kept apart for evaluation.
        text_field: the key of the text in JSON, Parquet and Hub data.
        context: tokens per context, special tokens counted.
        packed: fill every context, with several documents where they are short; else a document begins a context.
        batch: contexts per forward pass.
        drop_first: tokens at the start of every context that are left out (attention sinks).
        outlier_factor: rows with a norm above so many times the median are counted as outliers.
        drop_outliers: leave them out.
        dtype: of the rows on disk.
        compute_dtype: of the model's matrix products; bfloat16 is about twice as fast where the processor has it.
        shard_mib: memory for the rows of one shard, in MiB.
        seed: of the order of the rows on disk and of the choice of held-out documents.
        resume: store to go on with; all settings but --tokens come from it.
        json: write a description of the store to this file.
    """
    if resume is not None:
        if model is not None or sites or text or out is not None:
            raise ValueError("--resume goes on with a store's own settings; drop --model, --sites, --text and --out")
        plan, path = plan_of(Store(resume).manifest, resume), resume
        plan = plan if tokens is None else replace(plan, tokens=tokens)
        lm = load_model(plan.model)
    else:
        missing = [f"--{n}" for n, v in (("model", model), ("sites", sites), ("text", text), ("out", out)) if not v]
        if missing or model is None or out is None:
            raise ValueError(f"{', '.join(missing)} missing; say what to read, where, and where to keep it")
        plan, path = Plan(
            located(model), sites, tuple(located(source) for source in text), tokens, held_out, text_field, context, packed,
            batch, drop_first, compute_dtype, dtype, outlier_factor, drop_outliers, shard_mib, seed,
        ), out  # fmt: skip
        lm = load_model(plan.model)
        check_plan(lm, plan)
        claim_folder(path)
    store = harvest_into(path, plan, lm)
    console.print(store_table(store))
    console.print(f"Train on it: overtone train --store {path} --site {next(iter(store.sites))}")
    write_json(json, describe(store))
