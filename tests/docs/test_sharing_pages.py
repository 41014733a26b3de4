"""The page of buckets and the README's Sharing run, on a real S3 server and behind HTTP."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from kdcache.cache.store import open_cache
from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests.cli.conftest import Run
from tests.cli.making import TEACHER
from tests.docs.blocks import find_blocks, lines_of
from tests.docs.running import exchanged, precompute, run_here
from tests.servers.faults import Proxy
from tests.servers.swift import Swift
from tests.serving import served

pytestmark = pytest.mark.slow

PAGE = "docs/how-to/buckets.md"
CATALOGUE = "s3://team/catalogue/refs/resnet50-funmatch"
TRAINING = "--student tests.student.nets:small --epochs 2 --batch-size 8 --workers 0"
SMALL = {
    "torchvision:resnet50": TEACHER,
    "--num-classes 1000": "--num-classes 5",
    "--student torchvision:resnet18 --epochs 48": TRAINING,
}


@pytest.fixture
def team(place: Path, s3: Proxy, swift_server: Swift, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A bucket of that name, with nothing in it but tars as images/train."""
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(place / "disk"))
    with suppress(HTTPError):  # it is there from the test before
        swift_server.create_bucket("team")
    store = Store(Location("s3://team"))
    store.delete(entry.name for entry in store.names())
    for tar in sorted((place / "build/tars").glob("*.tar")):
        store.write(f"images/train/{tar.name}", tar.read_bytes())
    return store


def test_the_page_of_buckets_runs(
    team: Store, place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = "export AWS_"  # the server's are set already
    lines = [line for line in lines_of(PAGE) if not line.startswith(settings)]
    *lines, verify = exchanged(lines, SMALL)
    done = [name for name, _ in run_here(kdcache, lines, monkeypatch=monkeypatch)]
    assert done == ["index", "precompute", "publish", "train"]
    for entry in team.names("catalogue/"):
        path = place / "web" / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(team.read(entry.name))
    with served(place / "web") as server:
        there = exchanged([verify], {"https://data.example.org": str(server.location)})
        [(_, outcome)] = run_here(kdcache, there, monkeypatch=monkeypatch)
    assert "blocks rendered again, 0 differ" in outcome.stdout
    [code] = find_blocks(PAGE, "python")
    names: dict[str, Any] = {}
    exec(compile(code.text, code.page, "exec"), names)
    assert names["cache"].info.dataset["id"] == names["dataset"].id


def test_sharing_in_the_readme_runs(
    team: Store, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    precompute(kdcache, "build/cache")
    rest = f"--data build/train {TRAINING} --out build/run"
    lines = exchanged(lines_of("README.md", heading="Sharing"), {"…": rest})
    done = run_here(kdcache, lines, monkeypatch=monkeypatch)
    assert [name for name, _ in done] == ["publish", "find", "train"]
    assert open_cache(Path("build/cache")).info.id[:12] in done[1][1].stdout
