"""A method of your own: a new selection, with GBA's frequency control as an add-on, in less than forty lines.

    python examples/own_method.py
    overtone compare --activations rows.npy --method "examples/own_method.py:near_top(share=[0.3, 0.5, 0.7])" topk

The selection keeps the latents whose pre-activation comes near the row's largest: rows that are hard to explain get more
of them than easy ones. The rule that steers every latent's firing frequency is GBA's, here on untied weights.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import overtone as ot
from overtone import ops


def keep_near_top(y: Tensor, share: float) -> Tensor:
    return y.clamp(min=0) * (y >= share * y.amax(dim=1, keepdim=True))


@dataclass(frozen=True)
class NearTop:
    """Codes z = y where y is positive and at least `share` of the row's largest pre-activation."""

    share: float

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must lie in (0, 1]")

    def encode(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, centre: Tensor) -> ops.Encoded:
        return ops.encode_with(partial(keep_near_top, share=self.share), x, W_enc, b_enc, centre=centre)


def near_top(share: float = 0.5, *, htf: float = 0.2) -> ot.Method:
    """Latents near the row's strongest one, none of them more often than `htf` of all rows.

    Args:
        share: how near: the smallest pre-activation kept, as a share of the row's largest.
        htf: highest target frequency of GBA's groups.
    """
    return ot.Method(
        name=f"near-top-{share:g}",
        select=NearTop(share),
        losses=(ot.Reconstruction(),),
        rules=(ot.UnitNorm(), ot.CentreAtMean(), ot.BiasAdaptation(ot.Spectrum(htf=htf), interval=10)),
        parametrisation=ot.Parametrisation(tied=False, scale=False, bias="steered", centre="fixed"),
    )


def main(steps: int = 600) -> float:
    x = ot.imbalanced(n_features=64, d=32, sparsities=(2, 8), seed=0).rows(20_000).x
    dictionary = ot.fit(x, near_top(share=0.5), latents=256, steps=steps)
    found = ot.evaluate(dictionary, x)
    print(f"explained variance {found.explained_variance:.2f} at L0 {found.l0:.1f}")

    with tempfile.TemporaryDirectory() as folder:
        ot.save(dictionary, Path(folder) / "mine")
        again = ot.load(Path(folder) / "mine", parts=[NearTop])  # a file never names code to run: you do
    assert torch.equal(again(x[:8]), dictionary(x[:8]))
    return found.explained_variance


if __name__ == "__main__":
    main()
