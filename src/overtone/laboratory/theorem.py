"""What modified BA, the algorithm of Theorem 6.1, recovers: over frequencies and dimensions, over widths, and step by step."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor

from overtone.data.stream import ArrayStream, Stream
from overtone.data.synthetic import SparseMixture
from overtone.laboratory.experiment import Experiment, grid
from overtone.method import Method
from overtone.methods import modified_ba
from overtone.metrics.recovery import recovery
from overtone.report import experiments as pictures
from overtone.theory.dynamics import ModifiedBA, follow, mixture, random_projections
from overtone.training import Run, TrainState, start, train

THRESHOLDS = (0.8, 0.9)


def resonating(frequency: float) -> Method:
    """Modified BA so that only rows above the bias count, and every target frequency has the time it needs.

    With a soft ReLU latents learn from rows below their bias, whatever it is. A gradient is a mean over rows of which a share p
    counts, so the step is 1/p.
    """
    return modified_ba(frequency, step=1 / frequency, beta=math.inf)


def modified_ba_recovers(
    *,
    seed: int,
    n_features: int,
    d: int,
    sparsity: int,
    frequency: float,
    latents: int,
    steps: int,
    batch: int,
    rows: int,
) -> dict[str, float]:
    """FRR of modified BA, before and after, and the share of latents that have a feature; coefficients are all equal."""
    truth, stream = _on_rows(n_features, d, sparsity, batch, rows, seed)
    run = Run(resonating(frequency), latents, steps, batch, decay=0.0, seed=seed, log_every=steps)
    state = start(run, stream)
    before = recovery(state.dictionary.W_dec.detach(), truth.features, THRESHOLDS)
    for _ in train(run, stream, state):
        pass
    atoms = state.dictionary.W_dec.detach()
    after = recovery(atoms, truth.features, THRESHOLDS)
    resonant = recovery(truth.features, atoms, THRESHOLDS)  # the other way round: of every latent, the nearest feature
    return {
        **{f"start_{t:g}": before.frr[t] for t in THRESHOLDS},
        **{f"frr_{t:g}": after.frr[t] for t in THRESHOLDS},
        **{f"resonant_{t:g}": resonant.frr[t] for t in THRESHOLDS},
    }


def _on_rows(
    n_features: int, d: int, sparsity: int, batch: int, rows: int, seed: int
) -> tuple[SparseMixture, ArrayStream]:
    truth, x = _fixed(n_features, d, sparsity, rows, seed)
    return truth, ArrayStream(x, batch, seed=seed, source="synthetic rows")


@lru_cache(maxsize=1)
def _fixed(
    n_features: int, d: int, sparsity: int, rows: int, seed: int
) -> tuple[SparseMixture, Float[Tensor, "rows d"]]:
    """A truth and its rows, which neighbouring points of a grid share."""
    truth = SparseMixture(n_features=n_features, d=d, sparsities=(sparsity,), law="constant", seed=seed)
    return truth, truth.coded_rows(rows, seed=seed).x


RATIOS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # p/f
FINE = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def _over_dimensions(
    n_features: int, sparsity: int, widths: tuple[int, ...], ratios: tuple[float, ...], per_feature: int, batch: int
) -> list[dict[str, Any]]:
    return grid(
        n_features=n_features,
        sparsity=sparsity,
        d=widths,
        frequency=tuple(ratio * sparsity / n_features for ratio in ratios),
        latents=per_feature * n_features,
        steps=20,
        batch=batch,
        rows=16_384,
    )


RESONANCE = Experiment(
    name="resonance",
    what="At which target frequencies p does modified BA recover features, in how many dimensions?",
    points={
        "small": _over_dimensions(256, 3, (12, 16, 24, 32, 64, 128), RATIOS, 2, 2048)
        + _over_dimensions(1024, 3, (16, 24, 32, 64, 128), RATIOS, 1, 2048),
        "paper": _over_dimensions(256, 3, (8, 12, 16, 24, 32, 48, 64, 128), FINE, 4, 4096)
        + _over_dimensions(1024, 3, (12, 16, 24, 32, 48, 64, 128, 256), FINE, 4, 4096),
    },
    measure=modified_ba_recovers,
    told={"start_0.9": "FRR 0.9, start", "frr_0.8": "FRR 0.8", "frr_0.9": "FRR 0.9"},
    draw=pictures.resonance,
)

_WIDTH = {"n_features": 128, "d": 64, "steps": 20, "batch": 2048, "rows": 16_384}

WIDTH = Experiment(
    name="width",
    what="How many latents M does modified BA need, and how does that grow with 1/h²?",
    points={
        "small": grid(**_WIDTH, sparsity=(2, 3, 4, 6, 8), frequency=1 / 128, latents=(32, 128, 512, 2048)),
        "paper": grid(
            **_WIDTH,
            sparsity=(1, 2, 3, 4, 5, 6, 8, 10),
            frequency=1 / 128,
            latents=(32, 64, 128, 256, 512, 1024, 2048, 4096),
        ),
    },
    measure=modified_ba_recovers,
    told={"resonant_0.9": "latents with a feature", "frr_0.8": "FRR 0.8", "frr_0.9": "FRR 0.9"},
    draw=pictures.width,
)


def predicted_and_run(
    *,
    seed: int,
    n_features: int,
    d: int,
    sparsity: int,
    frequency: float,
    latents: int,
    steps: int,
    batch: int,
    rows: int,
    threshold: float,
) -> dict[str, Any]:
    """FRR at every step, by the recursion of projections and of a run.

    The recursion starts at atoms of its own and has rows of its own; it shares with the run the law of the data and nothing else.
    """
    truth = SparseMixture(n_features=n_features, d=d, sparsities=(sparsity,), seed=seed)
    begin = random_projections(truth, latents, seed=1000 + seed)
    path = follow(begin, mixture(truth, rows, seed=seed), ModifiedBA(frequency), steps)
    run = Run(modified_ba(frequency), latents, steps, batch, decay=0.0, seed=seed, log_every=1)
    stream = truth.stream(batch, seed=seed)
    rates = [
        recovery(state.dictionary.W_dec.detach(), truth.features, (threshold,)).frr[threshold]
        for state in _states(run, stream)
    ]
    predicted = path.recovered(threshold)
    gap = abs(predicted[-1] - rates[-1])
    return {"predicted": predicted, "run": rates, "predicted_end": predicted[-1], "run_end": rates[-1], "gap": gap}


def _states(run: Run, stream: Stream) -> Iterator[TrainState]:
    """The state of a run at its start and at every record."""
    state = start(run, stream)
    yield state
    for _ in train(run, stream, state):
        yield state


RECURSION = Experiment(
    name="recursion",
    what="Is modified BA's course predicted by the recursion of its projections (maths.md, T12–T15)?",
    points={
        scale: grid(
            n_features=100,
            sparsity=3,
            d=(8, 32),
            frequency=frequencies,
            latents=150,
            steps=30,
            batch=1024,
            rows=2048,
            threshold=0.9,
        )
        for scale, frequencies in {
            "small": (0.003, 0.01, 0.03, 0.1, 0.3),
            "paper": (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3),
        }.items()
    },
    measure=predicted_and_run,
    told={"predicted_end": "predicted", "run_end": "run", "gap": "|difference|"},
    draw=pictures.recursion,
)


def projections_over_time(
    *,
    seed: int,
    n_features: int,
    d: int,
    sparsity: int,
    ratio: float,
    latents: int,
    steps: int,
    batch: int,
    rows: int,
    followed: int,
) -> dict[str, Any]:
    """Cosines of the first few latents with all features at every step; of all latents, how many the winner takes at the end.

    Args:
        ratio: p/f.
        followed: latents whose cosines are kept.
    """
    truth, stream = _on_rows(n_features, d, sparsity, batch, rows, seed)
    frequency = ratio * sparsity / n_features
    run = Run(resonating(frequency), latents, steps, batch, decay=0.0, seed=seed, log_every=1)
    cosines = [state.dictionary.W_dec.detach() @ truth.features.T for state in _states(run, stream)]
    best, second = cosines[-1].topk(2, dim=1).values.T
    return {
        "cosines": [[[round(c, 4) for c in latent] for latent in at[:followed].tolist()] for at in cosines],
        "largest": float(best.mean()),
        "second": float(second.mean()),
        "winners": float(((best >= 0.9) & (second < 0.5)).double().mean()),
    }


PROJECTIONS = Experiment(
    name="projections",
    what="How does one feature win a latent, and at which target frequencies does none?",
    points={
        "small": grid(
            n_features=128,
            sparsity=3,
            d=64,
            ratio=(0.3, 1.0, 3.0),
            latents=256,
            steps=20,
            batch=2048,
            rows=16_384,
            followed=3,
        ),
        "paper": grid(
            n_features=256,
            sparsity=3,
            d=128,
            ratio=(0.03, 0.3, 1.0, 3.0),
            latents=1024,
            steps=40,
            batch=4096,
            rows=65_536,
            followed=3,
        ),
    },
    measure=projections_over_time,
    told={"largest": "largest cosine", "second": "second", "winners": "≥ 0.9, second < 0.5"},
    draw=pictures.projections,
)
