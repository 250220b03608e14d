"""`overtone plan`: what a run will take, before it is run: time, memory, messages, and what of it is most."""

from json import dumps as to_json
from json import loads as read_json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table
from torch import distributed
from torch.multiprocessing.spawn import spawn

from overtone.catalogue import parse
from overtone.cli.common import console, together, write_json
from overtone.costs import Forecast, Link, calibrate, forecast, measure_link, program, ranks_of
from overtone.layout import Block, Layout
from overtone.parallel import Axis, World, launched, mesh
from overtone.ranks import check_ranks
from overtone.sites import transcoder
from overtone.training import Run

GIB = 2**30


def plan(
    d: int,
    method: str = "gba",
    l0: float | None = None,
    latents: int = 4096,
    d_out: int | None = None,
    batch: int = 512,
    tokens: int | None = None,
    steps: int = 3000,
    ranks: int = 1,
    split_latents: int = 1,
    accumulate: int = 1,
    memory_gib: float | None = None,
    latency_us: float | None = None,
    gbit: float | None = None,
    json: Path | None = None,
) -> None:
    """What training a dictionary will take: seconds of a step and of the run, memory of a rank, and the bottleneck.

    A few small steps of the method are measured, which takes moments, and the rest is computed from them (docs/distributed.md).
    Under torchrun the ranks' own connection is measured; else that between two processes of this machine, unless the options say
    another.

    Args:
        d: width of the rows.
        method: what to train, as for `overtone train`.
        l0: wanted number of active latents, by the method's own dial.
        latents: dictionary width.
        d_out: width of another site to reconstruct: a transcoder.
        batch: tokens per step, of all ranks together.
        tokens: tokens of the run, instead of steps.
        steps: steps of the run.
        ranks: how many processes train together; torchrun says it itself.
        split_latents: over how many of them the latents are split; the others share the rows of a batch.
        accumulate: parts that a step's rows are worked through in, as for `overtone train`.
        memory_gib: what a rank has; will it fit?
        latency_us, gbit: of the ranks' connection, in microseconds and gigabits per second.
        json: write the results to this file.
    """
    specs = parse(method).at(() if l0 is None else (l0,)).specs
    if len(specs) != 1:
        raise ValueError(f"--method {method} is {len(specs)} methods; plan one at a time")
    chosen = specs[0].method()
    layout = Layout((Block("", d),))
    if d_out is not None:
        chosen, layout = transcoder(chosen), Layout((Block("", d),), (Block("target", d_out),))
    run = Run(chosen, latents, steps if tokens is None else -(-tokens // batch), batch, accumulate)
    with together(split_latents if launched() > 1 else 1) as world:
        size = world.size if world.size > 1 else ranks
        if split_latents < 1 or size % split_latents:
            raise ValueError(f"--split-latents {split_latents} does not divide {size} ranks; give a divisor of {size}")
        of_rows = size // split_latents
        axes = World(Axis(0, of_rows), Axis(0, split_latents), Axis(0, size))
        check_ranks(chosen, latents, batch, axes, accumulate)
        held = program(chosen, layout)
        link = link_of(world, size, latency_us, gbit)
        speed = calibrate(chosen, layout, in_parts=accumulate > 1)
        found = forecast(run, layout, speed, rows=of_rows, latents=split_latents, link=link, program=held)
        if world.first:
            show(run, found, of_rows, split_latents, link, memory_gib)
            write_json(json, described(run, found, of_rows, split_latents, link))


def link_of(world: World, size: int, latency_us: float | None, gbit: float | None) -> Link | None:
    """The ranks' connection: as given, else measured; None for one rank."""
    if size == 1:
        return None
    if latency_us is not None and gbit is not None:
        return Link(latency_us * 1e-6, gbit * 1e9 / 8)
    if world.size > 1:
        return measure_link(world.everyone)
    with TemporaryDirectory() as folder:
        found = str(Path(folder) / "found.json")
        spawn(_measure, (str(Path(folder) / "store"), found), nprocs=2)
        return Link(*read_json(Path(found).read_text()))


def _measure(rank: int, place: str, found: str) -> None:
    """One of two processes that measure their connection."""
    distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    link = measure_link(mesh(range(2)).everyone)
    if rank == 0:
        Path(found).write_text(to_json(link))
    distributed.destroy_process_group()


def show(run: Run, found: Forecast, rows: int, latents: int, link: Link | None, memory_gib: float | None) -> None:
    """Print what a run will take."""
    mesh_name = "one process" if rows * latents == 1 else f"{rows} × {latents} ranks (rows × latents)"
    in_parts = f" in {run.accumulate} parts" if run.accumulate > 1 else ""
    size = f"{run.latents:,} latents, batches of {run.batch:,}{in_parts}"
    title = f"{run.method.name}: {size}, L0 {found.l0:.1f}, {mesh_name}"
    table = Table(title=title, title_justify="left")
    for column in ("a step's time", "ms", "a rank's memory", "MiB"):
        table.add_column(column, justify="right" if column in ("ms", "MiB") else "left")
    seconds, held = list(found.seconds.items()), list(found.bytes.items())
    for i in range(max(len(seconds), len(held))):
        left = (seconds[i][0], f"{1e3 * seconds[i][1]:.1f}") if i < len(seconds) else ("", "")
        right = (held[i][0], f"{held[i][1] / 2**20:,.0f}") if i < len(held) else ("", "")
        table.add_row(*left, *right)
    table.add_section()
    table.add_row("together", f"{1e3 * found.step:.1f}", "together", f"{found.peak / 2**20:,.0f}")
    console.print(table)
    hours = found.step * run.steps / 3600
    console.print(
        f"{run.steps:,} steps, {run.steps * run.batch:,} tokens: {hours:,.2f} hours at {run.batch / found.step:,.0f} tokens/s. "
        f"Most of it: {found.bottleneck}"
    )
    if link is not None:
        sizes = ranks_of(rows, latents)
        sent = sum(message.sent(sizes[message.axis]) for message in found.messages)
        console.print(
            f"A rank sends {sent / 2**20:,.1f} MiB a step, at {link.bandwidth / 2**20:,.0f} MiB/s and "
            f"{1e6 * link.latency:,.0f} µs a message"
        )
    if memory_gib is not None:
        fits = "fits" if found.peak <= memory_gib * GIB else "does not fit"
        console.print(f"{found.peak / GIB:,.2f} GiB {fits} into {memory_gib:g} GiB")
    console.print(f"Measured steps differ from the equations by up to {found.spread:.0%}")


def described(run: Run, found: Forecast, rows: int, latents: int, link: Link | None) -> dict[str, Any]:
    """The same for a machine."""
    return {
        "method": run.method.name,
        "mesh": {"rows": rows, "latents": latents},
        "accumulate": run.accumulate,
        "step_seconds": found.step,
        "peak_bytes": found.peak,
        "seconds": found.seconds,
        "bytes": found.bytes,
        "messages": [message._asdict() for message in found.messages],
        "link": None if link is None else link._asdict(),
        "bottleneck": found.bottleneck,
        "l0": found.l0,
        "spread": found.spread,
    }
