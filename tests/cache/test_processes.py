"""Claims about a cache in other processes and threads: each reads what the opener would read."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import get_context
from torch.utils.data import DataLoader, Dataset

from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError
from tests.cache.filling import Filled, full
from tests.cache.keeping import flip, refusal

Item = tuple[int, dict[str, torch.Tensor], list[int]]
ENCODINGS = ["topk:3", "adaptive:0.05", "dense:u1"]


@pytest.fixture(scope="module", params=ENCODINGS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A sealed cache with a row without targets."""
    path = tmp_path_factory.mktemp("filled") / "c"
    filled = full(path, encoding=request.param, num_classes=12, unusable={0: (2,)})
    seal(filled.cache)
    return filled


class Tiles(Dataset[Any]):
    """Tiles of a cache and their witnesses, by number."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return self.cache.grid.num_tars * self.cache.grid.num_views

    def __getitem__(self, number: int) -> Any:
        place = divmod(number, self.cache.grid.num_views)
        tile, witness = self.cache.read_tile(*place), self.cache.read_witness(*place)
        return number, tile.fields, witness.tolist()


def _same(one: Item, other: Item) -> bool:
    return tuple(one[::2]) == tuple(other[::2]) and all(
        torch.equal(field.nan_to_num(nan=7), other[1][name].nan_to_num(nan=7))
        for name, field in one[1].items()
    )


class Refusals(Tiles):
    """What is said of tiles that cannot be read, by number; else nothing."""

    def __getitem__(self, number: int) -> str:
        return refusal(lambda: super(Refusals, self).__getitem__(number)) or ""


def _loaded(tiles: Dataset[Any], method: str) -> list[Any]:
    context = get_context(method)
    return list(DataLoader(tiles, batch_size=None, num_workers=2, multiprocessing_context=context))


def _check_workers(cache: Cache, method: str) -> None:
    found, tiles = _loaded(Tiles(cache), method), Tiles(cache)
    here = [tiles[number] for number in range(len(tiles))]
    assert len(found) == len(here) == 12
    assert all(_same(one, other) for one, other in zip(found, here, strict=True))


@pytest.mark.parametrize("was_read", [False, True], ids=["fresh", "read"])
def test_forked_workers_read_what_their_parent_reads(filled: Filled, was_read: bool) -> None:
    """Whether or not the parent has read tiles before: what it knows then, they know."""
    cache = open_cache(filled.cache.path)
    if was_read:
        filled.check_all(cache)
    _check_workers(cache, "fork")
    filled.check_all(cache)


def test_spawned_workers_read_what_their_parent_reads(complete: Path) -> None:
    cache = open_cache(complete)
    cache.read_tile(0, 0)
    _check_workers(cache, "spawn")


def test_forked_workers_find_damage_that_their_parent_has_not_met(
    filled: Filled, tmp_path: Path
) -> None:
    copy = full(
        tmp_path / "c", encoding=str(filled.cache.info.encoding), num_classes=12, unusable={0: (2,)}
    )
    cache = open_cache(copy.cache.path)
    copy.check(cache, 0, 0)
    first = cache.info.specs[0].name
    (name,) = {path for path in cache.path.glob(f"{first}/c/2/1/**/*") if path.is_file()}
    flip(name, at=name.stat().st_size - 3)  # in the index, which all tiles need
    refused = _loaded(Refusals(cache), "fork")
    assert [bool(message) for message in refused] == [False] * 10 + [True] * 2
    assert all(f"{first}/c/2/1/" in message for message in refused[10:])


def test_a_pickled_cache_is_opened_again_and_holds_no_data(filled: Filled) -> None:
    cache = open_cache(filled.cache.path)
    filled.check_all(cache)
    data = pickle.dumps(cache)
    assert len(data) < 500
    again = pickle.loads(data)
    assert (again.path, again.info, again.grid) == (cache.path, cache.info, cache.grid)
    filled.check_all(again)


def test_a_pickled_cache_that_was_damaged_since_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps(full(tmp_path / "c").cache)
    flip(tmp_path / "c/uids/zarr.json", at=30)
    with pytest.raises(CorruptError, match=r"uids/zarr\.json"):
        pickle.loads(data)


@pytest.mark.parametrize("share", [True, False], ids=["one cache", "a cache each"])
def test_threads_read_in_parallel(filled: Filled, share: bool) -> None:
    cache = open_cache(filled.cache.path)

    def work(thread: int) -> int:
        mine = cache if share else open_cache(filled.cache.path)
        places = list(filled.fields)
        for tar, view in places[thread:] + places[:thread]:
            filled.check(mine, tar, view)
            assert mine.uids(tar).tolist() == cache.uids(tar).tolist()
        return len(places)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(48))) == [12] * 48


def test_readers_hold_no_file_open(filled: Filled) -> None:
    """Any number of caches can be open; a cache can be deleted or moved while it is."""

    def held() -> int:
        here = str(filled.cache.path)
        return sum(str(f.resolve()).startswith(here) for f in Path("/proc/self/fd").iterdir())

    cache = open_cache(filled.cache.path)
    filled.check_all(cache)
    cache.totals()
    assert held() == 0
