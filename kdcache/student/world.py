"""The processes that train one student together: torchrun's, or this one alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdcache.errors import UsageError
from kdcache.models.running import open_device
from kdcache.processes import peer_died


@dataclass(frozen=True, eq=False)
class World:
    """Which process this is, of how many, and its device.

    control: the processes' group for numbers on the CPU; None for one process.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes files."""
        return self.rank == 0

    def largest(self, value: int) -> int:
        """Return the largest value of all processes."""
        if self.control is None:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return int(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes on the CPU, stacked by rank."""
        tensor = tensor.cpu()
        if self.control is None:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self.control)
        return torch.stack(parts)

    def share(self, network: nn.Module) -> nn.Module:
        """Return a network whose gradients are the means over all processes."""
        if self.control is None:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices)

    def equalise(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers, such as means of normalisation layers."""
        if self.control is not None:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def alone_on(device: str) -> World:
    """Return the world of one process."""
    return World(0, 1, open_device(device))


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, one or more; without it, this process is alone.

    device: "auto" is this process' GPU, or the CPU without one.

    Raises:
        UsageError: there is no such device, the processes do not find each other, or another one
            ended.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield alone_on(device)
        return
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = open_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        control = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{os.environ['WORLD_SIZE']} processes do not find each other: {reason}; start them "
            "with torchrun"
        ) from error
    try:
        yield World(dist.get_rank(), dist.get_world_size(), place, control)
    except RuntimeError as error:
        if not peer_died(error):
            raise
        raise UsageError(
            f"process {dist.get_rank()}: another of the {dist.get_world_size()} ended; look for "
            "its own message, then run the same command with --resume"
        ) from error
    finally:
        dist.destroy_process_group()
