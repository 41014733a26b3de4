"""A real Slurm of one node, on loopback, in a folder of its own: munged, slurmctld, slurmd.

The node pretends to have 16 CPUs and two GPUs. Also the teacher of jobs that are watched.
"""

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash
from torch import Tensor, nn

from kdcache.models.steadiness import measure_steadiness
from tests import tiny

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "setpriv")
PATIENCE_S = 120

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SchedulerParameters=sched_interval=1,bf_interval=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 Gres=gpu:2
PartitionName=all Nodes=ALL Default=YES
"""
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"  # any two devices


def missing() -> str | None:
    """Return why no Slurm can run here."""
    if os.geteuid() != 0:
        return "root starts Slurm's daemons; run this test as root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"no {', '.join(absent)}; `make server-packages` installs them" if absent else None


def wait_until(true: Callable[[], bool], what: Callable[[], str]) -> None:
    """Return once it is true; fail with the words of `what` after some time."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@dataclass(frozen=True)
class Slurm:
    """A running Slurm. folder: its state and logs."""

    folder: Path

    def run(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm's."""
        settings = {**os.environ, **environment, "SLURM_CONF": str(self.folder / "slurm.conf")}
        command = [str(word) for word in words]
        return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)

    def states(self, job: str) -> dict[str, str]:
        """Return the states of a job's tasks that are not purged, by number, such as RUNNING."""
        done = self.run("squeue", "-h", "-r", "-a", "-t", "all", "-j", job, "-o", "%K %T")
        assert done.returncode == 0, done.stderr
        return dict(line.split() for line in done.stdout.splitlines())  # type: ignore[misc]

    def wait_for(self, job: str, states: dict[str, str]) -> None:
        """Return once the tasks of a job are in these states."""
        wait_until(
            lambda: states.items() <= self.states(job).items(),
            lambda: f"{self.states(job)}, expected {states}\n{self.logs()}",
        )

    def logs(self) -> str:
        """Return what the daemons said."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@contextmanager
def running() -> Iterator[Slurm]:
    """Start a Slurm with an idle node; end it, its jobs and its daemons."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munged, of another user, looks into it
    slurm = Slurm(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        _write_settings(folder)
        munge = folder / "munge"
        stack.enter_context(
            _daemon(
                *("munged", "--foreground", "--num-threads=2", f"--key-file={munge / 'key'}"),
                *(f"--socket={munge / 'socket'}", f"--pid-file={munge / 'pid'}"),
                *(f"--seed-file={munge / 'seed'}", f"--log-file={munge / 'log'}"),
                log=folder / "munged.log",
                user="munge",
            )
        )
        wait_until((munge / "socket").exists, slurm.logs)
        for name in ("slurmctld", "slurmd"):
            log, conf = folder / f"{name}.log", str(folder / "slurm.conf")
            stack.enter_context(_daemon(name, "-D", "-f", conf, log=log, user=None))
        stack.callback(_end_jobs, slurm)
        wait_until(lambda: slurm.run("sinfo", "-h", "-o", "%T").stdout == "idle\n", slurm.logs)
        yield slurm


def _write_settings(folder: Path) -> None:
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for path in (key.parent, key):
        shutil.chown(path, "munge", "munge")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [str(server.getsockname()[1]) for server in sockets]
    host = platform.node().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=ports))
    (folder / "gres.conf").write_text(GPUS)


@contextmanager
def _daemon(*words: str, log: Path, user: str | None) -> Iterator[None]:
    """Run a daemon, which ends here, or with this process."""
    become = [f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["setpriv", *become, "--pdeathsig", "TERM", *words],
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_jobs(slurm: Slurm) -> None:
    slurm.run("scancel", "--user=root")
    wait_until(lambda: not slurm.run("squeue", "-h").stdout, slurm.logs)


# --- the teacher ---------------------------------------------------------------------------


class _Slow(tiny.Exact):
    """Notes the digest of each view that it sees, and takes its time, within a Slurm job."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        folder = os.environ.get("SEEN")
        if folder is not None and len(images_N3HW) > 1:  # a first try has one image
            turn = os.environ.get("SLURM_RESTART_COUNT", "0")
            path = Path(folder) / f"{os.environ['SLURM_ARRAY_TASK_ID']}.{turn}"
            for image in images_N3HW:
                tiny.append_line(path, _digest(image))
            time.sleep(0.05)
        return super().forward(images_N3HW)


def _digest(image_3HW: Tensor) -> str:
    return xxhash.xxh3_64_hexdigest(image_3HW.contiguous().numpy())


def probed(size: int) -> set[str]:
    """Return the digests of the random images on which a new cache's teacher is measured."""
    found: set[str] = set()

    class Noted(tiny.Exact):
        def forward(self, images_N3HW: Tensor) -> Tensor:
            found.update(map(_digest, images_N3HW))
            return super().forward(images_N3HW)

    measure_steadiness(replace(tiny.make_teacher(), network=Noted(tiny.NUM_CLASSES, seed=0)), size)
    return found


def slow_teacher() -> nn.Module:
    """Return a slow exact teacher; the factory of `tests.pipelines.slurm:slow_teacher`."""
    return _Slow(tiny.NUM_CLASSES, seed=0)
