"""After-step rules for latents that do nothing: counting how long they have not fired, and putting them where they are needed."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

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
        living = ~dictionary.dead(self.after)
        encoders = dictionary.W_enc[living] if living.any() else dictionary.W_enc
        start_anew(dictionary, dead, towards, self.share * encoders.norm(dim=1).mean())
        dictionary.idle[dead] = 0


@dataclass(frozen=True)
class SurplusResampling:
    """In a stretch of the run, latents that nothing needs go to what the others leave of rows (maths.md eq. 10e).

    Every `interval` steps a latent is surplus if it has not fired since the last look, or if its atom lies within a cosine of
    that of a latent that has fired more often (as often: that comes before it). It then becomes the unit residual of a row of
    the batch, drawn in proportion to its square among those that no atom is near: a feature, or several, that nobody has. Its
    threshold stays; its output scale and what the optimiser remembers of it start anew (`Resampling`).

    Permuting latents permutes which are surplus, but for ties.

    Args:
        interval: steps between looks. A latent of a feature that seldom occurs needs rows enough between them to fire in.
        first, last: where the looks begin and end, as shares of the run; it should end with a stretch without.
        cosine: above which two atoms are one twice.
        near: cosine with an atom from which on a residual is not taken.
        most: largest share of the latents that start anew at a time.
        seed: of the draws.
        looking: whether this step lies in the stretch; `at` sets it.
    """

    interval: int = 200
    first: float = 0.4
    last: float = 0.8
    cosine: float = 0.9
    near: float = 0.7
    most: float = 0.1
    seed: int = 0
    looking: bool = False

    def __post_init__(self):
        if self.interval < 1:
            raise ValueError(f"interval={self.interval} must be at least 1 step")
        if not 0 <= self.first <= self.last <= 1:
            raise ValueError(f"first={self.first} and last={self.last} are shares of the run: 0 ≤ first ≤ last ≤ 1")
        for name in ("cosine", "near", "most"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in (0, 1]")

    def at(self, step: int, steps: int) -> "SurplusResampling":
        """The rule at step 1 … steps."""
        return replace(self, looking=self.first * steps <= step <= self.last * steps)

    def begin(self, dictionary: Dictionary, sample: Float[Tensor, "rows d"]) -> RuleState:
        """Nothing fired or resampled yet."""
        if not dictionary.layout.onto_itself:
            raise ValueError(
                f"SurplusResampling puts atoms at what is left of rows, and {dictionary.layout} does not reconstruct what it "
                "reads; leave the rule out (as overtone.transcoder does)"
            )
        fired = torch.zeros(dictionary.latents, dtype=torch.int64, device=dictionary.W_dec.device)
        return {"fired": fired, "resampled": torch.zeros_like(fired, dtype=torch.bool)}

    def forgotten(self, state: RuleState) -> Bool[Tensor, " latents"]:
        """Latents resampled in this step."""
        return state["resampled"]

    @torch.no_grad()
    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Codes, step: int) -> RuleState:
        """Count; look and resample, at its steps."""
        fired, resampled = state["fired"] + codes.seen.fired, torch.zeros_like(state["resampled"])
        if step % self.interval:
            return {"fired": fired, "resampled": resampled}
        if self.looking and codes.x is not None:
            residual = dictionary.world.rows.concatenate(codes.x - dictionary.decode_normalised(codes.entries))
            free = _nearest(residual, dictionary.W_dec) < self.near
            weight = residual.square().sum(1).double().cpu() * free.cpu()
            [which] = surplus(dictionary.W_dec, fired, self.cosine).nonzero(as_tuple=True)
            room = min(int((weight > 0).sum()), max(1, int(self.most * dictionary.latents)))
            order = torch.randperm(len(which), generator=generator(self.seed, "latents", step))
            which = which[order[:room].to(which.device)]
            if len(which):
                drawn = torch.multinomial(weight, len(which), generator=generator(self.seed, "rows", step))
                start_anew(dictionary, which, residual[drawn.to(which.device)], dictionary.W_enc.norm(dim=1).mean())
                resampled[which] = True
        return {"fired": torch.zeros_like(fired), "resampled": resampled}


ATOMS_PER_BLOCK = 4096


def surplus(
    atoms: Float[Tensor, "latents d"], fired: Int[Tensor, " latents"], cosine: float
) -> Bool[Tensor, " latents"]:
    """Latents that have not fired, or whose atom lies within a cosine of that of one that has fired more often.

    Of latents that fired as often as each other the first is the one that is needed.
    """
    unit, places = normalize(atoms, dim=1), torch.arange(len(atoms), device=atoms.device)
    doubled = torch.empty(len(atoms), dtype=torch.bool, device=atoms.device)
    for block in places.split(ATOMS_PER_BLOCK):
        own, ahead = fired[block, None], places < block[:, None]
        preferred = (fired > own) | ((fired == own) & ahead)
        doubled[block] = ((unit[block] @ unit.T > cosine) & preferred).any(1)
    return doubled | (fired == 0)


def _nearest(rows: Float[Tensor, "rows d"], atoms: Float[Tensor, "latents d"]) -> Float[Tensor, " rows"]:
    """Of every row the largest cosine with an atom."""
    unit = normalize(atoms, dim=1)
    return torch.cat([(part @ unit.T).amax(1) for part in normalize(rows, dim=1).split(ATOMS_PER_BLOCK)])


def start_anew(
    dictionary: Dictionary, latents: Int[Tensor, " some"], towards: Float[Tensor, "some d"], encoder_norm: Tensor
) -> None:
    """Put latents in these directions: unit atoms, encoder rows of that norm if untied; what else they train is at its start."""
    directions = normalize(towards, dim=1)
    if not dictionary.parametrisation.tied:
        dictionary.W_enc[latents] = directions * encoder_norm
    dictionary.W_dec[latents] = directions
    if dictionary.parametrisation.bias == "trained":
        dictionary.b_enc[latents] = 0
    if dictionary.scale is not None:
        dictionary.scale[latents] = 1
    if isinstance(dictionary.select, WeightedSelection):
        for name, weight in dictionary.select.weights(dictionary.latents, dictionary.d).items():
            if weight.trained and weight.start.shape[:1] == (dictionary.latents,):
                dictionary.get_parameter(name)[latents] = weight.start.to(dictionary.W_dec)[latents]
