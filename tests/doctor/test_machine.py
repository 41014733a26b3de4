"""Claims about what the doctor says of a machine, read from the files in which systems tell it."""

import resource
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from kdcache.doctor import machine, software
from kdcache.doctor.section import Section, attempt
from kdcache.errors import UsageError
from kdcache.pixels import conformance


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_cores_are_those_of_affinity_and_of_every_control_group_above(tmp_path: Path) -> None:
    _write(tmp_path, "proc/self/cgroup", "0::/jobs/one\n")
    _write(tmp_path, "sys/fs/cgroup/jobs/one/cpu.max", "max 100000\n")
    assert machine.cores(root=tmp_path).value["quota"] is None
    _write(tmp_path, "sys/fs/cgroup/jobs/cpu.max", "150000 100000\n")
    found = machine.cores(root=tmp_path)
    assert found.value["quota"] == 1.5
    assert found.value["usable"] == min(1.5, found.value["affinity"])
    assert found.state == "warning"


def test_memory_is_what_the_control_group_allows(tmp_path: Path) -> None:
    physical = machine.memory(root=tmp_path).value
    assert physical["usable_bytes"] == physical["physical_bytes"] > 1 << 28
    _write(tmp_path, "proc/self/cgroup", "0::/\n")
    _write(tmp_path, "sys/fs/cgroup/memory.max", f"{1 << 28}\n")
    found = machine.memory(root=tmp_path)
    assert found.value["usable_bytes"] == 1 << 28
    assert "0.2 GiB may be used" in found.text


def test_control_groups_of_version_1_are_read_too(tmp_path: Path) -> None:
    _write(
        tmp_path, "proc/self/cgroup", "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n1:name=x:/\n"
    )
    for name, value in (("cfs_quota_us", 50_000), ("cfs_period_us", 100_000)):
        _write(tmp_path, f"sys/fs/cgroup/cpu/cpu.{name}", f"{value}\n")
    _write(tmp_path, "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes", f"{1 << 28}\n")
    assert machine.cores(root=tmp_path).value["quota"] == 0.5
    assert machine.memory(root=tmp_path).value["usable_bytes"] == 1 << 28
    _write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert machine.cores(root=tmp_path).value["quota"] is None


def test_the_processor_is_named_with_the_instructions_that_pixels_may_take(tmp_path: Path) -> None:
    _write(
        tmp_path, "proc/cpuinfo", "model name : Good 9\nflags : fpu avx2 fma\n\nmodel name : B\n"
    )
    found = machine.processor(root=tmp_path)
    assert found.text.startswith("Good 9 with avx2 fma; torch uses ")
    assert found.value["vectors"] == ["avx2", "fma"]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("num_gpus", "state"), [(0, "fine"), (1, "fine"), (2, "warning")])
def test_little_shared_memory_is_a_warning_where_gpus_exchange_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_gpus: int, state: str
) -> None:
    monkeypatch.setattr(machine, "LINUX", True)
    assert "warning: no /dev/shm: worker" in machine.shared_memory(root=tmp_path).line()
    (tmp_path / "dev/shm").mkdir(parents=True)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(64 << 20, 0, 64 << 20))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    found = machine.shared_memory(root=tmp_path)
    assert found.state == state
    assert "0.06 of 0.06 GiB" in found.text
    assert ("--shm-size" in found.text) == (state == "warning")


@pytest.mark.parametrize(("soft", "state"), [(256, "warning"), (4096, "fine")])
def test_few_open_files_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, soft: int, state: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 8192))
    found = machine.open_files()
    assert (found.state, found.value) == (state, {"soft": soft, "hard": 8192})
    assert ("ulimit -n 8192" in found.text) == (state == "warning")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    assert ("ulimit -n 8192" in machine.open_files().text) == (state == "warning")


def test_a_driver_that_torch_cannot_use_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.gpus(root=tmp_path).state == "fine"
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n"
    _write(tmp_path, "proc/driver/nvidia/version", text)
    found = machine.gpus(root=tmp_path)
    assert (found.state, found.value["driver"]) == ("warning", "535.104.05")


def test_the_decoder_in_use_is_told_and_why_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = software.decoders().value
    assert plain["backends"][plain["in_use"]] == "in use"
    monkeypatch.setattr(software, "conforming", lambda backend: backend == "pillow")
    monkeypatch.setattr(software, "chosen_backends", lambda: ("pillow",))
    states = software.decoders().value["backends"]
    assert states["pillow"] == "in use"
    assert "other pixels" in states["simplejpeg"]
    assert "libjpeg" in software.decoders().value["pillow_codec"]


def test_a_decoder_that_cannot_be_used_fails_its_line_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(conformance.BACKEND_VARIABLE, "jasper")
    conformance.chosen_backends.cache_clear()
    try:
        found = attempt(software.decoders)
    finally:
        conformance.chosen_backends.cache_clear()
    assert found.state == "failed"
    assert isinstance(found.error, UsageError)
    assert "jasper" in found.text


def test_a_step_that_breaks_is_told_without_credentials() -> None:
    def broken() -> Section:
        raise RuntimeError("no answer of https://me:secret@host/a?token=abc\nat all")

    found = attempt(broken)
    assert (found.state, found.to_dict()["state"]) == ("failed", "failed")
    assert found.line() == "failed: RuntimeError: no answer of https://host/a at all"
