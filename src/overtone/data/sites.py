"""Sites: places inside a model where activations are read (capture) or replaced (splice), found generically.

    resid.i     output of block i: Llama model.layers.i, GPT-2 transformer.h.i, GPT-NeoX gpt_neox.layers.i,
                BERT (MiniLM) encoder.layer.i
    attn_in.i   what the attention reads, in block i: input of
                Llama self_attn, GPT-2 attn, GPT-NeoX attention, BERT attention.self
    z.i         the heads' outputs side by side, before the output projection: input of
                Llama self_attn.o_proj, GPT-2 attn.c_proj, GPT-NeoX attention.dense, BERT attention.output.dense
    attn_out.i  the attention's output after its projection, before the residual add: output of
                Llama self_attn, GPT-2 attn, GPT-NeoX attention, BERT attention.output.dense
    mlp_in.i    what the MLP reads: input of Llama, GPT-2 and GPT-NeoX mlp, BERT intermediate
    mlp_out.i   the MLP's output before the residual add: output of
                Llama and GPT-2 mlp, GPT-NeoX mlp.dense_4h_to_h (its last step), BERT output.dense
    PATH        output of any other module
    in:PATH     input of any module: its first argument

Nothing here depends on transformers: it is torch modules and their names.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Of each kind: which side of the module, and the paths it may have within a block; the first match wins.
# Outputs: BERT's `output` and `attention` add the residual and normalise, Bloom's `mlp` and `self_attention`
# and MPT's `ffn` add it: there the projection inside comes before the module itself.
# Inputs: BERT's `attention` hands its input on to the residual too, which a splice should leave alone; its `self`
# and `intermediate` do not.
_KINDS: dict[str, tuple[Literal["input", "output"], tuple[str, ...]]] = {
    "resid": ("output", ("",)),
    "attn_in": ("input", ("attention.self", "self_attn", "attn", "attention", "self_attention")),
    "z": (
        "input",
        (
            *("attention.output.dense", "self_attention.dense", "attention.dense", "self_attn.dense"),
            *("self_attn.o_proj", "attn.o_proj", "attention.o_proj", "attn.c_proj", "attn.Wo", "attention.out_lin"),
            *("self_attn.out_proj", "attn.out_proj", "attn.attention.out_proj", "attention.out_proj"),
        ),
    ),
    "attn_out": (
        "output",
        ("attention.output.dense", "self_attention.dense", "self_attn", "attn", "attention", "self_attention"),
    ),
    "mlp_in": ("input", ("intermediate", "mlp", "feed_forward", "ffn", "ff", "fc1", "block_sparse_moe")),
    "mlp_out": (
        "output",
        (
            *("output.dense", "mlp.dense_4h_to_h", "mlp", "feed_forward", "ffn.down_proj", "ffn", "ff", "fc2"),
            "block_sparse_moe",
        ),
    ),
}
_NUMBERED = re.compile(rf"({'|'.join(_KINDS)})\.(-?\d+)")


class Site(NamedTuple):
    """A site found: the name it was asked for, its module's path, which side of it, its block's number if any."""

    name: str
    path: str
    side: Literal["input", "output"]
    layer: int | None


class Captured:
    """What `capture` saw: each site's tensor, [batch, position, d] in most models."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)
        self.found: dict[int, Tensor] = {}

    @property
    def complete(self) -> bool:
        """Whether every site was reached."""
        return len(self.found) == len(self.sites)

    def take(self) -> list[Tensor]:
        """Hand over the tensors in the order asked, and forget them. ValueError names the sites never reached."""
        missed = [repr(site.name) for i, site in enumerate(self.sites) if i not in self.found]
        if missed:
            raise ValueError(f"the forward pass never reached {', '.join(missed)}; choose modules that it uses")
        found, self.found = self.found, {}
        return [found[i] for i in range(len(self.sites))]


class _Reached(Exception):
    """Ends a forward pass at the last site; never leaves this module."""


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
    """Find `name` in the model: a kind and a block (from 0) such as "resid.3" or "mlp_in.3", a path, or "in:" and a path.

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
    parts = dict(submodule(model, block).named_modules())
    side, known = _KINDS[kind]
    for part in known:
        if part in parts:
            return Site(name, f"{block}.{part}".rstrip("."), side, layer)
    prefix = "in:" if side == "input" else ""
    inside = ", ".join(f"{prefix}{block}.{p}" for p, _ in submodule(model, block).named_children())
    raise ValueError(f"site {name!r}: no module known for {kind} in {block}; name one of {inside}")


def _resolve_path(model: nn.Module, name: str) -> Site:
    path = name.removeprefix("in:")
    prefix = name[: len(name) - len(path)]
    paths = [path for path, _ in model.named_modules() if path]
    try:
        blocks = blocks_path(model)
    except ValueError:
        blocks = None
    if path not in paths:
        count = len(list(submodule(model, blocks).children())) if blocks else 0
        known = [f"{kind}.{i}" for kind in _KINDS for i in range(count)]
        near = difflib.get_close_matches(path, known, n=3)
        near += [prefix + p for p in difflib.get_close_matches(path, paths, n=3)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        ours = f"{', '.join(f'{kind}.i' for kind in _KINDS)} for i = 0 to {count - 1}, " if count else ""
        raise ValueError(
            f"unknown site {name!r}: {hint}Known: {ours}any module path of {type(model).__name__}, "
            "and in: before a path for its input"
        )
    inside = re.match(rf"{re.escape(blocks)}\.(\d+)(\.|$)", path) if blocks else None
    return Site(name, path, "input" if prefix else "output", int(inside[1]) if inside else None)


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
def capture(model: nn.Module, sites: Sequence[Site], *, stop: bool = True) -> Iterator[Captured]:
    """Within the `with`, one forward pass leaves every site's tensor in the yielded Captured.

    With `stop` the forward pass, and with it the body of the `with`, ends as soon as every site was reached: what
    lies behind the last of them costs nothing. So call the model once, as the last statement of the body.
    Of a module called several times the first call counts; a site gives the same bits alone and among others.

        with capture(model, sites) as got:
            model(**inputs)
        x, y = got.take()  # of two sites, in their order; [batch, position, d] each

    Raises ValueError: a site that holds no tensor.
    """
    got = Captured(sites)

    def keep(number: int, x: Tensor) -> None:
        if number not in got.found:
            # A copy: what follows may write into x (Falcon adds the attention to the MLP's output in place).
            got.found[number] = x.clone()
        if stop and got.complete:
            raise _Reached

    with ExitStack() as hooks:
        for number, site in enumerate(got.sites):
            hooks.enter_context(_watch(model, site, partial(keep, number)))
        with suppress(_Reached):
            yield got


@contextmanager
def splice(model: nn.Module, site: Site, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the `with`, every forward pass goes on from `replace(x)` where the site holds x.

    `replace` gets the site's tensor and returns one of the same shape, which is cast to the same dtype; the module's
    other arguments or outputs stay. The identity leaves the model's output bit-identical.

    Raises ValueError: a wrong shape, or a site that holds no tensor.
    """

    def swap(x: Tensor) -> Tensor:
        new = replace(x)
        if new.shape != x.shape:
            raise ValueError(
                f"the replacement at site {site.name!r} has shape {tuple(new.shape)}, not {tuple(x.shape)}"
            )
        return new.to(x.dtype)

    with _watch(model, site, swap):
        yield


def _watch(model: nn.Module, site: Site, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Show `see` the site's tensor in every forward pass, and put what it returns, unless None, in its place."""
    module = submodule(model, site.path)
    name = next(iter(inspect.signature(module.forward).parameters), "")

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        new = see(_tensor(args[0] if args else kwargs.get(name), site))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

    def after(_module: nn.Module, _args: tuple, output: Any) -> Any:
        if not isinstance(output, tuple | list) or not output:
            return see(_tensor(output, site))
        first, *rest = output
        new = see(_tensor(first, site))
        return None if new is None else type(output)((new, *rest))

    if site.side == "input":  # Llama calls self_attn(hidden_states=…): the first argument may come by its name
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _tensor(value: Any, site: Site) -> Tensor:
    if not isinstance(value, Tensor):
        does = "takes in" if site.side == "input" else "puts out"
        raise ValueError(f"site {site.name!r}: {site.path} {does} a {type(value).__name__}, not a tensor")
    return value
