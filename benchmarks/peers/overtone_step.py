"""overtone's train: its whole loop, with a record every 50 steps."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from peers.feed import MATRYOSHKA, STEPS, Feed, K, Size, Training
from torch import Tensor

PACKAGE = "overtone"


def method(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """A named method of overtone's."""

    def make() -> Any:
        import overtone

        return getattr(overtone, name)(*arguments, **options)

    return make


METHODS: dict[str, Callable[[], Any]] = {
    "gba-32": method("gba", l0=32),
    "gba-300": method("gba", l0=300),
    "gba-32-torch": method("gba", l0=32),  # as installed without the extra `fast`
    "topk": method("topk", K),
    "batch-topk": method("batch_topk", K),
    "matryoshka": method("matryoshka", K, prefixes=tuple(accumulate(MATRYOSHKA))),
}
SCALED = {f"gba-{l0}": method("gba", l0=l0) for l0 in (8, 16, 32, 64, 128, 256, 512, 1024)}  # rows of scaling.py


def training(method: str, size: Size, feed: Feed) -> Training:
    from overtone import ArrayStream, Batch, Run, start, train
    from overtone.metrics import reconstruction
    from overtone.ops import loops

    if method.endswith("-torch"):
        loops.are_compiled = lambda: False  # asked once, by quantised.is_available, and then by every loop
    run = Run(method=(SCALED | METHODS)[method](), latents=size.latents, batch=size.batch, steps=STEPS)
    state = start(run, ArrayStream(torch.cat(feed.batches), size.batch))
    records = train(run, (Batch(x, x) for x in feed), state)

    def l0(x: Tensor) -> float:
        return reconstruction.accumulate(state.dictionary, x).l0

    return Training(partial(list, records), l0)
