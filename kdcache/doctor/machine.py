"""What this machine has and allows: processor, cores, memory, open files, GPUs."""

import os
import platform
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from kdcache.doctor.section import Section, judged
from kdcache.processes import num_cores

ROOT = Path("/")
# x86 extensions that torch, libjpeg-turbo and NumPy have code for; Arm's come under other names.
VECTORS = ("sse2", "sse4_1", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "asimd")
LEAST_CORES = 3
LEAST_FILES, ENOUGH_FILES = 1024, 8192
LINUX = sys.platform == "linux"
LEAST_SHARED = 1 << 30
GIB = 1 << 30


def processor(*, root: Path = ROOT) -> Section:
    """Return the model of the processor and the vector instructions that pixels may pass through.

    Whether they change any is what the replay self-test says: it runs on them.
    """
    fields = _cpuinfo(root)
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    found = [name for name in VECTORS if name in flags]
    name = fields.get("model name") or platform.processor() or platform.machine()
    by_torch = torch.backends.cpu.get_cpu_capability()
    return Section(
        f"{name} with {' '.join(found) or 'no known extensions'}; torch uses {by_torch}",
        {"model": name, "vectors": found, "torch": by_torch, "architecture": platform.machine()},
    )


def _cpuinfo(root: Path) -> dict[str, str]:
    """Return what the system says of its first processor."""
    try:
        lines = (root / "proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


def cores(*, root: Path = ROOT) -> Section:
    """Return how many cores this process may use, by affinity and by its control group."""
    mine, there = num_cores(), os.cpu_count() or 1
    quota = _cpu_quota(root)
    usable = mine if quota is None else min(mine, quota)
    text = f"{usable:g} of {there} may be used"
    text += "" if quota is None else f" (the control group's quota is {quota:.3g})"
    warning = "rendering will be the limit" if usable < LEAST_CORES else None
    return judged(text, warning, usable=usable, affinity=mine, quota=quota, there=there)


def memory(*, root: Path = ROOT) -> Section:
    """Return how much memory there is, and how much of it this process may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = _group_values(root, "memory.max")
    texts += _group_values(root, "memory.limit_in_bytes", controller="memory")
    limits = [int(text) for text in texts if text.isdecimal()]
    limit = min(limits, default=physical)
    text = f"{physical / GIB:.1f} GiB"
    text += f", of which {limit / GIB:.1f} GiB may be used" if limit < physical else ""
    return Section(text, {"physical_bytes": physical, "usable_bytes": min(limit, physical)})


def _cpu_quota(root: Path) -> float | None:
    """Return the cores that control groups allow, if they limit them."""
    quotas = []
    for text in _group_values(root, "cpu.max"):
        share, period = text.split()
        if share != "max":
            quotas.append(int(share) / int(period))
    shares = _group_values(root, "cpu.cfs_quota_us", controller="cpu")
    periods = _group_values(root, "cpu.cfs_period_us", controller="cpu")
    for share, period in zip(shares, periods, strict=False):
        if int(share) > 0:
            quotas.append(int(share) / int(period))
    return min(quotas, default=None)


def _group_values(root: Path, name: str, *, controller: str = "") -> list[str]:
    """Return a setting of the control group of this process and of all groups above it.

    controller: of groups of version 1, each with a tree of its own; none is version 2.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    own = next((f[2].strip("/") for f in fields if controller in f[1].split(",")), "")
    top = root / "sys/fs/cgroup" / controller
    groups = [top / own, *(top / own).parents]
    files = [group / name for group in groups if group.is_relative_to(top)]
    return [file.read_text().strip() for file in files if file.is_file()]


def shared_memory(*, root: Path = ROOT) -> Section:
    """Return the size of /dev/shm, by whose semaphores processes wait for each other.

    Pixels are not handed over through it, but NCCL's data are where there are several GPUs.
    """
    folder = root / "dev/shm"
    if not folder.is_dir():
        needed = "worker processes need it; mount a tmpfs there" if LINUX else None
        return judged("no /dev/shm", needed)
    total, _, free = shutil.disk_usage(folder)
    small = free < LEAST_SHARED and torch.cuda.device_count() > 1
    warning = "NCCL may want more; start the container with --shm-size=1g" if small else None
    text = f"{free / GIB:.2f} of {total / GIB:.2f} GiB of /dev/shm free"
    return judged(text, warning, size_bytes=total, free_bytes=free)


def open_files() -> Section:
    """Return how many files a process may hold open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    values = [None if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard)]
    shown = ["any number" if value is None else str(value) for value in values]
    low = values[0] is not None and values[0] < LEAST_FILES
    most = ENOUGH_FILES if values[1] is None else min(values[1], ENOUGH_FILES)
    warning = f"raise it with ulimit -n {most}" if low else None
    text = f"{shown[0]} may be open, {shown[1]} if asked for"
    return judged(text, warning, soft=values[0], hard=values[1])


def gpus(*, root: Path = ROOT) -> Section:
    """Return the GPUs that torch can use, or why there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    driver, cuda = _driver(root), torch.version.cuda
    value: dict[str, Any] = {"gpus": [], "driver": driver, "cuda": cuda}
    if not there:
        reason = next((str(w.message).split(". ")[0] for w in caught), None)
        if reason is None and cuda is None:
            reason = "this torch is built without CUDA"
        text = "none, networks run on the CPU" + ("" if reason is None else f" ({reason})")
        return Section(text, value, "warning" if driver is not None else "fine")
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    value["gpus"] = [
        {
            "name": each.name,
            "memory_bytes": each.total_memory,
            "compute": f"{each.major}.{each.minor}",
        }
        for each in found
    ]
    names = ", ".join(f"{each.name} ({each.total_memory / GIB:.0f} GiB)" for each in found)
    return Section(f"{names}; driver {driver or 'of unknown version'}, CUDA {cuda}", value)


def _driver(root: Path) -> str | None:
    """Return the version of NVIDIA's driver, if one is loaded."""
    try:
        words = (root / "proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)
