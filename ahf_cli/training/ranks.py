"""The processes of one data-parallel run, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ahf_cli.errors import InputError

TIMEOUT = timedelta(minutes=10)
"""Time after which a rank without an answer counts as lost."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among all processes of a run."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """number on this machine, and number of the GPU"""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """Return the device of this process."""
        return f"cuda:{self.local}" if device == "cuda" and self.world > 1 else device

    def check(self, batch_size: int) -> None:
        """Raise InputError if the batch does not divide into equal parts."""
        if batch_size % self.world:
            raise InputError(
                f"task.batch_size: must be a multiple of the number of ranks ({self.world}), got {batch_size}"
            )


def backend(gpus: int, processes: int) -> str:
    """Return the backend for the processes of one machine: NCCL refuses two on one GPU."""
    return "nccl" if gpus >= processes else "gloo"


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes that `torchrun` started; without `torchrun` there is one rank."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    # A later import (by vmap) would hold the group as the default argument of its functions. The group would
    # outlive its destruction, and a process that exits while gloo's threads run is sometimes aborted.
    import torch.distributed.nn.functional

    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    if gpus:
        torch.cuda.set_device(ranks.local % gpus)
    dist.init_process_group(
        backend(gpus, int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))), timeout=TIMEOUT
    )
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def shared(ranks: Ranks, value: Any) -> Any:
    """Return the value of the leading rank in all ranks."""
    if ranks.world == 1:
        return value
    import torch.distributed as dist

    from ahf_cli.optim.distributed import lost

    box = [value]
    try:
        dist.broadcast_object_list(box)
    except RuntimeError as error:
        raise lost(error) from None
    return box[0]


def agreed(ranks: Ranks, should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that is true in all ranks as soon as `should_stop` is true in one."""
    if ranks.world == 1:
        return should_stop
    import torch

    from ahf_cli.optim.distributed import average

    def ask() -> bool:
        device = "cuda" if torch.cuda.is_available() and torch.distributed.get_backend() == "nccl" else "cpu"
        return bool(average(torch.tensor(float(should_stop()), device=device)) > 0)

    return ask
