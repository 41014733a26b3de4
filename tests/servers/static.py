"""Static servers over a folder, with ranges and without listing: nginx, and one of the tests' own.

`nginx` is the real one, and is skipped where it is missing; `plain` runs everywhere.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tests.servers.listening import Handler, listening

PATIENCE_S = 30

SETTINGS = """
daemon off;
master_process off;
pid {state}/pid;
error_log {state}/errors warn;
events {{ worker_connections 512; }}
http {{
  log_format asked escape=none '$request_method $status $uri\t$http_range';
  access_log {state}/asked asked;
  {temporary}
  default_type application/octet-stream;
  keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    location / {{ autoindex off; }}
  }}
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Asked(NamedTuple):
    """A request. path: decoded, from the slash. range: such as bytes=0-9, empty without."""

    method: str
    status: int
    path: str
    range: str


@dataclass(frozen=True)
class Static:
    """A running server. url: of its folder, without a slash at its end."""

    url: str
    asked: Callable[[], list[Asked]]  # the requests answered so far


def _program() -> str | None:
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def missing() -> str | None:
    """Return why no nginx can run here."""
    return None if _program() else "no nginx; `make server-packages` installs it"


@contextmanager
def nginx(folder: Path) -> Iterator[Static]:
    """Serve a folder by nginx; see `missing`."""
    program = _program()
    assert program is not None
    with TemporaryDirectory(prefix="nginx-") as state, ExitStack() as stack:
        for _ in range(5):  # another process may take the port that was free
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            settings = Path(state) / "conf"
            temporary = [f"{name}_temp_path {state}/{name};" for name in TEMPORARY]
            settings.write_text(
                SETTINGS.format(
                    state=state,
                    port=port,
                    folder=folder.resolve(),
                    temporary="\n  ".join(temporary),
                )
            )
            process = stack.enter_context(_process(program, state))
            if _answers(process, port):
                yield Static(f"http://127.0.0.1:{port}", partial(_logged, Path(state) / "asked"))
                return
        raise AssertionError((Path(state) / "errors").read_text())


@contextmanager
def _process(program: str, state: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [program, "-p", state, "-c", f"{state}/conf", "-e", f"{state}/errors"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
        except OSError:
            time.sleep(0.02)
    return False


def _logged(log: Path) -> list[Asked]:
    return [_parsed(line) for line in log.read_text().splitlines()]


def _parsed(line: str) -> Asked:
    front, _, span = line.partition("\t")
    method, status, path = front.split(" ", 2)
    return Asked(method, int(status), path, span)


# --- the tests' own ------------------------------------------------------------------------


class _Files(Handler):
    """Files below server.state[0]; requests are noted in server.state[1]."""

    def _any(self) -> None:
        root, asked = self.server.state
        name = unquote(urlsplit(self.path).path)
        span, path = self.headers.get("Range", ""), root / name.lstrip("/")
        status, data, headers = _read(path, span) if ".." not in name else (403, b"", {})
        asked.append(Asked(self.command, status, name, span))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_GET = do_HEAD = _any


def _read(path: Path, span: str) -> tuple[int, bytes, dict[str, str]]:
    """Return a status, the bytes and headers."""
    if path.is_dir():
        return 403, b"", {}
    try:
        data = path.read_bytes()
    except OSError:
        return 404, b"", {}
    changed = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(path.stat().st_mtime))
    headers = {"Accept-Ranges": "bytes", "Last-Modified": changed}
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", span)
    if found is None or not any(found.groups()):
        return 200, data, headers
    first, last = found.groups()
    if not first:
        start, end = max(0, len(data) - int(last)), len(data)
    else:
        start, end = int(first), min(int(last) + 1 if last else len(data), len(data))
    if start >= end:
        return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return 206, data[start:end], headers


@contextmanager
def plain(folder: Path) -> Iterator[Static]:
    """Serve a folder by a server of the tests' own, in this process."""
    asked: list[Asked] = []
    with listening(_Files, (folder.resolve(), asked)) as server:
        yield Static(server.url, lambda: list(asked))
