"""A proxy of the tests' own between client and server, that makes faults by a plan.

    with faults.running(server.url) as proxy:
        proxy.plan = faults.first(2, faults.status(503), of="GET", path="manifest")

A plan gives the fault of a request, or None for one that passes. Host and all headers go on as they
came, so that what the client signed holds. The proxy notes what was asked, and answered.
"""

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.servers.listening import Handler, listening

SLICE_S = 0.05  # between the pieces of slow bytes
LEFT_OUT = ("connection", "keep-alive", "transfer-encoding", "content-length")


@dataclass(frozen=True)
class Request:
    """What was asked. path: decoded, without the query. number: among all, from 0."""

    number: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def range(self) -> str:
        """Return the range that was asked for, such as bytes=0-9; empty without."""
        return self.headers.get("range", "")


@dataclass(frozen=True)
class Reply:
    """What a server answers. headers: without those of the connection and the length."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    size_bytes: int  # that the headers state: of a HEAD, more than the body's

    def header(self, name: str) -> str:
        """Return a header's value; empty without."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    def with_header(self, name: str, value: str) -> "Reply":
        """Return the reply with a header in place of the one that it has."""
        kept = [(key, old) for key, old in self.headers if key.lower() != name.lower()]
        return replace(self, headers=[*kept, (name, value)])


Fault = Callable[["Exchange"], None]
Plan = Callable[[Request], Fault | None]


@dataclass
class Proxy:
    """A running proxy. url: where it answers; plan, delay_s (of every request): change at will."""

    upstream: str
    url: str = ""
    delay_s: float = 0.0
    plan: Plan | None = None
    requests: list[Request] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, **fields: Any) -> Request:
        """Return a request, which is counted."""
        with self._lock:
            request = Request(number=len(self.requests), **fields)
            self.requests.append(request)
            return request

    def asked(self, method: str | None = None, path: str = "") -> list[Request]:
        """Return the requests of a method, or of all, whose path has these words in it."""
        with self._lock:
            found = list(self.requests)
        return [r for r in found if method in (None, r.method) and path in r.path]

    def counts(self) -> Counter[tuple[str, str]]:
        """Return how often each method and path was asked."""
        return Counter((request.method, request.path) for request in self.asked())


# --- plans ---------------------------------------------------------------------------------


def _chosen(
    which: Callable[[int], bool], fault: Fault, of: str | None, path: str, query: str
) -> Plan:
    """Return a plan for those of the requests meant whose number among them is chosen."""
    lock, seen = threading.Lock(), 0

    def plan(request: Request) -> Fault | None:
        nonlocal seen
        if of not in (None, request.method) or path not in request.path:
            return None
        if query not in request.query:
            return None
        with lock:
            seen += 1
            return fault if which(seen) else None

    return plan


def always(fault: Fault, *, of: str | None = None, path: str = "", query: str = "") -> Plan:
    """Return a plan: all requests of a method whose path and query have these words in them."""
    return _chosen(lambda seen: True, fault, of, path, query)


def first(
    count: int, fault: Fault, *, of: str | None = None, path: str = "", query: str = ""
) -> Plan:
    """Return a plan: the first such requests."""
    return _chosen(lambda seen: seen <= count, fault, of, path, query)


def after(
    count: int, fault: Fault, *, of: str | None = None, path: str = "", query: str = ""
) -> Plan:
    """Return a plan: all such requests but the first ones."""
    return _chosen(lambda seen: seen > count, fault, of, path, query)


def every(
    step: int, fault: Fault, *, of: str | None = None, path: str = "", query: str = ""
) -> Plan:
    """Return a plan: each such request whose number, from 1, is a multiple of step."""
    return _chosen(lambda seen: seen % step == 0, fault, of, path, query)


# --- faults --------------------------------------------------------------------------------


def reset(exchange: "Exchange") -> None:
    """Reset the connection before the server is asked."""
    exchange.reset()


def lost_reply(exchange: "Exchange") -> None:
    """Let the server do what was asked, then reset the connection."""
    exchange.ask()
    exchange.reset()


def cut(exchange: "Exchange") -> None:
    """Reset the connection after half of the body."""
    reply = exchange.ask()
    exchange.start(reply)
    exchange.send(reply.body[: len(reply.body) // 2])
    exchange.reset()


def status(code: int, body: bytes = b"", kind: str = "application/xml") -> Fault:
    """Return a fault: answer with a status, the server not asked."""

    def fault(exchange: "Exchange") -> None:
        exchange.answer(Reply(code, [("Content-Type", kind)], body, len(body)))

    return fault


def s3_error(code: int, name: str) -> Fault:
    """Return a fault: refuse as S3 does, such as 400 with ExpiredToken."""
    text = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>no</Message></Error>"
    return status(code, text.encode())


expired_token = s3_error(400, "ExpiredToken")
denied = s3_error(403, "AccessDenied")


def slow(bytes_per_s: float) -> Fault:
    """Return a fault: send the body so slowly."""

    def fault(exchange: "Exchange") -> None:
        reply = exchange.ask()
        exchange.start(reply)
        step = max(1, int(bytes_per_s * SLICE_S))
        for start in range(0, len(reply.body), step):
            time.sleep(SLICE_S)
            exchange.send(reply.body[start : start + step])

    return fault


def stalled(seconds: float) -> Fault:
    """Return a fault: answer nothing for so long, then reset the connection."""

    def fault(exchange: "Exchange") -> None:
        exchange.wait(seconds)
        exchange.reset()

    return fault


def truncated(*, chunked: bool = False) -> Fault:
    """Return a fault: half of the body, then an orderly end of the connection.

    chunked: with chunks and their end, so that the body seems whole; else with the full length.
    """

    def fault(exchange: "Exchange") -> None:
        reply = exchange.ask()
        half = reply.body[: len(reply.body) // 2]
        if chunked:
            exchange.start(reply, length=None)
            exchange.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(half), half) if half else b"0\r\n\r\n")
        else:
            exchange.start(reply)
            exchange.send(half)
            exchange.end()

    return fault


def shortened(exchange: "Exchange") -> None:
    """Answer with half of the body, and a length that fits it."""
    reply = exchange.ask()
    half = reply.body[: len(reply.body) // 2]
    exchange.answer(replace(reply, body=half, size_bytes=len(half)))


def other_range(exchange: "Exchange") -> None:
    """Answer with bytes one further, as the headers say."""
    exchange.answer(_shifted(exchange))


def shifted(exchange: "Exchange") -> None:
    """Answer with bytes one further, whose headers claim the range that was asked for."""
    right = exchange.ask()
    wrong = replace(_shifted(exchange), headers=right.headers)
    exchange.answer(wrong)


def _shifted(exchange: "Exchange") -> Reply:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.request.range)
    assert found is not None, exchange.request.range
    first_, last = (int(text) + 1 for text in found.groups())
    return exchange.ask(span=f"bytes={first_}-{last}")


def whole(exchange: "Exchange") -> None:
    """Ignore the range that was asked for: 200, with all bytes."""
    exchange.answer(exchange.ask(span=None))


# --- serving -------------------------------------------------------------------------------


class Exchange:
    """A request, and the ways to answer it."""

    def __init__(self, handler: "_Proxying", request: Request) -> None:
        self.request, self._handler = request, handler

    def ask(self, *, span: str | None = "") -> Reply:
        """Return the server's answer. span: another range than was asked for; None: none.

        What was signed with the range does not hold with another: plain HTTP alone.
        """
        headers = dict(self.request.headers)
        if span is None:
            headers.pop("range", None)
        elif span:
            headers["range"] = span
        proxy: Proxy = self._handler.server.state
        return _forward(proxy.upstream, self._handler, headers, self.request.body)

    def answer(self, reply: Reply) -> None:
        """Send a whole reply."""
        self.start(reply, body=reply.body)

    def start(self, reply: Reply, *, length: str | None = "whole", body: bytes = b"") -> None:
        """Send the head of a reply; length: None says that chunks follow."""
        words = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, '')}"]
        words += [f"{key}: {value}" for key, value in reply.headers]
        chunks, size = "Transfer-Encoding: chunked", f"Content-Length: {reply.size_bytes}"
        words.append(size if length else chunks)
        self.send("\r\n".join([*words, "", ""]).encode("latin-1") + body)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._handler.connection.sendall(data)

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than the client does."""
        self._handler.connection.settimeout(seconds)
        try:
            self._handler.connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            pass
        finally:
            self._handler.connection.settimeout(None)

    def end(self) -> None:
        """End the connection in order."""
        self._handler.close_connection = True

    def reset(self) -> None:
        """Reset the connection."""
        connection = self._handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._handler.was_reset = self._handler.close_connection = True


def _forward(upstream: str, handler: "_Proxying", headers: dict[str, str], body: bytes) -> Reply:
    to = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
    try:
        to.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
        for key, value in headers.items():
            if key not in ("connection", "keep-alive"):
                to.putheader(key, value)
        to.putheader("Connection", "close")
        to.endheaders(body or None)
        answer = to.getresponse()
        data = answer.read()
        kept = [(key, text) for key, text in answer.getheaders() if key.lower() not in LEFT_OUT]
        size = int(answer.getheader("Content-Length") or len(data))
        return Reply(answer.status, kept, data, size)
    finally:
        to.close()


class _Proxying(Handler):
    was_reset = False

    def _any(self) -> None:
        proxy: Proxy = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        request = proxy.note(
            method=self.command,
            path=unquote(parts.path),
            query=parts.query,
            headers={key.lower(): value for key, value in self.headers.items()},
            body=body,
        )
        if proxy.delay_s:
            time.sleep(proxy.delay_s)
        exchange = Exchange(self, request)
        fault = proxy.plan(request) if proxy.plan else None
        if fault is None:
            exchange.answer(exchange.ask())
        else:
            fault(exchange)

    def finish(self) -> None:
        """Close the connection at once if it is to be reset."""
        super().finish()
        if self.was_reset:
            self.connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any


@contextmanager
def running(upstream: str) -> Iterator[Proxy]:
    """Pass requests on to a server, such as http://127.0.0.1:PORT, and its answers back."""
    proxy = Proxy(upstream.rstrip("/"))
    with listening(_Proxying, proxy) as server:
        proxy.url = server.url
        yield proxy
