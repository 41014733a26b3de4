"""Claims about measuring a disk and asking a store: bounded, tidy, and without secrets."""

import os
import shutil
import socket
import time
from collections import namedtuple
from pathlib import Path

import pytest

from kdcache.doctor import access, disk
from kdcache.doctor.section import attempt
from kdcache.errors import UsageError
from kdcache.stores.clients import PATIENCE
from tests.servers import faults, static
from tests.servers.swift import Swift
from tests.tiny import start, without_root_rights

Usage = namedtuple("Usage", "total used free")


def test_a_disk_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    started = time.monotonic()
    found = disk.disk(tmp_path).value
    assert time.monotonic() - started < 10
    assert 0 < found["measured_bytes"] <= disk.MOST_BYTES
    assert min(found["write_mb_s"], found["read_mb_s"], found["files_per_s"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_of_a_disk_that_is_nearly_full_little_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = disk.PIECE_BYTES * disk.FREE_SHARE
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    assert disk.disk(tmp_path).value["measured_bytes"] == disk.PIECE_BYTES
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 1, free - 1))
    with pytest.raises(UsageError, match="63 MiB are free, too little"):
        disk.disk(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"No space left on device; free space, or check rights"):
        disk.disk(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _refuses(folder: Path) -> None:
    without_root_rights()
    found = attempt(lambda: disk.disk(folder))
    assert found.state == "failed"
    assert found.text == f"{folder}: Permission denied; free space, or check rights"


def test_a_folder_that_is_read_only_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    child = start(_refuses, tmp_path)
    child.join()
    tmp_path.chmod(0o700)
    assert child.exitcode == 0


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder to measure"):
        disk.disk(tmp_path / "none")


def test_a_web_server_is_asked_and_its_secrets_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE, "50")
    (tmp_path / "catalog.json").write_text("{}")
    with static.plain(tmp_path) as server:
        url = server.url.replace("://", "://me:hunter2@")
        found = access.access(f"{url}?token=hunter2")
    assert (found.value["lists"], found.value["read"]) == (False, "catalog.json")
    assert found.value["read_s"] > 0
    assert "does not list" in found.text
    assert "hunter2" not in repr(found)
    assert os.environ[PATIENCE] == "50"


def test_a_store_that_does_not_answer_is_given_up_soon_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "PATIENCE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = time.monotonic()
    found = attempt(lambda: access.access(f"http://me:hunter2@127.0.0.1:{port}/a?sig=hunter2"))
    assert time.monotonic() - started < 5
    assert found.state == "failed"
    assert "does not answer" in found.text
    assert "hunter2" not in found.text + str(found.to_dict())


def test_a_bucket_is_listed_and_read(s3: faults.Proxy, swift_server: Swift) -> None:
    place = swift_server.create_bucket("doctor")
    access.Store(place).write("manifest.json", b"{}")
    found = access.access(place.url)
    assert (found.value["lists"], found.value["read"]) == (True, "manifest.json")
    missing = attempt(lambda: access.access("s3://no-such-bucket-here"))
    assert missing.state == "failed"
    assert "no such bucket" in missing.text
