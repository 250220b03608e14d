"""One dictionary, the same rows: our evaluation, SAELens' and dictionary_learning's own, and why some numbers differ.

Run with the environment of `make bench-env`: `.venv-bench/bin/python benchmarks/evaluations.py [--store STORE --site SITE]`.
Without a store the rows are sparse mixtures, far from 0. Trains TopK and L1 for a moment. Peers' own evaluation functions are
called; what they take for a model and a store of activations hands them these rows.
"""

import argparse
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from peers.no_images import tolerate_torchvision
from torch import Tensor

import overtone as ot
from overtone.metrics.reconstruction import ReconstructionStats

tolerate_torchvision()

from dictionary_learning.evaluation import evaluate as dictionary_learning_evaluate  # noqa: E402 – cannot be imported before
from sae_lens.evals import get_sparsity_and_variance_metrics  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402

PROMPTS, CONTEXT = 16, 64
BATCH = PROMPTS * CONTEXT
HOOK = "blocks.0.hook_resid_post"


class ForDictionaryLearning:
    """A dictionary as dictionary_learning calls one."""

    def __init__(self, dictionary: ot.Dictionary):
        self.dictionary, self.dict_size, self.activation_dim = dictionary, dictionary.latents, dictionary.d

    def __call__(self, x: Tensor, output_features: bool = False) -> tuple[Tensor, Tensor]:
        codes = self.dictionary.encode(x)
        return self.dictionary.decode(codes), codes.z


class ForSAELens:
    """A dictionary as SAELens calls one."""

    def __init__(self, dictionary: ot.Dictionary):
        self.dictionary, self.device = dictionary, torch.device("cpu")
        self.cfg = SimpleNamespace(
            d_sae=dictionary.latents, metadata=SimpleNamespace(hook_name=HOOK, hook_head_index=None)
        )
        self.codes: Any = None

    def encode(self, x: Tensor) -> Tensor:
        self.codes = self.dictionary.encode(x)
        return self.codes.z

    def decode(self, z: Tensor) -> Tensor:
        return self.dictionary.decode(self.codes)


def saelens(dictionary: ot.Dictionary, x: Tensor) -> dict[str, float]:
    numbers: Iterator[Tensor] = iter(torch.arange(len(x)).view(-1, PROMPTS, CONTEXT))
    rows = SimpleNamespace(get_batch_tokens=lambda _: next(numbers))
    model = SimpleNamespace(run_with_cache=lambda tokens, **_: (None, {HOOK: x[tokens]}))
    metrics, features = get_sparsity_and_variance_metrics(
        ForSAELens(dictionary), model, rows, ActivationScaler(),
        n_batches=len(x) // BATCH, compute_l2_norms=True, compute_sparsity_metrics=True, compute_variance_metrics=True,
        compute_featurewise_density_statistics=True, eval_batch_size_prompts=PROMPTS, model_kwargs={},
    )  # fmt: skip
    density = torch.tensor(features["feature_density"])
    return metrics | {"alive": float((density > 0).double().mean()), "density": float(density.sum())}


def by_their_definitions(dictionary: ot.Dictionary, x: Tensor) -> dict[str, float]:
    """What the peers' other explained variances are, written out in float64."""
    legacy, centred = [], []
    for part in x.split(BATCH):
        error, around = (part - dictionary(part)).double(), (part - part.mean(0)).double()
        legacy.append((1 - error.square().sum(1) / around.square().sum(1)).mean())
        centred.append(1 - (error - error.mean(0)).square().sum() / around.square().sum())
    return {"legacy": float(torch.stack(legacy).mean()), "centred": float(torch.stack(centred).mean())}


def lines(
    ours: ReconstructionStats, lens: dict[str, float], learning: dict[str, float], written: dict[str, float]
) -> list[tuple[str, float, float]]:
    """(what, as overtone has it, as the peer has it)."""
    error = float(ours.moments.pooled().error.sum() / ours.rows)
    return [
        ("SAELens explained_variance", ours.explained_variance, lens["explained_variance"]),
        ("SAELens mse (per row) = NMSE · mean ‖x‖²", error, lens["mse"]),
        ("SAELens cossim", ours.cosine, lens["cossim"]),
        ("SAELens l2_ratio", ours.relative_norm, lens["l2_ratio"]),
        ("SAELens l0", ours.l0, lens["l0"]),
        ("SAELens feature_density, summed", ours.l0, lens["density"]),
        ("SAELens feature_density > 0", ours.alive, lens["alive"]),
        ("dictionary_learning cossim", ours.cosine, learning["cossim"]),
        ("dictionary_learning l2_ratio", ours.relative_norm, learning["l2_ratio"]),
        ("dictionary_learning l0", ours.l0, learning["l0"]),
        ("dictionary_learning frac_alive", ours.alive, learning["frac_alive"]),
        ("other: SAELens explained_variance_legacy", ours.explained_variance, lens["explained_variance_legacy"]),
        ("… mean over rows of 1 − ‖x − x̂‖² / ‖x − batch mean‖²", written["legacy"], lens["explained_variance_legacy"]),
        ("other: dictionary_learning frac_variance_explained", ours.explained_variance, learning["frac_variance_explained"]),
        ("… mean over batches of 1 − var(x − x̂) / var(x)", written["centred"], learning["frac_variance_explained"]),
    ]  # fmt: skip


def main(x: Tensor, latents: int, steps: int) -> None:
    held_out = x[-(len(x) // 5 // BATCH) * BATCH :]
    for label, method in (("topk(32)", ot.topk(32)), ("l1(0.05)", ot.l1(0.05))):
        dictionary = ot.fit(x[: -len(held_out)], method, latents=latents, steps=steps)
        with torch.no_grad():
            ours = ot.evaluate(dictionary, held_out)
            learning = dictionary_learning_evaluate(
                ForDictionaryLearning(dictionary), iter(held_out.split(BATCH)), n_batches=len(held_out) // BATCH
            )
            found = lines(ours, saelens(dictionary, held_out), learning, by_their_definitions(dictionary, held_out))
        print(f"{label}, {latents} latents, {len(held_out):,} rows: overtone | peer | difference")
        for what, mine, theirs in found:
            print(f"  {what:62} {mine:.7f} | {theirs:.7f} | {abs(mine - theirs):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="rows of this store instead of sparse mixtures")
    parser.add_argument("--site", help="which of its sites")
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    if arguments.store is None:
        rows = ot.imbalanced().rows(20 * BATCH).x + 2.0
    else:
        batches = ot.Store(arguments.store).batches(arguments.site, "held_out", limit=20 * BATCH)
        rows = torch.cat([batch.x for batch in batches])[: 20 * BATCH]
    main(rows, arguments.latents, arguments.steps)
