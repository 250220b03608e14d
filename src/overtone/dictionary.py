"""The dictionary: pre-activations, codes and reconstructions. Atoms are rows of `W_dec`."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overtone import firing, ops
from overtone.firing import FiringStats
from overtone.layout import Layout, columns, typical_norms
from overtone.ops import AnyCodes, DenseCodes, Encoded
from overtone.parallel import World
from overtone.parametrisation import Parametrisation
from overtone.protocols import fits
from overtone.seeds import generator
from overtone.selection import (
    BatchSelection,
    JumpReLU,
    RankedSelection,
    Selection,
    SharedSelection,
    WeightedSelection,
)


class Codes(NamedTuple):
    """What a dictionary says of some rows.

    Attributes:
        entries: the active latents of every row with their codes z = φ(y), in units of the normalised input; rows are
            those of the batch, its leading axes laid end to end.
        norm: what `decode` multiplies each row by, so that reconstructions come back in the units of the data: the
            number that the input row was divided by; 1 where rows are not normalised, and for a transcoder.
        seen: how often each latent fired on these rows, and its peak.
        gate: what `ops.Encoded.gate` says: differentiable gates, of selections that have them.
        x: the rows in units of the normalised input, for losses that look at more of them than their codes; kept by
            `Dictionary.encode_batch` alone.
        skip: what a skip transcoder's linear path adds to the reconstruction, in the units the dictionary works in.
    """

    entries: AnyCodes
    norm: Float[Tensor, "*batch 1"]
    seen: FiringStats
    gate: AnyCodes | None = None
    x: Float[Tensor, "rows d"] | None = None
    skip: Float[Tensor, "*batch d_out"] | None = None

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


# A weight that serves twice, and the second name that it then answers to.
TWIN = {"W_enc": "W_dec", "centre": "b_dec", "write_scale": "read_scale"}


class Dictionary(nn.Module):
    """f(x) = Σ_m a_m φ(y_m) w_m + b_dec with y = W_enc (x − centre) + b_enc (maths.md eq. 1–2, S1–S3).

    Reading and reconstructing the same rows, its centre is b_dec itself, or 0 (`Parametrisation.centre`). A transcoder has a
    centre of its own, which stays at the mean of the first rows.

    Args:
        d: width of the rows, both in and out; or the layout of a transcoder or crosscoder.
        latents: number of atoms M.
        select: selection rule φ (overtone.selection).
        parametrisation: which weights exist and how inputs are normalised.
        seed: seed of the initial atoms, i.i.d. uniform on the unit sphere.
        world: the processes that train it together; None: this one alone.

    `world` says with which other processes it is being trained (overtone.parallel): where they share the latents, whatever has a
    row or number per latent is this rank's part of it, `own`, alone. It is no part of what is saved.

    Invariances: permuting latents permutes codes and leaves reconstructions alone; with row-normalised input, scaling a
    row scales its reconstruction.
    """

    W_dec: Float[Tensor, "latents d_out"]
    W_enc: Float[Tensor, "latents d"]
    b_enc: Float[Tensor, " latents"]
    b_dec: Float[Tensor, " d_out"]
    centre: Float[Tensor, " d"]
    idle: Int[Tensor, " latents"]
    read_scale: Float[Tensor, " reads"] | None
    write_scale: Float[Tensor, " writes"] | None

    def __init__(
        self,
        d: int | Layout,
        latents: int,
        select: Selection | None = None,
        parametrisation: Parametrisation | None = None,
        *,
        seed: int = 0,
        world: World | None = None,
    ):
        super().__init__()
        self.world = world = world or World()
        if latents < 1 or (not isinstance(d, Layout) and d < 1):
            raise ValueError(f"d={d} and latents={latents} must both be at least 1")
        k = getattr(select, "k", None)
        if k is not None and k > latents:
            raise ValueError(f"k={k} exceeds latents={latents}; lower k or widen the dictionary")
        self.layout = layout = Layout.of(d)
        self.d, self.d_out, self.latents = layout.d, layout.d_out, latents
        self.select: Selection = select or JumpReLU()
        self.parametrisation = p = parametrisation or Parametrisation()
        if latents < world.latents.size:
            raise ValueError(
                f"latents={latents} cannot be split over {world.latents.size} ranks; widen the dictionary, or split it over fewer"
            )
        self.own = own_latents = world.latents.part(latents)
        here = own_latents.stop - own_latents.start
        self.W_dec = nn.Parameter(_unit_rows(latents, self.d_out, seed, "atoms", own_latents))
        if layout.onto_itself and not p.tied:
            self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(here), requires_grad=p.bias == "trained")
        self.b_dec = nn.Parameter(torch.zeros(self.d_out), requires_grad=p.centre != "fixed")
        self._add_sites(seed)
        self.scale = nn.Parameter(torch.ones(here)) if p.scale else None
        if p.counts_idle:
            self.idle = nn.Parameter(torch.zeros(here, dtype=torch.int64), requires_grad=False)
        own = self.select.weights(latents, self.d) if isinstance(self.select, WeightedSelection) else {}
        for name, weight in own.items():
            if hasattr(self, name):
                raise ValueError(
                    f"{self.select} calls a weight {name!r}, which every dictionary has; give it another name"
                )
            start = weight.start[own_latents] if weight.start.shape[:1] == (latents,) else weight.start
            setattr(self, name, nn.Parameter(start.clone(), requires_grad=weight.trained))
        self.own_weights = tuple(own)
        of_latents = {name for name, weight in own.items() if weight.start.shape[:1] == (latents,)}
        self.of_latents = frozenset({"W_dec", "W_enc", "b_enc", "scale", "idle"} | of_latents)

    def _add_sites(self, seed: int) -> None:
        """What reading one site and reconstructing another, or several at once, takes besides."""
        p, layout = self.parametrisation, self.layout
        scaled = p.input_norm in ("site", "root") or (p.per_row and not layout.plain)
        self.register_buffer("read_scale", torch.ones(len(layout.reads)) if scaled else None)
        if not layout.onto_itself or p.centre == "none":
            # Training it would double what b_enc does.
            self.centre = nn.Parameter(torch.zeros(self.d), requires_grad=False)
        if layout.onto_itself:
            if p.skip:
                raise ValueError(
                    f"skip=True with {layout}: a linear path from a site to itself can copy it; it is for a transcoder, "
                    "whose target is another site"
                )
            return
        if p.tied:
            raise ValueError(
                f"tied weights cannot read one site and write another ({layout}): an encoder row and an atom live in "
                "different spaces. Use overtone.transcoder(method), the untied form of any method"
            )
        self.register_buffer("write_scale", torch.ones(len(layout.reconstructs)) if scaled else None)
        self.W_enc = nn.Parameter(_unit_rows(self.latents, self.d, seed, "encoder rows", self.own))
        if p.skip:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d))

    def __getattr__(self, name: str):
        # So that no other code asks whether a dictionary is tied, or a transcoder.
        twin = name in TWIN and (self.parametrisation.tied if name == "W_enc" else self.layout.onto_itself)
        twin = twin and not (name == "centre" and self.parametrisation.centre == "none")
        return super().__getattr__(TWIN[name] if twin else name)

    def extra_repr(self) -> str:
        """What `print` shows."""
        width = f"d={self.d}" if self.layout.plain else str(self.layout)
        return f"{width}, latents={self.latents}, select={self.select}"

    @torch.no_grad()
    def measure_sites(self, x: Float[Tensor, "rows d"], target: Float[Tensor, "rows d_out"]) -> None:
        """Take the sites' scales from the first rows, and for a transcoder its centre and b_dec: the means."""
        if self.read_scale is not None and self.write_scale is not None:
            self.read_scale.copy_(typical_norms(x, self.layout.reads))
            if not self.layout.onto_itself:
                self.write_scale.copy_(typical_norms(target, self.layout.reconstructs))
        if not self.layout.onto_itself:
            normalised, norm = self.normalise(x)
            if self.parametrisation.centre != "none":
                self.centre.copy_(normalised.mean(0))
            self.b_dec.copy_(self.normalise_target(target, norm).mean(0))

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
        if self.read_scale is not None:
            x = x / columns(self.read_scale, self.layout.reads)
        if not self.parametrisation.per_row:
            return x, torch.ones_like(x[..., :1])
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        if self.parametrisation.input_norm == "rms":
            norm = norm / self.d**0.5
        elif self.parametrisation.input_norm == "root":
            norm = norm.sqrt()
        unit = x / norm.clamp(min=torch.finfo(x.dtype).tiny)
        return unit, norm if self.layout.onto_itself else torch.ones_like(norm)

    def normalise_target(
        self, target: Float[Tensor, "*batch d_out"], norm: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch d_out"]:
        """Rows to reconstruct in the units the dictionary works in; `norm` is that of the codes that are to do so."""
        target = target.to(self.W_dec.dtype)
        if self.write_scale is not None:
            target = target / columns(self.write_scale, self.layout.reconstructs)
        return target / norm.clamp(min=torch.finfo(norm.dtype).tiny)

    def unexplained(self, target: Float[Tensor, "batch d_out"], codes: Codes) -> Float[Tensor, "batch d_out"]:
        """What is left for the latents of rows to reconstruct, in the units the dictionary works in: less the linear path.

        The target that loss terms take; gradients reach W_skip through it.
        """
        wanted = self.normalise_target(target, codes.norm)
        return wanted if codes.skip is None else wanted - codes.skip

    def encode(self, x: Float[Tensor, "*batch d"]) -> Codes:
        """Codes of rows in the units of the data."""
        return self.encode_normalised(*self.normalise(x))

    def encode_normalised(self, x: Float[Tensor, "*batch d"], norm: Float[Tensor, "*batch 1"]) -> Codes:
        """Codes of rows that `normalise` has already scaled; each row is coded alone."""
        encoded = self._alone()(x.reshape(-1, self.d), *self._encoder(), **self._own_weights())
        return self._codes(encoded, x, norm)

    def _alone(self) -> Callable[..., Encoded]:
        if fits(self.select, RankedSelection):
            return partial(self.select.encode_among, ranks=self.world.latents)
        return self.select.encode

    def encode_batch(self, x: Float[Tensor, "batch d"], norm: Float[Tensor, "batch 1"]) -> Codes:
        """`encode_normalised` for training: a selection that codes a batch otherwise than rows alone does so here.

        Of a batch that the ranks of `world` have parts of, `x` and `Codes.seen` are of this one's rows.
        """
        return next(self.encode_parts(x, norm, 1))

    def encode_parts(self, x: Float[Tensor, "batch d"], norm: Float[Tensor, "batch 1"], parts: int) -> Iterator[Codes]:
        """`encode_batch` of so many equal parts of the rows, one after the other as they are asked for."""
        pieces = x.split(len(x) // parts)
        if fits(self.select, SharedSelection):
            encoded = self.select.encode_shared(pieces, *self._encoder(), world=self.world, **self._own_weights())
        else:
            encode = self.select.encode_batch if fits(self.select, BatchSelection) else self._alone()
            encoded = (encode(piece, *self._encoder(), **self._own_weights()) for piece in pieces)
        for piece, its_norm, one in zip(pieces, norm.split(len(x) // parts), encoded, strict=True):
            yield self._codes(one, piece, its_norm)._replace(x=piece)

    def _encoder(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.W_enc, self.b_enc, self.reading_centre

    def _own_weights(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.own_weights}

    def _codes(self, encoded: Encoded, x: Tensor, norm: Tensor) -> Codes:
        return Codes(encoded.codes, norm, firing.observe(encoded), encoded.gate, skip=self._linear_path(x))

    @property
    def reading_centre(self) -> Float[Tensor, " d"]:
        """The centre, as what this rank's latents read: its gradient is then that of all ranks' latents."""
        return self.world.latents.copied(self.centre)

    def _linear_path(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_out"] | None:
        return nn.functional.linear(x - self.centre, self.W_skip) if self.parametrisation.skip else None

    def pre_activations(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch latents"]:
        """y = W_enc (x̃ − centre) + b_enc of rows in the units of the data: all of them, B·M numbers."""
        normalised, _ = self.normalise(x)
        return nn.functional.linear(normalised - self.centre, self.W_enc, self.b_enc)

    def decode_normalised(self, codes: AnyCodes) -> Float[Tensor, "rows d_out"]:
        """What the latents and b_dec reconstruct, in the units the dictionary works in: affine in the codes."""
        ranks = self.world.latents
        if ranks.size == 1:
            return ops.decode(self._scaled(codes), self.W_dec, self.b_dec)
        return ranks.sum(ops.decode(self._scaled(codes), self.W_dec)) + self.b_dec

    def decode_frozen(self, codes: AnyCodes) -> Float[Tensor, "rows d_out"]:
        """`decode_normalised` whose gradient reaches the codes alone."""
        atoms, b_dec, ranks = self.effective_atoms.detach(), self.b_dec.detach(), self.world.latents
        return ops.decode(codes, atoms, b_dec) if ranks.size == 1 else ranks.sum(ops.decode(codes, atoms)) + b_dec

    def decode_groups_normalised(self, codes: AnyCodes, sizes: Sequence[int]) -> Float[Tensor, "groups rows d_out"]:
        """Reconstructions from the last group of latents, the last two, … all: see `overtone.ops.decode_groups`."""
        if self.world.latents.size == 1:
            return ops.decode_groups(self._scaled(codes), self.W_dec, sizes, self.b_dec)
        parts = self.decode_parts_normalised(codes, sizes).flip(0)
        before = torch.nn.functional.pad(parts.detach().cumsum(0), (0, 0, 0, 0, 1, 0))[:-1]
        return before + parts + self.b_dec

    def decode_parts_normalised(self, codes: AnyCodes, sizes: Sequence[int]) -> Float[Tensor, "groups rows d_out"]:
        """What every group of latents adds to the reconstruction, first to last, without b_dec."""
        ranks = self.world.latents
        here = [*sizes] if ranks.size == 1 else self._own_of(sizes)
        suffixes = ops.decode_groups(self._scaled(codes), self.W_dec, [size for size in here if size])
        # Each suffix learns through the group it adds, and so does its difference to the one before.
        parts = torch.cat([suffixes[:1], suffixes[1:] - suffixes[:-1].detach()]).flip(0)
        if ranks.size == 1:
            return parts
        first = next(i for i, size in enumerate(here) if size)
        return ranks.sum(torch.nn.functional.pad(parts, (0, 0, 0, 0, first, len(sizes) - first - len(parts))))

    def _own_of(self, sizes: Sequence[int]) -> list[int]:
        """How many of each of the groups' latents this rank has."""
        cuts = [min(max(end, self.own.start), self.own.stop) for end in (0, *accumulate(sizes))]
        return [b - a for a, b in pairwise(cuts)]

    def _scaled(self, codes: AnyCodes) -> AnyCodes:
        return codes if self.scale is None else codes.scaled(self.scale)

    def decode(self, codes: Codes) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction in the units of the data; `layout.split` takes it apart where there are several sites."""
        x_hat = self.decode_normalised(codes.entries).reshape(*codes.norm.shape[:-1], self.d_out)
        x_hat = (x_hat if codes.skip is None else x_hat + codes.skip) * codes.norm
        return x_hat if self.write_scale is None else x_hat * columns(self.write_scale, self.layout.reconstructs)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction of rows, in the units of the data."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_out"]:
        """`forward` without gradients."""
        return self(x)

    def part(self, of_all: Tensor) -> Tensor:
        """What is this rank's of something that has a row per latent of all ranks."""
        return of_all[self.own]

    def whole(self, of_own: Tensor) -> Tensor:
        """All ranks' rows of something that has a row per latent of this one; no gradient."""
        ranks = self.world.latents
        return of_own if ranks.size == 1 else ranks.concatenate(of_own, ranks.parts(self.latents))

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
    def effective_atoms(self) -> Float[Tensor, "latents d_out"]:
        """a_m w_m: what one unit of code adds to the reconstruction."""
        return self.W_dec if self.scale is None else self.W_dec * self.scale[:, None]

    @property
    def data_atoms(self) -> Float[Tensor, "latents d_out"]:
        """What one unit of code adds to the reconstruction of a row of `Codes.norm` 1, in the units of the data."""
        atoms = self.effective_atoms
        return atoms if self.write_scale is None else atoms * columns(self.write_scale, self.layout.reconstructs)

    @property
    def site_norms(self) -> Float[Tensor, "latents sites"]:
        """‖a_m w_m‖ at every reconstructed site, in the units the dictionary works in.

        Penalties weigh a code by the sum over sites: split between sites, an atom then costs as much as it does twice.
        """
        return torch.stack([part.norm(dim=1) for part in self.layout.split(self.effective_atoms).values()], dim=1)


# Rows drawn at a time where a rank keeps only some: a multiple of the 16 numbers that torch draws together, so that the pieces
# are those of one draw.
_DRAWN = 4096


def _unit_rows(rows: int, d: int, seed: int, what: str, own: slice) -> Float[Tensor, "own d"]:
    """Some of so many rows, i.i.d. uniform on the unit sphere: the same ones whoever has the others."""
    source, kept = generator(seed, what), []
    step = rows if own == slice(0, rows) else _DRAWN
    # A last piece of less than 16 numbers would be drawn otherwise; it belongs to the one before.
    cuts = [*range(0, max(rows - 16, 1), step), rows]
    for first, end in pairwise(cuts):
        drawn = torch.randn(end - first, d, generator=source)
        kept.append(drawn[max(own.start - first, 0) : max(own.stop - first, 0)])
    drawn = kept[0] if len(kept) == 1 else torch.cat(kept)
    return drawn / drawn.norm(dim=1, keepdim=True)
