"""`overtone export`: a dictionary for other tools, to disk or to the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from overtone import formats
from overtone.cli.common import console, write_json
from overtone.cli.rows import Stored, run_at, source_of
from overtone.data.store import Store
from overtone.losses import Matryoshka
from overtone.runs import RunFolder
from overtone.users_code import parts_named

Target = Literal[
    "saelens", "dictionary_learning", "sparsify", "gemma_scope_1", "gemma_scope_2", "circuit_tracer", "overtone"
]


def export(
    run: Annotated[str, tyro.conf.Positional],
    to: Target = "saelens",
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    push: str | None = None,
    private: bool = False,
    model: str | None = None,
    site: str | None = None,
    input_norm: formats.InputNorm | None = None,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
) -> None:
    """Write a dictionary for another tool, or another tool's for overtone.

    Args:
        run: a run folder or a dictionary, of overtone's or of another tool's; or hub:OWNER/NAME[/FOLDER][@REVISION].
        to: the format: saelens, dictionary_learning, sparsify, gemma_scope_1, gemma_scope_2, circuit_tracer or overtone.
        out: folder to create.
        push: repository of the Hugging Face Hub to upload to, OWNER/NAME[/FOLDER]; created where it does not exist.
        private: make a new repository private.
        model: the model's name to write along (default: the run's own).
        site: the site to write along (default: the run's own).
        input_norm: how rows are scaled before another tool's dictionary reads them, where its files do not say (row: to norm 1;
            rms: to norm √d).
        parts: your own Python files or modules that the method's parts are defined in.
        json: write what was done to this file.
    """
    if out is None and push is None:
        raise ValueError("nowhere to export to; give --out FOLDER, or --push OWNER/NAME for the Hugging Face Hub")
    own = parts_named(parts)
    found = formats.read(run, parts=own, input_norm=input_norm)
    folder = None if run.startswith("hub:") else run_at(Path(run), own)
    info = found.info | (about_run(folder, found.dictionary.latents) if folder else {})
    info |= {key: value for key, value in (("model", model), ("site", site)) if value is not None}
    done: dict[str, Any] = {"from": run, "format": found.format, "to": to}
    if out is not None:
        formats.export(found.dictionary, out, to, info)
        console.print(f"{found.dictionary.latents:,} latents of {found.dictionary.layout} for {to}: {out}")
        done["out"] = str(out)
    if push is not None:
        done["hub"] = formats.push(found.dictionary, push, to, info, private=private)
        console.print(f"On the Hub: overtone.load({done['hub']!r})")
    write_json(json, done)


def about_run(folder: RunFolder, latents: int) -> dict[str, Any]:
    """Model, site and text length of a run, and the sizes of nested groups, where they are known."""
    nested = [term for term in folder.run.method.losses if isinstance(term, Matryoshka)]
    info: dict[str, Any] = {"group_sizes": nested[0].sizes(latents)} if nested else {}
    source = source_of(folder) if "source" in folder.data else None
    if not isinstance(source, Stored):
        return info
    if isinstance(source.site, str):
        info |= {"site": source.site} | ({"target": source.target} if source.target else {})
    plan = folder.data.get("harvest")
    if plan is None:
        try:
            plan = Store(folder.path / source.path).manifest.source.get("plan")
        except (OSError, ValueError):
            plan = None  # moved or removed: then its model is not known
    return info | {key: plan[key] for key in ("model", "context") if plan and plan.get(key) is not None}
