"""What bias adaptation recovers: over co-occurrence and balance of features, without one of its parts, with other spectra."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from overtone import ops
from overtone.data.laws import CoefficientLaw
from overtone.data.synthetic import SparseMixture, imbalanced
from overtone.dictionary import Codes, Dictionary
from overtone.laboratory.experiment import Experiment, grid
from overtone.laboratory.theorem import resonating
from overtone.losses import Reconstruction
from overtone.method import Method
from overtone.methods import ba, gba
from overtone.metrics.recovery import recovery
from overtone.report import experiments as pictures
from overtone.rules import UnitNorm
from overtone.spectrum import group_sizes
from overtone.steering import BiasAdaptation
from overtone.training import Run, start, train

TOLD = {"frr_0.8": "FRR 0.8", "frr_0.9": "FRR 0.9", "best_0.9": "best 0.9 on the way", "explained_variance": "EV"}


def _recovers(truth: SparseMixture, run: Run, rows: int) -> tuple[dict[str, float], Float[Tensor, " features"]]:
    """FRR at the end of training, the best of a dozen looks on the way (which no run knows of), and every feature's cosine."""
    stream = truth.stream(run.batch, rows=rows, seed=run.seed)
    state = start(run, stream)
    looks = [
        (recovery(state.dictionary.W_dec.detach(), truth.features), record) for record in train(run, stream, state)
    ]
    found, last = looks[-1]
    rates = {f"frr_{t:g}": rate for t, rate in found.frr.items()}
    best = max(look.frr[0.9] for look, _ in looks)
    scores = {**rates, "best_0.9": best, "explained_variance": last.explained_variance, "l0": last.l0}
    return scores, found.max_cosine


def _run(method: Method, latents: int, steps: int, seed: int) -> Run:
    return Run(method, latents, steps, seed=seed, log_every=max(1, steps // 12))


def _named(method: str, frequency: float) -> tuple[Method, float]:
    """A method of the theory's family at a feature's frequency f, and the share of the steps that it takes."""
    made: dict[str, Callable[[], Method]] = {
        "gba": gba,
        "ba": lambda: ba(frequency),
        "modified-ba": lambda: resonating(0.3 * frequency),
    }
    return made[method](), 0.1 if method == "modified-ba" else 1.0


def recovery_of_companions(
    *,
    seed: int,
    method: str,
    co_occurrence: float,
    n_features: int,
    d: int,
    sparsity: int,
    latents: int,
    steps: int,
    rows: int,
) -> dict[str, float]:
    """FRR where every feature has a companion that occurs in a share ρ₂ of its rows (maths.md eq. G4)."""
    truth = SparseMixture(n_features=n_features, d=d, sparsities=(sparsity,), co_occurrence=co_occurrence, seed=seed)
    made, share = _named(method, sparsity / n_features)
    scores, _ = _recovers(truth, _run(made, latents, round(share * steps), seed), rows)
    return scores


CO_OCCURRENCE = Experiment(
    name="cooccurrence",
    what="Does recovery break down where co-occurrence ρ₂ exceeds 1/√n?",
    points={
        "small": grid(
            n_features=256,
            d=64,
            sparsity=4,
            latents=512,
            steps=1000,
            rows=30_000,
            method=("gba", "modified-ba"),
            co_occurrence=(0.0125, 0.0625, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0),
        ),
        "paper": grid(
            n_features=256,
            d=64,
            sparsity=4,
            latents=1536,
            steps=3000,
            rows=50_000,
            method=("gba", "ba", "modified-ba"),
            co_occurrence=(0.0125, 0.03, 0.0625, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        ),
    },
    measure=recovery_of_companions,
    told=TOLD,
    draw=pictures.co_occurrence,
)


def recovery_of_unequal(
    *,
    seed: int,
    method: str,
    ratio: float,
    n_features: int,
    d: int,
    sparsity: int,
    latents: int,
    steps: int,
    rows: int,
) -> dict[str, float]:
    """FRR, of quarters too, where frequencies fall geometrically; `ratio`: of the most frequent feature to the rarest."""
    truth = SparseMixture(
        n_features=n_features, d=d, sparsities=(sparsity,), frequencies="geometric", frequency_ratio=ratio, seed=seed
    )
    made, share = _named(method, sparsity / n_features)
    scores, cosine = _recovers(truth, _run(made, latents, round(share * steps), seed), rows)
    quarters = [float((part >= 0.9).double().mean()) for part in cosine.chunk(4)]  # the most frequent first
    return {**scores, "frequent_0.9": quarters[0], "rare_0.9": quarters[-1]}


BALANCE = Experiment(
    name="balance",
    what="How unequal may features' frequencies be?",
    points={
        scale: grid(
            n_features=128,
            d=42,
            sparsity=4,
            latents=latents,
            steps=steps,
            rows=30_000,
            method=("gba", "ba", "modified-ba"),
            ratio=ratios,
        )
        for scale, latents, steps, ratios in (
            ("small", 512, 1000, (1.0, 10.0, 100.0, 1000.0)),
            ("paper", 768, 3000, (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)),
        )
    },
    measure=recovery_of_unequal,
    told={
        "frr_0.8": "FRR 0.8",
        "frr_0.9": "FRR 0.9",
        "frequent_0.9": "of the most frequent quarter",
        "rare_0.9": "of the rarest",
    },
    draw=pictures.balance,
)


def recovery_with_spectrum(
    *, seed: int, groups: int, htf: float, ltf: float, latents: int, steps: int, rows: int
) -> dict[str, float]:
    """FRR of GBA on the imbalanced set."""
    run = _run(gba(groups=groups, htf=htf, ltf=ltf), latents, steps, seed)
    return _recovers(imbalanced(seed=seed), run, rows)[0]


def _one_at_a_time(default: dict[str, Any], **others: tuple[Any, ...]) -> list[dict[str, Any]]:
    """The default and everything one setting away from it."""
    return [default, *({**default, name: value} for name, values in others.items() for value in values)]


ABLATION = Experiment(
    name="ablation",
    what="What do GBA's number of groups and highest and lowest target frequency do on the imbalanced set?",
    points={
        "small": _one_at_a_time(
            {"groups": 10, "htf": 0.5, "ltf": 1e-3, "latents": 768, "steps": 1000, "rows": 50_000},
            groups=(2, 3, 5, 20),
            htf=(0.2, 0.1, 0.05),
            ltf=(1e-1, 1e-2, 1e-4),
        ),
        "paper": _one_at_a_time(
            {"groups": 10, "htf": 0.5, "ltf": 1e-3, "latents": 768, "steps": 3000, "rows": 50_000},
            groups=(2, 3, 5, 7, 15, 20, 40),
            htf=(0.3, 0.2, 0.1, 0.05, 0.02),
            ltf=(1e-1, 3e-2, 1e-2, 3e-3, 3e-4, 1e-4),
        ),
    },
    measure=recovery_with_spectrum,
    told=TOLD,
    draw=pictures.ablation,
)


@dataclass(frozen=True)
class FrequentFirst:
    """The control: `RarestFirst` in the opposite order."""

    groups: int

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        order = torch.arange(dictionary.latents).flip(0)
        scaled = codes.entries if dictionary.scale is None else codes.entries.scaled(dictionary.scale)
        sizes = group_sizes(dictionary.latents, self.groups)[::-1]
        explained = ops.decode_groups(scaled.permuted(order), dictionary.W_dec[order], sizes, dictionary.b_dec.detach())
        return ops.half_square_error(explained, target)


def variants() -> dict[str, Method]:
    """The default GBA and everything one part away from it."""
    default = gba()
    unit, centre, adaptation = default.rules
    assert isinstance(adaptation, BiasAdaptation)
    return {
        "default": default,
        "one loss for all groups": replace(default, losses=(Reconstruction(),)),
        "the most frequent explain first": replace(default, losses=(FrequentFirst(adaptation.spectrum.groups),)),
        "K = 10": gba(groups=10),
        "biases start at 0": replace(default, rules=(unit, centre, replace(adaptation, start="zero"))),
        "no limit on narrowing": replace(default, rules=(unit, centre, replace(adaptation, narrowest=1.0))),
        "the limit for latents of several features too": replace(
            default, rules=(unit, centre, replace(adaptation, mixture_above=None))
        ),
        "trained centre": replace(default, parametrisation=replace(default.parametrisation, centre="trained")),
        "centre at 0": replace(default, rules=(UnitNorm(), adaptation)),
        "T = 50": replace(default, rules=(unit, centre, replace(adaptation, interval=50))),
    }


def recovery_without(
    *, seed: int, variant: str, law: CoefficientLaw, latents: int, steps: int, rows: int
) -> dict[str, float]:
    """FRR of a variant of GBA on the imbalanced set."""
    return _recovers(imbalanced(seed=seed, law=law), _run(variants()[variant], latents, steps, seed), rows)[0]


PARTS = Experiment(
    name="parts",
    what="What does each part of the default GBA do for recovery on the imbalanced set?",
    points={
        "small": grid(variant=tuple(variants()), law="uniform", latents=768, steps=1000, rows=50_000),
        "paper": grid(variant=tuple(variants()), law=("uniform", "constant"), latents=768, steps=3000, rows=50_000),
    },
    measure=recovery_without,
    told=TOLD,
    draw=pictures.parts,
)
