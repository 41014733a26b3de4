"""Claims about streams whose cache and tars stay in a store: they are those of local ones."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.errors import CorruptError, DataError
from kdcache.replay.open import fixed_stream, independent_stream, label_stream, replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests import tiny
from tests.replay.streaming import digests
from tests.servers import faults, static
from tests.servers.swift import Swift
from tests.serving import Served, put_cache, served

OPTIONS = StreamOptions(batch_size=6, num_epochs=3, seed=3, window=2)
ONE_WORKER, TWO_WORKERS = (replace(OPTIONS, num_workers=number) for number in (1, 2))


class Lent(NamedTuple):
    """A server, and the cache and data that it serves."""

    server: Served
    cache: Location
    data: Location


@pytest.fixture
def lent(
    tmp_path: Path, complete: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lent]:
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(tmp_path / "disk"))
    local = open_cache(complete)
    put_cache(local, tmp_path / "web")
    shutil.copytree(dataset.root, tmp_path / "web/data")
    with served(tmp_path / "web") as server:
        yield Lent(server, server.location / "caches" / local.info.id, server.location / "data")


def _stream(lent: Lent, num_workers: int) -> ReplayStream:
    options = replace(OPTIONS, num_workers=num_workers)
    return replay_stream(open_cache(lent.cache), load_dataset(lent.data), options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_in_place_are_those_of_local_files(
    lent: Lent, complete: Path, dataset: Dataset, num_workers: int
) -> None:
    expected = digests(replay_stream(open_cache(complete), dataset, OPTIONS))
    assert len(expected) > 50
    assert digests(_stream(lent, num_workers)) == expected


def test_a_stream_in_place_goes_on_in_mid_epoch(lent: Lent, complete: Path) -> None:
    expected = digests(_stream(lent, 0))
    first = _stream(lent, 2)
    batches = iter(first)
    begun = digests([next(batches) for _ in range(7)])
    rest = _stream(lent, 2)
    rest.load_state_dict(first.state_dict())
    assert begun + digests(rest) == expected


def test_a_tile_costs_a_request_an_array_and_a_block_one(lent: Lent) -> None:
    _stream(lent, 0)
    lent.server.forget()
    assert digests(_stream(lent, 2))
    spans, tiles, blocks = 3 * 2, 3 * 3, 3 + 3 + 1
    for array in ("indices", "values", "tails"):
        assert lent.server.count(f"/{array}/c/") == tiles
    assert lent.server.count("/commits/") == lent.server.count("/witness/c/") == spans
    assert lent.server.count(".tar") == blocks
    assert set(lent.server.requests.values()) == {1}
    lent.server.forget()
    assert digests(_stream(lent, 0))
    asked = {name.rpartition("/")[2] for name, _ in lent.server.requests}
    assert asked == {"manifest.json", "dataset.json"}


def test_pieces_that_are_evicted_before_workers_need_them_are_asked_for_again(
    lent: Lent, complete: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_DISK_LIMIT", "4KB")  # less than a block
    expected = digests(replay_stream(open_cache(complete), dataset, OPTIONS))
    assert digests(_stream(lent, 2)) == expected


@pytest.mark.parametrize("part", ["indices/c/", "witness/c/", "commits/", ".tar", "zarr.json"])
def test_bytes_that_come_wrong_once_are_asked_for_once_more(
    lent: Lent, complete: Path, dataset: Dataset, part: str
) -> None:
    seen = set()

    def alter(name: str, span: str, data: bytes) -> bytes:
        if part not in name or (name, span) in seen:
            return data
        seen.add((name, span))
        return bytes([data[0] ^ 1]) + data[1:]

    lent.server.alter = alter
    expected = digests(replay_stream(open_cache(complete), dataset, OPTIONS))
    assert digests(_stream(lent, 2)) == expected
    assert seen


@pytest.mark.parametrize(
    ("part", "kind", "number"),
    [
        ("values/c/1/", CorruptError, 2),
        ("commits/1-0", CorruptError, 2),
        ("witness/c/1/", CorruptError, 0),
        (".tar", DataError, 2),
    ],
)
def test_bytes_that_stay_wrong_are_refused_and_named(
    lent: Lent, part: str, kind: type[Exception], number: int
) -> None:
    def alter(name: str, span: str, data: bytes) -> bytes:
        del span
        return bytes([data[0] ^ 1]) + data[1:] if part in name else data

    stream = _stream(lent, number)
    lent.server.alter = alter
    with pytest.raises(kind, match=rf"^http://127.0.0.1:\d+/.*{part}.*(once more|twice)"):
        digests(stream)


@pytest.mark.parametrize("number", [0, 2])
def test_an_object_that_is_gone_is_named(lent: Lent, number: int) -> None:
    stream = _stream(lent, number)
    for path in lent.server.root.rglob("tails/c/2/*/0/0"):
        path.unlink()
    with pytest.raises(CorruptError, match=r"^http:.*/tails/c/2/0/0/0: missing, though"):
        digests(stream)


def test_a_local_cache_goes_with_tars_in_a_store_and_the_other_way_round(
    lent: Lent, complete: Path, dataset: Dataset
) -> None:
    local = open_cache(complete)
    expected = digests(replay_stream(local, dataset, OPTIONS))
    assert digests(replay_stream(local, load_dataset(lent.data), ONE_WORKER)) == expected
    assert digests(replay_stream(open_cache(lent.cache), dataset, ONE_WORKER)) == expected


def test_other_streams_are_the_same_in_place(lent: Lent, tmp_path: Path, dataset: Dataset) -> None:
    recipe = tiny.make_recipe(mix=None)
    local = tiny.precompute(tmp_path / "unmixed", dataset, recipe)
    put_cache(local, lent.server.root)
    place, data = lent.cache.parent / local.info.id, load_dataset(lent.data)

    def streams(cache: Cache, images: Dataset) -> list[ReplayStream]:
        return [
            fixed_stream(cache, images, ONE_WORKER, recipe=recipe),
            independent_stream(cache, images, ONE_WORKER),
            label_stream(images, ONE_WORKER, recipe=recipe),
        ]

    expected = [digests(stream) for stream in streams(local, dataset)]
    assert [digests(stream) for stream in streams(open_cache(place), data)] == expected


def test_a_resharded_copy_in_a_store_serves(
    lent: Lent, tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    images = tiny.write_images(tmp_path / "again", 24)
    tiny.pack_images(images, lent.server.root / "other", rows_per_tar=7, shuffle_seed=1)
    expected = digests(replay_stream(open_cache(complete), dataset, OPTIONS))
    other = load_dataset(lent.server.location / "other")
    assert digests(replay_stream(open_cache(lent.cache), other, ONE_WORKER)) == expected


@pytest.mark.skipif(static.missing() is not None, reason=static.missing() or "")
def test_batches_from_nginx_are_those_of_local_files(
    lent: Lent, complete: Path, dataset: Dataset
) -> None:
    expected = digests(replay_stream(open_cache(complete), dataset, OPTIONS))
    with static.nginx(lent.server.root) as nginx:
        place = Location(nginx.url)
        cache = open_cache(place / "caches" / lent.cache.name)
        stream = replay_stream(cache, load_dataset(place / "data"), TWO_WORKERS)
        assert digests(stream) == expected


def test_batches_from_a_bucket_are_those_of_local_files(
    lent: Lent, complete: Path, dataset: Dataset, s3: faults.Proxy, swift_server: Swift
) -> None:
    expected = digests(replay_stream(open_cache(complete), dataset, OPTIONS))
    place, web = swift_server.create_bucket("in-place") / "some prefix", lent.server.root
    for path in web.rglob("*"):
        if path.is_file():
            Store(place).write(path.relative_to(web).as_posix(), path.read_bytes())
    cache = open_cache(place / "caches" / lent.cache.name)
    # A reset would not come: workers that were forked hold the connections of the proxy, too.
    s3.plan = faults.every(5, faults.status(503), of="GET")
    stream = replay_stream(cache, load_dataset(place / "data"), TWO_WORKERS)
    assert digests(stream) == expected
    assert s3.asked("GET", "/values/c/")
