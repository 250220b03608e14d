"""200 steps of ours beside SAELens' and dictionary_learning's own trainers.

Same rows, order, initial weights and optimiser settings. Run with the environment of `make bench-env`:
`.venv-bench/bin/python benchmarks/curves.py`. For every pair first both as they are, then what differs undone piece by piece.
Prints the largest relative difference of the losses over the steps, the first step at which it exceeds 1e-5, and the largest
difference in float64: selections flip on rounding, so float32 alone could not tell noise from a cause.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from objectives import (
    COMMON,
    GATED_NAMES,
    JUMP_NAMES,
    LATENTS,
    ROWS,
    START,
    THEIR_GATED_NAMES,
    WHERE,
    WIDTH,
    D,
    fill,
    live_gate_reconstruction,
    weighted,
)
from peers.dictionary_learning_step import MODULES
from peers.feed import Size
from peers.saelens_step import architecture
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from overtone import (
    L0,
    Dictionary,
    FreshStream,
    GateL1,
    GateReconstruction,
    Matryoshka,
    Method,
    Reconstruction,
    Run,
    TangentGradient,
    ThresholdJumpReLU,
    UnitNorm,
    batch_topk,
    firing,
    gated,
    imbalanced,
    jumprelu,
    matryoshka,
    topk,
)
from overtone.data.stream import Batch
from overtone.ops import Encoded
from overtone.parallel import World
from overtone.rules import RuleState
from overtone.selection import Weight
from overtone.training import TrainState, step_once

STEPS, K, LR, NOISE = 200, 16, 5e-4, 1e-5
PENALTY = 2**-6  # the peers'; a power of two, so that their float32 casts cost float64 nothing
PREFIXES = Matryoshka().prefixes

Step = Callable[[Tensor], float]
"""One training step on a batch, and its loss in the library's own units."""


@dataclass(frozen=True)
class PeersGradient:
    """The gradient in a peer's units, and its norm clipped if they clip.

    Adam moves as far with a multiple of a loss, but for its ε, which is absolute, as is a limit on the norm.

    Args:
        factor: their loss per ours.
        clip: largest norm over all weights; None: any.
    """

    factor: float = 2.0
    clip: float | None = None

    def begin(self, dictionary: Dictionary, sample: Tensor) -> RuleState:
        return {}

    def before_step(self, dictionary: Dictionary) -> None:
        for weight in dictionary.parameters():
            if weight.grad is not None:
                weight.grad.mul_(self.factor)
        if self.clip is not None:
            clip_grad_norm_(dictionary.parameters(), self.clip)

    def after_step(self, dictionary: Dictionary, state: RuleState, codes: Any, step: int) -> RuleState:
        return state


@dataclass(frozen=True)
class LooseTangent(TangentGradient):
    """dictionary_learning's: atoms count as a millionth shorter than they are, so 2e-6 of the parallel gradient stays."""

    @torch.no_grad()
    def before_step(self, dictionary: Dictionary) -> None:
        gradient, atoms = dictionary.W_dec.grad, dictionary.W_dec
        assert gradient is not None
        along = atoms / (atoms.norm(dim=1, keepdim=True) + 1e-6)
        gradient.sub_((gradient * along).sum(1, keepdim=True) * along)


@dataclass(frozen=True)
class PlainThreshold(ThresholdJumpReLU):
    """θ itself is trained, as the peers do, and not its logarithm, as the paper does.

    Args:
        centred: whether the encoder subtracts b_dec.
        upper: whether the penalty sees the kernel's upper half alone.
    """

    centred: bool = True
    upper: bool = False

    def weights(self, latents: int, d: int) -> dict[str, Weight]:
        return {"threshold": Weight(torch.full((latents,), self.start))}

    def encode_shared(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, parts: Sequence[Tensor], W_enc: Tensor, b_enc: Tensor, centre: Tensor, *, world: World, threshold: Tensor
    ) -> Iterator[Encoded]:
        centre = centre if self.centred else torch.zeros_like(centre)
        for encoded in super().encode_shared(parts, W_enc, b_enc, centre, world=world, log_threshold=threshold.log()):
            gate = encoded.gate
            assert gate is not None
            yield encoded._replace(gate=gate.with_values(gate.values * gate.values.detach())) if self.upper else encoded


def saelens(dictionary: Dictionary, name: str, names: dict[str, str], **settings: Any) -> Step:
    """SAETrainer.step, with its defaults but for the learning rate."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

    dtype = str(torch.get_default_dtype()).removeprefix("torch.")
    config = architecture(name, apply_b_dec_to_input=True, dtype=dtype, **settings)(Size(D, LATENTS, ROWS))
    sae = TrainingSAE.get_sae_class_for_architecture(name)(config)
    for weight in sae.parameters():
        weight.data = weight.data.to(torch.get_default_dtype())  # their thresholds are float32 always
    fill(sae, dictionary, names)
    trainer = SAETrainer(SAETrainerConfig(STEPS * ROWS, ROWS, lr=LR, lr_end=LR), sae, iter(()))

    def step(x: Tensor) -> float:
        loss = float(trainer.step(x).loss.detach())
        trainer.n_training_steps += 1
        return loss

    return step


def dictionary_learning(
    dictionary: Dictionary, module: str, trainer: str, names: dict[str, str], **settings: Any
) -> Step:
    """Its trainer's update, without the warm-ups; from step 1, for step 0 would put b_dec at the batch's geometric median."""
    peer = getattr(import_module(f"{MODULES}.{module}"), trainer)(**WHERE | {"warmup_steps": 0}, lr=LR, **settings)
    fill(peer.ae, dictionary, names)
    losses, taken = [], peer.loss

    def loss(*arguments: Any, **options: Any) -> Tensor:  # not all updates give it back
        losses.append(taken(*arguments, **options))
        return losses[-1]

    peer.loss = loss

    def step(x: Tensor) -> float:
        peer.update(len(losses) + 1, x)
        return float(losses[-1].detach())

    return step


class Pair(NamedTuple):
    """One line of the table.

    Attributes:
        title: what is compared.
        method: ours.
        peer: their step, from our initial weights.
        factor: their loss per ours.
        betas: of both Adams.
    """

    title: str
    method: Method
    peer: Callable[[Dictionary], Step]
    factor: float = 2.0
    betas: tuple[float, float] = (0.9, 0.999)


def ours(pair: Pair, dictionary: Dictionary) -> Step:
    """overtone's own training step, under torch's Adam with their settings."""
    run = Run(pair.method, latents=LATENTS, steps=STEPS, batch=ROWS, lr=LR, decay=0.0)
    weights = [p for p in dictionary.parameters() if p.requires_grad]
    rules = [rule.begin(dictionary, torch.empty(0, D)) for rule in pair.method.rules]
    adam = torch.optim.Adam(weights, lr=LR, betas=pair.betas)
    state = TrainState(dictionary, adam, rules, firing.empty(LATENTS), torch.zeros(()))

    def step(x: Tensor) -> float:
        state.window_loss = torch.zeros(())
        step_once(run, state, Batch(x, x))
        return float(state.window_loss) * pair.factor

    return step


@cache
def batches() -> list[Tensor]:
    """Sparse mixtures of known features."""
    return [batch.x for batch in islice(FreshStream(imbalanced(d=D), ROWS), STEPS)]


def differences(pair: Pair, dtype: torch.dtype) -> list[float]:
    """Relative difference of the losses at every step."""
    torch.set_default_dtype(dtype)
    dictionary = weighted(pair.method.select)
    if isinstance(pair.method.select, PlainThreshold):
        dictionary.get_parameter("threshold").data.clamp_(
            min=START
        )  # so that none falls below 0, which has no logarithm
    UnitNorm().project(dictionary)
    peer, own = pair.peer(dictionary), ours(pair, dictionary)
    found = []
    for rows in batches():
        x = rows.to(dtype)
        theirs = peer(dictionary.normalise(x)[0])
        found.append(abs(own(x) / theirs - 1))
    torch.set_default_dtype(torch.float32)
    return found


def report(pair: Pair) -> None:
    single, double = differences(pair, torch.float32), differences(pair, torch.float64)
    leaves = next((f"{step}" for step, difference in enumerate(single, 1) if difference > NOISE), "–")
    print(f"{pair.title:58} {max(single):8.0e} {leaves:>6} {max(double):8.0e}", flush=True)


TOPK_NAMES = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "b_dec"}
BIASED = {**COMMON, "b_enc": "b_enc"}
PLAIN_NAMES = {**BIASED, "threshold": "threshold"}
CLIPPED = PeersGradient(clip=1.0)


UNIT = (TangentGradient(), CLIPPED, UnitNorm())
LOOSE = (LooseTangent(), CLIPPED, UnitNorm())


def saelens_topk(name: str, method: Method, factor: float = 2.0, **settings: Any) -> Iterator[Pair]:
    peer = partial(saelens, name=name, names=BIASED, k=K, **settings)
    clipped = PeersGradient(factor, 1.0)
    yield Pair(f"SAELens {name}", method, peer, factor)
    yield Pair("  gradients clipped", replace(method, rules=(clipped, UnitNorm())), peer, factor)
    free = replace(method, rules=(clipped,))
    yield Pair("  and atoms of any norm", free, peer, factor)
    unscaled = partial(peer, rescale_acts_by_decoder_norm=False)
    yield Pair("  and theirs not selecting by the atoms' norms", free, unscaled, factor)


def dictionary_learning_topk(
    module: str, trainer: str, names: dict[str, str], method: Method, factor: float = 2.0, **settings: Any
) -> Iterator[Pair]:
    peer = partial(dictionary_learning, module=module, trainer=trainer, names=names, k=K, **settings)
    yield Pair(f"dictionary_learning {module}", method, peer, factor)
    tangent, clipped = replace(method, rules=(TangentGradient(), UnitNorm())), PeersGradient(factor, 1.0)
    yield Pair("  gradients along the sphere", tangent, peer, factor)
    yield Pair("  and clipped", replace(method, rules=(TangentGradient(), clipped, UnitNorm())), peer, factor)
    yield Pair(
        "  and with 2e-6 of the rest", replace(method, rules=(LooseTangent(), clipped, UnitNorm())), peer, factor
    )


def saelens_gates() -> Iterator[Pair]:
    method = replace(jumprelu(start=START, bandwidth=WIDTH), losses=(Reconstruction(), L0(PENALTY / 2)))
    peer = partial(saelens, name="jumprelu", names=JUMP_NAMES, jumprelu_bandwidth=WIDTH, l0_coefficient=PENALTY)
    yield Pair("SAELens jumprelu", method, peer)
    free = replace(method, rules=(CLIPPED,))
    yield Pair("  gradients clipped, atoms of any norm", free, peer)
    plain = partial(peer, names=PLAIN_NAMES)
    yield Pair("  and θ trained, not its logarithm", replace(free, select=PlainThreshold(START, WIDTH)), plain)
    method = replace(gated(), losses=(Reconstruction(), GateReconstruction(), GateL1(PENALTY / 2)))
    peer = partial(saelens, name="gated", names=GATED_NAMES, l1_coefficient=PENALTY)
    yield Pair("SAELens gated", method, peer)
    free = replace(method, rules=(CLIPPED,))
    yield Pair("  gradients clipped, atoms of any norm", free, peer)
    alive = (Reconstruction(), live_gate_reconstruction, GateL1(PENALTY / 2))
    yield Pair("  and the auxiliary loss training the decoder", replace(free, losses=alive), peer)


def dictionary_learning_gates() -> Iterator[Pair]:
    betas = (0.0, 0.999)
    method = replace(jumprelu(start=START, bandwidth=WIDTH), losses=(Reconstruction(), L0(PENALTY / 2, K)))
    settings = {"bandwidth": WIDTH, "sparsity_penalty": PENALTY, "target_l0": K, "sparsity_warmup_steps": None}
    peer = partial(dictionary_learning, module="jumprelu", trainer="JumpReluTrainer", names=JUMP_NAMES, **settings)
    yield Pair("dictionary_learning jumprelu", method, peer, 2.0, betas)
    unit = replace(method, rules=UNIT)
    yield Pair("  gradients clipped", unit, peer, 2.0, betas)
    plain, select = partial(peer, names=PLAIN_NAMES), PlainThreshold(START, WIDTH)
    yield Pair("  and θ trained, not its logarithm", replace(unit, select=select), plain, 2.0, betas)
    select = replace(select, centred=False)
    yield Pair("  and the encoder without b_dec", replace(unit, select=select), plain, 2.0, betas)
    select = replace(select, upper=True)
    yield Pair("  and the penalty's upper half of the kernel", replace(unit, select=select), plain, 2.0, betas)
    loose = replace(unit, rules=LOOSE, select=select)
    yield Pair("  and with 2e-6 of the gradient off the sphere", loose, plain, 2.0, betas)
    method = replace(gated(), losses=(Reconstruction(), GateReconstruction(), GateL1(PENALTY / 2)))
    settings = {"l1_penalty": PENALTY, "sparsity_warmup_steps": None}
    peer = partial(dictionary_learning, module="gdm", trainer="GatedSAETrainer", names=THEIR_GATED_NAMES, **settings)
    yield Pair("dictionary_learning gdm", method, peer, 2.0, betas)
    doubled = replace(method, rules=(TangentGradient(), PeersGradient(), UnitNorm()))
    yield Pair("  gradients of the loss without ½", doubled, peer, 2.0, betas)


def pairs() -> Iterator[Pair]:
    shares, groups = [b - a for a, b in pairwise((0.0, *PREFIXES))], len(PREFIXES)
    widths = [round(share * LATENTS) for share in PREFIXES]
    yield from saelens_topk("topk", topk(K))
    yield from saelens_topk("batchtopk", batch_topk(K))
    # Theirs is the sum over prefixes, ours the mean.
    yield from saelens_topk("matryoshka_batchtopk", matryoshka(K), 2.0 * groups, matryoshka_widths=widths)
    yield from dictionary_learning_topk("top_k", "TopKTrainer", TOPK_NAMES, topk(K))
    yield from dictionary_learning_topk("batch_top_k", "BatchTopKTrainer", TOPK_NAMES, batch_topk(K))
    # Theirs is the mean over groups of losses that already are divided by their number.
    nested = ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", BIASED, matryoshka(K), 2.0 / groups)
    yield from dictionary_learning_topk(*nested, group_fractions=shares)
    yield from saelens_gates()
    yield from dictionary_learning_gates()


def main() -> None:
    print(f"{'':58} {'float32':>8} {'leaves':>6} {'float64':>8}")
    for pair in pairs():
        report(pair)


if __name__ == "__main__":
    main()
