"""Sites: places inside a model where activations are read (capture) or replaced (splice), found generically.

    resid.i     output of block i: Llama model.layers.i, GPT-2 transformer.h.i, GPT-NeoX gpt_neox.layers.i,
                BERT (MiniLM) encoder.layer.i
    mlp_out.i   the MLP's output before the residual add: in block i
                Llama and GPT-2 mlp, GPT-NeoX mlp.dense_4h_to_h (its last step), BERT output.dense
    attn_out.i  the attention's output after its projection, before the residual add: in block i
                Llama self_attn, GPT-2 attn, GPT-NeoX attention, BERT attention.output.dense

Any other module's path is a site too.
Nothing here depends on transformers: it is torch modules and their names.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

# Within a block, the first match wins. BERT's `output` and `attention` add the residual and normalise, and
# Bloom's `mlp` and `self_attention` add it too: there the projection inside comes before the module itself.
_MLP = ("output.dense", "mlp.dense_4h_to_h", "mlp", "feed_forward", "ffn", "ff", "fc2", "block_sparse_moe")
_ATTENTION = (
    "attention.output.dense",
    "self_attention.dense",
    "self_attn",
    "attn",
    "attention",
    "self_attention",
)
_KINDS = {"mlp_out": _MLP, "attn_out": _ATTENTION}
_NUMBERED = re.compile(r"(resid|mlp_out|attn_out)\.(-?\d+)")


class Site(NamedTuple):
    """A site found: the name it was asked for, the path of its module, its block's number if it has one."""

    name: str
    path: str
    layer: int | None


class Captured:
    """What `capture` saw: `value` is the site's last output, [batch, position, d] in most models, or None."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.value: Tensor | None = None

    def take(self) -> Tensor:
        """Hand over the tensor and forget it. ValueError when the forward pass never reached the site."""
        if self.value is None:
            raise ValueError(f"the forward pass never called site {self.site!r}; choose a module that it uses")
        value, self.value = self.value, None
        return value


class _Reached(Exception):
    """Ends a forward pass at the site; never leaves this module."""


def blocks_path(model: nn.Module) -> str:
    """The dotted path of the ModuleList that holds the transformer blocks: "model.layers", "encoder.layer", …

    It is the outermost list of modules of one class; its length is the configuration's depth, if known.
    Raises ValueError when there is none or two are as good (encoder-decoders): name a module path instead.
    """
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(m) for m in module}) == 1
    }
    outer = {p: m for p, m in lists.items() if not any(p.startswith(f"{q}.") for q in lists)}
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if depth not in {len(m) for m in outer.values()}:
        depth = max((len(m) for m in outer.values()), default=None)
    found = [path for path, module in outer.items() if len(module) == depth]
    if len(found) != 1:
        what = f"several lists of {depth} blocks ({', '.join(found)})" if found else "no list of blocks"
        raise ValueError(f"{type(model).__name__} has {what}; name a module path, such as encoder.block.3")
    return found[0]


def resolve_site(model: nn.Module, name: str) -> Site:
    """Find `name` in the model: "resid.3", "mlp_out.3", "attn_out.3" (blocks count from 0) or a module path.

    Raises ValueError: no such site (near matches offered), or a block past the last (the limit named).
    """
    numbered = _NUMBERED.fullmatch(name)
    if numbered is None:
        return _resolve_path(model, name)
    kind, layer = numbered[1], int(numbered[2])
    path = blocks_path(model)
    count = len(list(submodule(model, path).children()))
    if not 0 <= layer < count:
        raise ValueError(f"site {name!r}: layer {layer} is out of range; the model has layers 0 to {count - 1}")
    block = f"{path}.{layer}"
    if kind == "resid":
        return Site(name, block, layer)
    parts = dict(submodule(model, block).named_modules())
    for part in _KINDS[kind]:
        if part in parts:
            return Site(name, f"{block}.{part}", layer)
    inside = ", ".join(f"{block}.{p}" for p, _ in submodule(model, block).named_children())
    raise ValueError(f"site {name!r}: no {kind.removesuffix('_out')} module known in {block}; name one of {inside}")


def _resolve_path(model: nn.Module, name: str) -> Site:
    paths = [path for path, _ in model.named_modules() if path]
    try:
        blocks = blocks_path(model)
    except ValueError:
        blocks = None
    if name not in paths:
        count = len(list(submodule(model, blocks).children())) if blocks else 0
        known = [f"{kind}.{i}" for kind in ("resid", *_KINDS) for i in range(count)]
        near = difflib.get_close_matches(name, known, n=3) + difflib.get_close_matches(name, paths, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        ours = f"Known: resid.i, mlp_out.i, attn_out.i for i = 0 to {count - 1}, " if count else "Known: "
        raise ValueError(f"unknown site {name!r}: {hint}{ours}or any module path of {type(model).__name__}")
    inside = re.match(rf"{re.escape(blocks)}\.(\d+)(\.|$)", name) if blocks else None
    return Site(name, name, int(inside[1]) if inside else None)


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path ("" is the model itself). ValueError names the first missing part."""
    module = model
    for i, part in enumerate(path.split(".") if path else []):
        children = dict(module.named_children())
        if part not in children:
            here = ".".join(path.split(".")[:i]) or type(model).__name__
            raise ValueError(f"no module {path!r}: {here} has no {part!r}, it has {', '.join(children) or 'nothing'}")
        module = children[part]
    return module


@contextmanager
def capture(model: nn.Module, site: Site, *, stop: bool) -> Iterator[Captured]:
    """Within the `with`, a forward pass leaves the site's output in the yielded Captured.

    With `stop` the forward pass, and with it the body of the `with`, ends right after the site: the layers
    behind it cost nothing. So call the model once, as the last statement of the body.

        with capture(model, site, stop=True) as got:
            model(**inputs)
        x = got.take()  # [batch, position, d]
    """
    got = Captured(site.name)

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        got.value = _tensor_of(output, site)
        if stop:
            raise _Reached

    handle = submodule(model, site.path).register_forward_hook(hook)
    try:
        yield got
    except _Reached:
        pass
    finally:
        handle.remove()


@contextmanager
def splice(model: nn.Module, site: Site, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the `with`, every forward pass goes on from `replace(x)` where the site put out x.

    `replace` gets the site's tensor and returns one of the same shape, which is cast to the same dtype; other
    elements of a tuple stay. The identity leaves the model's output bit-identical. ValueError: a wrong shape.
    """

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        x = _tensor_of(output, site)
        new = replace(x)
        if new.shape != x.shape:
            raise ValueError(
                f"the replacement at site {site.name!r} has shape {tuple(new.shape)}, not {tuple(x.shape)}"
            )
        new = new.to(x.dtype)
        return new if isinstance(output, Tensor) else type(output)((new, *output[1:]))

    handle = submodule(model, site.path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _tensor_of(output: Any, site: Site) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ValueError(f"site {site.name!r} ({site.path}) puts out a {type(first).__name__}, not a tensor")
    return first
