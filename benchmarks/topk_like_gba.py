"""TopK with GBA's tied atoms, output scales, fixed centre and learning rate, for docs/comparison.md: only the rule differs."""

from dataclasses import replace

import overtone as ot


def topk_like_gba(k: int = 32) -> ot.Method:
    """TopK as `gba` is parametrised.

    Args:
        k: active latents per row.
    """
    like = ot.gba()
    return replace(
        ot.topk(k),
        name=f"topk-like-gba-{k}",
        rules=(ot.UnitNorm(), ot.CentreAtMean()),
        parametrisation=replace(like.parametrisation, bias="trained"),
        lr=like.lr,
    )
