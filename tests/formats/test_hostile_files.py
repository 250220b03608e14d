"""Broken, foreign and hostile files: one named error, nothing executed, nothing allocated that the file does not hold."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from overtone import FormatError, export, load
from overtone.formats.exact import FILE
from overtone.formats.table import FORMATS
from sample_dictionaries import KINDS, SMALL

SAMPLES = {
    "saelens": "gba",
    "dictionary_learning": "topk",
    "sparsify": "topk skip transcoder",
    "gemma_scope_1": "jumprelu",
    "gemma_scope_2": "skip transcoder",
    "circuit_tracer": "gba transcoder",
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    for name, kind in SAMPLES.items():
        export(KINDS[kind](SMALL), root / name, name)
        (root / name / FILE).unlink(missing_ok=True)
    return root


def copied(samples: Path, name: str, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for file in (samples / name).iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


class Run:
    """Unpickled, it would leave a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.write_text, (self.trace, "executed"))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_never_run(protocol: int, zipped: bool, samples: Path, tmp_path: Path):
    folder, trace = copied(samples, "dictionary_learning", tmp_path / "d"), tmp_path / "trace"
    program = pickle.dumps({"encoder.weight": Run(trace)}, protocol=protocol)
    if zipped:
        with zipfile.ZipFile(folder / "ae.pt", "w") as archive:
            archive.writestr("ae/data.pkl", program)
    else:
        (folder / "ae.pt").write_bytes(program)
    with pytest.raises(FormatError, match="refused"):
        load(folder)
    assert not trace.exists()
    for name in ("model.pt", "model.pkl"):
        (tmp_path / name).write_bytes(program)
        with pytest.raises(FormatError, match="never opened"):
            load(tmp_path / name)
    pickle.loads(program)
    assert trace.exists(), "the program does run where it is allowed to"


def test_an_object_array_is_a_pickle(samples: Path, tmp_path: Path):
    np.savez(tmp_path / "params.npz", w_enc=np.array([Run(tmp_path / "trace")], dtype=object))
    with pytest.raises(FormatError, match="not of floating-point numbers"):
        load(tmp_path)
    assert not (tmp_path / "trace").exists()


def spoilt(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        entry = FORMATS[name]
        tensors = {n: t.clone() for n, t in entry.read(folder / entry.weights).items()}
        change(tensors)
        entry.write(folder / entry.weights, tensors)

    return spoil


def config(file: str, **changes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))

    return spoil


def header(text: bytes, length: int | None = None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "sae_weights.safetensors").write_bytes(struct.pack("<Q", length or len(text)) + text)

    return spoil


def strided(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """A state dict with a tensor that poses as larger than it is."""

    def spoil(folder: Path) -> None:
        torch.save({"encoder.weight": torch.zeros(1).expand(shape)}, folder / "ae.pt")

    return spoil


def inflated(folder: Path) -> None:
    with zipfile.ZipFile(folder / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(2**22, np.float32))
        archive.writestr("w_enc.npy", buffer.getvalue())


def claimed(folder: Path) -> None:
    """An array whose header claims a terabyte."""
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)})
        archive.writestr("../../w_enc.npy", buffer.getvalue() + b"\0" * 64)


S, DL, G2 = "saelens", "dictionary_learning", "gemma_scope_2"
CASES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a tensor missing": (S, spoilt(S, lambda t: t.pop("b_dec")), "there is no tensor 'b_dec'"),
    "a foreign tensor": (S, spoilt(S, lambda t: t.update(x=torch.ones(1))), "foreign tensors 'x'"),
    "a wrong shape": (S, spoilt(S, lambda t: t.update(b_enc=torch.ones(5))), r"'b_enc' has shape \(5,\)|'W_enc' has shape"),
    "a transposed matrix": (S, spoilt(S, lambda t: t.update(W_dec=t["W_dec"].T.contiguous())), "has shape"),
    "NaN": (S, spoilt(S, lambda t: t["W_enc"].fill_(float("nan"))), "'W_enc' has NaN or Inf"),
    "whole numbers": (S, spoilt(S, lambda t: t.update(b_dec=t["b_dec"].long())), "not of floating-point numbers"),
    "an empty tensor": (S, spoilt(S, lambda t: t.update(b_dec=torch.ones(0))), "has shape"),
    "a huge header": (S, header(b"{}", 2**62), "claims a header of"),
    "a header of a huge tensor": (
        S,
        header(json.dumps({"W_enc": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()),
        "not a safetensors",
    ),
    "an empty file": (S, lambda d: (d / "sae_weights.safetensors").write_bytes(b""), "claims a header|truncated"),
    "other sizes": (S, config("cfg.json", d_sae=25), "cfg.json says d_sae=25, the tensors have 24"),
    "sizes that are text": (S, config("cfg.json", d_sae="24"), "d_sae is '24', which should be of type int"),
    "an unknown architecture": (S, config("cfg.json", architecture="../../etc"), "is none of standard"),
    "a temporal SAE": (S, config("cfg.json", architecture="temporal"), "codes a row by the rows before it"),
    "a scale not in the file": (S, config("cfg.json", normalize_activations="expected_average_only_in"), "fold_activation_norm"),
    "layer norm": (S, config("cfg.json", normalize_activations="layer_norm"), "each row's own mean"),
    "whitening": (S, config("cfg.json", normalize_activations="covariance_whitening"), "fold_activation_whitening"),
    "another activation": (S, config("cfg.json", activation_fn="tanh-relu"), "none of relu and topk"),
    "a tuned decoder": (S, spoilt(S, lambda t: t.update(scaling_factor=torch.ones(24) * 2)), "not 1 everywhere"),
    "JSON that is a list": (S, lambda d: (d / "cfg.json").write_text("[]"), "holds a list"),
    "JSON of a great depth": (S, lambda d: (d / "cfg.json").write_text("[" * 10**5), "not valid JSON"),
    "JSON of a huge number": (S, lambda d: (d / "cfg.json").write_text('{"k": ' + "9" * 5000 + "}"), "not valid JSON"),
    "no configuration": (S, lambda d: (d / "cfg.json").unlink(), "cfg.json is missing"),
    "another class": (DL, config("config.json", trainer={"dict_class": "os.system"}), "is none of AutoEncoder"),
    "no trainer": (DL, config("config.json", trainer=None), "trainer is None"),
    "a tensor that is a window": (DL, strided((10**6, 10**6)), "does not fit its"),
    "a list of tensors": (DL, lambda d: torch.save([torch.ones(2)], d / "ae.pt"), "refused"),
    "a name that is no text": (DL, lambda d: torch.save({3: torch.ones(2)}, d / "ae.pt"), "name that is a int"),
    "a linear path onto itself": ("sparsify", config("cfg.json", transcode=False), "can copy what it reads"),
    "groups of several sizes": ("sparsify", config("cfg.json", activation="groupmax", k=5), "groups of one size"),
    "more latents active than there are": ("sparsify", config("cfg.json", k=25), "k=25 exceeds latents=24"),
    "a bomb": ("gemma_scope_1", inflated, "inflates to more than 20 times"),
    "a claim": ("gemma_scope_1", claimed, "it is damaged"),
    "arrays of text": ("gemma_scope_1", lambda d: np.savez(d / "params.npz", w_enc=np.array(["a"])), "not of floating-point"),
    "another jump": ("gemma_scope_2", config("config.json", architecture="relu"), "is 'jump_relu'"),
    "several layers": (
        G2, spoilt(G2, lambda t: t.update(w_dec=t["w_dec"][:, None].repeat(1, 3, 1))), "cross-layer transcoder"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(case: str, samples: Path, tmp_path: Path):
    name, spoil, message = CASES[case]
    folder = copied(samples, name, tmp_path / "d")
    spoil(folder)
    with pytest.raises(FormatError, match=message):
        load(folder)


def test_what_lies_beside_an_export_counts_only_for_it(tmp_path: Path):
    folder = export(KINDS["gba"](SMALL), tmp_path / "out", S)
    weights = folder / FORMATS[S].weights
    spoil = spoilt(S, lambda t: t["W_enc"].mul_(1.5))
    spoil(folder)
    with pytest.raises(FormatError, match=f"changed since; remove {FILE}|{FILE} is damaged.*remove"):
        load(folder)
    (folder / FILE).unlink()
    assert load(folder).latents == 24
    save_file(
        load_file(weights), folder / FILE, {"overtone": json.dumps({"dictionary": {"latents": 10**12}, "found": {}})}
    )
    with pytest.raises(FormatError, match="of 1000000000000 latents"):
        load(folder)


def test_several_dictionaries_in_a_folder(samples: Path):
    with pytest.raises(
        FormatError, match="holds several dictionaries: circuit_tracer, dictionary_learning, gemma_scope_1"
    ):
        load(samples)
    with pytest.raises(FileNotFoundError, match="no dictionary or run"):
        load(samples / "nothing")
