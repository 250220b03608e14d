"""`overtone train`: a dictionary of any model's activations, or of activations in a file."""

import inspect
from pathlib import Path
from typing import Any

from overtone.cli.common import MethodName, console, follow, make_method, write_json
from overtone.cli.rows import Source, new_run, rows_of
from overtone.data.filling import Plan
from overtone.data.source import FileSource, StoreSource
from overtone.data.store import Store
from overtone.metrics.reconstruction import evaluate
from overtone.report.tables import metrics_table
from overtone.runs import RunFolder, execute, timestamp
from overtone.training import Run


def train(
    model: str | None = None,
    site: str | None = None,
    text: str | None = None,
    activations: str | None = None,
    tensor: str | None = None,
    store: str | None = None,
    target: str | None = None,
    memory_mib: int = 512,
    method: MethodName = "gba",
    l0: float | None = None,
    groups: int | None = None,
    htf: float | None = None,
    ltf: float | None = None,
    frequency: float | None = None,
    k: int | None = None,
    coefficient: float | None = None,
    latents: int | None = None,
    expansion: int = 8,
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
    out: Path | None = None,
    resume: Path | None = None,
    json: Path | None = None,
) -> None:
    """Train a dictionary on a language model's activations, on a store of them, or on activations that you have in a file.

    The run folder holds the configuration, a record every 50 steps, checkpoints, and at the end the dictionary. A run that
    was stopped, however abruptly, goes on with `--resume FOLDER` and ends with the same weights.

    Args:
        model: "minilm" (extra `demo`), a local folder, or a Hugging Face model name.
        site: where to read: resid.3, mlp_in.3, mlp_out.3, attn_in.3, attn_out.3, z.3, any module path, or in:PATH.
        text: stdlib-docs, stdlib-source, a file, a folder, or hub:NAME[:CONFIG].
        activations: a file of activations instead of model, site and text: .npy (rows, d), .safetensors or .parquet.
        tensor: which tensor of the safetensors file, or column of the Parquet file.
        store: a store that `overtone harvest` wrote, instead of model and text; --site says which of its sites.
        target: (store) another site to reconstruct from the site's codes (a transcoder); of the same width, so far.
        memory_mib: memory for activations on their way from the store, in MiB.
        method: gba steers how often every latent fires; the others are for comparison.
        l0: (gba, gba-paper) wanted number of active latents per token; gba meets it, gba-paper stays below.
        groups: (gba, gba-paper) number of frequency groups.
        htf: (gba, gba-paper) highest target frequency.
        ltf: (gba, gba-paper) lowest target frequency.
        frequency: (ba, modified-ba) the one target frequency.
        k: (topk) active latents per token.
        coefficient: (l1) weight of the penalty.
        latents: dictionary width.
        expansion: dictionary width as a multiple of d, where latents is not given.
        tokens: tokens to read from the text (fewer if it is shorter).
        context: tokens per context.
        text_field: the key of the text in JSON and Hub data.
        steps: training steps.
        batch: tokens per step.
        lr: learning rate (default: the method's own).
        warmup: share of the steps over which the learning rate rises.
        decay: share of the steps, at the end, over which it falls to 0.
        seed: seed of the initial weights and of the order of tokens.
        checkpoint_every: steps between checkpoints.
        out: run folder to create (default: runs/<date-time>).
        resume: run folder to go on with; all settings come from it.
        json: write the results to this file.
    """
    given = locals()
    if resume is not None:
        _refuse_with_resume(given)
        folder = RunFolder.open(resume)
        rows = rows_of(folder)
    else:
        wanted = {"model": model, "site": site, "text": text}
        source = _source(wanted, activations, tensor, store, target, memory_mib, tokens, context, text_field)
        options = {"l0": l0, "groups": groups, "htf": htf, "ltf": ltf, "frequency": frequency, "k": k}
        chosen = make_method(method, {**options, "coefficient": coefficient})
        schedule = {"lr": lr, "warmup": warmup, "decay": decay}

        def make_run(d: int) -> Run:
            width = expansion * d if latents is None else latents
            return Run(chosen, width, steps, batch, seed=seed, checkpoint_every=checkpoint_every, **schedule)

        folder, rows = new_run(out or Path("runs") / timestamp(), source, make_run)
    run = folder.run
    follow(execute(folder, rows.stream), run, f"Training {run.method.name}")
    result = evaluate(folder.dictionary(), rows.held_out()).summary()
    console.print(metrics_table({run.method.name: result}, f"{result['rows']:,} held-out rows"))
    console.print(f"Run folder: {folder.path}   In Python: overtone.load({str(folder.path)!r})")
    write_json(json, {"run": str(folder.path), "method": run.method.name, "metrics": result})


def _refuse_with_resume(given: dict[str, Any]) -> None:
    """A resumed run keeps its settings; an option that says otherwise is an error and not ignored."""
    for name, parameter in inspect.signature(train).parameters.items():
        if name not in ("resume", "json") and given[name] != parameter.default:
            raise ValueError(
                f"--{name.replace('_', '-')} {given[name]} together with --resume: a resumed run keeps all its settings; drop "
                "this option, or start a new run without --resume"
            )


def _source(
    wanted: dict[str, str | None], activations: str | None, tensor: str | None, store: str | None, target: str | None,
    memory_mib: int, tokens: int, context: int, text_field: str | None,
) -> Source | Plan:  # fmt: skip
    if activations is not None:
        if any(wanted.values()) or store:
            raise ValueError(
                "--activations gives the rows already; drop --model, --site, --text and --store, or drop --activations"
            )
        return FileSource(str(Path(activations).resolve()), tensor)
    model, site, text = wanted.values()
    if store is not None:
        if model or text:
            raise ValueError("--store gives the rows already; drop --model and --text, or drop --store")
        opened = Store(store)
        site = opened.site(site)
        if target is not None and opened.sites[opened.site(target)] != opened.sites[site]:
            raise ValueError(
                f"--target {target} has width {opened.sites[target]}, --site {site} {opened.sites[site]}; they must be equal"
            )
        return StoreSource(str(Path(store).resolve()), site, target, memory_mib)
    if target is not None:
        raise ValueError("--target needs a --store that holds both sites; harvest one with overtone harvest --sites")
    missing = [f"--{name}" for name, value in wanted.items() if value is None]
    if missing or model is None or site is None or text is None:
        raise ValueError(
            f"nothing to train on: {', '.join(missing)} missing; give --model, --site and --text, or --store STORE, or "
            "--activations FILE"
        )
    return Plan(located(model), (site,), (located(text),), tokens, text_field=text_field, context=context)


def located(name: str) -> str:
    """An existing path as an absolute one, so that the run can be resumed from any folder; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
