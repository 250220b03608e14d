"""Trained JumpReLU and Gated against SAELens' and dictionary_learning's own: codes, loss and gradients on identical weights.

Run with the environment of `make bench-env`: `.venv-bench/bin/python benchmarks/objectives.py`. Prints the largest relative
difference of each. The peers have no ½ before squared errors: their losses and gradients are halved, with coefficients doubled.
"""

import torch
from peers.no_images import tolerate_torchvision
from torch import Tensor

from overtone import (
    L0,
    Codes,
    Dictionary,
    Gated,
    GateL1,
    GateReconstruction,
    LossTerm,
    Parametrisation,
    PreActivation,
    Reconstruction,
    Selection,
    TangentGradient,
    Tanh,
    ThresholdJumpReLU,
)
from overtone.losses import total
from overtone.ops import half_square_error

tolerate_torchvision()

from dictionary_learning.trainers.gdm import GatedSAETrainer  # noqa: E402 – cannot be imported before
from dictionary_learning.trainers.jumprelu import JumpReluTrainer  # noqa: E402
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig  # noqa: E402
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig  # noqa: E402
from sae_lens.saes.sae import TrainStepInput  # noqa: E402

D, LATENTS, ROWS = 64, 512, 256
START, WIDTH = 0.15, 0.1


def weighted(select: Selection, *, centre: bool = True) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    dictionary = Dictionary(D, LATENTS, select, Parametrisation(False, False, "trained"))
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            if centre or name != "b_dec":
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return dictionary


def ours(dictionary: Dictionary, terms: tuple[LossTerm, ...], x: Tensor) -> dict[str, Tensor]:
    codes = dictionary.encode_batch(x, torch.ones_like(x[:, :1]))
    loss = total(terms, dictionary, codes, x)
    loss.backward()
    gradients = {name: weight.grad for name, weight in dictionary.named_parameters() if weight.grad is not None}
    if "log_threshold" in gradients:  # the peers train θ itself
        gradients["threshold"] = gradients.pop("log_threshold") / dictionary.get_parameter("log_threshold").exp()
    return {"codes": codes.z, "loss": loss, **gradients}


def report(title: str, own: dict[str, Tensor], peer: dict[str, Tensor]) -> None:
    differences = {
        name: float((own[name] - value).detach().norm() / value.detach().norm().clamp(min=1e-12))
        for name, value in peer.items()
    }
    print(f"{title:44} " + "  ".join(f"{name} {difference:.0e}" for name, difference in differences.items()))


def live_gate_reconstruction(dictionary: Dictionary, codes: Codes, target: Tensor) -> Tensor:
    """The auxiliary reconstruction with gradients to the decoder."""
    assert codes.gate is not None
    return half_square_error(dictionary.decode_normalised(codes.gate), target)


def gradient_of(weights: torch.nn.Module, name: str) -> Tensor:
    gradient = weights.get_parameter(name).grad
    assert gradient is not None
    return gradient


def fill(peer: torch.nn.Module, dictionary: Dictionary, names: dict[str, str]) -> None:
    with torch.no_grad():
        for own, theirs in names.items():
            value = dictionary.get_parameter(own)
            target = peer.get_parameter(theirs)
            value = value.exp() if own == "log_threshold" else value
            target.copy_(value if value.shape == target.shape else value.T)


def gradients(peer: torch.nn.Module, names: dict[str, str], dictionary: Dictionary) -> dict[str, Tensor]:
    found = {}
    for own, theirs in names.items():
        grad = gradient_of(peer, theirs)
        shape = dictionary.get_parameter(own).shape
        name = "threshold" if own == "log_threshold" else own
        found[name] = (grad if grad.shape == shape else grad.T) / 2
    return found


COMMON = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
JUMP_NAMES = {**COMMON, "b_enc": "b_enc", "log_threshold": "threshold"}
GATED_NAMES = {**COMMON, "b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
THEIR_GATED_NAMES = {  # dictionary_learning's
    "W_enc": "encoder.weight",
    "W_dec": "decoder.weight",
    "b_dec": "decoder_bias",
    "b_enc": "gate_bias",
    "r_mag": "r_mag",
    "b_mag": "mag_bias",
}
WHERE = {"steps": 1000, "activation_dim": D, "dict_size": LATENTS, "layer": 0, "lm_name": "", "device": "cpu"}


def saelens(title: str, peer, dictionary: Dictionary, names: dict, coefficients: dict, terms: tuple, x: Tensor) -> None:
    fill(peer, dictionary, names)
    everything_dead = torch.ones(LATENTS, dtype=torch.bool)  # then their pre-activation loss is Anthropic's
    output = peer.training_forward_pass(TrainStepInput(x, coefficients, everything_dead, 0, False))
    output.loss.backward()
    found = {"codes": output.feature_acts, "loss": output.loss / 2, **gradients(peer, names, dictionary)}
    report(title, ours(dictionary, terms, x), found)


def main() -> None:
    x = torch.nn.functional.normalize(torch.randn(ROWS, D, generator=torch.Generator().manual_seed(1)), dim=1)
    jump, common = ThresholdJumpReLU(START, WIDTH), {"d_in": D, "d_sae": LATENTS, "apply_b_dec_to_input": True}
    step = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**common, jumprelu_bandwidth=WIDTH))
    terms = (Reconstruction(), L0(0.01))
    saelens("SAELens jumprelu, step", step, weighted(jump), JUMP_NAMES, {"l0": 0.02}, terms, x)
    options = {"jumprelu_sparsity_loss_mode": "tanh", "pre_act_loss_coefficient": 0.006}
    tanh = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**common, jumprelu_bandwidth=WIDTH, **options))
    terms = (Reconstruction(), Tanh(0.01, 4.0), PreActivation(0.003))
    saelens("SAELens jumprelu, tanh and pre-activation", tanh, weighted(jump), JUMP_NAMES, {"l0": 0.02}, terms, x)
    gated = GatedTrainingSAE(GatedTrainingSAEConfig(**common))
    terms = (Reconstruction(), GateReconstruction(), GateL1(0.01))
    saelens("SAELens gated", gated, weighted(Gated()), GATED_NAMES, {"l1": 0.02}, terms, x)
    gated.zero_grad()
    alive = (Reconstruction(), live_gate_reconstruction, GateL1(0.01))
    saelens("  with a decoder that is not frozen", gated, weighted(Gated()), GATED_NAMES, {"l1": 0.02}, alive, x)

    once = WHERE | {"warmup_steps": 1, "sparsity_warmup_steps": None}
    dictionary, names = weighted(Gated()), THEIR_GATED_NAMES
    trainer = GatedSAETrainer(**once, l1_penalty=0.02)
    with torch.no_grad():
        dictionary.W_dec.div_(dictionary.W_dec.norm(dim=1, keepdim=True))
    fill(trainer.ae, dictionary, names)
    loss = trainer.loss(x, 50)
    loss.backward()
    found = {"codes": trainer.ae.encode(x), "loss": loss / 2, **gradients(trainer.ae, names, dictionary)}
    own = ours(dictionary, terms, x)
    report("dictionary_learning gated", own, found)
    # Their L1 has no decoder norms, which are 1; of these norms' gradient their optimiser, too, would remove everything.
    TangentGradient().before_step(dictionary)
    atoms = dictionary.W_dec.detach()
    found["W_dec"] -= (found["W_dec"] * atoms).sum(1, keepdim=True) * atoms
    report("  along the sphere", own | {"W_dec": gradient_of(dictionary, "W_dec")}, {"W_dec": found["W_dec"]})

    dictionary = weighted(jump, centre=False)  # their encoder subtracts no centre
    trainer = JumpReluTrainer(**once, bandwidth=WIDTH, sparsity_penalty=0.02, target_l0=20.0)
    fill(trainer.ae, dictionary, JUMP_NAMES)
    loss = trainer.loss(x, 50)
    loss.backward()
    own = ours(dictionary, (Reconstruction(), L0(0.01, 20.0)), x)
    names = {own: theirs for own, theirs in JUMP_NAMES.items() if own != "b_dec"}
    found = {"loss": loss / 2, **gradients(trainer.ae, names, dictionary)}
    report("dictionary_learning jumprelu, target L0", own, found)
    # Their step is taken of codes, which are 0 below θ: of the kernel's two halves they see the upper.
    y, threshold = dictionary.pre_activations(x), dictionary.get_parameter("log_threshold").exp()
    lower = ((y < threshold) & (y > threshold - WIDTH / 2)).sum(0) / (WIDTH * ROWS)
    l0 = float((y > threshold).sum(1).float().mean())
    own["threshold"] = own["threshold"] + 0.01 * 2 * (l0 / 20 - 1) / 20 * lower
    report("  with the upper half of the kernel", own, {"threshold": found["threshold"]})


if __name__ == "__main__":
    main()
