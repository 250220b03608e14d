"""What collecting examples of every latent costs beside the encoding: processor time and peak memory.

    python benchmarks/examples.py [--latents 16384] [--l0 32] [--rows 196608] [--batch 8192] [--threads 1] [--json PATH]

Codes are drawn, not encoded: L0 latents a row at most, latent m with probability ∝ m^−0.5, in contexts of 126 rows.
"""

import resource
import time
from pathlib import Path

import torch
import tyro

from overtone import firing
from overtone.cli.common import write_json
from overtone.data.text_rows import TextRows
from overtone.interpret.examples import Collector
from overtone.ops import SparseCodes

CONTEXT = 126


def drawn(rows: int, l0: int, weights: torch.Tensor, rng: torch.Generator) -> SparseCodes:
    latents = torch.multinomial(weights, rows * l0, replacement=True, generator=rng).view(rows, l0).sort(1).values
    once = torch.ones_like(latents, dtype=torch.bool)
    once[:, 1:] = latents[:, 1:] != latents[:, :-1]
    offsets = torch.nn.functional.pad(once.sum(1).cumsum(0), (1, 0))
    return SparseCodes(torch.rand(int(offsets[-1]), generator=rng), latents[once], offsets, len(weights))


def main(
    latents: int = 16_384,
    l0: int = 32,
    rows: int = 196_608,
    batch: int = 8192,
    threads: int = 1,
    json: Path | None = None,
) -> None:
    torch.set_num_threads(threads)
    rng, collector = torch.Generator().manual_seed(0), Collector(latents)
    weights = torch.arange(1, latents + 1, dtype=torch.float64) ** -0.5
    seconds = []
    for first in range(0, rows, batch):
        codes = drawn(batch, l0, weights, rng)
        nothing = torch.zeros(batch, dtype=torch.long)
        text = TextRows(torch.zeros(batch, 1), nothing, torch.arange(batch) // CONTEXT, first)
        began = time.process_time()
        collector.add(codes, text)
        seconds.append(time.process_time() - began)
    began = time.process_time()
    collector.examples(firing.empty(latents))
    seconds.append(time.process_time() - began)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    last = f"{seconds[-2]:.2f} s for the last {batch:,}"
    print(f"{sum(seconds):.1f} s of processor time for {len(seconds[:-1]) * batch:,} rows, {last}; {megabytes:,.0f} MB")
    write_json(
        json, {"latents": latents, "l0": l0, "rows": rows, "batch": batch, "seconds": seconds, "peak_mb": megabytes}
    )


if __name__ == "__main__":
    tyro.cli(main)
