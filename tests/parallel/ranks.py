"""Processes for tests: a function on so many ranks, their results back; an error, a death or a hang of one is an error here."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

MOST = 4
SECONDS = 280
# (ranks, ranks that the latents are split over)
MESHES = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 3), (4, 2)]


class RankError(Exception):
    """What a rank says it died of."""


class Ranks:
    """Processes that stay for several tests, since starting them takes longer than what most tests have them do."""

    def __init__(self):
        self._ends: list[Connection] = []
        self._processes: list[Any] = []

    def __call__(
        self, size: int, function: Callable[..., Any], *args: Any, latents: int = 1, seconds: float = SECONDS
    ) -> list[Any]:
        """What function(world, *args) returns on each of `size` ranks, which talk by gloo and find each other by a file.

        `latents`: over how many of them the latents are split; `seconds`: without a word, after which one hangs.
        """
        if not self._processes:
            self._start()
        for end in self._ends:
            end.send_bytes(pickle.dumps((size, latents, function, args)))
        try:
            return [self._received(rank, seconds) for rank in range(MOST)][:size]
        except BaseException:
            self.stop()  # whoever is left may wait for another in vain
            raise

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(MOST):
            here, there = context.Pipe()
            process = context.Process(
                target=_work, args=(there, rank, str(Path(self._folder.name) / "store")), daemon=True
            )
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    def _received(self, rank: int, seconds: float) -> Any:
        if not wait([self._ends[rank]], seconds):
            raise TimeoutError(f"rank {rank} said nothing for {seconds} s: it hangs, most likely in a collective")
        try:
            worked, result = pickle.loads(self._ends[rank].recv_bytes())
        except EOFError as error:
            raise RankError(f"rank {rank} died without a word") from error
        if not worked:
            raise RankError(f"rank {rank}: {result}")
        return result

    def stop(self) -> None:
        """Kill all."""
        for process in self._processes:
            process.kill()
            process.join()
        for end in self._ends:
            end.close()
        if self._processes:
            self._folder.cleanup()
        self._ends, self._processes = [], []


def _work(end: Connection, rank: int, place: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from torch import distributed

    from overtone.parallel import World, mesh

    torch.set_num_threads(1)
    store = distributed.FileStore(place, MOST)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=MOST, timeout=timedelta(seconds=SECONDS))
    worlds = {(size, latents): mesh(range(size), latents) for size, latents in MESHES}
    while True:
        size, latents, function, args = pickle.loads(end.recv_bytes())
        said = True, None
        if rank < size:
            try:
                said = True, function(World() if size == 1 else worlds[size, latents], *args)
            except BaseException:
                said = False, traceback.format_exc()
        end.send_bytes(pickle.dumps(said))  # copies: a tensor sent as it is would be gone with its process
        if not said[0]:
            return
