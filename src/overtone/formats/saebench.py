"""A dictionary as SAEBench (arXiv 2503.09532) wants a custom SAE: dense codes, unit atoms, and a `cfg`."""

from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overtone.dictionary import Dictionary
from overtone.formats.about import hook_name, layer_of
from overtone.formats.plain import FormatError


@dataclass
class SAEBenchConfig:
    """The settings that SAEBench reads, and those that it sets itself; by its names."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    dtype: str
    device: str = "cpu"
    context_size: int = 128
    hook_head_index: int | None = None
    prepend_bos: bool = True
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    seqpos_slice: tuple[int | None, ...] = (None,)
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    training_tokens: int = -1
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    @property
    def architecture_str(self) -> str:
        """Another name of the architecture."""
        return self.architecture

    def to_dict(self) -> dict[str, Any]:
        """All settings, JSON-able."""
        return asdict(self)


class SAEBenchSAE(nn.Module):
    """The custom SAE that SAEBench evaluates: `[("name", SAEBenchSAE(dictionary, "pythia-160m-deduped", "resid.4"))]`.

    Codes come in the units of the rows: x̂ = Σ_m f_m w_m + b_dec with ‖w_m‖ = 1 (maths.md eq. F4). A dictionary that scales every
    row by its norm gives codes times that norm; `decode` then takes the norms of the rows that were encoded last for b_dec, and
    asks for codes of as many.

    Args:
        dictionary: an autoencoder of one site; it is copied.
        model: its model's name in TransformerLens.
        site: "resid.3", or a hook's name there.
        layer: its block (default: the number in `site`).
        context: tokens per context.

    Raises:
        FormatError: a transcoder or crosscoder; a site without a number where no layer is given.
    """

    def __init__(self, dictionary: Dictionary, model: str, site: str, *, layer: int | None = None, context: int = 128):
        super().__init__()
        if not dictionary.layout.plain:
            raise FormatError(f"SAEBench evaluates autoencoders of one site; this is of {dictionary.layout}")
        layer = layer_of(site) if layer is None else layer
        if layer is None:
            raise FormatError(f"site {site!r} has no number of a block; give it: layer=3")
        atoms = dictionary.effective_atoms.detach()
        norms = atoms.norm(dim=1)
        # An output scale of 0 leaves the atom without a direction, and its code is 0 whatever it is.
        unit = torch.where(
            norms[:, None] > 0, atoms / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, None], dictionary.W_dec
        )
        self.dictionary = deepcopy(dictionary).requires_grad_(False)
        self.W_enc = nn.Parameter(dictionary.W_enc.detach().T.contiguous())
        self.W_dec = nn.Parameter(unit.detach().clone())
        self.b_enc = nn.Parameter(dictionary.b_enc.detach().clone())
        out = 1.0 if dictionary.write_scale is None else dictionary.write_scale.detach()[0]
        self.b_dec = nn.Parameter(dictionary.b_dec.detach() * out)
        self.register_buffer("_norms", norms * out)
        self._row_norms: Tensor | None = None
        self.cfg = SAEBenchConfig(
            model,
            dictionary.d,
            dictionary.latents,
            layer,
            hook_name(site),
            type(dictionary.select).__name__.lower(),
            str(self.dtype).removeprefix("torch."),
            context_size=context,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.W_dec.dtype

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch latents"]:
        """Codes in the units of the rows."""
        codes = self.dictionary.encode(x.to(self.dtype))
        self._row_norms = codes.norm.detach()
        return codes.z * self.get_buffer("_norms") * codes.norm

    def decode(self, feature_acts: Float[Tensor, "*batch latents"]) -> Float[Tensor, "*batch d"]:
        """Reconstructions; where rows are scaled one by one, of the rows that were encoded last.

        Raises:
            ValueError: codes of another number of rows than those.
        """
        x_hat = feature_acts.to(self.dtype) @ self.W_dec
        if not self.dictionary.parametrisation.per_row:
            return x_hat + self.b_dec
        norms = self._row_norms
        if norms is None or norms.shape[:-1] != feature_acts.shape[:-1]:
            last = None if norms is None else tuple(norms.shape[:-1])
            raise ValueError(
                f"codes of rows {tuple(feature_acts.shape[:-1])}, and the rows encoded last were {last}: this dictionary scales "
                "rows by their norms, so encode the rows that are to be decoded first"
            )
        return x_hat + self.b_dec * norms

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Reconstructions."""
        return self.decode(self.encode(x))
