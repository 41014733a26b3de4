"""Processes that know each other as torchrun's do, in a network of their own if root allows it.

Torch's store of addresses listens on all interfaces, whatever the address it is given.
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from kdcache.student.world import World, join_world
from tests import tiny

TIMEOUT_S = 240.0
ISOLATED = ("unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "-")
_NEW_NETWORK, _READ_FLAGS, _SET_FLAGS, _UP = 0x40000000, 0x8913, 0x8914, 1


def can_isolate() -> bool:
    """Return whether commands can run in a network namespace of their own, which needs root."""
    try:
        return subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _leave_network() -> None:
    """Let this process and its children have a loopback of their own, and nothing else."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK) != 0:
        return
    with socket.socket() as any_socket:
        ask = struct.pack("16sh14s", b"lo", 0, b"")
        flags = struct.unpack("16sh14s", fcntl.ioctl(any_socket, _READ_FLAGS, ask))[1]
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14s", b"lo", flags | _UP, b""))


def run_ranks(
    size: int, function: Callable[..., None], *args: Any, as_torchrun: bool = True
) -> list[int | None]:
    """Run function(rank, *args) in so many processes; return their exit codes.

    as_torchrun: with the variables that torchrun would set.
    """
    ours, theirs = tiny.CLEAN.Pipe(duplex=False)
    child = tiny.start_clean(_start_ranks, theirs, size, as_torchrun, function, *args)
    theirs.close()
    with suppress(EOFError):
        codes: list[int | None] = ours.recv()
        child.join()
        return codes
    raise AssertionError(f"the processes were not started: {child.exitcode}")


def _start_ranks(
    answer: Connection, size: int, as_torchrun: bool, function: Callable[..., None], *args: Any
) -> None:
    _leave_network()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        tiny.start(_be_rank, rank, size if as_torchrun else 0, port, function, *args)
        for rank in range(size)
    ]
    end = time.monotonic() + TIMEOUT_S
    for child in children:
        child.join(max(end - time.monotonic(), 0))
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    answer.send(codes)


def _be_rank(rank: int, size: int, port: int, function: Callable[..., None], *args: Any) -> None:
    if size:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCHELASTIC_RUN_ID": "none",
        }
    function(rank, *args)


def in_world(
    size: int, function: Callable[..., None], *args: Any, device: str = "cpu"
) -> list[int | None]:
    """Run function(world, *args) in so many processes; return their exit codes."""
    return run_ranks(size, _in_world, device, function, *args)


def _in_world(_: int, device: str, function: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    with join_world(device) as world:
        function(world, *args)


def note(folder: Path, world: World, text: str) -> None:
    """Leave a text for the test to read."""
    (folder / f"told-{world.rank}").write_text(text)
