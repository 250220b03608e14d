"""Processes for tests: a function on so many ranks, their results back, an error or a hang of one an error here."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 120


def on_ranks(size: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """What function(world, *args) returns on each of `size` ranks, which talk by gloo and find each other by a file."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends, processes = [], []
        for rank in range(size):
            here, there = context.Pipe(duplex=False)
            place = str(Path(folder) / "store")
            process = context.Process(target=_work, args=(there, rank, size, place, function, args), daemon=True)
            process.start()
            there.close()
            ends.append(here)
            processes.append(process)
        try:
            return [_received(rank, end, seconds) for rank, end in enumerate(ends)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _received(rank: int, end: Connection, seconds: float) -> Any:
    if not end.poll(seconds):
        raise TimeoutError(f"rank {rank} said nothing for {seconds} s: it hangs, most likely in a collective")
    try:
        worked, result = pickle.loads(end.recv_bytes())
    except EOFError as error:
        raise RuntimeError(f"rank {rank} died without a word") from error
    if not worked:
        raise RuntimeError(f"rank {rank}: {result}")
    return result


def _work(end: Connection, rank: int, size: int, place: str, function: Callable[..., Any], args: tuple) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from torch import distributed

    from overtone.parallel import world_of

    torch.set_num_threads(1)
    try:
        store = distributed.FileStore(place, size)
        distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS)
        )
        said = True, function(world_of(distributed.group.WORLD), *args)
    except BaseException:
        said = False, traceback.format_exc()
    end.send_bytes(pickle.dumps(said))  # copies: a tensor sent as it is would be gone with its process
    end.close()
