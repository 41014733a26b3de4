"""A model hub on this machine: its cache folder, and a server that answers as the hub does."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "5" * 40
NOBODY = "http://127.0.0.1:9"  # the port of "discard", where nothing listens


def fill_cache(
    cache: Path, name: str, files: Mapping[str, bytes], *, revision: str = "main"
) -> Path:
    """Return the folder of a repository's commit in a hub cache, filled as a download does it."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(COMMIT)
    (root / "blobs").mkdir()
    for file, data in files.items():
        blob = root / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / file).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their names."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@contextmanager
def serve(files: Mapping[str, bytes], *, refusals: Mapping[str, str] = {}) -> Iterator[str]:
    """Answer as a hub does; yield the address.

    files: by "OWNER/NAME/resolve/REVISION/FILE" or any other path. refusals: the error code that
    the hub gives for all paths that start so.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.lstrip("/")
            code = next((c for start, c in refusals.items() if path.startswith(start)), None)
            data = None if code else files.get(path)
            if data is None:
                self.send_response(403 if code == "GatedRepo" else 404)
                self.send_header("X-Error-Code", code or "EntryNotFound")
                data = b""
            else:
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
