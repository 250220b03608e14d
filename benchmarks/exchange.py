"""Do overtone and the other tools compute the same from each other's files?

    .venv-bench/bin/python benchmarks/exchange.py [--d 96] [--latents 768] [--rows 256] [--json FILE]

Out: a dictionary of every kind is exported, the other tool loads it and codes and reconstructs the same rows. In: the other
tool makes a dictionary of every architecture that it has, with random weights, and saves it; overtone loads it, and exports it
again, which has to give the file's tensors bit for bit. Numbers are the largest difference over the largest value, of codes and
of reconstructions. circuit-tracer is not in the environment: its files are compared with its formula. Gemma Scope's go through
SAELens' own converters.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from peers.no_images import tolerate_torchvision
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
tolerate_torchvision()

import overtone as ot  # noqa: E402
from overtone.formats import FormatError, read  # noqa: E402
from overtone.formats.exact import FILE  # noqa: E402
from overtone.formats.table import FORMATS  # noqa: E402
from sample_dictionaries import FITS, KINDS, Size, scale  # noqa: E402

LIMIT = 1e-5


class Coded(NamedTuple):
    """What a tool makes of rows; codes None: it shows none."""

    codes: Tensor | None
    x_hat: Tensor


class Line(NamedTuple):
    way: str
    tool: str
    kind: str
    codes: float | None
    x_hat: float | None
    note: str = ""


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights; thresholds positive, matrices of norm 1 a row."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator).to(value.dtype)
            small = 0.05 + 0.1 * noise.abs() if "threshold" in name else 0.1 * noise
            value.copy_(noise / value.shape[-1] ** 0.5 if value.ndim == 2 else small)


# --- SAELens ---


def saelens_of(folder: Path, x: Tensor) -> Coded:
    from sae_lens import SAE

    return saelens_codes(SAE.load_from_disk(folder, device="cpu"), x)


def saelens_codes(sae: Any, x: Tensor) -> Coded:
    codes = sae.encode(x)
    return Coded(codes, sae(x))


def saelens_makes(size: Size, folder: Path, x: Tensor) -> Iterator[tuple[str, Coded | None]]:
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    d, d_out, latents = size
    more = {"topk": [{"k": 8}, {"k": 8, "rescale_acts_by_decoder_norm": True}], "abstopk": [{"k": 8}]}
    more |= {"matching_pursuit": [{"max_iterations": 8}, {"max_iterations": 8, "stop_on_duplicate_support": False}]}
    more |= {
        name: [{"d_out": d_out, "apply_b_dec_to_input": False}] for name in SAE_CLASS_REGISTRY if "transcoder" in name
    }
    plain = [{}, {"apply_b_dec_to_input": False}, {"normalize_activations": "constant_norm_rescale"}]
    more |= dict.fromkeys(("standard", "jumprelu", "gated"), plain)
    more["temporal"] = [{"d_sae": 512, "n_heads": 8, "kval_topk": 8}]
    for name, (kind, config) in SAE_CLASS_REGISTRY.items():
        for options in more.get(name, [{}]):
            sae = kind(config(**{"d_in": d, "d_sae": latents} | options))
            fill(sae, torch.Generator().manual_seed(0))
            if name == "matching_pursuit":
                sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
            with torch.no_grad():
                sae.save_model(folder)
                yield spelt(name, options), None if name == "temporal" else saelens_codes(sae, x)
    for name, (kind, config) in SAE_TRAINING_CLASS_REGISTRY.items():
        nested = {"matryoshka_widths": [latents // 4, latents]} if "matryoshka" in name else {}
        budget = {"k": 8} if "topk" in name else {}
        sae = kind(config(d_in=d, d_sae=latents, **budget, **nested))
        fill(sae, torch.Generator().manual_seed(0))
        if name == "matching_pursuit":
            sae.W_dec.data /= sae.W_dec.norm(dim=1, keepdim=True)
        with torch.no_grad():
            sae.save_inference_model(folder)
            yield f"{name}, trained", saelens_of(folder, x)


def spelt(name: str, options: dict[str, Any]) -> str:
    short = {
        "apply_b_dec_to_input": "b_dec subtracted",
        "normalize_activations": "",
        "stop_on_duplicate_support": "stop",
    }
    told = [
        f"{short.get(k, k)} {v}".strip()
        for k, v in options.items()
        if k not in ("d_out", "k", "max_iterations", "d_sae")
    ]
    return ", ".join((name, *(t for t in told if "transcoder" not in name and name != "temporal")))


# --- dictionary_learning ---


def dictionary_learning_of(folder: Path, x: Tensor) -> Coded:
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.utils import load_dictionary

    if json.loads((folder / "config.json").read_text())["trainer"]["dict_class"] == "AutoEncoder":
        # load_dictionary would fold the atoms' norms into the codes.
        found = AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False)
    else:
        found, _ = load_dictionary(str(folder), "cpu")
    return Coded(found.encode(x), found(x))


def dictionary_learning_makes(size: Size, folder: Path, x: Tensor) -> Iterator[tuple[str, Coded]]:
    from dictionary_learning import dictionary as kinds
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    d, _, latents = size
    groups = [latents // 4, latents - latents // 4]
    made = [kinds.AutoEncoder(d, latents), kinds.AutoEncoderNew(d, latents), kinds.GatedAutoEncoder(d, latents)]
    made += [kinds.JumpReluAutoEncoder(d, latents), AutoEncoderTopK(d, latents, 8), BatchTopKSAE(d, latents, 8)]
    made += [MatryoshkaBatchTopKSAE(d, latents, 8, groups), BatchTopKSAE(d, latents, 8)]
    for number, ae in enumerate(made):
        fill(ae, torch.Generator().manual_seed(0))
        unlearnt = number == len(made) - 1
        if unlearnt:
            ae.threshold.fill_(-1.0)
        trainer = {"dict_class": type(ae).__name__, "activation_dim": d, "dict_size": latents, "k": 8, "layer": 3}
        config = {
            "trainer": trainer | {"lm_name": "tiny", "submodule_name": "resid_post_layer_3"},
            "buffer": {"ctx_len": 128},
        }
        torch.save(ae.state_dict(), folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps(config))
        with torch.no_grad():
            yield type(ae).__name__ + (", threshold unset" if unlearnt else ""), Coded(ae.encode(x), ae(x))


# --- sparsify ---


def sparsify_of(folder: Path, x: Tensor) -> Coded:
    from sparsify import SparseCoder

    return sparsify_codes(SparseCoder.load_from_disk(folder), x)


def sparsify_codes(coder: Any, x: Tensor) -> Coded:
    found = coder.encode(x)
    codes = torch.zeros(len(x), coder.num_latents).scatter(1, found.top_indices, found.top_acts)
    return Coded(codes, coder(x).sae_out)


def sparsify_makes(size: Size, folder: Path, x: Tensor) -> Iterator[tuple[str, Coded]]:
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    for activation in ("topk", "groupmax"):
        for options in ({}, {"transcode": True}, {"transcode": True, "skip_connection": True}):
            coder = SparseCoder(
                size.d, SparseCoderConfig(activation=activation, num_latents=size.latents, k=8, **options)
            )
            fill(coder, torch.Generator().manual_seed(0))
            with torch.no_grad():
                coder.save_to_disk(folder)
                yield ", ".join((activation, *options)), sparsify_codes(coder, x)


# --- Gemma Scope, through SAELens ---


def gemma_1_of(folder: Path, x: Tensor) -> Coded:
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    if not read(folder).dictionary.layout.onto_itself:
        return gemma_transcoder(folder, x)
    with mock.patch.object(loaders, "hf_hub_download", lambda **_: str(folder / "params.npz")):
        overrides = {"d_in": x.shape[1], "d_sae": read(folder).dictionary.latents}
        config, state, _ = loaders.gemma_2_sae_huggingface_loader(
            "2b-res", "layer_3/width_16k", cfg_overrides=overrides
        )
    return converted(SAE, loaders, config, state, x)


def gemma_2_of(folder: Path, x: Tensor) -> Coded:
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    # Where SAELens tells a transcoder by the folder's name.
    below = "resid_post/layer_3" if read(folder).dictionary.layout.onto_itself else "transcoder/layer_3"
    shapes = {
        name: list(value.shape) for name, value in FORMATS["gemma_scope_2"].read(folder / "params.safetensors").items()
    }

    def local(repo_id: str, filename: str, **_: Any) -> str:
        return str(folder / Path(filename).name)

    with (
        mock.patch.object(loaders, "hf_hub_download", local),
        mock.patch.object(loaders, "get_safetensors_tensor_shapes", lambda *_, **__: shapes),
    ):
        config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-270m", below)
    return converted(SAE, loaders, config, state, x)


def converted(SAE: Any, loaders: Any, config: dict[str, Any], state: dict[str, Tensor], x: Tensor) -> Coded:
    sae = SAE.from_dict(loaders.handle_config_defaulting(config))
    sae.load_state_dict(state)
    return saelens_codes(sae, x)


# --- circuit-tracer's formula ---


def gemma_transcoder(folder: Path, x: Tensor) -> Coded:
    tensors = FORMATS["gemma_scope_1"].read(folder / "params.npz")
    tensors["activation_function.threshold"] = tensors.pop("threshold")
    return formula(tensors | {"W_enc": tensors["W_enc"].T}, x)


def circuit_tracer_of(folder: Path, x: Tensor) -> Coded:
    return formula(FORMATS["circuit_tracer"].read(folder / "layer_0.safetensors"), x)


def formula(tensors: dict[str, Tensor], x: Tensor) -> Coded:
    pre = torch.nn.functional.linear(x, tensors["W_enc"], tensors["b_enc"])
    threshold = tensors.get("activation_function.threshold")
    codes = pre.relu() if threshold is None else pre.relu() * (pre > threshold)
    x_hat = codes @ tensors["W_dec"] + tensors["b_dec"]
    return Coded(codes, x_hat + x @ tensors["W_skip"].T if "W_skip" in tensors else x_hat)


LOADERS: dict[str, Callable[[Path, Tensor], Coded]] = {
    "saelens": saelens_of,
    "dictionary_learning": dictionary_learning_of,
    "sparsify": sparsify_of,
    "gemma_scope_1": gemma_1_of,
    "gemma_scope_2": gemma_2_of,
    "circuit_tracer": circuit_tracer_of,
}
MAKERS = {"saelens": saelens_makes, "dictionary_learning": dictionary_learning_makes, "sparsify": sparsify_makes}


def out(size: Size, x: Tensor) -> Iterator[Line]:
    """Exported, loaded by the other tool."""
    for kind, fits in FITS.items():
        dictionary = KINDS[kind](size)
        rows = x.to(dictionary.W_dec.dtype)
        for tool in fits:
            if "float64" in str(rows.dtype) and tool != "saelens":
                continue  # the other tools work in float32
            with tempfile.TemporaryDirectory() as place, torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
                folder = ot.export(dictionary, Path(place) / "out", tool, {"model": "gemma-v3-270m", "site": "resid.3"})
                theirs = LOADERS[tool](folder, rows)
                codes = dictionary.encode(rows)
                z = None if theirs.codes is None else apart(theirs.codes, codes.z * scale(dictionary))
                yield Line(
                    "out", tool, kind, z, apart(theirs.x_hat, dictionary.decode(codes)), again(dictionary, folder)
                )


def again(dictionary: ot.Dictionary, folder: Path) -> str:
    same = ot.load(folder).state_dict()
    exact = all(torch.equal(same[name], value) for name, value in dictionary.state_dict().items())
    return "back bit for bit" if exact else "BACK WITH OTHER BITS"


def into(size: Size, x: Tensor) -> Iterator[Line]:
    """Saved by the other tool, loaded by overtone."""
    for tool, makes in MAKERS.items():
        with tempfile.TemporaryDirectory() as place:
            source = Path(place) / "in"
            source.mkdir()
            for number, (kind, theirs) in enumerate(makes(size, source, x)):
                try:
                    found = read(source)
                except FormatError as error:
                    told = str(error).removeprefix(f"{source / FORMATS[tool].weights}: ")
                    yield Line("in", tool, kind, None, None, f"refused: {told.partition(';')[0]}")
                    continue
                assert theirs is not None
                with torch.no_grad():
                    codes = found.dictionary.encode(x)
                    z = None if theirs.codes is None else apart(codes.z, theirs.codes)
                    x_hat = apart(found.dictionary.decode(codes), theirs.x_hat)
                folder = ot.export(found.dictionary, Path(place) / f"again-{number}", tool, found.info)
                first, second = (FORMATS[tool].read(f / FORMATS[tool].weights) for f in (source, folder))
                same = first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
                assert not (same and (folder / FILE).exists())
                yield Line("in", tool, kind, z, x_hat, "out again bit for bit" if same else "out again folded")


def spelt_numbers(line: Line) -> str:
    return " / ".join("–" if n is None else "equal" if n == 0 else f"{n:.0e}" for n in (line.codes, line.x_hat))


def tables(lines: list[Line]) -> Iterator[str]:
    """As Markdown: what went out by tools, what came in line by line."""
    tools = list(dict.fromkeys(line.tool for line in lines if line.way == "out"))
    cells = {(line.kind, line.tool): spelt_numbers(line) for line in lines if line.way == "out"}
    yield f"| out: codes / reconstruction | {' | '.join(tools)} |\n|{'---|' * (len(tools) + 1)}"
    for kind in dict.fromkeys(line.kind for line in lines if line.way == "out"):
        yield f"| {kind} | {' | '.join(cells.get((kind, tool), '') for tool in tools)} |"
    yield "\n| in | | codes / reconstruction | and out again |\n|---|---|---|---|"
    for line in lines:
        if line.way == "in":
            yield f"| {line.tool} | {line.kind} | {spelt_numbers(line)} | {line.note.removeprefix('out again ')} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=96)
    parser.add_argument("--latents", type=int, default=768)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.rows, options.d, generator=generator) * 3 * torch.rand(options.rows, 1, generator=generator)
    size = Size(options.d, options.d * 3 // 4, options.latents)
    lines = []
    for line in (*out(size, x), *into(size, x)):
        lines.append(line)
        print(f"{line.way:4}{line.tool:20} {line.kind:40} {spelt_numbers(line):20} {line.note}", flush=True)
    print("", *tables(lines), sep="\n")
    worst = max(n for line in lines for n in (line.codes, line.x_hat) if n is not None)
    print(f"\n{len(lines)} dictionaries; largest difference {worst:.1e}, limit {LIMIT:.0e}")
    if options.json:
        options.json.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n")
    sys.exit(worst > LIMIT or any("OTHER BITS" in line.note for line in lines))


if __name__ == "__main__":
    main()
