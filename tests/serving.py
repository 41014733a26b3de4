"""A static HTTP server with ranges on loopback, in threads of this process, and what is served."""

import hashlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kdcache.cache.published import MANIFEST, Manifest, PublishedObject
from kdcache.cache.store import Cache
from kdcache.stores.location import Location


@dataclass
class Served:
    """A folder that is served. alter: changes the bytes of an answer, by name and range's start.

    requests: how often each (name, start) was asked for, without questions for its size.
    """

    root: Path
    location: Location
    alter: Callable[[str, int, bytes], bytes] = lambda name, start, data: data
    delay_s: float = 0.0
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)

    def count(self, part: str) -> int:
        """Return the number of requests for names that hold a text."""
        return sum(n for (name, _), n in self.requests.items() if part in name)


@contextmanager
def served(root: Path) -> Iterator[Served]:
    """Serve the files below a folder while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(whole=True)

        def do_HEAD(self) -> None:
            self._answer(whole=False)

        def _answer(self, *, whole: bool) -> None:
            name = self.path.lstrip("/")
            time.sleep(what.delay_s)
            try:
                data = (root / name).read_bytes()
            except OSError:
                self.send_error(404)
                return
            start, size, text = 0, len(data), self.headers["Range"]
            if text is not None:
                first, _, last = text.removeprefix("bytes=").partition("-")
                start = int(first)
                data = data[start : int(last) + 1]
            if whole:
                what.requests[name, start] += 1
                data = what.alter(name, start, data)
            self.send_response(200 if text is None else 206)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            if text is not None:
                self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
            self.end_headers()
            if whole:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            del args

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        what = Served(root, Location(f"http://127.0.0.1:{server.server_port}"))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield what
        finally:
            server.shutdown()
            thread.join()


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
