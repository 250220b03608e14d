"""The dictionary: pre-activations, codes and reconstructions. Atoms are rows of `W_dec`."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overtone.seeds import generator
from overtone.selection import JumpReLU, Selection


class Codes(NamedTuple):
    """What a dictionary says of some rows.

    Attributes:
        pre: pre-activations y, in units of the normalised input; a latent is active iff y > 0 (and selected).
        z: codes φ(y), non-negative, same units.
        norm: the Euclidean norm each input row was divided by (1 where inputs are not normalised): `decode` multiplies
            by it, so that reconstructions come back in the units of the input.
    """

    pre: Float[Tensor, "*batch latents"]
    z: Float[Tensor, "*batch latents"]
    norm: Float[Tensor, "*batch 1"]


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
    """

    tied: bool = True
    scale: bool = True
    bias: Literal["steered", "trained"] = "steered"
    centre: Literal["trained", "fixed"] = "trained"
    input_norm: Literal["row", "none"] = "row"

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
        """Codes of rows that `normalise` has already scaled."""
        # b_dec is folded into the bias: no shifted copy of the batch, one matrix product.
        bias = self.b_enc - self.W_enc @ self.b_dec
        pre = nn.functional.linear(x.reshape(-1, self.d), self.W_enc, bias)
        z = self.select(pre, self.b_enc)
        shape = (*x.shape[:-1], self.latents)
        return Codes(pre.reshape(shape), z.reshape(shape), norm)

    def decode_normalised(self, z: Float[Tensor, "*batch latents"]) -> Float[Tensor, "*batch d"]:
        """Reconstruction in the units the dictionary works in: affine in the codes."""
        return (z if self.scale is None else z * self.scale) @ self.W_dec + self.b_dec

    def decode(self, codes: Codes) -> Float[Tensor, "*batch d"]:
        """Reconstruction in the units of the data."""
        return self.decode_normalised(codes.z) * codes.norm

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Reconstruction of rows, in the units of the data."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """`forward` without gradients."""
        return self(x)

    @property
    def effective_atoms(self) -> Float[Tensor, "latents d"]:
        """a_m w_m: what one unit of code adds to the reconstruction."""
        return self.W_dec if self.scale is None else self.W_dec * self.scale[:, None]
