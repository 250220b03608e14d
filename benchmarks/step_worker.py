"""One library's training loop in a process of its own; started by step.py and scaling.py.

    python benchmarks/step_worker.py LIBRARY METHOD ROWS.npy --latents M --batch B [--threads T] [--precision medium]

Talks JSON, a line each, as peers/feed.py says. Where it cannot run, its only line is {"error": why}.
"""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}

import numpy as np
import torch
from peers.feed import Feed, Size, Training
from peers.libraries import LIBRARIES
from peers.no_images import tolerate_torchvision
from process import peak_mib, restart_peak


def say(answer: dict[str, Any], out: Any) -> None:
    print(json.dumps(answer), file=out, flush=True)


def import_library(module: ModuleType) -> None:
    """Import it ahead of the model, so that its code does not count as memory of training."""
    tolerate_torchvision()
    import_module(module.PACKAGE)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first optimiser loads much of torch


class Measured:
    """Memory of this process above what it held before its model was made."""

    def __init__(self) -> None:
        self.base, self.start = restart_peak(), 0.0

    def begin(self) -> None:
        """The start is over: from here on the peak is that of steps."""
        self.start = peak_mib() - self.base
        restart_peak()

    def report(self) -> dict[str, float]:
        return {"peak_mb": peak_mib() - self.base, "start_peak_mb": self.start}


def serve(options: argparse.Namespace, out: Any) -> None:
    """Build the training loop and let it run; it ends when the parent closes the line."""
    module = LIBRARIES[options.library]
    import_library(module)
    rows = torch.from_numpy(np.load(options.rows))
    size = Size(rows.shape[1], options.latents, options.batch)
    memory = Measured()
    training: list[Training] = []

    def ready() -> dict[str, Any]:
        if options.precision:  # as late as this: sparsify's loop sets its own
            torch.set_float32_matmul_precision(options.precision)
        memory.begin()
        return {"version": version(options.library), "torch": torch.__version__, "threads": torch.get_num_threads()}

    def report() -> dict[str, Any]:
        used = memory.report()  # before the L0, which needs memory too
        l0 = training[0].l0
        return used | {"l0": l0 and l0(rows[: options.batch])}

    feed = Feed(rows, options.batch, partial(say, out=out), ready, report)
    training.append(module.training(options.method, size, feed))
    training[0].run()


def version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("method")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--latents", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", choices=("highest", "high", "medium"))
    return parser.parse_args()


def main() -> None:
    options, out = parse(), sys.stdout
    if options.threads:
        torch.set_num_threads(options.threads)
    with redirect_stdout(sys.stderr):  # the standard output is for the answers
        try:
            serve(options, out)
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}".splitlines()[0]}, out)  # torch's go on for pages
            raise


if __name__ == "__main__":
    main()
