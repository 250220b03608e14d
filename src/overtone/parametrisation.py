"""Which weights a dictionary has."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Parametrisation:
    """Which weights a dictionary has.

    Args:
        tied: encoder rows are the atoms themselves (W_enc = W_dec).
        scale: an output scale a_m per latent, trained from 1 (maths.md eq. 1); without it a_m = 1.
        bias: "steered" – the encoder bias gets no gradient and belongs to an after-step rule; "trained" – it is a
            parameter like any other.
        centre: "trained" – b_dec is a parameter; "fixed" – it stays where the rules put it at the start (0 if none does);
            "none" – nothing is subtracted from what is read, and b_dec, trained, is added to reconstructions alone.
        input_norm: "row" – every input row is scaled to unit norm; "rms" – to norm √d, a mean square of 1; "site" – every site
            is divided by one number, its typical norm on the first rows; "root" – after that, every row by the root of its norm,
            half-way between the two; "none" – inputs are taken as they are. Where there are several sites, "row" and "rms"
            come after "site", too (maths.md eq. 2b, S1–S2).
        skip: a transcoder has a linear path W_skip (x − centre) beside its latents (maths.md eq. S3).
        counts_idle: whether the dictionary keeps count, in `idle`, of the rows since each latent last fired (the rule
            `CountIdle` does the counting): what losses and rules for dead latents go by.
    """

    tied: bool = True
    scale: bool = True
    bias: Literal["steered", "trained"] = "steered"
    centre: Literal["trained", "fixed", "none"] = "trained"
    input_norm: Literal["row", "rms", "root", "site", "none"] = "row"
    skip: bool = False
    counts_idle: bool = False

    def __post_init__(self):
        choices = {
            "bias": ("steered", "trained"),
            "centre": ("trained", "fixed", "none"),
            "input_norm": ("row", "rms", "root", "site", "none"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")

    @property
    def per_row(self) -> bool:
        """Whether every row is divided by a number of its own."""
        return self.input_norm in ("row", "rms", "root")
