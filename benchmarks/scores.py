"""Scores against a ground truth, ours and SAELens' own, of one dictionary on the same rows; and their cost at 16,384 features.

Run with the environment of `make bench-env`: `.venv-bench/bin/python benchmarks/scores.py --large 4096 16384`. Trains TopK for a
moment on the sanity-check set, so that some latents find features, others none, and some die.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from peers.no_images import tolerate_torchvision
from torch import Tensor
from torch.nn.functional import normalize

import overtone as ot
from overtone.data.ground_truths import sanity_check
from overtone.metrics import detection
from overtone.metrics.matching import match, mean_correlation
from overtone.ops import SparseCodes

tolerate_torchvision()

from sae_lens.evals import ExplainedVarianceCalculator  # noqa: E402 – cannot be imported before
from sae_lens.synthetic.evals import (  # noqa: E402
    ClassificationMetricsCalculator,
    DeadLatentsCalculator,
    L0Calculator,
    ShrinkageCalculator,
    feature_uniqueness,
    mean_correlation_coefficient,
)

ROWS, BATCH = 20_000, 2_000


def theirs(dictionary: ot.Dictionary, truth: Tensor, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    atoms = dictionary.W_dec.detach()
    classes, shrinkage = ClassificationMetricsCalculator(atoms, truth), ShrinkageCalculator()
    variance, l0, dead = ExplainedVarianceCalculator(), L0Calculator(), DeadLatentsCalculator(len(atoms))
    for x, h in batches:
        codes = dictionary.encode(x)
        z, x_hat = codes.z, dictionary.decode(codes)
        classes.add_batch(z, h)
        shrinkage.add_batch(x_hat, x)
        variance.add_batch(x_hat, x)
        l0.add_batch(z)
        dead.add_batch(z)
    found = classes.compute()
    return {
        "mcc": mean_correlation_coefficient(atoms, truth),
        "uniqueness": feature_uniqueness(atoms, truth),
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1_score,
        "relative_norm": shrinkage.compute(),
        "explained_variance": variance.compute(),
        "l0": l0.compute(),
        "alive": 1 - dead.compute() / len(atoms),
    }


@torch.no_grad()
def compare() -> None:
    truth = sanity_check(800, 50, l0=8.0)
    for label, method, latents in (("topk(8)", ot.topk(8), 1200), ("abs-topk(8)", ot.abs_topk(8), 400)):
        with torch.enable_grad():
            dictionary = ot.fit(truth.rows(40_000).x, method, latents=latents, steps=400)
        batches: list[tuple[Tensor, Tensor]] = [(s.x, s.h) for s in truth.held_out(ROWS, batch=BATCH)]
        began = time.perf_counter()
        ours = ot.score_against(dictionary, truth.features, batches).summary()
        middle = time.perf_counter()
        peers = theirs(dictionary, truth.features, batches)
        print(
            f"{label}, {latents} latents, 800 features in 50 dimensions, {ROWS} rows: overtone | SAELens | difference"
        )
        for name, value in peers.items():
            print(f"  {name:20} {ours[name]:.9f} | {value:.9f} | {abs(ours[name] - value):.1e}")
        print(f"  seconds: {middle - began:.2f} | {time.perf_counter() - middle:.2f}")


def entries(columns: int, per_row: int, seed: int) -> Iterator[SparseCodes]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        places = torch.randint(columns, (BATCH, per_row), generator=generator)
        yield SparseCodes.from_dense(torch.zeros(BATCH, columns).scatter_(1, places, 1.0))


def large(latents: int, features: int = 16_384, d: int = 768) -> None:
    """Cost at SynthSAEBench's size: atoms near some of the features, 25 latents and 34 features a row."""
    generator = torch.Generator().manual_seed(0)
    truth = normalize(torch.randn(features, d, generator=generator), dim=1)
    noise = torch.randn(latents, d, generator=generator) / d**0.5
    atoms = truth[:latents] + 0.7 * noise * torch.rand(latents, 1, generator=generator) * 2
    began = time.perf_counter()
    matching = match(atoms, truth)
    print(
        f"{latents} latents, {features} features: nearest of each other in {time.perf_counter() - began:.1f} s",
        flush=True,
    )
    z, h = entries(latents, 25, 1), entries(features, 34, 2)
    ours, batches = 0.0, 10
    for _ in range(batches):
        codes, labels = next(z), next(h)
        began = time.perf_counter()
        detection.count(codes, labels, matching)
        ours += time.perf_counter() - began
    codes, labels = next(z).dense(), next(h).dense()
    peer = ClassificationMetricsCalculator(atoms, truth)
    began = time.perf_counter()
    peer.add_batch(codes, labels)
    seconds = time.perf_counter() - began
    print(f"  counting {BATCH} rows: {ours / batches:.3f} s, SAELens' dense counts {seconds:.3f} s", flush=True)
    began = time.perf_counter()
    mcc = mean_correlation(atoms, truth)
    print(f"  MCC {mcc:.4f} in {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", type=int, nargs="*", default=[], help="also the cost at so many latents")
    arguments = parser.parse_args()
    compare()
    for size in arguments.large:
        large(size)
