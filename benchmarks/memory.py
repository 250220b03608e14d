"""Peak memory of training against its bound: 3 × (weights + Adam state) + one batch of pre-activations.

    python benchmarks/memory.py [--latents 16384] [--d 768] [--batch 2048] [--l0 32]

Prints JSON. The resident memory of the process before training (Python, torch, the rows) is taken off the peak.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Literal

import torch
import tyro

from overtone import ArrayStream, Run, gba, start, topk, train


def resident() -> int:
    """Bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(
    latents: int = 16_384,
    d: int = 768,
    batch: int = 2048,
    steps: int = 12,
    l0: float = 32,
    method: Literal["gba", "gba-full", "topk"] = "gba",
) -> None:
    x = torch.randn(4 * batch, d, generator=torch.Generator().manual_seed(0))
    chosen = {"gba": gba(l0=l0), "gba-full": gba(), "topk": topk(round(l0))}[method]
    run = Run(method=chosen, latents=latents, steps=steps, batch=batch, log_every=4)
    tiny = Run(method=chosen, latents=64, steps=1, batch=32)
    list(train(tiny, ArrayStream(x[:64, :64].contiguous(), 32)))  # loads what torch loads on first use
    before = resident()
    stream = ArrayStream(x, batch)
    state = start(run, stream)
    list(train(run, stream, state))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    weights = sum(p.numel() * p.element_size() for p in state.dictionary.parameters())
    optimiser = sum(v.numel() * v.element_size() for s in state.optimiser.state.values() for v in s.values())
    bound = 3 * (weights + optimiser) + batch * latents * 4
    mib = 2**20
    report = {"method": chosen.name, "peak_mib": peak / mib, "bound_mib": bound / mib, "ratio": peak / bound}
    json.dump(report, sys.stdout, indent=2)


if __name__ == "__main__":
    tyro.cli(main)
