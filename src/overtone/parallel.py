"""Processes that train one dictionary together, and what they say to each other: torch.distributed's collectives, and no others.

One process is a world of its own, whose sums and means are what it has: no other code asks how many there are.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.distributed import PrefixStore, ProcessGroup, ReduceOp  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
# A rank that dies is noticed at once, by its closed connections; one that hangs, after this long.
TIMEOUT = timedelta(minutes=30)
# Before the first step one rank may harvest the rows, while the others wait.
LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class Axis:
    """Ranks among which something is split, in order. Every rank has to call the same methods in the same order.

    Args:
        rank: of this process, from 0.
        size: how many ranks.
        group: the process group that they talk in; None where there is one.
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = field(default=None, repr=False)

    def __post_init__(self):
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank={self.rank} is not in 0 … size − 1 = {self.size - 1}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Axis":
        # What a dictionary is trained in is no part of it to be copied, and a process group cannot be.
        return self

    def part(self, total: int, rank: int | None = None) -> slice:
        """A rank's (this one's) share of `total` things, contiguous; shares differ by at most one."""
        rank = self.rank if rank is None else rank
        return slice(rank * total // self.size, (rank + 1) * total // self.size)

    def parts(self, total: int) -> list[int]:
        """How many of `total` things each rank has."""
        slices = (self.part(total, rank) for rank in range(self.size))
        return [part.stop - part.start for part in slices]

    def sum(self, local: Tensor) -> Tensor:
        """Σ over the ranks. The gradient passes as it is: right where a rank's own loss is the whole one.

        What the ranks' gradients are then to be is their sum, if the loss each of them starts from is divided by the number of
        ranks that have it.
        """
        return local if self.size == 1 else _Sum.apply(local, self)  # pyright: ignore[reportReturnType]

    def mean(self, local: Tensor) -> Tensor:
        """Mean over the ranks of a mean over as many rows each. The gradient passes as it is: `sum` says when that is right."""
        return local if self.size == 1 else _Mean.apply(local, self)  # pyright: ignore[reportReturnType]

    def copied(self, same: Tensor) -> Tensor:
        """A tensor that is the same on all ranks, each of which makes something else of it: its gradient is their sum."""
        return same if self.size == 1 else _Copied.apply(same, self)  # pyright: ignore[reportReturnType]

    def max(self, local: Tensor) -> Tensor:
        """Largest over the ranks, element by element; no gradient."""
        return self._reduced(local, ReduceOp.MAX)

    def min(self, local: Tensor) -> Tensor:
        """Smallest over the ranks, element by element; no gradient."""
        return self._reduced(local, ReduceOp.MIN)

    def gather(self, local: Tensor) -> Tensor:
        """The ranks' tensors, of one shape, stacked in their order: [size, …]; no gradient."""
        if self.size == 1:
            return local.detach()[None]
        everyone = local.new_empty(self.size, *local.shape)
        with _talking():
            distributed.all_gather(list(everyone.unbind()), local.detach().contiguous(), group=self.group)
        return everyone

    def concatenate(self, local: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """The ranks' tensors laid end to end along their first axis; no gradient.

        Args:
            local: this rank's.
            sizes: lengths of all ranks' first axes, where they differ; None: they are equal.
        """
        if self.size == 1 or sizes is None:
            return self.gather(local).flatten(0, 1)
        longest = max(sizes)
        padded = local.new_zeros(longest, *local.shape[1:])
        padded[: len(local)] = local
        return torch.cat([part[:size] for part, size in zip(self.gather(padded), sizes, strict=True)])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Σ over the ranks, in place, all under way at once."""
        if self.size == 1:
            return
        with _talking():
            works = [distributed.all_reduce(tensor, group=self.group, async_op=True) for tensor in tensors]
            for work in works:
                assert work is not None
                work.wait()

    def to_first(self, local: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
        """On the first rank: all ranks' tensors one after the other, never two of others at once. On the others: nothing.

        Args:
            local: this rank's.
            sizes: lengths of all ranks' first axes.
        """
        local = local.detach().contiguous()
        if self.rank == 0:
            yield local
        for rank in range(1, self.size):
            with _talking():
                if self.rank == rank:
                    distributed.send(local, group=self.group, group_dst=0)
                elif self.rank == 0:
                    other = local.new_empty(sizes[rank], *local.shape[1:])
                    distributed.recv(other, group=self.group, group_src=rank)
                    yield other

    def told(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on all ranks; the others wait for it and make nothing."""
        if self.size == 1:
            return make()
        said = [make() if self.rank == 0 else None]
        with _talking():
            distributed.broadcast_object_list(said, group=self.group, group_src=0)
        return said[0]  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def _reduced(self, local: Tensor, op: Any) -> Tensor:
        if self.size == 1:
            return local.detach()
        result = local.detach().clone()
        with _talking():
            distributed.all_reduce(result, op, group=self.group)
        return result


@contextmanager
def _talking() -> Iterator[None]:
    """Within, what goes wrong is said as what it mostly is: a rank that failed ends its connections to the others."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"another rank has stopped; what it said itself is the reason ({str(error).splitlines()[0]}). Start all again: they "
            "go on from the last checkpoint"
        ) from error


class _Sum(Function):
    @staticmethod
    def forward(ctx, local: Tensor, axis: Axis) -> Tensor:
        return axis._reduced(local.contiguous(), ReduceOp.SUM)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0], None


class _Mean(Function):
    @staticmethod
    def forward(ctx, local: Tensor, axis: Axis) -> Tensor:
        return axis._reduced(local.contiguous(), ReduceOp.SUM) / axis.size

    @staticmethod
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0], None


class _Copied(Function):
    @staticmethod
    def forward(ctx, same: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return same.view_as(same)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.axis._reduced(grads[0].contiguous(), ReduceOp.SUM), None


ALONE = Axis()


@dataclass(frozen=True)
class World:
    """The processes that train one dictionary: a mesh of ranks that share a batch's rows and ranks that share the latents.

    Args:
        rows: ranks that have the same latents, each with a part of every batch's rows.
        latents: ranks that have the same rows, each with a part of the latents: their atoms, biases, optimiser's memory and
            statistics.
        everyone: all ranks; None: those of the one axis that has several.
    """

    rows: Axis = ALONE
    latents: Axis = ALONE
    everyone: Axis = None  # pyright: ignore[reportAssignmentType] – set below

    def __post_init__(self):
        if self.everyone is None:
            if self.rows.size > 1 and self.latents.size > 1:
                raise ValueError(
                    "a mesh of rows and latents needs an axis of everyone; use overtone.parallel.connected()"
                )
            object.__setattr__(self, "everyone", self.rows if self.latents.size == 1 else self.latents)

    @property
    def size(self) -> int:
        """How many processes."""
        return self.everyone.size

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.everyone.rank == 0

    def told(self, make: Callable[[], T]) -> T:
        """What the first process makes, on all of them; the others wait for it and make nothing."""
        return self.everyone.told(make)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            with _talking():
                distributed.barrier(self.everyone.group)

    def check_same(self, tensors: Sequence[Tensor], what: str) -> None:
        """Raise where ranks do not have the same numbers in what should be copies of each other."""
        if self.rows.size == 1:
            return
        sums = torch.stack([t.detach().flatten().view(torch.uint8).sum(dtype=torch.int64) for t in tensors])
        if not bool((self.rows.gather(sums) == sums).all()):
            raise RuntimeError(
                f"{what} differ between ranks, which should be copies; ranks must be equal machines with the same versions and "
                "numbers of threads. The last checkpoint is from before; go on from it"
            )


@contextmanager
def connected(latents: int = 1, backend: str = "gloo") -> Iterator[World]:
    """The world that torchrun's environment describes; without it one process.

    Args:
        latents: over how many ranks the latents are split. The others share the rows: of 8 ranks, latents=2 makes 4 × 2.
        backend: torch.distributed's: what the tensors' device needs, "gloo" on CPUs.
    """
    size = launched()
    if latents < 1 or size % latents:
        raise ValueError(
            f"latents cannot be split over {latents} of {size} ranks; give a divisor of {size}, or start another number of ranks "
            "(torchrun --nproc-per-node)"
        )
    if size == 1:
        yield World()
        return
    # torchrun's store outlives restarts, and a rank that asks it too early gets the address that another had before it died.
    found, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    store = PrefixStore(f"attempt {restarts()}", found)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield mesh(range(size), latents)
    finally:
        distributed.destroy_process_group()


def mesh(ranks: Sequence[int], latents: int = 1) -> World:
    """A world of some ranks of the default process group, neighbours sharing the rows; all processes have to ask for it."""
    everyone = _axis(ranks, LONGEST_WAIT)
    grid = torch.tensor(ranks).view(-1, latents).tolist()
    of_rows = [_axis(column) for column in zip(*grid, strict=True)]
    of_latents = [_axis(row) for row in grid]
    if everyone is None:
        return World()
    [rows] = [axis for axis in of_rows if axis is not None]
    [of_latent] = [axis for axis in of_latents if axis is not None]
    return World(rows, of_latent, everyone)


def _axis(ranks: Sequence[int], timeout: timedelta = TIMEOUT) -> Axis | None:
    """These ranks, seen from this one; None: it is not among them."""
    group = distributed.new_group(list(ranks), timeout=timeout) if len(ranks) > 1 else None
    own = distributed.get_rank()
    if own not in ranks:
        return None
    return Axis(list(ranks).index(own), len(ranks), group if isinstance(group, ProcessGroup) else None)


def launched() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def restarts() -> int:
    """How often torchrun has started the ranks again, after one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
