"""Published caches, and folders served over HTTP, where tests count requests and alter answers."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.cache.published import MANIFEST, Manifest, PublishedObject
from kdcache.cache.store import Cache
from kdcache.stores.location import Location
from tests.servers import faults, static


@dataclass
class Served:
    """A folder that is served. alter: changes the bytes of an answer, by name and range."""

    root: Path
    proxy: faults.Proxy
    alter: Callable[[str, str, bytes], bytes] | None = None

    @property
    def location(self) -> Location:
        """Return where the folder is served."""
        return Location(self.proxy.url)

    @property
    def requests(self) -> Counter[tuple[str, str]]:
        """Return how often each path and range was asked for."""
        return Counter((request.path, request.range) for request in self.proxy.asked("GET"))

    def count(self, part: str) -> int:
        """Return the number of requests for paths that hold a text."""
        return len(self.proxy.asked("GET", part))

    def forget(self) -> None:
        """Forget the requests so far."""
        self.proxy.requests.clear()

    def plan(self, request: faults.Request) -> faults.Fault | None:
        """Return how a request is answered, if otherwise than by the server."""
        alter = self.alter
        if alter is None or request.method != "GET":
            return None

        def fault(exchange: faults.Exchange) -> None:
            reply = exchange.ask()
            if reply.status < 300:
                reply = replace(reply, body=alter(request.path, request.range, reply.body))
            exchange.answer(reply)

        return fault


@contextmanager
def served(root: Path) -> Iterator[Served]:
    """Serve the files below a folder while the block runs."""
    with static.plain(root) as server, faults.running(server.url) as proxy:
        what = Served(root, proxy)
        proxy.plan = what.plan
        yield what


def put_cache(cache: Cache, catalogue: Path) -> Path:
    """Return where a copy of a cache lies in a catalogue, published by hand."""
    path = catalogue / "caches" / cache.info.id
    shutil.copytree(cache.path, path, ignore=shutil.ignore_patterns(".lock", "quarantine"))
    write_manifest(path, cache)
    return path


def write_manifest(path: Path, cache: Cache) -> None:
    """Write the manifest of what lies at a path."""
    objects = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and name != MANIFEST:
            data = file.read_bytes()
            objects[name] = PublishedObject(
                size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
            )
    info, nobody = cache.info, {"data": None, "weights": None, "output": None}
    body = {
        "format": 1,
        "cache": info.id,
        "dataset": {
            "id": info.dataset["id"],
            "num_samples": info.dataset["num_samples"],
            "num_tars": cache.grid.num_tars,
            "name": None,
        },
        "recipe": {"id": info.recipe.id, "name": None, "text": info.recipe.canonical()},
        "teacher": {"id": info.teacher["id"], "spec": info.teacher["spec"]},
        "encoding": str(info.encoding),
        "num_classes": info.num_classes,
        "views": cache.grid.num_views,
        "span_views": cache.grid.span_views,
        "spans": sum(name.startswith("commits/") for name in objects),
        "licences": nobody,
        "contributions": (),
        "objects": {name: entry.model_dump() for name, entry in objects.items()},
    }
    (path / MANIFEST).write_bytes(Manifest.model_validate(body).to_bytes())
