"""Target activation frequencies: the geometric spectrum that Group Bias Adaptation steers its latents to."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PAPER_HTF = 0.5
PAPER_LTF = 1e-3
DIAL_RATIO = 4.0


@dataclass(frozen=True)
class Spectrum:
    """K groups of latents with geometric target frequencies p_1 = HTF … p_K = LTF (maths.md eq. 6).

    Args:
        groups: K, the number of groups. Latents are split evenly, the most frequent group first.
        htf: highest target frequency p_1, in (0, 1). None: the paper's 0.5, or solved from `l0`.
        ltf: lowest target frequency p_K, in (0, htf). None: the paper's 1e-3, or a quarter of HTF where `l0` is given.
        l0: Σ_m p_m, the mean number of active latents if every latent is at its target (maths.md eq. 7). None: whatever htf and
            ltf give.

    With `l0` alone the spectrum spans two octaves (HTF = 4 LTF): at a fixed L0 a wide one spends nearly all activity on its few
    most frequent groups, which costs explained variance (docs/log.md).
    """

    groups: int = 10
    htf: float | None = None
    ltf: float | None = None
    l0: float | None = None

    def __post_init__(self):
        if self.groups < 1:
            raise ValueError(f"groups={self.groups} must be at least 1")
        if self.groups == 1 and self.ltf is not None:
            raise ValueError(f"ltf={self.ltf} is given, but one group has one frequency; give htf or l0 alone")
        if self.htf is not None and self.l0 is not None:
            raise ValueError(
                f"htf={self.htf} and l0={self.l0} both given: L0 decides the highest frequency; drop one of them"
            )
        for name, value in (("htf", self.htf), ("ltf", self.ltf)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name}={value} is a frequency and must lie between 0 and 1 (exclusive)")
        if self.l0 is not None and not 0 < self.l0 < math.inf:
            raise ValueError(f"l0={self.l0} must be positive: it is a mean number of active latents per row")
        if self.l0 is None and self.groups > 1:
            self._check_order()

    def _check_order(self) -> None:
        htf, ltf = self.htf or PAPER_HTF, self.ltf or PAPER_LTF
        if htf <= ltf:
            default = " (the default)"
            names = (f"htf={htf:g}{'' if self.htf else default}", f"ltf={ltf:g}{'' if self.ltf else default}")
            raise ValueError(
                f"{names[0]} must be above {names[1]}: the spectrum falls from the highest to the lowest target frequency; "
                "give both, or use groups=1 (`ba`) for a single frequency"
            )

    def group_of(self, latents: int) -> Int[Tensor, " latents"]:
        """Group index of every latent, 0 = most frequent; sizes differ by at most one."""
        sizes = torch.tensor(group_sizes(latents, self.groups))
        return torch.arange(self.groups).repeat_interleave(sizes)

    def frequencies(self, latents: int) -> Float[Tensor, " groups"]:
        """Target frequency of every group, most frequent first, for a dictionary of `latents` latents.

        With `l0` set the spectrum solves Σ_m p_m = l0.
        """
        if self.l0 is None:
            return _geometric(self.htf or PAPER_HTF, self.ltf or PAPER_LTF, self.groups)
        mean = self.l0 / latents
        weights = torch.tensor(group_sizes(latents, self.groups), dtype=torch.float64) / latents
        if self.ltf is None:
            shape = _geometric(DIAL_RATIO, 1.0, self.groups)
            frequencies = shape * (mean / float(shape @ weights))
            _check_mean(self.l0, latents, mean / float(frequencies[0]))
            return frequencies
        if self.ltf >= mean:
            raise ValueError(
                f"ltf={self.ltf:g} is not below l0/latents={mean:g}: with every latent that frequent L0 exceeds "
                f"l0={self.l0:g}; lower ltf, raise l0 or use fewer latents"
            )
        return _geometric(_solve_htf(mean, self.ltf, weights, self.l0, latents), self.ltf, self.groups)

    def targets(self, latents: int) -> Float[Tensor, " latents"]:
        """Target activation frequency of every latent, float32."""
        return self.frequencies(latents)[self.group_of(latents)].float()


def group_sizes(latents: int, groups: int) -> list[int]:
    """Sizes of `groups` contiguous groups of latents, as even as can be."""
    if groups > latents:
        raise ValueError(
            f"groups={groups} exceeds latents={latents}; lower the number of groups or widen the dictionary"
        )
    return [(g + 1) * latents // groups - g * latents // groups for g in range(groups)]


def _geometric(htf: float, ltf: float, groups: int) -> Float[Tensor, " groups"]:
    if groups == 1:
        return torch.tensor([htf], dtype=torch.float64)
    return htf * (ltf / htf) ** (torch.arange(groups, dtype=torch.float64) / (groups - 1))


def _check_mean(l0: float, latents: int, limit: float) -> None:
    if l0 / latents >= limit:
        raise ValueError(
            f"l0={l0:g} needs a mean frequency of {l0 / latents:g} with latents={latents}, above what the spectrum can give "
            f"({limit:.3g}); lower l0 or widen the dictionary"
        )


def _solve_htf(mean: float, ltf: float, weights: Tensor, l0: float, latents: int) -> float:
    """Bisect HTF so that the group-weighted mean of the geometric spectrum equals `mean` (it rises with HTF)."""
    ceiling = 1 - 1e-9
    _check_mean(l0, latents, float(_geometric(ceiling, ltf, len(weights)) @ weights))
    low, high = ltf, ceiling
    for _ in range(100):
        middle = (low * high) ** 0.5
        below = float(_geometric(middle, ltf, len(weights)) @ weights) < mean
        low, high = (middle, high) if below else (low, middle)
    return high
