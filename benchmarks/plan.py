"""`overtone plan` against what it plans: seconds of a step and peak memory, for several sizes, methods and meshes.

    .venv/bin/python benchmarks/plan.py [--json OUT]

Every configuration is planned and run in processes of their own, one after the other, on the threads that this process has.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = 25
# d, latents, batch, method, ranks that share rows, ranks that share latents, parts
CONFIGURATIONS = [
    (256, 8192, 1024, "gba(l0=32)", 1, 1, 1),
    (512, 16384, 512, "gba(l0=64)", 1, 1, 1),
    (768, 8192, 1024, "topk(k=64)", 1, 1, 1),
    (512, 16384, 1024, "topk(k=32)", 1, 1, 1),
    (256, 32768, 512, "topk(k=16)", 1, 1, 1),
    (1024, 12288, 512, "gba-untied(l0=32)", 1, 1, 1),
    (512, 16384, 1024, "topk(k=32)", 2, 1, 1),
    (512, 16384, 1024, "topk(k=32)", 1, 2, 1),
    (512, 16384, 1024, "gba(l0=32)", 1, 2, 1),
    (512, 16384, 8192, "topk(k=32)", 1, 1, 1),
    (512, 16384, 8192, "topk(k=32)", 1, 1, 8),
    (512, 8192, 8192, "gba(l0=32)", 1, 1, 1),
    (512, 8192, 8192, "gba(l0=32)", 1, 1, 8),
    (512, 8192, 8192, "batch-topk(k=32)", 1, 1, 8),
]


def parts(configuration):
    from overtone.catalogue import parse
    from overtone.training import Run

    d, latents, batch, method, rows, split, accumulate = configuration
    return Run(parse(method).specs[0].method(), latents, 1000, batch, accumulate), d, rows, split


def made_rows(d: int):
    """Sparse mixtures of four times as many features as dimensions."""
    import torch

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4 * d, d, generator=generator)
    weights = torch.rand(8192, 4 * d, generator=generator) * (torch.rand(8192, 4 * d, generator=generator) < 16 / d)
    return weights @ features + 0.01 * torch.randn(8192, d, generator=generator)


def run_it(configuration):
    """Median and fastest seconds of a step, and how much memory the run took beyond the program and its rows."""
    from overtone.costs import program as program_of
    from overtone.data.stream import ArrayStream
    from overtone.layout import Layout
    from overtone.parallel import connected
    from overtone.training import start, step_once

    run, d, _, split = parts(configuration)
    with connected(split) as world:
        stream = ArrayStream(made_rows(d), run.batch)
        program = program_of(run.method, Layout.of(d))
        state, times = start(run, stream, world), []
        for _ in range(STEPS):
            batch = next(stream)
            world.wait()
            at = time.perf_counter()
            step_once(run, state, batch)
            times.append(time.perf_counter() - at)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if world.first:
            print(json.dumps({
                "median": statistics.median(times[3:]), "fastest": min(times[3:]), "peak": peak, "program": program,
                "l0": float(state.window.fired.sum() / state.window.rows),
            }))  # fmt: skip


def plan_it(configuration):
    """What is planned for it."""
    from overtone.costs import calibrate, forecast, measure_link
    from overtone.layout import Layout
    from overtone.parallel import connected

    run, d, rows, split = parts(configuration)
    with connected(split) as world:
        link = measure_link(world.everyone) if world.size > 1 else None
        speed = calibrate(run.method, Layout.of(d), in_parts=run.accumulate > 1)
        found = forecast(run, Layout.of(d), speed, rows=rows, latents=split, link=link)
        if world.first:
            print(
                json.dumps(
                    {
                        "step": found.step,
                        "bytes": found.peak - found.bytes["checkpoint"],
                        "spread": found.spread,
                        "seconds": found.seconds,
                    }
                )
            )


def in_processes(what: str, configuration) -> dict:
    ranks = configuration[4] * configuration[5]
    launch = [sys.executable] if ranks == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"
    ]  # fmt: skip
    command = [*launch, __file__, what, json.dumps(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    print("| d | latents | batch | method | rows × latents | step, ms (median, fastest) | planned / median | planned / "
          "fastest | peak, MiB | planned / peak |")  # fmt: skip
    print("|---|" + "---|" * 9)
    for configuration in CONFIGURATIONS:
        planned, measured = in_processes("plan", configuration), in_processes("run", configuration)
        peak = planned["bytes"] + measured["program"]
        d, latents, batch, method, rows, split, accumulate = configuration
        size = f"{batch:,}" + (f" in {accumulate}" if accumulate > 1 else "")
        print(
            f"| {d} | {latents:,} | {size} | `{method}` | {rows} × {split} | {1e3 * measured['median']:.0f}, "
            f"{1e3 * measured['fastest']:.0f} | {planned['step'] / measured['median']:.2f} | "
            f"{planned['step'] / measured['fastest']:.2f} | {measured['peak'] / 2**20:.0f} | {peak / measured['peak']:.2f} |",
            flush=True,
        )
        found.append({"configuration": configuration, "planned": planned, "measured": measured})
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] in (["plan"], ["run"]):
        {"plan": plan_it, "run": run_it}[sys.argv[1]](json.loads(sys.argv[2]))
    else:
        main()
