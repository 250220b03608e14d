"""Loads spoilt dictionaries, in a process of its own: `python hostile.py FROM TO` writes what should not have happened.

As users run it, without the checks of signatures that tests have (which would refuse first what the loaders ought to).
Memory is bounded by the system, so that what allocates beyond it fails; what looks like running the file's code is
reported by the interpreter.
"""

import json
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import overtone as ot
from formats.spoiling import spoil
from overtone import export, load
from overtone.checkpoint import CheckpointError
from overtone.formats.folders import OVERTONE
from sample_dictionaries import FITS, KINDS, SMALL

MAY_TAKE = 256 * 2**20  # bytes of address space, for files of some kilobytes
SECONDS = 60  # a thousand times what any of them takes: a file that has not been read by then never will be
RUNNING_CODE = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
)

suspicious: list[str] = []
loading = False


def listen(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook: what the interpreter does on behalf of whoever asks."""
    if loading and event in RUNNING_CODE:
        suspicious.append(event)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is one of memory."""
    return error is not None and (
        isinstance(error, MemoryError) or "allocate" in str(error) or out_of_memory(error.__cause__)
    )


def outcome(folder: Path) -> tuple[str, str]:
    """(what came of loading the folder, what is wrong with that; "" where nothing is)."""
    global loading
    loading = True
    signal.alarm(SECONDS)
    try:
        dictionary = load(folder)
    except (ot.FormatError, CheckpointError, FileNotFoundError) as error:
        return "refused", f"memory: {error}" if out_of_memory(error) else ""
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        loading = False
    try:
        state = dictionary.state_dict().values()
        if not all(value.is_floating_point() and value.isfinite().all() for value in state):
            return "read", "weights that are no finite numbers"
        if dictionary(torch.ones(3, dictionary.d, dtype=dictionary.W_dec.dtype)).shape != (3, dictionary.layout.d_out):
            return "read", "reconstructions of another shape"
    except Exception as error:
        return "read", f"of no use: {type(error).__name__}: {error}"
    return "read", ""


def fuzz(root: Path, first: int, last: int) -> dict[str, Any]:
    """The outcomes of these cases, each made by its number alone."""
    pairs = [(kind, name) for kind, names in FITS.items() for name in (*names, OVERTONE)]
    counts, wrong = Counter[str](), []
    for number in range(first, last):
        random = Random(number)
        kind, name = pairs[number % len(pairs)]
        folder = root / str(number)
        export(KINDS[kind](SMALL), folder, name)
        if random.random() < 0.5:
            (folder / "overtone.safetensors").unlink(missing_ok=True)
        how = spoil(folder, random)
        suspicious.clear()
        result, problem = outcome(folder)
        counts[result] += 1
        if problem or suspicious:
            wrong.append(f"case {number}, {kind} as {name}, {how}: {result}, {problem} {' '.join(suspicious)}")
    return {"counts": counts, "wrong": wrong}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.addaudithook(listen)
    first, last = int(sys.argv[1]), int(sys.argv[2])
    for make in KINDS.values():  # what is compiled or loaded at first use is no file's doing
        make(SMALL)(torch.ones(3, SMALL.d, dtype=make(SMALL).W_dec.dtype))
    with tempfile.TemporaryDirectory() as root:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MAY_TAKE, resource.RLIM_INFINITY))
        sys.stdout.write(json.dumps(fuzz(Path(root), first, last)) + "\n")
