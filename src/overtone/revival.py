"""After-step rules for latents that have stopped firing: counting them, and putting them where the reconstruction is worst."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overtone.dictionary import Codes, Dictionary
from overtone.rules import RuleState
from overtone.seeds import generator
from overtone.selection import WeightedSelection


@dataclass(frozen=True)
class CountIdle:
    """dictionary.idle: rows since each latent last fired. Losses and rules for dead latents go by it."""

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """No state: the dictionary keeps the count."""
        dictionary.dead(1)
        return {}

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Count this step's rows."""
        dictionary.idle.add_(codes.seen.rows).masked_fill_(codes.seen.alive, 0)
        return state


@dataclass(frozen=True)
class DeadResampling:
    """Every `interval` steps, dead latents become rows of the batch, drawn in proportion to their squared error.

    As in Bricken et al. 2023, *Towards Monosemanticity*: a dead latent's atom is the unit vector of x − b_dec, its encoder row
    that vector times 0.2 of the mean norm of living ones (untied dictionaries); its trained bias is 0, its other trained weights
    are at their start, and the optimiser forgets it (`Resampling`). At most as many latents as the batch has rows are drawn.

    Args:
        interval: steps.
        after: rows without firing after which a latent is dead.
        until: no resampling after this step; a run should end with a stretch without.
        share: of the mean norm of living encoder rows.
        seed: of the draws.
    """

    interval: int
    after: int
    until: int
    share: float = 0.2
    seed: int = 0

    def __post_init__(self):
        for name in ("interval", "after", "until"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.share > 0:
            raise ValueError(f"share={self.share} of the living rows' norm must be positive")

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """None resampled yet."""
        if not dictionary.layout.onto_itself:
            raise ValueError(
                f"DeadResampling puts atoms at badly reconstructed rows, and {dictionary.layout} does not reconstruct what it "
                "reads; use AuxK"
            )
        return {"resampled": torch.zeros_like(dictionary.dead(self.after))}

    def forgotten(self, state: RuleState) -> Bool[Tensor, " latents"]:
        """Latents resampled in this step."""
        return state["resampled"]

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Resample, at its steps."""
        resampled = torch.zeros_like(state["resampled"])
        if step % self.interval or step > self.until or codes.x is None:
            return {"resampled": resampled}
        ranks = dictionary.world.rows
        error = ranks.concatenate((codes.x - dictionary.decode_normalised(codes.entries)).square().sum(1))
        [dead] = dictionary.dead(self.after).nonzero(as_tuple=True)
        dead = dead[: int((error > 0).sum())]
        if len(dead):
            drawn = torch.multinomial(error.cpu().double(), len(dead), generator=generator(self.seed, "rows", step))
            rows = ranks.concatenate(codes.x)[drawn.to(dead.device)]
            self._place(dictionary, dead, rows - dictionary.centre)
            resampled[dead] = True
        return {"resampled": resampled}

    def _place(self, dictionary: Dictionary, dead: Tensor, towards: Float[Tensor, "dead d"]) -> None:
        """Put dead latents at these rows."""
        directions = torch.nn.functional.normalize(towards, dim=1)
        if not dictionary.parametrisation.tied:
            living = ~dictionary.dead(self.after)
            norm = dictionary.W_enc[living].norm(dim=1).mean() if living.any() else dictionary.W_enc.norm(dim=1).mean()
            dictionary.W_enc[dead] = directions * norm * self.share
        dictionary.W_dec[dead] = directions
        if dictionary.parametrisation.bias == "trained":
            dictionary.b_enc[dead] = 0
        if dictionary.scale is not None:
            dictionary.scale[dead] = 1
        if isinstance(dictionary.select, WeightedSelection):
            for name, weight in dictionary.select.weights(dictionary.latents, dictionary.d).items():
                if weight.trained and weight.start.shape[:1] == (dictionary.latents,):
                    dictionary.get_parameter(name)[dead] = weight.start.to(dictionary.W_dec)[dead]
        dictionary.idle[dead] = 0
