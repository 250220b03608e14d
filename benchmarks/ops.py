"""One training step's forward and backward, dense autograd against overtone.ops; medians of interleaved windows.

    OMP_NUM_THREADS=1 python benchmarks/ops.py [--windows 5] [--only A512,B2048] [--json results.json]

A step encodes, decodes, takes the squared error and the gradients of the tied atoms and of b_dec, and observes firing;
no optimiser. `dense` is what the Dictionary does, in one piece and in the pieces of `training`; `ops` are the operations.
Peak memory is that of a process of its own, above its weights and data.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from overtone import firing, ops
from overtone.selection import JumpReLU, Selection, TopK
from overtone.training import PRE_ACTIVATIONS_PER_PIECE

SIZES = {"A512": (384, 4096, 512), "A4096": (384, 4096, 4096), "B2048": (768, 16384, 2048)}
RULES = {"jumprelu L0 32": 32, "jumprelu L0 300": 300, "topk 32": 32}
VARIANTS = ["dense", "dense pieces", "ops"]
COLUMNS = [6, 16, 13, 9, 12, 14, 8]


class Step:
    """The weights and data of one configuration."""

    def __init__(self, size: str, rule: str):
        self.d, self.latents, self.batch = SIZES[size]
        self.l0, self.jump = RULES[rule], rule.startswith("jump")
        g = torch.Generator().manual_seed(0)
        atoms = torch.randn(self.latents, self.d, generator=g)
        self.atoms = (atoms / atoms.norm(dim=1, keepdim=True)).requires_grad_()
        mixture = torch.rand(self.batch, 20, generator=g)
        chosen = torch.randint(self.latents, (self.batch, 20), generator=g)
        x = (mixture[:, :, None] * self.atoms.detach()[chosen]).sum(1)
        self.x = x / x.norm(dim=1, keepdim=True)
        self.b_dec = torch.zeros(self.d, requires_grad=True)
        self.b_enc = torch.zeros(self.latents)
        if self.jump:
            pre = self.x[:256] @ self.atoms.detach().T
            self.b_enc -= pre.flatten().topk(256 * self.l0).values[-1]

    def run(self, variant: str) -> None:
        """One step; gradients are left where an optimiser finds them."""
        self.atoms.grad = self.b_dec.grad = None
        if variant == "ops":
            self.sparse()
            return
        rows = self.batch if variant == "dense" else max(1, PRE_ACTIVATIONS_PER_PIECE // self.latents)
        seen = firing.empty(self.latents)
        for x in self.x.split(rows):
            seen = firing.merge(seen, self.dense(x, JumpReLU() if self.jump else TopK(self.l0)))

    def dense(self, x: Tensor, select: Selection) -> firing.FiringStats:
        bias = self.b_enc - self.atoms @ self.b_dec
        pre = torch.nn.functional.linear(x, self.atoms, bias)
        z = select(pre, self.b_enc)
        (0.5 * (z @ self.atoms + self.b_dec - x).square().sum() / self.batch).backward()
        return firing.observe(pre.detach(), z.detach())

    def sparse(self) -> None:
        if self.jump:
            encoded = ops.encode_threshold(self.x, self.atoms, self.b_enc, centre=self.b_dec, jump=True)
        else:
            encoded = ops.encode_topk(self.x, self.atoms, self.b_enc, self.l0, centre=self.b_dec)
        x_hat = ops.decode(encoded.codes, self.atoms, self.b_dec)
        (0.5 * (x_hat - self.x).square().sum() / self.batch).backward()


def measure(size: str, rule: str, windows: int) -> list[dict]:
    """Rows per second of every variant, in turns so that a noisy machine is noisy for all."""
    step = Step(size, rule)
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for variant in VARIANTS:
        step.run(variant)
    for _ in range(windows):
        for variant in VARIANTS:
            began = time.perf_counter()
            step.run(variant)
            seconds[variant].append(time.perf_counter() - began)
    ratios = {v: [dense / own for dense, own in zip(seconds["dense"], seconds[v], strict=True)] for v in VARIANTS}
    return [
        {
            "size": size,
            "rule": rule,
            "variant": variant,
            "rows_per_s": round(step.batch / median(seconds[variant])),
            "times_dense": round(median(ratios[variant]), 2),
            "spread": [round(min(ratios[variant]), 2), round(max(ratios[variant]), 2)],
            "peak_mb": peak_in_own_process(size, rule, variant),
        }
        for variant in VARIANTS
    ]


def peak_in_own_process(size: str, rule: str, variant: str) -> int:
    """Peak memory of three steps above what weights and data take."""
    command = [sys.executable, __file__, "--peak", size, rule, variant]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mb(size: str, rule: str, variant: str) -> int:
    step = Step(size, rule)
    # The high-water mark starts over here: building the data must not count.
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_kb()
    for _ in range(3):
        step.run(variant)
    return round((_high_water_kb() - before) / 1024)


def _high_water_kb() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--only", help="sizes, separated by commas", default=",".join(SIZES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_mb(*arguments.peak))
        return
    results = []
    print("size / rule / variant / rows per s / × dense / spread / peak MB over weights and data")
    for size in arguments.only.split(","):
        for rule in RULES:
            for result in measure(size, rule, arguments.windows):
                results.append(result)
                print(" ".join(f"{value!s:>{width}}" for value, width in zip(result.values(), COLUMNS, strict=True)))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
