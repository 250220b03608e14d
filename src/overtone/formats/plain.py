"""A dictionary as other tools know it, between overtone's and every file format: each scale and centre folded once, here."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from overtone.dictionary import Dictionary
from overtone.gating import Gated, LatentThreshold, ThresholdJumpReLU
from overtone.layout import Block, Layout
from overtone.parametrisation import Parametrisation
from overtone.selection import (
    AbsTopK,
    BatchTopK,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    Selection,
    Threshold,
    TopK,
)


class FormatError(ValueError):
    """A dictionary that a format cannot hold, or a file that is not what it should be."""


@dataclass(frozen=True)
class Plain:
    """u = W_enc (x̃ − centre) + b_enc, z = φ(u), x̂ = Σ_m z_m w_m + b_dec [+ W_skip x̃] (maths.md eq. F1).

    No output scales, no scales of sites, codes in the units of the rows that the tool itself works on.

    Args:
        W_enc, b_enc, W_dec, b_dec: weights; encoder rows and atoms are rows.
        select: φ, one of `SELECTIONS`.
        own: its weights by overtone's names.
        centred: the centre is b_dec; otherwise 0.
        rms: rows are scaled to norm √d, and reconstructions back by the same number (not those of a transcoder).
        sites: names of what is read and what is reconstructed; one name: an autoencoder.
        W_skip: linear path of a transcoder.
    """

    W_enc: Float[Tensor, "latents d"]
    b_enc: Float[Tensor, " latents"]
    W_dec: Float[Tensor, "latents d_out"]
    b_dec: Float[Tensor, " d_out"]
    select: Selection
    own: dict[str, Tensor] = field(default_factory=dict)
    centred: bool = True
    rms: bool = False
    sites: tuple[str, ...] = ("",)
    W_skip: Float[Tensor, "d_out d"] | None = None

    @property
    def transcoder(self) -> bool:
        """Whether another site is reconstructed than is read."""
        return len(self.sites) > 1

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | self.own
        return named if self.W_skip is None else named | {"W_skip": self.W_skip}


SELECTIONS = (ReLU, LatentThreshold, TopK, AbsTopK, GroupMax, BatchTopK, Gated, MatchingPursuit)


def fold(dictionary: Dictionary) -> Plain:
    """The plain form of a dictionary: the same reconstructions, and codes that are s times overtone's (maths.md eq. F2).

    s = √d where rows are scaled to unit norm, since tools that normalise rows do so to norm √d; the scale of the site where
    sites have one; else 1. Encoder rows stay as they are, and so do atoms but for their output scales.

    Raises:
        FormatError: crosscoders, selections that no other tool has.
    """
    layout, p = dictionary.layout, dictionary.parametrisation
    if len(layout.reads) > 1 or len(layout.reconstructs) > 1:
        raise FormatError(
            f"a crosscoder or transcoder of several sites ({layout}) has no place in the formats of other tools, which hold one "
            "site each; keep it with overtone.save, or train one dictionary per site"
        )
    if p.skip and p.per_row:
        raise FormatError(
            f"the linear path of this transcoder reads rows divided by their norms (input_norm={p.input_norm!r}), other tools' "
            "reads them as they are; train it with input_norm='site' or 'none', as overtone.transcoder does"
        )
    if p.input_norm == "root":
        raise FormatError(
            "no other tool divides rows by the root of their norm (input_norm='root'), so this dictionary cannot be exported; "
            "keep it with overtone.save, or train with input_norm='row' or 'site', as gba_universal(input_norm='row') does"
        )
    s, out = _scales(dictionary)
    plain = Plain(
        W_enc=dictionary.W_enc.detach(),
        b_enc=_times(dictionary.b_enc, s),
        W_dec=_times(dictionary.effective_atoms, out / s),
        b_dec=_times(dictionary.b_dec, out),
        select=ReLU(),
        centred=layout.onto_itself and p.centre != "none",
        rms=p.per_row,
        sites=tuple(block.site for block in (*layout.reads, *(layout.writes or ()))),
        W_skip=_times(dictionary.W_skip, out / s) if p.skip else None,
    )
    plain = _with_selection(plain, dictionary, s)
    return plain if plain.centred else _moved(plain, _times(dictionary.centre, s), -1)


def _scales(dictionary: Dictionary) -> tuple[float, float]:
    """What turns overtone's units into the tool's: of what is read and of codes, and of what is reconstructed."""
    p = dictionary.parametrisation
    s = dictionary.d**0.5 if p.input_norm == "row" else 1.0
    if p.input_norm == "site" and dictionary.read_scale is not None:
        s = float(dictionary.read_scale[0])
    if dictionary.layout.onto_itself:
        return s, s
    return s, 1.0 if dictionary.write_scale is None else float(dictionary.write_scale[0])


def _with_selection(plain: Plain, dictionary: Dictionary, s: float) -> Plain:
    select, zero = dictionary.select, torch.zeros_like(plain.b_enc)
    if isinstance(select, JumpReLU):
        if (plain.b_enc > 0).any():
            worst = int(dictionary.b_enc.argmax())
            raise FormatError(
                f"latent {worst} has a bias of {float(dictionary.b_enc[worst]):g} > 0, so its codes may be negative; JumpReLU "
                "elsewhere has none. Keep biases at or below 0, as bias adaptation does"
            )
        return replace(plain, b_enc=zero, select=LatentThreshold(), own={"thresholds": -plain.b_enc})
    if isinstance(select, Threshold):
        own = {"thresholds": torch.full_like(zero, select.tau * s)}
        return replace(plain, b_enc=zero, select=LatentThreshold(), own=own)
    if isinstance(select, ThresholdJumpReLU):
        threshold = dictionary.get_parameter("log_threshold").detach().exp()
        return replace(plain, select=LatentThreshold(), own={"thresholds": _times(threshold, s)})
    if isinstance(select, MatchingPursuit) and select.residual is not None:
        select = replace(select, residual=select.residual * s)
    if not isinstance(select, SELECTIONS):
        raise FormatError(
            f"{select} exists in overtone alone and in no other tool's format; keep the dictionary with overtone.save, or train "
            "one that selects by JumpReLU, ReLU or TopK"
        )
    own = {name: dictionary.get_parameter(name).detach() for name in dictionary.own_weights}
    return replace(plain, select=select, own={n: w if n == "r_mag" else _times(w, s) for n, w in own.items()})


def recentred(plain: Plain, centred: bool) -> Plain:
    """The same dictionary with b_dec subtracted from what is read, or without (maths.md eq. F3)."""
    if plain.centred == centred:
        return plain
    moved = _moved(plain, plain.b_dec, 1 if centred else -1)
    return replace(moved, centred=centred)


def _moved(plain: Plain, by: Tensor, sign: int) -> Plain:
    """Encoder biases (and what a linear path adds) for a centre that moves from 0 to `by`, or with −1 back."""
    if not by.any():
        return plain
    if isinstance(plain.select, MatchingPursuit):
        raise FormatError(
            "matching pursuit has no encoder bias that could take up its centre; give it a b_dec that is subtracted from its rows"
        )
    shift = sign * (plain.W_enc.double() @ by.double())
    own = dict(plain.own)
    if isinstance(plain.select, Gated):
        own["b_mag"] = _plus(own["b_mag"], own["r_mag"].double().exp() * shift)
    moved = replace(plain, b_enc=_plus(plain.b_enc, shift), own=own)
    if plain.W_skip is None:
        return moved
    return replace(moved, b_dec=_plus(plain.b_dec, sign * (plain.W_skip.double() @ by.double())))


def unfold(plain: Plain) -> Dictionary:
    """The dictionary of a plain form, its tensors bit for bit.

    Thresholds without encoder biases become the steered JumpReLU, whose bias is their negative.
    """
    select, own, b_enc = plain.select, dict(plain.own), plain.b_enc
    steered = isinstance(select, LatentThreshold) and not b_enc.any() and bool((own["thresholds"] >= 0).all())
    if steered:
        select, b_enc, own = JumpReLU(), -own["thresholds"], {}
    pursuit = isinstance(select, MatchingPursuit)
    parametrisation = Parametrisation(
        tied=pursuit,
        scale=False,
        bias="steered" if steered or pursuit else "trained",
        centre="trained" if plain.centred else "none",
        input_norm="rms" if plain.rms else "none",
        skip=plain.W_skip is not None,
    )
    (latents, d), d_out = plain.W_enc.shape, plain.W_dec.shape[1]
    reads = (Block(plain.sites[0], d),)
    layout = Layout(reads, (Block(plain.sites[1], d_out),)) if plain.transcoder else Layout(reads)
    dictionary = Dictionary(layout, latents, select, parametrisation).to(plain.W_dec.dtype)
    values = {**plain.tensors(), **own, "b_enc": b_enc}
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    return dictionary


def _times(tensor: Tensor, factor: float) -> Tensor:
    """Rounded once; bits stay where the factor is 1."""
    tensor = tensor.detach()
    return tensor if factor == 1 else (tensor.double() * factor).to(tensor.dtype)


def _plus(tensor: Tensor, shift: Tensor) -> Tensor:
    return (tensor.double() + shift).to(tensor.dtype)
