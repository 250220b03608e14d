"""What an evaluation costs beside the encoding it cannot do without, how much memory it takes, and PW-MCC by width.

`.venv/bin/python benchmarks/evaluation.py`; with `--matching 2048 4096 8192` also the exact matching of random dictionaries of
these widths and the bounds that stand in for it above. Encoding alone and the whole evaluation take turns, window by window.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from common import Spread, in_new_process, random_chunks, show
from process import peak_mib, restart_peak
from torch import Tensor

import overtone as ot
from overtone.metrics.matching import bounded_correlation
from overtone.seeds import generator

BATCH = 1024


def dictionary_of(select: str, d: int, latents: int, l0: int) -> ot.Dictionary:
    """Random atoms; TopK, or thresholds at which about l0 latents are active."""
    if select == "topk":
        return ot.Dictionary(d, latents, ot.TopK(l0))
    dictionary = ot.Dictionary(d, latents)
    (x,) = random_chunks(256, d)
    with torch.no_grad():
        y = dictionary.pre_activations(x).flatten()
        dictionary.b_enc.fill_(-float(y.topk(256 * l0).values[-1]))
    return dictionary


@torch.no_grad()
def encode(dictionary: ot.Dictionary, rows: Tensor) -> None:
    for x in rows.split(BATCH):
        dictionary.encode(x)


def evaluate(dictionary: ot.Dictionary, batches: Iterable[Tensor]) -> None:
    ot.evaluate(dictionary, batches).distributions()


def in_batches(rows: int, d: int) -> Iterator[Tensor]:
    """Never more than one chunk of the rows in memory."""
    return (x for chunk in random_chunks(rows, d) for x in chunk.split(BATCH))


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(work: Callable[[], None], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return clock() - began


def cost(select: str, arguments: argparse.Namespace) -> list[str]:
    dictionary = dictionary_of(select, arguments.d, arguments.latents, arguments.l0)
    clock = CLOCKS[arguments.clock]
    ratios, speeds = [], []
    rows = torch.cat([*random_chunks(arguments.rows, arguments.d)])
    encode(dictionary, rows[:BATCH])
    evaluate(dictionary, rows[:BATCH].split(BATCH))
    for _ in range(arguments.windows):
        bare = seconds(lambda: encode(dictionary, rows), clock)
        whole = seconds(lambda: evaluate(dictionary, rows.split(BATCH)), clock)
        ratios.append(whole / bare)
        speeds.append(arguments.rows / whole)
    return [select, Spread.of(ratios).shown(), Spread.of(speeds).shown(",.0f")]


def growth(select: str, rows: int, d: int, latents: int, l0: int) -> float:
    """Peak memory of an evaluation above what the process held before, in MiB."""
    dictionary = dictionary_of(select, d, latents, l0)
    evaluate(dictionary, in_batches(BATCH, d))
    before = restart_peak()
    evaluate(dictionary, in_batches(rows, d))
    return peak_mib() - before


def matching(latents: int, d: int) -> list[str]:
    one, other = (torch.randn(latents, d, generator=generator(i, "benchmark atoms")) for i in range(2))
    values, times, memory = [], [], []
    for exact_up_to in (latents, 0):
        before = restart_peak()
        began = time.perf_counter()
        found = bounded_correlation(one, other, exact_up_to=exact_up_to)
        times.append(time.perf_counter() - began)
        memory.append(peak_mib() - before)
        values.append(found)
    (exact, _), (low, high) = values
    return [
        f"{latents:,}", f"{exact:.4f}", f"{times[0]:.1f}", f"{memory[0]:,.0f}", f"{low:.4f} … {high:.4f}", f"{times[1]:.1f}",
        f"{memory[1]:,.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16_384, help="of a window")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: of this process, where others keep the machine busy"
    )
    parser.add_argument(
        "--memory-rows",
        type=int,
        nargs="*",
        default=[16_384, 98_304],
        help="rows of the passes whose memory is measured",
    )
    parser.add_argument("--select", nargs="*", default=["topk", "jumprelu"], choices=["topk", "jumprelu"])
    parser.add_argument("--matching", type=int, nargs="*", default=[], help="widths")
    arguments = parser.parse_args()
    shape = f"d {arguments.d}, {arguments.latents:,} latents, L0 {arguments.l0}"
    if arguments.select:
        show(
            f"Evaluation over bare encoding, {shape}, {arguments.windows} windows of {arguments.rows:,} rows",
            ("selection", "times as long", "rows/s, evaluated"),
            [cost(select, arguments) for select in arguments.select],
        )
    if arguments.select and arguments.memory_rows:
        show(
            f"Peak memory of a pass, above what was there before, MiB, {shape}",
            ("selection", *(f"{rows:,} rows" for rows in arguments.memory_rows)),
            [
                [
                    select,
                    *(
                        f"{in_new_process(growth, select, rows, arguments.d, arguments.latents, arguments.l0):,.0f}"
                        for rows in arguments.memory_rows
                    ),
                ]
                for select in arguments.select
            ],
        )
    if arguments.matching:
        show(
            f"PW-MCC of two random dictionaries, d {arguments.d}",
            ("latents", "exact", "s", "MiB", "bounds", "s", "MiB"),
            [matching(latents, arguments.d) for latents in arguments.matching],
        )
