"""`overtone train`: a dictionary of any model's activations, or of activations in a file."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from overtone.catalogue import parse, places
from overtone.cli.common import console, follow, resumable, resume_command, tell_sites, together, write_json
from overtone.cli.rows import Member, Rows, Wanted, existing_runs, holds_runs, new_runs, rows_of
from overtone.data.filling import HarvestPlan
from overtone.data.models import LanguageModel, load_model
from overtone.data.source import FileSource
from overtone.data.store import Store
from overtone.metrics.reconstruction import evaluate
from overtone.parallel import World, restarts
from overtone.ranks import check_ranks
from overtone.report.tables import metrics_table
from overtone.runs import RunFolder, execute_together, timestamp
from overtone.sites import transcoder
from overtone.training import Run
from overtone.users_code import parts_named


def train(
    model: str | None = None,
    site: tuple[str, ...] = (),
    text: tuple[str, ...] = (),
    activations: str | None = None,
    tensor: str | None = None,
    store: str | None = None,
    target: str | None = None,
    skip: bool = False,
    crosscoder: bool = False,
    memory_mib: int = 512,
    buffer_rows: int | None = None,
    device_map: str | None = None,
    method: tuple[str, ...] = (),
    l0: tuple[float, ...] = (),
    latents: tuple[int, ...] = (),
    expansion: int = 8,
    tokens: int = 500_000,
    context: int = 128,
    text_field: str | None = None,
    steps: int = 3000,
    batch: int = 512,
    accumulate: int = 1,
    lr: float | None = None,
    warmup: float = 0.0,
    decay: float = 0.2,
    seed: int = 0,
    checkpoint_every: int = 500,
    out: Path | None = None,
    resume: Path | None = None,
    parts: tuple[str, ...] = (),
    split_latents: int = 1,
    json: Path | None = None,
) -> None:
    """Train a dictionary on a language model's activations, on a store of them, or on activations that you have in a file.

    The run folder holds the configuration, a record every 50 steps, checkpoints, and at the end the dictionary. A run that
    was stopped, however abruptly, goes on with `--resume FOLDER` and ends with the same weights. Several sites, methods or
    widths are trained side by side in one pass over the rows, each in a folder of its own.

    Several processes train together, each on a part of every batch, and the result is that of one (docs/distributed.md):
    torchrun --standalone --nproc-per-node 4 -m overtone train … --out FOLDER. A rank that dies may be started again
    (--max-restarts 3): all go on from the last checkpoint. --resume may have another number of ranks.

    Args:
        model: "minilm" (extra `demo`), a local folder, or a Hugging Face model name.
        site: where to read: resid.3, mlp_in.3, mlp_out.3, attn_in.3, attn_out.3, z.3, any module path, or in:PATH; several
            for several dictionaries.
        text: stdlib-docs, stdlib-source, a file, a folder, or hub:NAME[:CONFIG]; several are read one after the other.
        activations: a file of activations instead of model, site and text: .npy (rows, d), .safetensors or .parquet.
        tensor: which tensor of the safetensors file, or column of the Parquet file.
        store: a store that `overtone harvest` wrote, instead of model and text; --site says which of its sites.
        target: another site to reconstruct from the site's codes, of any width: a transcoder (docs/sites.md).
        skip: a linear path from --site to --target beside the latents: a skip transcoder.
        crosscoder: one dictionary of all --site together, and not one of each.
        memory_mib: memory for activations on their way from the store, in MiB.
        buffer_rows: keep no activations: read the model while training, through a shuffle buffer of so many rows.
        device_map: (with --model) where its weights go: a device, as cuda:0, or "auto", whole layers on all devices there are.
        method: what to train, as gba or "topk(k=32)"; `overtone methods` lists them with their options. A list of values, as in
            "topk(k=[32, 64])", is one dictionary for each; so are several methods. Your own: FILE.py:NAME or MODULE:NAME.
            Default: gba-universal, which is told nothing; gba with --l0, --target, --crosscoder or --split-latents.
        l0: wanted number of active latents per token, by the method's own dial (l0 or k); several for several dictionaries.
        latents: dictionary width; several for several dictionaries.
        expansion: dictionary width as a multiple of d (of a crosscoder: of its widest site's), where latents is not given.
        tokens: tokens of the text to train on, again and again (fewer if it is shorter).
        context: tokens per context.
        text_field: the key of the text in JSON and Hub data.
        steps: training steps.
        batch: tokens per step.
        accumulate: parts that a step's tokens are worked through in, so that memory is that of one part; the result is the same.
        lr: learning rate (default: the method's own).
        warmup: share of the steps over which the learning rate rises.
        decay: share of the steps, at the end, over which it falls to 0.
        seed: seed of the initial weights and of the order of tokens.
        checkpoint_every: steps between checkpoints.
        out: run folder to create (default: runs/<date-time>).
        resume: run folder to go on with; all settings come from it.
        parts: (with --resume) your own Python files or modules that the method's parts are defined in.
        split_latents: under torchrun, over how many ranks the latents are split; the others share the rows of a batch.
        json: write the results to this file.
    """
    given = locals()
    load = partial(load_model, device_map=device_map)
    with together(split_latents) as world:
        if resume is None and out is not None and restarts() and holds_runs(out):
            resume, parts = out, tuple(places(method))  # the same command, after a rank had died
        elif resume is not None:
            refuse_with_resume(train, given)
        elif parts:
            raise ValueError("--parts is for --resume; a new run knows the parts of the methods that it is given")
        if resume is not None:
            path, modules, make = resume, parts, partial(opened_runs, resume, parts, load)
        else:
            check_buffer(buffer_rows, model, batch, context)
            if device_map is not None and model is None:
                raise ValueError(f"--device-map {device_map} is for --model, and no model is read here; drop it")
            wanted = wanted_rows(model, site, text, activations, tensor, store, target, tokens, context, text_field)
            wanted = wanted._replace(memory_mib=memory_mib, buffer_rows=buffer_rows)
            # It has no dial, resamples in the space of what is read, and cannot be split: elsewhere gba.
            steered = l0 or target is not None or crosscoder or split_latents > 1
            method = method or ("gba" if steered else "gba-universal",)
            specs = [spec for text in method for spec in parse(text).at(l0).specs]
            check_sites(wanted.sites, wanted.target, skip, crosscoder)
            schedule = {"lr": lr, "warmup": warmup, "decay": decay}
            settings = {"accumulate": accumulate, "seed": seed, "checkpoint_every": checkpoint_every} | schedule
            if world.size > 1 and out is None:
                raise ValueError("--out missing: ranks that are started again have to find the run; give --out FOLDER")

            def members_of(widths: dict[str, int]) -> list[Member]:
                members = []
                for group in [wanted.sites] if crosscoder else [(name,) for name in wanted.sites]:
                    for spec in specs:
                        chosen = spec.method()
                        if wanted.target is not None:
                            chosen = transcoder(chosen, skip=skip)
                        for width in latents or (expansion * max(widths[name] for name in group),):
                            run = Run(chosen, width, steps, batch, **settings)
                            check_ranks(chosen, width, batch, world, accumulate)
                            name = f"{'+'.join(group)}-{spec.slug}-{width}".replace("/", "_").lstrip("-")
                            members.append(Member(name, run, group if crosscoder else group[0], wanted.target))
                return [members[0]._replace(name="")] if len(members) == 1 else members

            path = out or Path("runs") / timestamp()
            modules, make = places(method), partial(new_runs, path, wanted, members_of, load)
        with resumable(resume_command("train", path, modules)):
            folders, rows = made_together(world, make, modules, load)
            labels = [folder.path.name if len(folders) > 1 else folder.run.method.name for folder in folders]
            members = [(folder, part.stream) for folder, part in zip(folders, rows, strict=True)]
            titles = [(f"Training {label}", folder.run) for label, folder in zip(labels, folders, strict=True)]
            follow(execute_together(members, world), titles)
        if world.first:
            tell(folders, rows, labels, json)


def opened_runs(
    path: Path, parts: Sequence[str], load: Callable[[str], LanguageModel]
) -> tuple[list[RunFolder], list[Rows]]:
    """The runs to go on with, and their rows."""
    folders = existing_runs(path, parts_named(parts))
    if all(folder.finished for folder in folders):
        console.print(f"{path} is already finished")
    return folders, rows_of(folders, load=load)


def made_together(
    world: World,
    make: Callable[[], tuple[list[RunFolder], list[Rows]]],
    parts: Sequence[str],
    load: Callable[[str], LanguageModel],
) -> tuple[list[RunFolder], list[Rows]]:
    """Folders and rows on every rank: the first one makes the folders and harvests, then the others open what is there."""
    made = []

    def by_first() -> list[str]:
        made.append(make())
        return [str(folder.path) for folder in made[0][0]]

    paths = world.told(by_first)
    if not made:
        folders = [RunFolder.open(path, parts_named(parts)) for path in paths]
        made.append((folders, rows_of(folders, load=load)))
    return made[0]


def tell(folders: Sequence[RunFolder], rows: Sequence[Rows], labels: Sequence[str], json: Path | None) -> None:
    """Measure the trained dictionaries on held-out rows and print what came out."""
    results = [evaluate(f.dictionary(), part.held_out()).summary() for f, part in zip(folders, rows, strict=True)]
    console.print(metrics_table(dict(zip(labels, results, strict=True)), f"{results[0]['rows']:,} held-out rows"))
    for label, folder, result in zip(labels, folders, results, strict=True):
        tell_sites(label, folder.dictionary(), result)
    where = folders[0].path
    if len(folders) > 1:
        console.print(f"Run folders: {where.parent}/…")
    console.print(f"Run folder: {where}   In Python: overtone.load({str(where)!r})")
    found = zip(folders, results, strict=True)
    write_json(json, {"runs": [{"run": str(f.path), "method": f.run.method.name, "metrics": m} for f, m in found]})


def check_buffer(buffer_rows: int | None, model: str | None, batch: int, context: int) -> None:
    """A shuffle buffer must be of use."""
    if buffer_rows is None:
        return
    if model is None:
        raise ValueError("--buffer-rows is for --model, which is read while training; a store needs none, drop it")
    if buffer_rows < max(batch, context):
        raise ValueError(
            f"--buffer-rows {buffer_rows} must hold at least a batch ({batch}) and a context ({context}); a good shuffle needs "
            "a hundred times that"
        )


def check_sites(sites: tuple[str, ...], target: str | None, skip: bool, crosscoder: bool) -> None:
    """Refuse sites that do not go together."""
    if skip and target is None:
        raise ValueError("--skip is a path from --site to another site; give --target, or drop --skip")
    if crosscoder and target is not None:
        raise ValueError(f"--crosscoder reconstructs the sites it reads; drop --target {target}, or drop --crosscoder")
    if crosscoder and len(set(sites)) < 2:
        raise ValueError(
            f"--crosscoder joins several sites into one dictionary, and was given {', '.join(sites) or 'none'}; give at "
            "least two --site, or drop --crosscoder"
        )
    if target in sites:
        raise ValueError(f"--target {target} is among --site; a transcoder's target is another site, drop --target")


def refuse_with_resume(verb: Callable[..., None], given: dict[str, Any]) -> None:
    """A resumed run keeps its settings; an option that says otherwise is an error and not ignored."""
    for name, parameter in inspect.signature(verb).parameters.items():
        if name not in ("resume", "parts", "device_map", "split_latents", "json") and given[name] != parameter.default:
            raise ValueError(
                f"--{name.replace('_', '-')} {given[name]} together with --resume: a resumed run keeps all its settings; drop "
                "this option, or start a new run without --resume"
            )


def wanted_rows(
    model: str | None, site: tuple[str, ...], text: tuple[str, ...], activations: str | None, tensor: str | None,
    store: str | None, target: str | None, tokens: int, context: int, text_field: str | None,
) -> Wanted:  # fmt: skip
    """What the options of `train` say about the rows, or a ValueError that says which of them do not go together."""
    if activations is not None:
        if model or site or text or store or target:
            raise ValueError(
                "--activations gives the rows already; drop --model, --site, --text, --store and --target, or drop "
                "--activations"
            )
        return Wanted(FileSource(str(Path(activations).resolve()), tensor), ("",))
    if store is not None:
        if model or text:
            raise ValueError("--store gives the rows already; drop --model and --text, or drop --store")
        opened = Store(store)
        chosen = tuple(opened.site(name) for name in site) or (opened.site(),)
        return Wanted(Path(store), chosen, None if target is None else opened.site(target))
    missing = [f"--{name}" for name, value in (("model", model), ("site", site), ("text", text)) if not value]
    if missing or model is None:
        raise ValueError(
            f"nothing to train on: {', '.join(missing)} missing; give --model, --site and --text, or --store STORE, or "
            "--activations FILE"
        )
    sites = tuple(dict.fromkeys((*site, target) if target else site))
    texts = tuple(located(source) for source in text)
    plan = HarvestPlan(located(model), sites, texts, tokens, text_field=text_field, context=context)
    return Wanted(plan, site, target)


def located(name: str) -> str:
    """An existing path as an absolute one, so that the run can be resumed from any folder; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
