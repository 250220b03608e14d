"""`overtone harvest`: activations of a model over a text, once, for any number of runs."""

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import distributed

from overtone.cli.common import console, resumable, write_json
from overtone.cli.rows import check_plan, harvest_into
from overtone.cli.store import describe, store_table
from overtone.cli.train import located
from overtone.data.exchange import join_ranks
from overtone.data.filling import HarvestPlan, plan_of
from overtone.data.models import load_model
from overtone.data.store import HELD_OUT, Store
from overtone.parallel import ALONE, LONGEST_WAIT, Axis, launched
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
    device_map: str | None = None,
    tensor_parallel: bool = False,
    resume: Path | None = None,
    json: Path | None = None,
) -> None:
    """Read a text with a model and keep the activations at any number of sites in a store, in one pass.

    A harvest that was stopped, however abruptly, goes on with `--resume STORE` and ends with the same bytes; with a larger
    `--tokens` it also makes a finished store longer. Memory stays within that of the model and one shard. Several processes
    share the work: torchrun --nproc-per-node 4 -m overtone harvest … (given again, the same command goes on). Each of them has
    the model to itself, or with --tensor-parallel they hold it together (docs/distributed.md).

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
        device_map: where the model's weights go: a device, as cuda:0, or "auto": whole layers on all devices there are, what they
            cannot hold in memory and on the disk (extra `spread`).
        tensor_parallel: the processes that torchrun started hold one model together, each a part of every matrix, and read the
            same text (extra `spread`).
        resume: store to go on with; all settings but --tokens come from it.
        json: write a description of the store to this file.
    """
    ranks = Ranks.of_this_process(tensor_parallel)
    load = partial(load_model, device_map=device_map, tensor_parallel=tensor_parallel)
    if resume is not None:
        if model is not None or sites or text or out is not None:
            raise ValueError("--resume goes on with a store's own settings; drop --model, --sites, --text and --out")
        path = resume
        plan = plan_of(Store(ranks.part(path)).manifest, path)
        plan = plan if tokens is None else replace(plan, tokens=ranks.share(tokens))
        lm = load(plan.model)
    else:
        missing = [f"--{n}" for n, v in (("model", model), ("sites", sites), ("text", text), ("out", out)) if not v]
        if missing or model is None or out is None:
            raise ValueError(f"{', '.join(missing)} missing; say what to read, where, and where to keep it")
        path = out
        plan = HarvestPlan(
            located(model),
            sites,
            tuple(located(source) for source in text),
            tokens=None if tokens is None else ranks.share(tokens),
            held_out=held_out,
            text_field=text_field,
            context=context,
            packed=packed,
            batch=batch,
            drop_first=drop_first,
            compute_dtype=compute_dtype,
            dtype=dtype,
            outlier_factor=outlier_factor,
            drop_outliers=drop_outliers,
            shard_mib=shard_mib,
            seed=seed,
            rank=ranks.rank,
            world=ranks.world,
        )
        lm = load(plan.model)
        check_plan(lm, plan, ranks.holders)
        ranks.holders.told(lambda: ranks.claim(path))
    again = f"overtone harvest --resume {path}" if ranks.world == 1 else "the same command"
    with resumable(again):
        harvest_into(ranks.part(path), plan, lm, quiet=not ranks.first, holders=ranks.holders)
    if not ranks.gather(path):
        return
    store = Store(path)
    store.shards()
    console.print(store_table(store))
    if store.rows(HELD_OUT):
        console.print(f"Train on it: overtone train --store {path} --site {next(iter(store.sites))}")
    else:
        console.print(
            "No document was held out, so nothing can be measured on it: give more text, or a larger --held-out"
        )
    write_json(json, describe(store))


class Ranks(NamedTuple):
    """The processes that torchrun started.

    Attributes:
        rank, world: each reads documents of its own into a part, and the parts become one store.
        holders: or they hold the model together and read the same documents, as one reader.
    """

    rank: int
    world: int
    holders: Axis = ALONE

    @staticmethod
    def of_this_process(tensor_parallel: bool) -> "Ranks":
        """As torchrun's environment says; one process without it."""
        rank, world = int(os.environ.get("RANK", "0")), launched()
        if tensor_parallel and world == 1:
            raise ValueError(
                "--tensor-parallel is for several processes that hold a model together; start them: torchrun --nproc-per-node 4 "
                "-m overtone harvest …, or drop it"
            )
        if world > 1 and not distributed.is_initialized():
            # The last rank may take long after the first: the default of half an hour would not do.
            backend = "cpu:gloo,cuda:nccl" if tensor_parallel and torch.cuda.is_available() else "gloo"
            distributed.init_process_group(backend, timeout=LONGEST_WAIT)
        return Ranks(0, 1, Axis(rank, world)) if tensor_parallel else Ranks(rank, world)

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints."""
        return self.rank == self.holders.rank == 0

    def share(self, tokens: int) -> int:
        """This rank's share of the tokens."""
        return tokens // self.world + (self.rank < tokens % self.world)

    def part(self, path: Path, rank: int | None = None) -> Path:
        """Where a rank (this one) writes: the store itself where there is one process."""
        number = self.rank if rank is None else rank
        return path if self.world == 1 else path.with_name(f"{path.name}.parts") / f"{number}-of-{self.world}"

    def claim(self, path: Path) -> None:
        """Make the place to write to. A part that was stopped goes on."""
        if self.world == 1:
            claim_folder(path)
        elif path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten; choose another --out or remove it")
        else:
            self.part(path).mkdir(parents=True, exist_ok=True)

    def gather(self, path: Path) -> bool:
        """Make one store of the parts once all are there; whether this rank is the one to go on."""
        if self.world == self.holders.size == 1:
            return True
        distributed.barrier()
        if self.world > 1 and self.first:
            join_ranks([self.part(path, rank) for rank in range(self.world)], path)
            shutil.rmtree(self.part(path).parent)
        distributed.barrier()
        distributed.destroy_process_group()
        return self.first
