"""SynthSAEBench's law here and in SAELens: the same statistics at the same setting, and rows per second.

    .venv-bench/bin/python benchmarks/truths.py [--n-features 4096] [--rows 60000] [--seeds 3] [--threads 2] [--json PATH]

Needs `make bench-env`. Both generators make features, factors and magnitudes from seeds of their own, so single features differ;
compared are distributions over features and rows, mean and range over seeds. One comparison is of numbers one to one: SAELens'
generator with *our* loadings, thresholds and magnitudes, whose frequencies and co-occurrences then must be ours, up to sampling.
At 16 384 features, SAELens' dictionary alone takes tens of minutes on two cores: --n-features 16384 compares everything but its
geometry, for which both get random directions.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from common import Spread, show
from peers.no_images import tolerate_torchvision
from torch import Tensor

from overtone import __version__
from overtone.cli.common import write_json
from overtone.data.forest import FeatureForest, synth_sae_bench
from overtone.seeds import generator

tolerate_torchvision()

from sae_lens.synthetic import (  # noqa: E402
    ActivationGenerator,
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    LowRankCorrelationMatrix,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)

CHUNK = 1024
PAIRED = 256  # the most frequent features, whose pairs are counted
LARGE = 8192  # features, from which on SAELens' dictionary is not pushed apart

Draw = Callable[[], tuple[Tensor, Tensor]]


def theirs(truth: FeatureForest, seed: int) -> SyntheticModel:
    """SAELens' model with the settings of ours."""
    shared = {"num_features": truth.n_features, "hidden_dim": truth.d, "bias": truth.bias, "seed": seed}
    apart = OrthogonalizationConfig(num_steps=100, lr=3e-4 * (768 / truth.d) ** 0.5)
    return SyntheticModel(
        SyntheticModelConfig(
            **shared,
            firing_probability=ZipfianFiringProbabilityConfig(truth.exponent, truth.most, truth.least),
            hierarchy=HierarchyConfig(
                total_root_nodes=truth.roots,
                branching_factor=truth.branching,
                max_depth=truth.depth,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
                scale_children_by_parent=True,
            ),
            orthogonalization=None if truth.n_features >= LARGE else apart,
            correlation=LowRankCorrelationConfig(truth.rank, truth.correlation),
            mean_firing_magnitudes=LinearMagnitudeConfig(*truth.magnitudes),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(*truth.deviations),
        )
    )


def with_our_numbers(model: SyntheticModel, truth: FeatureForest) -> ActivationGenerator:
    """SAELens' generator of coefficients, with our probabilities, factors and magnitudes under its own tree."""
    own = (1 + truth.loading.square().sum(1)).reciprocal()
    return ActivationGenerator(
        truth.n_features,
        truth.firing,
        std_firing_magnitudes=truth.deviation,
        mean_firing_magnitudes=truth.mean,
        modify_activations=model.hierarchy.modifier if model.hierarchy else None,
        correlation_matrix=LowRankCorrelationMatrix(truth.loading * own.sqrt()[:, None], own),
    )


class Count:
    """Statistics of rows and coefficients, chunk by chunk."""

    def __init__(self, n_features: int, roots: int):
        self.rows, self.roots = 0, roots
        self.fired, self.sum, self.square = torch.zeros(3, n_features, dtype=torch.float64)
        self.l0, self.norm = [], []
        self.pairs = torch.zeros(PAIRED, PAIRED, dtype=torch.float64)

    def add(self, x: Tensor, h: Tensor) -> None:
        self.rows += len(x)
        active = h > 0
        self.fired += active.sum(0)
        self.sum += h.sum(0)
        self.square += h.square().sum(0)
        self.l0.append(active.sum(1).double())
        self.norm.append(x.norm(dim=1).double())
        first = active[:, :PAIRED].float()
        self.pairs += first.T @ first

    def magnitudes(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the coefficients of some features, where they occur."""
        mean = (self.sum / self.fired)[chosen]
        return mean, ((self.square / self.fired)[chosen] - mean.square()).clamp(min=0)

    def numbers(self) -> dict[str, float]:
        """By name."""
        share, l0, norm = self.fired / self.rows, torch.cat(self.l0), torch.cat(self.norm)
        quarter = len(share) // 4
        mean, variance = self.magnitudes(self.fired > 30)
        alone = share[: self.roots]
        covariance = self.pairs[: self.roots, : self.roots] / self.rows - torch.outer(alone, alone)
        correlation = covariance / torch.outer(alone * (1 - alone), alone * (1 - alone)).sqrt()
        off = correlation[~torch.eye(self.roots, dtype=torch.bool)]
        return {
            "L0": l0.mean().item(),
            "L0, standard deviation": l0.std().item(),
            "L0 of the first quarter": share[:quarter].sum().item(),
            "frequency of roots, mean": alone.mean().item(),
            "frequency of the rest, mean": share[self.roots :].mean().item(),
            "frequency of the last quarter, mean": share[-quarter:].mean().item(),
            "correlation of roots, root mean square": off.square().mean().sqrt().item(),
            "magnitude, mean over features": mean.mean().item(),
            "magnitude, deviation within a feature": variance.sqrt().mean().item(),
            "norm of a row, mean": norm.mean().item(),
            "norm of a row, standard deviation": norm.std().item(),
        }


def measured(draw: Draw, count: Count, rows: int) -> dict[str, float]:
    """Statistics of that many rows."""
    while count.rows < rows:
        count.add(*draw())
    return count.numbers()


def coherence(features: Tensor) -> dict[str, float]:
    """Cosines of different features: mean of |cos|, and the mean over features of the largest."""
    total, largest = 0.0, []
    for start in range(0, len(features), CHUNK):
        cosine = (features[start : start + CHUNK] @ features.T).abs()
        cosine[torch.arange(len(cosine)), start + torch.arange(len(cosine))] = 0
        total += cosine.sum(dtype=torch.float64).item()
        largest.append(cosine.amax(1))
    n = len(features)
    return {
        "|cosine|, mean": total / (n * (n - 1)),
        "|cosine| with the nearest, mean": torch.cat(largest).mean().item(),
    }


def errors(one: Count, two: Count) -> dict[str, float]:
    """Differences of frequencies, pairs' frequencies and mean magnitudes, in standard errors: root mean square and largest."""

    def apart(a: Tensor, b: Tensor) -> Tensor:
        p = (a + b) / (one.rows + two.rows)
        error = (p * (1 - p) * (1 / one.rows + 1 / two.rows)).sqrt()
        return ((a / one.rows - b / two.rows) / error)[p * min(one.rows, two.rows) > 20]

    upper = torch.triu_indices(PAIRED, PAIRED, 1)
    often = torch.minimum(one.fired, two.fired) > 30
    mean, variance = zip(*(count.magnitudes(often) for count in (one, two)), strict=True)
    found = {
        "frequencies": apart(one.fired, two.fired),
        "pairs": apart(one.pairs[*upper], two.pairs[*upper]),
        "magnitudes": (mean[0] - mean[1]) / (variance[0] / one.fired[often] + variance[1] / two.fired[often]).sqrt(),
    }
    return {
        f"{name}, {what}": value
        for name, z in found.items()
        for what, value in (("rms", z.square().mean().sqrt().item()), ("largest", z.abs().max().item()))
    }


def rate(draw: Callable[[], Any], rows: int, seconds: float = 3.0) -> float:
    """Rows per second; the first call does not count."""
    draw()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        draw()
        done += rows
    return done / (time.perf_counter() - began)


def compare(n_features: int, rows: int, seed: int) -> dict[str, Any]:
    """Both generators at one seed."""
    changes = {"push_apart": n_features < LARGE}
    truth = synth_sae_bench(n_features, seed=seed, **changes)
    model, draws = theirs(truth, seed), generator(seed, "rows of a benchmark")
    torch.manual_seed(seed)
    both = {
        "overtone": lambda: tuple(truth.sample(CHUNK, draws)),
        "SAELens": lambda: model.sample_with_features(CHUNK),
    }
    counts = {name: Count(n_features, truth.roots) for name in (*both, "SAELens, our numbers")}
    result: dict[str, Any] = {name: measured(draw, counts[name], rows) for name, draw in both.items()}
    for name, features in (("overtone", truth.features), ("SAELens", model.feature_dict.feature_vectors.data)):
        result[name] |= coherence(features)
    twin = with_our_numbers(model, truth)
    measured(lambda: (torch.zeros(CHUNK, 1), twin.sample(CHUNK)), counts["SAELens, our numbers"], rows)
    result["difference"] = errors(counts["overtone"], counts["SAELens, our numbers"])
    model.use_sparse_tensors = False
    dense = rate(lambda: model.sample(CHUNK), CHUNK)
    model.use_sparse_tensors = True
    sparse = rate(lambda: model.sample(CHUNK), CHUNK)
    result["rows_per_s"] = {
        "overtone": rate(lambda: truth.coded(CHUNK, draws), CHUNK),
        "SAELens, dense": dense,
        "SAELens, sparse": sparse,
    }
    return result


def main(
    n_features: int = 4096, rows: int = 60_000, seeds: int = 3, threads: int = 2, json: Path | None = None
) -> None:
    """Compare, print, write."""
    torch.set_num_threads(threads)
    runs = [compare(n_features, rows, seed) for seed in range(seeds)]

    def over(part: str, name: str, form: str = ".4g") -> str:
        return Spread.of([run[part][name] for run in runs]).shown(form)

    names = list(runs[0]["overtone"])
    lines = [(name, over("overtone", name), over("SAELens", name)) for name in names]
    show(f"{n_features} features, {rows} rows, median (range) of {seeds} seeds", ("", "overtone", "SAELens"), lines)
    lines = [(name, over("difference", name, ".3f")) for name in runs[0]["difference"]]
    show("SAELens' generator with our numbers: differences in standard errors", ("", "difference"), lines)
    lines = [(name, over("rows_per_s", name, ",.0f")) for name in runs[0]["rows_per_s"]]
    show(f"{threads} threads, batches of {CHUNK}", ("", "rows/s"), lines)
    settings = {"n_features": n_features, "rows": rows, "threads": threads, "overtone": __version__}
    write_json(json, {"settings": settings, "runs": runs})


if __name__ == "__main__":
    tyro.cli(main)
