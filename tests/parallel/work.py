"""What the tests have ranks do; here and not in the tests themselves, so that new processes can import it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

import overtone as ot
from overtone import firing, ops
from overtone.cli.rows import existing_runs, rows_of
from overtone.data.stream import SharedRows
from overtone.methods import with_frequency_control
from overtone.parallel import Axis, World
from overtone.ranks import part_of
from overtone.training import TrainState, start, step_once
from small_methods import SMALL

D = 12
Weights = dict[str, Tensor]


def resampled(method: ot.Method) -> ot.Method:
    """With rules for dead latents that act several times in a few steps."""
    return replace(
        method,
        name=f"{method.name}-resampled",
        rules=(*method.rules, ot.CountIdle(), ot.DeadResampling(interval=4, after=40, until=10)),
        parametrisation=replace(method.parametrisation, counts_idle=True),
    )


def soon_surplus(method: ot.Method) -> ot.Method:
    """`gba_universal` that looks for latents that nothing needs several times in a few steps."""
    soon = ot.SurplusResampling(interval=4, first=0.0, cosine=0.7, near=0.9, most=0.5)
    rules = tuple(soon if isinstance(rule, ot.SurplusResampling) else rule for rule in method.rules)
    return replace(method, name=f"{method.name}-soon", rules=rules)


METHODS: dict[str, ot.Method] = SMALL | {
    "gba-l0": ot.gba(l0=3, groups=3, interval=2),
    "gba-paper-every-step": ot.gba_paper(groups=3, interval=1),
    "jumprelu-l0": ot.jumprelu(3, start=0.2, bandwidth=0.1),
    "topk-aux": ot.topk(3, aux_after=60),
    "topk-resampled": resampled(ot.topk(3)),
    "gba-universal-soon": soon_surplus(ot.gba_universal(groups=3)),
    "gba-universal-split": ot.gba_universal(groups=3, resample=False),
    "topk-steered": with_frequency_control(ot.topk(3), ot.Spectrum(3)),
    "matryoshka-sampled": ot.matryoshka(3, sampled=3),
    "normalised": replace(ot.topk(3), losses=(ot.NormalisedMSE(),)),
    "transcoder-normalised": replace(ot.transcoder(ot.topk(3), skip=True), losses=(ot.NormalisedMSE(),)),
}


def made_rows(count: int) -> Tensor:
    """Sparse mixtures of 24 features in 12 dimensions, the second half of the rows larger and sparser than the first."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(24, D, generator=generator)
    weights = torch.rand(count, 24, generator=generator) * (torch.rand(count, 24, generator=generator) < 0.15)
    return weights @ features + 0.05 * torch.randn(count, D, generator=generator)


def stream_of(run: ot.Run) -> ot.ArrayStream:
    rows = made_rows(240)
    target = rows.flip(1).cumsum(1) if run.method.parametrisation.skip else None
    return ot.ArrayStream(rows, run.batch, seed=run.seed, target=target)


def run_of(name: str, **changes: Any) -> ot.Run:
    options = {"latents": 20, "steps": 12, "batch": 48, "log_every": 4, "checkpoint_every": 5} | changes
    return ot.Run(METHODS[name], **options)


def started(run: ot.Run, stream: ot.ArrayStream, world: World) -> TrainState:
    """A state before training where rounding decides nothing.

    Thresholds that are quantiles lie on a row to the last bit, and Adam makes whole steps of gradients that are rounding error.
    """
    state = start(run, stream, world)
    with torch.no_grad():
        state.dictionary.b_enc.sub_(1e-3)
    for group in state.optimiser.param_groups:
        if "eps" in group:
            group["eps"] = 1e-5
    return state


OF_LATENTS = ("fired", "peak", "targets", "start", "resampled")


class Trained(NamedTuple):
    records: list[tuple[float, float, float, float]]
    weights: Weights
    moments: Weights
    rules: list[Weights]


def trained(world: World, names: list[str], changes: dict[str, Any]) -> dict[str, Trained]:
    """Every method, trained for a few steps."""
    return {name: _trained(world, run_of(name, **changes)) for name in names}


def _trained(world: World, run: ot.Run) -> Trained:
    stream = stream_of(run)
    state = started(run, stream, world)
    records = [(r.loss, r.l0, r.alive, r.explained_variance) for r in ot.train(run, stream, state)]
    dictionary = state.dictionary
    rules = [
        {name: dictionary.whole(value) if name in OF_LATENTS else value for name, value in rule.items()}
        for rule in state.rules
    ]
    return Trained(records, whole(dictionary, dictionary.state_dict()), _moments(state), rules)


def whole(dictionary: ot.Dictionary, weights: Weights) -> Weights:
    """Weights with the latents of all ranks."""
    return {key: dictionary.whole(w) if key in dictionary.of_latents else w for key, w in weights.items()}


def _moments(state: TrainState) -> Weights:
    found = {}
    for name, parameter in state.dictionary.named_parameters():
        for key, value in state.optimiser.state.get(parameter, {}).items():
            split = name in state.dictionary.of_latents and key != "step"
            found[f"{name}.{key}"] = state.dictionary.whole(value) if split else value
    return found


class Coded(NamedTuple):
    z: Tensor
    alone: Tensor
    fired: Tensor
    peak: Tensor


def coded(world: World, names: list[str], changes: dict[str, Any]) -> dict[str, Coded]:
    """Codes of this rank's rows of a training batch, by weights that every rank has, after some steps on its own."""
    return {name: _coded(world, run_of(name, **changes)) for name in names}


def _coded(world: World, run: ot.Run) -> Coded:
    stream = stream_of(run)
    state = started(run, stream, World())
    for _ in range(3):
        step_once(run, state, next(stream))
    method, trained_alone = run.method, state.dictionary
    dictionary = ot.Dictionary(stream.layout, run.latents, method.select, method.parametrisation, world=world)
    parts = {k: dictionary.part(w) if k in dictionary.of_latents else w for k, w in trained_alone.state_dict().items()}
    dictionary.load_state_dict(parts)
    part = part_of(next(stream), world.rows)
    normalised = dictionary.normalise(part.x)
    codes, alone = dictionary.encode_batch(*normalised), dictionary.encode_normalised(*normalised)
    z, z_alone = (dictionary.whole(c.z.detach().T.contiguous()).T for c in (codes, alone))
    seen = firing.of_all(codes.seen, world.rows)
    return Coded(z, z_alone, dictionary.whole(seen.fired), dictionary.whole(seen.peak))


def batch_topk(world: World, pre: Tensor, k: int, implementation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, latents and codes of the k largest per row, on average, of given pre-activations; rows counted over all ranks."""
    module = {"cpu": ops.cpu, "reference": ops.reference}[implementation]
    part, own = world.rows.part(len(pre)), world.latents.part(pre.shape[1])
    x, eye = pre[part], torch.eye(pre.shape[1])[own]
    codes = next(module.encode_batch_topk_in_parts([x], eye, torch.zeros(len(eye)), k, world=world)).codes
    return codes.rows + part.start, codes.latents + own.start, codes.values


def drawn(part: Axis, latents: int, d: int) -> Tensor:
    """The atoms that a rank starts with."""
    return ot.Dictionary(d, latents, seed=2, world=World(latents=part)).W_dec.detach()


def resumed(world: World, path: str, name: str, stop_after: int | None) -> Weights | None:
    """Execute a run folder, or abandon it after some records; its final weights."""
    run, folder = run_of(name, steps=24, batch=24), Path(path)
    world.told(lambda: None if (folder / "config.json").exists() else ot.RunFolder.create(folder, run) and None)
    opened = ot.RunFolder.open(folder)
    for count, _ in enumerate(ot.execute(opened, stream_of(run), world), 1):
        if count == stop_after:
            return None
    return opened.dictionary().state_dict() if world.first else None


def undisturbed(world: World, path: str) -> None:
    """Train a run folder of `overtone train` to its end."""
    folders = existing_runs(Path(path))
    for _ in ot.execute(folders[0], rows_of(folders)[0].stream, world):
        pass


class Undealt:
    """A stream of the user's own, which knows no parts: it gives all rows of another one's batches."""

    def __init__(self, stream: ot.Stream):
        self.layout, self.stream = stream.layout, stream
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __iter__(self) -> "Undealt":
        return self

    def __next__(self) -> ot.Batch:
        return next(self.stream)


def from_store(
    world: World, path: str, name: str, batch: int, dealt: bool
) -> tuple[list[Any], Weights, dict[str, Any]]:
    """Records, weights and last position of a run on a store's rows, of which ranks read their part or all."""
    run = run_of(name, batch=batch, steps=6, log_every=2)
    rows = ot.StoreStream(ot.Store(path), batch, seed=1, memory_mib=1)
    shared = SharedRows(rows).reader(rows.layout)
    stream = shared if dealt else Undealt(shared)
    state = start(run, stream, world)
    position = stream.state_dict()
    assert (next(stream).whole is not None) == (dealt and world.rows.size > 1)
    stream.load_state_dict(position)
    records = [(r.step, r.rows, r.loss, r.l0, r.alive, r.explained_variance) for r in ot.train(run, stream, state)]
    return records, whole(state.dictionary, state.dictionary.state_dict()), stream.state_dict()


def bytes_said(world: World, method: ot.Method, sizes: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Bytes of a step's messages, by axis and kind, and the L0 of that step."""
    run = ot.Run(method, **sizes)
    x = torch.randn(2048, 32, generator=torch.Generator().manual_seed(0))
    stream = ot.ArrayStream(x, run.batch)
    state = start(run, stream, world)
    axes = {id(axis.group): name for name, axis in (("rows", world.rows), ("latents", world.latents))}
    found: dict[tuple[str, str], int] = {}
    real = distributed.all_reduce, distributed.all_gather

    def add(tensor: Tensor, group: Any, kind: str) -> None:
        key = axes.get(id(group), "everyone"), kind
        found[key] = found.get(key, 0) + tensor.numel() * tensor.element_size()

    def all_reduce(tensor: Tensor, *args: Any, group: Any = None, **options: Any) -> Any:
        add(tensor, group, "sum")
        return real[0](tensor, *args, group=group, **options)

    def all_gather(parts: list[Tensor], tensor: Tensor, group: Any = None) -> Any:
        add(tensor, group, "gather")
        return real[1](parts, tensor, group=group)

    distributed.all_reduce, distributed.all_gather = all_reduce, all_gather
    try:
        step_once(run, state, next(stream))
    finally:
        distributed.all_reduce, distributed.all_gather = real
    l0 = world.latents.sum(state.window.fired.sum()) / state.window.rows
    return found | {("l0", ""): float(l0)}


def checked(world: World, numbers: list[float]) -> str | None:
    """What is said where these are the weights that each rank has."""
    try:
        world.check_same([torch.tensor(numbers[world.rows.rank])], "weights")
    except RuntimeError as error:
        return str(error)
    return None


def failing(world: World) -> float:
    """One rank fails, the other waits for it."""
    if world.rows.rank == 1:
        raise ValueError("rows are not what they should be")
    return float(world.rows.sum(torch.ones(())))
