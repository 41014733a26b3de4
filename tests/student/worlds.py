"""Processes that train together, on loopback."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdcache.student.world import World, join_world
from tests import tiny

JOIN_S = 180


def in_world(size: int, function: Callable[..., None], *args: Any) -> list[int | None]:
    """Run function(world, *args) in so many processes; return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        tiny.start_clean(_in_rank, rank, size, port, function, *args) for rank in range(size)
    ]
    for child in children:
        child.join(JOIN_S)
        if child.is_alive():
            child.kill()
            child.join()
    return [child.exitcode for child in children]


def _in_rank(rank: int, size: int, port: int, function: Callable[..., None], *args: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        function(world, *args)


def note(folder: Path, world: World, text: str) -> None:
    """Leave a text for the test to read."""
    (folder / f"told-{world.rank}").write_text(text)
