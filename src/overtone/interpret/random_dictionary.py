"""The dictionary that has learnt nothing: what every score of interpretability has to beat (arXiv 2602.14111)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.dictionary import Dictionary
from overtone.layout import Layout
from overtone.parametrisation import Parametrisation
from overtone.selection import TopK


@torch.no_grad()
def random_like(dictionary: Dictionary, l0: float, x: Float[Tensor, "rows d"], *, seed: int = 0) -> Dictionary:
    """Random unit atoms, as many as another dictionary has, of which the k = l0 that point most along a centred row are active.

    Args:
        dictionary: gives the number of latents, the sites it reads and how it scales rows.
        l0: active latents per row, rounded.
        x: rows whose mean is its centre.
        seed: of the atoms.
    """
    layout, p = Layout(dictionary.layout.reads), dictionary.parametrisation
    k = min(max(1, round(l0)), dictionary.latents)
    found = Dictionary(
        layout, dictionary.latents, TopK(k), replace(Parametrisation(), input_norm=p.input_norm), seed=seed
    )
    found.to(dictionary.W_dec)
    if found.read_scale is not None and dictionary.read_scale is not None:
        found.read_scale.copy_(dictionary.read_scale)
    found.b_dec.copy_(found.normalise(x.to(found.W_dec.device))[0].mean(0))
    return found
