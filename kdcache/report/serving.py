"""Pages served on this machine alone: GET only, and only to pages of this very server.

A page elsewhere cannot read them: its browser would name another host (DNS rebinding), or refuse to
hand it what is of another origin.
"""

import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from kdcache.errors import UsageError
from kdcache.report.browse import Answer

HOST = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
QUIET_S = 60.0  # after which a connection that asks for nothing is closed


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def make_server(answer: Callable[[str], Answer], *, port: int) -> ThreadingHTTPServer:
    """Return a server of what answer makes of paths and queries, one after the other.

    port: 0 takes any that is free.

    Raises:
        UsageError: the port is taken, or not allowed.
    """
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version, timeout = "kdcache", "", QUIET_S

        def do_GET(self) -> None:
            port = self.connection.getsockname()[1]
            own = {f"{name}:{port}" for name in (HOST, "localhost")}
            own |= {HOST, "localhost"} if port == 80 else set()  # browsers leave it out
            hosts = [name.lower() for name in self.headers.get_all("Host", [])]
            if hosts not in [[name] for name in own]:
                self._send(Answer(403, "This server answers to its own address alone."))
                return
            with lock:
                made = answer(self.path)
            self._send(made)

        def _send(self, made: Answer) -> None:
            data = made.html.encode()
            self.send_response(made.status)
            if made.to:
                self.send_header("Location", made.to)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of requests."""

    try:
        return _Server((HOST, port), Handler)
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror}; name another, or none") from error
