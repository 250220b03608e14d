"""SAELens' side of store_peers.py; runs in an environment that has sae_lens, and needs nothing of overtone's package.

    python saelens_store.py ROWS.npy STORE [--dtype float32] [--threads 1] [--batch 4096] [--buffer-batches 64]
                            [--shard-gb 0.5] [--prefetch]

Writes the rows with SAELens' CacheActivationsRunner. Its own run() does everything; only the language model is replaced, by one
whose activation at token i is row i. Then reads them as its training does, from ActivationsStore.from_config of a
LanguageModelSAERunnerConfig with use_cached_activations. Settings are SAELens' defaults (contexts of 128 tokens, 32 prompts a
read, half of the buffer kept for mixing), but for

* n_batches_in_buffer: the default, 20 contexts, is less than a batch of 4096 rows, which it refuses;
* shards of 0.5 instead of 2 GB, as the writer takes several times a shard in memory.

Talks JSON, a line each: first what was written; then, for every line "N" on the standard input, the seconds for N batches.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
warnings.filterwarnings("ignore")

from no_images import tolerate_torchvision  # noqa: E402

tolerate_torchvision()

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import sae_lens  # noqa: E402
import torch  # noqa: E402
from sae_lens.config import CacheActivationsRunnerConfig, LanguageModelSAERunnerConfig, LoggingConfig  # noqa: E402
from sae_lens.saes.standard_sae import StandardTrainingSAEConfig  # noqa: E402
from sae_lens.training.activations_store import ActivationsStore  # noqa: E402
from sae_lens.training.prefetch import PrefetchingIterator  # noqa: E402
from transformer_lens.hook_points import HookPoint  # noqa: E402
from transformer_lens.HookedTransformer import HookedRootModule  # noqa: E402

CONTEXT, PROMPTS, HOOK = 128, 32, "hook_x"


class RowModel(HookedRootModule):
    """A model whose activation at token i is row i."""

    def __init__(self, rows: torch.Tensor):
        super().__init__()
        self.W_E = rows  # where SAELens looks for the device
        self.tokenizer = None
        self.hook_x = HookPoint()
        self.setup()

    def forward(self, tokens: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.hook_x(torch.nn.functional.embedding(tokens, self.W_E))


def write(rows: torch.Tensor, store: Path, dtype: str, shard_gb: float) -> dict[str, Any]:
    """Write the rows, as many as fill equal shards (the runner makes no others)."""
    batches, d = len(rows) // (CONTEXT * PROMPTS), rows.shape[1]
    batch_bytes = CONTEXT * PROMPTS * d * getattr(torch, dtype).itemsize
    shards = math.ceil(batches * batch_bytes / (shard_gb * 1e9))
    per_shard = batches // shards
    used = shards * per_shard * CONTEXT * PROMPTS
    tokens = torch.arange(used, dtype=torch.int32).reshape(-1, CONTEXT)
    config = CacheActivationsRunnerConfig(
        dataset_path="rows",
        model_name="rows",
        model_batch_size=PROMPTS,
        hook_name=HOOK,
        d_in=d,
        training_tokens=used,
        context_size=CONTEXT,
        new_cached_activations_path=str(store),
        dtype=dtype,
        device="cpu",
        buffer_size_gb=(per_shard + 0.5) * batch_bytes / 1e9,
        prepend_bos=False,
        streaming=False,
    )
    text = datasets.Dataset.from_dict({"input_ids": tokens.numpy()})
    began = time.perf_counter()
    with patch("sae_lens.cache_activations_runner.load_model", lambda **_: RowModel(rows)):
        sae_lens.CacheActivationsRunner(config, override_dataset=text).run()
    seconds = time.perf_counter() - began
    check(rows[used - CONTEXT : used].to(getattr(torch, dtype)), store, used)
    return {"rows": used, "shards": shards, "write_seconds": seconds}


def check(last: torch.Tensor, store: Path, used: int) -> None:
    """The store has so many rows and ends with the last ones given."""
    stored = datasets.load_from_disk(str(store)).with_format("torch", dtype=last.dtype)
    if len(stored) * CONTEXT != used or not torch.equal(stored[len(stored) - 1][HOOK], last):
        raise SystemExit(f"{store} does not hold the rows it was given")


def reader(store: Path, d: int, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """The iterator that SAELens' trainer takes its batches from."""
    config = LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=d, d_sae=16),
        hook_name=HOOK,
        dataset_path="rows",
        use_cached_activations=True,
        cached_activations_path=str(store),
        context_size=CONTEXT,
        n_batches_in_buffer=options.buffer_batches,
        store_batch_size_prompts=PROMPTS,
        train_batch_size_tokens=options.batch,
        dtype=options.dtype,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        verbose=False,
    )
    unused = datasets.Dataset.from_dict({"input_ids": np.zeros((1, CONTEXT), dtype=np.int32)})
    batches = ActivationsStore.from_config(RowModel(torch.zeros(1, d)), config, override_dataset=unused)
    return PrefetchingIterator(iter(batches), prefetch=1) if options.prefetch else batches


def answer(batches: Iterator[torch.Tensor], count: int) -> dict[str, Any]:
    """Take so many batches, as float32."""
    began, rows = time.perf_counter(), 0
    for _ in range(count):
        rows += len(next(batches).float())
    return {"seconds": time.perf_counter() - began, "rows": rows}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--buffer-batches", type=int, default=64, help="SAELens' n_batches_in_buffer: contexts")
    parser.add_argument("--shard-gb", type=float, default=0.5)
    parser.add_argument("--prefetch", action="store_true", help="SAELens' prefetch_llm_batches")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    sae_lens.logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # the standard output is for the answers
        rows = torch.from_numpy(np.load(options.rows, mmap_mode="c"))
        written = write(rows, options.store, options.dtype, options.shard_gb)
        batches = reader(options.store, rows.shape[1], options)
        names = ("sae-lens", "datasets", "pyarrow", "torch", "transformer-lens")
        print(json.dumps(written | {"versions": {name: version(name) for name in names}}), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(batches, int(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
