"""Under torchrun a rank that is killed ends the step, all are started again, and the result is that of a run never disturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import overtone as ot
from parallel.ranks import Ranks
from parallel.work import made_rows, undisturbed

SECONDS = 400


class Torchrun:
    """`torchrun -m overtone train` on rows in a file, in a process of its own."""

    def __init__(self, size: int, folder: Path, *options: str, restarts: int = 3):
        np.save(folder / "rows.npy", made_rows(2000).numpy())
        self.path, self.log = folder / "run", folder / "log.txt"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        train = [
            "-m",
            "overtone",
            "train",
            "--activations",
            str(folder / "rows.npy"),
            "--out",
            str(self.path),
            *options,
        ]
        # A rank that dies is started again this many times.
        command = [*launcher, f"--max-restarts={restarts}", *train]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def records(self) -> int:
        file = self.path / "records.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def workers(self) -> list[int]:
        """Process numbers of the ranks."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == self.process.pid:
                found.append(int(entry.parent.name))
        return sorted(found)

    def until(self, records: int) -> bool:
        """Wait for so many records; False where the run ended before."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None and self.records() < records:
            assert time.monotonic() < end, f"no record for {SECONDS} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.01)
        return self.process.poll() is None

    def kill_one(self, chance: random.Random) -> None:
        """SIGKILL to one of the ranks."""
        workers = self.workers()
        if workers:
            os.kill(chance.choice(workers), signal.SIGKILL)

    def finished(self) -> bool:
        code = self.process.wait(SECONDS)
        assert code == 0, self.log.read_text()[-5000:]
        return True

    def stop(self) -> None:
        for worker in self.workers():
            os.kill(worker, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


def same_as_undisturbed(run: Path, size: int, folder: Path, ranks: Ranks) -> None:
    """The finished run against one with the same configuration that nothing happened to, bit for bit."""
    (folder / "calm").mkdir()
    shutil.copy(run / "config.json", folder / "calm" / "config.json")
    ranks(size, undisturbed, str(folder / "calm"), seconds=900)
    weights = [load_file(path / "dictionary" / "dictionary.safetensors") for path in (run, folder / "calm")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    records = [[{k: r[k] for k in ("step", "loss", "l0", "alive")} for r in ot.RunFolder.open(p).records()] for p in
               (run, folder / "calm")]  # fmt: skip
    assert records[0] == records[1]


OPTIONS = ("--method", "gba(groups=4)", "--latents", "64", "--batch", "32")


def test_a_killed_rank_changes_nothing(ranks: Ranks, tmp_path: Path):
    running = Torchrun(2, tmp_path, *OPTIONS, "--steps", "300", "--checkpoint-every", "20")
    try:
        assert running.until(3), running.log.read_text()[-3000:]
        running.kill_one(random.Random(0))
        assert running.finished()
    finally:
        running.stop()
    assert "another rank has stopped" in running.log.read_text(), "the kill came too late to be one"
    same_as_undisturbed(running.path, 2, tmp_path, ranks)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", [2, 4])
def test_ten_kills_at_random_moments_change_nothing(size: int, ranks: Ranks, tmp_path: Path):
    """While ranks start, train, write checkpoints."""
    chance, kills = random.Random(size), 0
    running = Torchrun(size, tmp_path, *OPTIONS, "--steps", "4000", "--checkpoint-every", "25", restarts=12)
    try:
        while kills < 10:
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0, 8))
            else:
                assert running.until(running.records() + chance.randint(1, 8))
                time.sleep(chance.uniform(0, 0.2))
            assert running.process.poll() is None, "over before its ten kills"
            running.kill_one(chance)
            kills += 1
            time.sleep(1)  # so that the next one is not among those about to be stopped
        assert running.finished()
    finally:
        running.stop()
    same_as_undisturbed(running.path, size, tmp_path, ranks)


def test_one_rank_says_what_is_wrong_and_all_stop(tmp_path: Path):
    running = Torchrun(2, tmp_path, "--latents", "64", "--batch", "33", restarts=0)
    try:
        assert running.process.wait(SECONDS) != 0
    finally:
        running.stop()
    assert "batch=33 cannot be dealt out to 2 ranks in equal parts" in running.log.read_text()
    assert not running.path.exists(), "what is wrong is found before a folder is made"
