"""The dictionary: pre-activations, codes and reconstructions. Atoms are rows of `W_dec`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overtone import firing, ops
from overtone.firing import FiringStats
from overtone.ops import AnyCodes, DenseCodes, Encoded
from overtone.seeds import generator
from overtone.selection import BatchSelection, JumpReLU, Selection, WeightedSelection


class Codes(NamedTuple):
    """What a dictionary says of some rows.

    Attributes:
        entries: the active latents of every row with their codes z = φ(y), in units of the normalised input; rows are
            those of the batch, its leading axes laid end to end.
        norm: the Euclidean norm each input row was divided by (1 where inputs are not normalised): `decode` multiplies
            by it, so that reconstructions come back in the units of the input.
        seen: how often each latent fired on these rows, and its peak.
        gate: what `ops.Encoded.gate` says: differentiable gates, of selections that have them.
        x: the rows in units of the normalised input, for losses that look at more of them than their codes; kept by
            `Dictionary.encode_batch` alone.
    """

    entries: AnyCodes
    norm: Float[Tensor, "*batch 1"]
    seen: FiringStats
    gate: AnyCodes | None = None
    x: Float[Tensor, "rows d"] | None = None

    @property
    def z(self) -> Float[Tensor, "*batch latents"]:
        """Codes with their zeros, to be read; `with_z` changes them. Gradients pass."""
        return self.entries.dense().unflatten(0, self.norm.shape[:-1] or (1,)).reshape(*self.norm.shape[:-1], -1)

    def with_z(self, z: Float[Tensor, "*batch latents"]) -> "Codes":
        """Other codes for the same rows: steering, ablating and patching latents. `seen` stays what was seen."""
        if z.shape[:-1] != self.norm.shape[:-1] or z.shape[-1] != self.entries.latents_total:
            wanted = (*self.norm.shape[:-1], self.entries.latents_total)
            raise ValueError(f"z has shape {tuple(z.shape)}; these codes are {wanted}")
        return self._replace(entries=DenseCodes(z.reshape(-1, z.shape[-1])))


@dataclass(frozen=True)
class Parametrisation:
    """Which weights a dictionary has.

    Args:
        tied: encoder rows are the atoms themselves (W_enc = W_dec).
        scale: an output scale a_m per latent, trained from 1 (maths.md eq. 1); without it a_m = 1.
        bias: "steered" – the encoder bias gets no gradient and belongs to an after-step rule; "trained" – it is a
            parameter like any other.
        centre: "trained" – b_dec is a parameter; "fixed" – it stays where the rules put it at the start (0 if none does).
        input_norm: "row" – every input row is scaled to unit norm; "none" – inputs are taken as they are.
        counts_idle: whether the dictionary keeps count, in `idle`, of the rows since each latent last fired (the rule
            `CountIdle` does the counting): what losses and rules for dead latents go by.
    """

    tied: bool = True
    scale: bool = True
    bias: Literal["steered", "trained"] = "steered"
    centre: Literal["trained", "fixed"] = "trained"
    input_norm: Literal["row", "none"] = "row"
    counts_idle: bool = False

    def __post_init__(self):
        choices = {
            "bias": ("steered", "trained"),
            "centre": ("trained", "fixed"),
            "input_norm": ("row", "none"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")


class Dictionary(nn.Module):
    """f(x) = Σ_m a_m φ(y_m) w_m + b_dec with y = W_enc (x − b_dec) + b_enc (maths.md eq. 1–2).

    Args:
        d: width of the rows, both in and out.
        latents: number of atoms M.
        select: selection rule φ (overtone.selection).
        parametrisation: which weights exist and how inputs are normalised.
        seed: seed of the initial atoms, i.i.d. uniform on the unit sphere.

    Invariances: permuting latents permutes codes and leaves reconstructions alone; with row-normalised input, scaling a
    row scales its reconstruction.
    """

    W_dec: Float[Tensor, "latents d"]
    W_enc: Float[Tensor, "latents d"]
    b_enc: Float[Tensor, " latents"]
    b_dec: Float[Tensor, " d"]
    idle: Int[Tensor, " latents"]

    def __init__(
        self,
        d: int,
        latents: int,
        select: Selection | None = None,
        parametrisation: Parametrisation | None = None,
        *,
        seed: int = 0,
    ):
        super().__init__()
        if d < 1 or latents < 1:
            raise ValueError(f"d={d} and latents={latents} must both be at least 1")
        k = getattr(select, "k", None)
        if k is not None and k > latents:
            raise ValueError(f"k={k} exceeds latents={latents}; lower k or widen the dictionary")
        self.d, self.latents = d, latents
        self.select: Selection = select or JumpReLU()
        self.parametrisation = p = parametrisation or Parametrisation()
        atoms = torch.randn(latents, d, generator=generator(seed, "atoms"))
        self.W_dec = nn.Parameter(atoms / atoms.norm(dim=1, keepdim=True))
        if not p.tied:
            self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(latents), requires_grad=p.bias == "trained")
        self.b_dec = nn.Parameter(torch.zeros(d), requires_grad=p.centre == "trained")
        self.scale = nn.Parameter(torch.ones(latents)) if p.scale else None
        if p.counts_idle:
            self.idle = nn.Parameter(torch.zeros(latents, dtype=torch.int64), requires_grad=False)
        own = self.select.weights(latents, d) if isinstance(self.select, WeightedSelection) else {}
        for name, weight in own.items():
            if hasattr(self, name):
                raise ValueError(
                    f"{self.select} calls a weight {name!r}, which every dictionary has; give it another name"
                )
            setattr(self, name, nn.Parameter(weight.start, requires_grad=weight.trained))
        self.own_weights = tuple(own)

    def __getattr__(self, name: str):
        # Tied dictionaries own one matrix; it answers to both names, so that no other code asks whether it is tied.
        return super().__getattr__("W_dec" if name == "W_enc" and self.parametrisation.tied else name)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"d={self.d}, latents={self.latents}, select={self.select}"

    def normalise(self, x: Float[Tensor, "*batch d"]) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch 1"]]:
        """Rows in the units the dictionary works in, and the norms they were divided by.

        An all-zero row keeps norm 0: its reconstruction is exactly zero.
        """
        if x.shape[-1] != self.d:
            raise ValueError(
                f"input has width {x.shape[-1]}, the dictionary was made for d={self.d}; "
                "pass activations of the site it was trained on"
            )
        x = x.to(self.W_dec.dtype)
        if self.parametrisation.input_norm == "none":
            return x, torch.ones_like(x[..., :1])
        norm = x.norm(dim=-1, keepdim=True)
        return x / norm.clamp(min=torch.finfo(x.dtype).tiny), norm

    def encode(self, x: Float[Tensor, "*batch d"]) -> Codes:
        """Codes of rows in the units of the data."""
        return self.encode_normalised(*self.normalise(x))

    def encode_normalised(self, x: Float[Tensor, "*batch d"], norm: Float[Tensor, "*batch 1"]) -> Codes:
        """Codes of rows that `normalise` has already scaled; each row is coded alone."""
        return self._codes(self.select.encode, x.reshape(-1, self.d), norm)

    def encode_batch(self, x: Float[Tensor, "batch d"], norm: Float[Tensor, "batch 1"]) -> Codes:
        """`encode_normalised` for training: a selection that codes a batch otherwise than rows alone does so here."""
        encode = self.select.encode_batch if isinstance(self.select, BatchSelection) else self.select.encode
        return self._codes(encode, x, norm)._replace(x=x)

    def _codes(self, encode: Callable[..., Encoded], x: Tensor, norm: Tensor) -> Codes:
        own = {name: getattr(self, name) for name in self.own_weights}
        encoded = encode(x, self.W_enc, self.b_enc, self.b_dec, **own)
        return Codes(encoded.codes, norm, firing.observe(encoded), encoded.gate)

    def pre_activations(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch latents"]:
        """y = W_enc (x̃ − b_dec) + b_enc of rows in the units of the data: all of them, B·M numbers."""
        normalised, _ = self.normalise(x)
        return nn.functional.linear(normalised - self.b_dec, self.W_enc, self.b_enc)

    def decode_normalised(self, codes: AnyCodes) -> Float[Tensor, "rows d"]:
        """Reconstruction in the units the dictionary works in: affine in the codes."""
        return ops.decode(self._scaled(codes), self.W_dec, self.b_dec)

    def decode_groups_normalised(self, codes: AnyCodes, sizes: Sequence[int]) -> Float[Tensor, "groups rows d"]:
        """Reconstructions from the last group of latents, the last two, … all: see `overtone.ops.decode_groups`."""
        return ops.decode_groups(self._scaled(codes), self.W_dec, sizes, self.b_dec)

    def decode_parts_normalised(self, codes: AnyCodes, sizes: Sequence[int]) -> Float[Tensor, "groups rows d"]:
        """What every group of latents adds to the reconstruction, first to last, without b_dec."""
        suffixes = ops.decode_groups(self._scaled(codes), self.W_dec, sizes)
        # Each suffix learns through the group it adds, and so does its difference to the one before.
        return torch.cat([suffixes[:1], suffixes[1:] - suffixes[:-1].detach()]).flip(0)

    def _scaled(self, codes: AnyCodes) -> AnyCodes:
        return codes if self.scale is None else codes.scaled(self.scale)

    def decode(self, codes: Codes) -> Float[Tensor, "*batch d"]:
        """Reconstruction in the units of the data."""
        return self.decode_normalised(codes.entries).reshape(*codes.norm.shape[:-1], self.d) * codes.norm

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Reconstruction of rows, in the units of the data."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """`forward` without gradients."""
        return self(x)

    def dead(self, after: int) -> Bool[Tensor, " latents"]:
        """Latents that have not fired for `after` rows of training.

        Raises:
            ValueError: the dictionary does not count them.
        """
        if not self.parametrisation.counts_idle:
            raise ValueError(
                "this dictionary does not know its dead latents; train it with Parametrisation(counts_idle=True) and the rule "
                "CountIdle()"
            )
        return self.idle >= after

    @property
    def effective_atoms(self) -> Float[Tensor, "latents d"]:
        """a_m w_m: what one unit of code adds to the reconstruction."""
        return self.W_dec if self.scale is None else self.W_dec * self.scale[:, None]
