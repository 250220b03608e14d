"""`overtone compare`: methods × widths × L0 × seeds on one stream of rows; a table and a frontier."""

from pathlib import Path

from overtone.catalogue import Spec, parse, places
from overtone.cli.common import resumable, resume_command, write_json
from overtone.cli.comparison import Comparison, Contestant
from overtone.cli.rows import Wanted, model_of
from overtone.cli.train import check_buffer, check_sites, refuse_with_resume, wanted_rows
from overtone.data.filling import HarvestPlan
from overtone.data.source import FileSource
from overtone.data.store import Store
from overtone.method import Method
from overtone.runs import timestamp
from overtone.sites import transcoder
from overtone.training import Run
from overtone.users_code import parts_named


def compare(
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
    method: tuple[str, ...] = ("gba", "topk", "batch-topk", "matryoshka"),
    l0: tuple[float, ...] = (32, 64),
    latents: tuple[int, ...] = (),
    expansion: int = 8,
    seeds: int = 1,
    tokens: int = 500_000,
    context: int = 128,
    text_field: str | None = None,
    steps: int = 3000,
    batch: int = 512,
    lr: float | None = None,
    warmup: float = 0.0,
    decay: float = 0.2,
    seed: int = 0,
    checkpoint_every: int = 500,
    at_once: int | None = None,
    downstream: bool = False,
    contexts: int = 64,
    out: Path | None = None,
    resume: Path | None = None,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
) -> None:
    """Train every method at every L0, width and seed on the same rows in the same order, and show what each came to.

    All dictionaries are trained side by side, so that the rows are read once; with --at-once N, in groups of N, each of which
    reads the same rows in the same order. The folder holds a run folder for each, comparison.md with the table, results.json,
    and the frontier – explained variance against L0 – as SVG and PNG. A comparison that was stopped, however abruptly, goes on
    with `--resume FOLDER`; given again when it is finished, that draws the table and the picture anew.

    Args:
        model: "minilm" (extra `demo`), a local folder, or a Hugging Face model name.
        site: where to read: resid.3, mlp_in.3, mlp_out.3, attn_in.3, attn_out.3, z.3, any module path, or in:PATH; several with
            --crosscoder.
        text: stdlib-docs, stdlib-source, a file, a folder, or hub:NAME[:CONFIG]; several are read one after the other.
        activations: a file of activations instead of model, site and text: .npy (rows, d), .safetensors or .parquet.
        tensor: which tensor of the safetensors file, or column of the Parquet file.
        store: a store that `overtone harvest` wrote, instead of model and text; --site says which of its sites.
        target: another site to reconstruct from the site's codes (transcoders), of any width.
        skip: a linear path from --site to --target beside the latents: skip transcoders.
        crosscoder: each dictionary is of all --site together.
        memory_mib: memory for activations on their way from the store, in MiB.
        buffer_rows: keep no activations: read the model while training, through a shuffle buffer of so many rows.
        method: what to compare, as gba or "topk(k=32)"; `overtone methods` lists them with their options. A method without a
            dial for L0 is given a list of values for one of its own options, as in "l1(coefficient=[0.003, 0.01, 0.03])",
            and is shown at the L0 it reaches. Your own: FILE.py:NAME or MODULE:NAME.
        l0: wanted numbers of active latents per token: each method's own dial (l0 or k) is set to each of them.
        latents: dictionary widths.
        expansion: dictionary width as a multiple of d (of crosscoders: of their widest site's), where latents is not given.
        seeds: how many initial weights for each; the rows and their order are the same for all.
        tokens: tokens of the text to train on, again and again (fewer if it is shorter).
        context: tokens per context.
        text_field: the key of the text in JSON and Hub data.
        steps: training steps.
        batch: tokens per step.
        lr: learning rate of all (default: each method's own).
        warmup: share of the steps over which the learning rate rises.
        decay: share of the steps, at the end, over which it falls to 0.
        seed: the first seed of the initial weights, and the seed of the order of tokens.
        checkpoint_every: steps between checkpoints.
        at_once: how many dictionaries are held in memory and trained side by side (default: all).
        downstream: also run the model with reconstructions in place of its activations (embedding or loss recovered).
        contexts: how many pieces of held-out text for that.
        out: folder to create (default: runs/<date-time>).
        resume: folder to go on with; all settings come from it.
        parts: (with --resume) your own Python files or modules that the methods' parts are defined in.
        json: write the results to this file as well.
    """
    given = locals()
    if resume is not None:
        refuse_with_resume(compare, given)
        path, code, lm = resume, parts, None
        comparison = Comparison.open(resume, parts_named(parts))
    else:
        if parts:
            raise ValueError("--parts is for --resume; a new comparison knows the parts of the methods it is given")
        for name, value in (("seeds", seeds), ("at_once", at_once), ("contexts", contexts)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        check_buffer(buffer_rows, model, batch, context)
        wanted = wanted_rows(model, site, text, activations, tensor, store, target, tokens, context, text_field)
        wanted = wanted._replace(memory_mib=memory_mib, buffer_rows=buffer_rows)
        check_sites(wanted.sites, wanted.target, skip, crosscoder)
        if len(wanted.sites) > 1 and not crosscoder:
            raise ValueError(
                f"--site {' '.join(wanted.sites)}: several sites are compared as crosscoders alone; give one, or --crosscoder"
            )
        if downstream and (isinstance(wanted.read, FileSource) or target or crosscoder):
            raise ValueError(
                "--downstream needs a model and one site without --target or --crosscoder; drop --downstream"
            )
        if downstream and isinstance(wanted.read, Path):
            model_of(Store(wanted.read))  # a model that is not to be had is an error now, and not after the training
        lines = [(sweep.line(spec), spec) for sweep in (parse(m).at(l0) for m in method) for spec in sweep.specs]
        schedule = {"lr": lr, "warmup": warmup, "decay": decay, "checkpoint_every": checkpoint_every}

        def made(spec: Spec) -> Method:
            return spec.method() if wanted.target is None else transcoder(spec.method(), skip=skip)

        def runs_of(widths: dict[str, int]) -> list[tuple[Contestant, Run]]:
            return [
                (_contestant(line, spec, width, s), Run(made(spec), width, steps, batch, seed=s, **schedule))
                for width in latents or (expansion * max(widths[name] for name in wanted.sites),)
                for line, spec in lines
                for s in range(seed, seed + seeds)
            ]

        path, code = out or Path("runs") / timestamp(), places(method)
        comparison, lm = Comparison.create(
            path, wanted, runs_of, at_once=at_once, contexts=contexts if downstream else None, rows=_rows(wanted)
        )
    again = resume_command("compare", path, code)
    with resumable(again):
        comparison.carry_out(lm)
    write_json(json, comparison.report(again))


def _contestant(line: str, spec: Spec, width: int, seed: int) -> Contestant:
    return Contestant(f"{spec.slug}-{width}-seed-{seed}", line, spec.label, width, seed)


def _rows(wanted: Wanted) -> str:
    """What the rows are, for titles."""
    sites = " + ".join(wanted.sites) + (f" → {wanted.target}" if wanted.target else "")
    if isinstance(wanted.read, FileSource):
        return Path(wanted.read.path).name
    if isinstance(wanted.read, HarvestPlan):
        model = wanted.read.model
    else:
        source = Store(wanted.read).manifest.source
        model = source["plan"]["model"] if source.get("kind") == "harvest" else str(wanted.read)
    return f"{sites} of {Path(model).name}"
