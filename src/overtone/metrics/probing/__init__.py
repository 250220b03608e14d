"""Interpretability without a judge: what single latents say of labels that are known (maths.md eq. P1–P10)."""
