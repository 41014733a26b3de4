"""Catalogues of tests: caches published in folders, and stores that fail or are changed."""

import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from kdcache.cache.layout import Span
from kdcache.cache.published import Licences
from kdcache.cache.store import Cache
from kdcache.sharing.catalogue import Catalogue, Published, cache_name, open_catalogue
from kdcache.sharing.fetch import Fetched, prepare_fetch, run_fetch
from kdcache.sharing.publish import Publisher, Sent, publish
from kdcache.stores.location import Place
from kdcache.stores.store import Entry, Store
from tests.cache import filling

T = TypeVar("T")

WHEN = "2026-01-02T03:04:05Z"
LICENCES = Licences(data="CC-BY-4.0", weights="MIT", output="LicenseRef-ours")
TEAM = Publisher("a team", LICENCES, when=WHEN)


def part(
    path: Path, spans: Iterable[Span] | None = None, *, seed: int = 0, **options: Any
) -> Cache:
    """Return a cache of which some spans are there, by default all; options as filling.empty."""
    filled = filling.empty(path, **options)
    for span in filled.cache.grid.spans() if spans is None else spans:
        filled.write(span, seed=seed)
    return filled.cache


def new(place: Path) -> Catalogue:
    """Return the catalogue in a folder that may not be there yet."""
    return open_catalogue(place, create=True)


def send(cache: Cache, catalogue: Catalogue, **options: Any) -> Sent:
    """Publish a cache for a team; options as publish."""
    return publish(cache, catalogue, TEAM, **options)


def fetch(published: Published, out: Path, **options: Any) -> Fetched:
    """Fetch a published cache; options as prepare_fetch."""
    return run_fetch(prepare_fetch(published, out, **options))


def files(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder but locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def check_whole(published: Published) -> None:
    """Check that all objects that a manifest names are there as it says."""
    for name in published.manifest.objects:
        published.read(name)


def stored(catalogue: Catalogue, cache: str, name: str) -> Path:
    """Return the file of an object, of a catalogue in a folder."""
    assert isinstance(catalogue.place, Path)
    return catalogue.place / cache_name(cache, name)


class KilledError(RuntimeError):
    """The process that uses a store is gone."""


class Dying(Store):
    """A store whose process dies before it sends a request. calls: those that it sent."""

    def __init__(self, place: Place, *, at: int | None) -> None:
        super().__init__(place)
        self.calls = 0
        self._at, self._lock = at, threading.Lock()

    def _asking(self, name: str, ask: Callable[[Any], Coroutine[Any, Any, T]], **how: bool) -> T:
        with self._lock:
            self.calls += 1
            if self._at is not None and self.calls >= self._at:
                raise KilledError(name)
        return super()._asking(name, ask, **how)


class Watching(Store):
    """A store that tells of what was written, in order."""

    def __init__(self, place: Place, *, before: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(place)
        self.written: list[str] = []
        self.before = before

    def write(self, name: str, data: bytes) -> None:
        self.before(name)
        super().write(name, data)
        self.written.append(name)


class Lagging(Store):
    """A store whose listings show nothing that was written since it was opened."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._new: set[str] = set()

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        self._new.add(name)

    def names(self, prefix: str = "") -> Iterator[Entry]:
        return (entry for entry in super().names(prefix) if entry.name not in self._new)

    def folders(self, prefix: str) -> list[str]:
        shown = {entry.name.removeprefix(f"{prefix}/").partition("/")[0] for entry in self.names()}
        return [name for name in super().folders(prefix) if name in shown]
