"""A static HTTP server with ranges that answers late, in a process of its own, and what it serves.

    python -m pipelines.bench.serving FOLDER 0.03

Prints its port. GET /requests tells what was asked for since that was last told.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote
from urllib.request import urlopen

from kdcache.cache.published import (
    MANIFEST,
    DatasetSummary,
    Licences,
    Manifest,
    PublishedObject,
    RecipeSummary,
    TeacherSummary,
)
from kdcache.cache.store import Cache
from kdcache.stores.location import Location

TOLD = "requests"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    root: Path
    delay_s: float
    lock = threading.Lock()
    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        name = unquote(self.path).lstrip("/")
        if name == TOLD:
            with self.lock:
                body = json.dumps(self.asked).encode()
                self.asked.clear()
            self._send(200, body, {}, with_body=True)
            return
        time.sleep(self.delay_s)
        with self.lock:
            self.asked[name] += 1
        try:
            with (self.root / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                status, start, stop = self._range(size)
                file.seek(start)
                body = file.read(stop - start)
        except OSError:
            self._send(404, b"", {}, with_body=True)
            return
        more = {"Last-Modified": self.date_time_string(0), "Accept-Ranges": "bytes"}
        if status == 206:
            more["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._send(status, body, more, with_body=with_body)

    def _range(self, size: int) -> tuple[int, int, int]:
        """Return the status of an answer, and the range of bytes that it has."""
        text = self.headers.get("Range")
        if text is None:
            return 200, 0, size
        first, _, last = text.removeprefix("bytes=").partition("-")
        return 206, int(first), min(int(last) + 1, size)

    def _send(self, status: int, body: bytes, more: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**more, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


@dataclass(frozen=True)
class Served:
    """A running server. location: of its folder."""

    location: Location

    def told(self) -> Counter[str]:
        """Return how often each name was asked for since this was last told."""
        with urlopen(f"{self.location.url}/{TOLD}") as answer:
            return Counter(json.load(answer))


@contextmanager
def serving(folder: Path, *, delay_s: float) -> Iterator[Served]:
    """Serve a folder, each answer so much later, while the block runs."""
    command = [sys.executable, "-m", "pipelines.bench.serving", str(folder), str(delay_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Served(Location(f"http://127.0.0.1:{int(process.stdout.readline())}"))
    finally:
        process.kill()
        process.wait()


def publish_by_hand(cache: Cache, catalogue: Path) -> str:
    """Move a complete cache into a catalogue, with its manifest; return its name there."""
    info, name = cache.info, f"caches/{cache.info.id}"
    path = catalogue / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(cache.path, path)
    objects = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock"):
        data = file.read_bytes()
        objects[file.relative_to(path).as_posix()] = PublishedObject(
            size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
    manifest = Manifest(
        format=1,
        cache=info.id,
        dataset=DatasetSummary(
            id=info.dataset["id"],
            num_samples=info.dataset["num_samples"],
            num_tars=cache.grid.num_tars,
            name=None,
        ),
        recipe=RecipeSummary(id=info.recipe.id, name=None, text=info.recipe.canonical()),
        teacher=TeacherSummary(id=info.teacher["id"], spec=info.teacher["spec"]),
        encoding=str(info.encoding),
        num_classes=info.num_classes,
        views=cache.grid.num_views,
        span_views=cache.grid.span_views,
        spans=sum(object_.startswith("commits/") for object_ in objects),
        licences=Licences(data=None, weights=None, output=None),
        contributions=(),
        objects=objects,
    )
    (path / MANIFEST).write_bytes(manifest.to_bytes())
    return name


def main() -> None:
    """Serve until killed."""
    _Handler.root, _Handler.delay_s = Path(sys.argv[1]), float(sys.argv[2])
    with _Server(("127.0.0.1", 0), _Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
