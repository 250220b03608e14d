"""Processes: the memory of this one, and talking to others in JSON, a line each way. Needs nothing but Python."""

import json
import os
import resource
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MIB = 2**20


def resident_mib() -> float:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def restart_peak() -> float:
    """Forget the peak of this process' memory; gives what it holds now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib()


def peak_mib() -> float:
    """The most memory that this process held since its start, or since `restart_peak`.

    Not getrusage's ru_maxrss: that cannot be restarted, and a new process inherits it from the one that started it.
    """
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


class WorkerEnded(RuntimeError):
    """A worker is gone instead of answering; says what it last wrote."""


class Worker:
    """A process that answers every line with a line, after a first one of its own."""

    def __init__(self, process: subprocess.Popen[str], log: Path):
        self.process, self.log = process, log

    def answer(self) -> dict[str, Any]:
        """The next line it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerEnded(f"exit status {self.process.wait()}:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def ask(self, request: Any) -> dict[str, Any]:
        """Its answer to this."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the answer will say why
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.answer()


@contextmanager
def started(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[Worker]:
    """A worker with these variables added to its environment; what it writes to its standard error goes to the log."""
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | environment,
        ) as process,
    ):
        try:
            yield Worker(process, log)
        finally:
            process.kill()
