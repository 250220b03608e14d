"""numba's loops against torch.compile's, on what a step does with entries: the same sums, dots and update of rows.

    python benchmarks/compilers.py [--latents 4096] [--d 384] [--batch 512] [--l0 32] [--windows 7] [--json PATH]

For every operation the median of interleaved windows and the time of the first call, compilation included (numba's without its
cache on disk). torch.compile gets each operation in the form in which inductor makes one loop of it: gather, multiply, add up by
index. Its C++ compiler has to be there.
"""

import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from common import show
from torch import Tensor

os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()

from overtone.cli.common import write_json
from overtone.ops import compiled

ADAM = np.array([0.1, 0.999, 0.001, 1e-3, 1.0, 1e-8], np.float32)


def installed_mb(*packages: str) -> float:
    """Size of packages on disk."""
    folder = Path(sysconfig.get_path("purelib"))
    files = (file for package in packages for file in (folder / package).rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files) / 2**20


def first_call(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(
    latents: int = 4096,
    d: int = 384,
    batch: int = 512,
    l0: int = 32,
    windows: int = 7,
    calls: int = 20,
    json: Path | None = None,
) -> None:
    g = torch.Generator().manual_seed(0)
    atoms, x = torch.randn(latents, d, generator=g), torch.randn(batch, d, generator=g)
    of_latent = torch.randint(latents, (batch * l0,), generator=g).sort().values
    of_row, values = torch.randint(batch, (batch * l0,), generator=g), torch.rand(batch * l0, generator=g)
    offsets = torch.nn.functional.pad(torch.bincount(of_latent, minlength=latents).cumsum(0), (1, 0))
    mean, square, gradient = torch.zeros_like(atoms), torch.ones_like(atoms), torch.randn(latents, d, generator=g)

    def sums(x: Tensor, rows: Tensor, latents_of: Tensor, values: Tensor) -> Tensor:
        return x.new_zeros(latents, d).index_add(0, latents_of, values[:, None] * x[rows])

    def dots(atoms: Tensor, x: Tensor, rows: Tensor, latents_of: Tensor) -> Tensor:
        return (atoms[latents_of] * x[rows]).sum(1)

    # In place it does not compile with torch 2.13: inductor ends in a KeyError.
    def update(weight: Tensor, mean: Tensor, square: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = mean.lerp(gradient, 0.1)
        square = 0.999 * square + 0.001 * gradient * gradient
        weight = weight - 1e-3 * mean / (square.sqrt() + 1e-8)
        return weight / weight.norm(dim=1, keepdim=True), mean, square

    out_sums, out_dots = torch.empty(latents, d), torch.empty(batch * l0)
    places, bounds = of_row.numpy(), offsets.numpy()
    none = np.empty((0, d), np.float32), np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.float32)
    rows = [matrix.numpy() for matrix in (atoms.clone(), mean.clone(), square.clone())]
    ours = {
        "sums": lambda: compiled.segment_sums(x.numpy(), places, bounds, values.numpy(), out_sums.numpy()),
        "dots": lambda: compiled.segment_dots(atoms.numpy(), x.numpy(), places, bounds, out_dots.numpy()),
        "update": lambda: compiled.update_rows(*rows, gradient.numpy(), *none, *none, ADAM, False, True),
    }
    inductor: dict[str, Callable[..., object]] = {
        name: torch.compile(function, dynamic=False) for name, function in (("sums", sums), ("dots", dots))
    }
    inductor["update"] = torch.compile(update, dynamic=False)
    given = {"sums": (x, of_row, of_latent, values), "dots": (atoms, x, of_row, of_latent)}
    given["update"] = (atoms.clone(), mean, square, gradient)
    theirs = {name: (lambda name=name: inductor[name](*given[name])) for name in ours}
    compiled.as_torch()
    found: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for name in ours:
            sides = {"numba": ours[name], "torch.compile": theirs[name]}
            first = {side: first_call(run) for side, run in sides.items()}
            spent: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(windows):
                for side, run in sides.items():
                    spent[side].append(first_call(lambda run=run: [run() for _ in range(calls)]) / calls)
            found[name] = {f"{side} ms": 1e3 * statistics.median(times) for side, times in spent.items()}
            found[name] |= {f"{side} first s": seconds for side, seconds in first.items()}
    columns = [*next(iter(found.values()))]
    lines = [[name, *(f"{row[column]:.3f}" for column in columns)] for name, row in found.items()]
    show(f"d {d}, M {latents}, B {batch}, L0 {l0}, {torch.get_num_threads()} threads", ["operation", *columns], lines)
    print(
        f"installed: numba and llvmlite {installed_mb('numba', 'llvmlite'):.0f} MB; torch.compile wants a C++ compiler"
    )
    if json is not None:
        write_json(json, found)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
