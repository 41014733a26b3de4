import socket
import struct
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest

from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.errors import UsageError
from kdcache.report.browse import Browser
from kdcache.report.serving import make_server
from tests import tiny
from tests.report.showing import inspect
from tests.report.test_page import Page


@pytest.fixture
def pages(cache: Cache, dataset: Dataset) -> Browser:
    return Browser(inspect(cache, dataset))


@pytest.fixture
def port(pages: Browser) -> Iterator[int]:
    with make_server(pages.answer, port=0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def _ask(port: int, path: str, *, method: str = "GET", host: str | None = None) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", f"127.0.0.1:{port}" if host is None else host)
    connection.endheaders()
    return connection.getresponse()


def test_only_this_machine_is_served(pages: Browser) -> None:
    with make_server(pages.answer, port=0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_page_is_served_to_its_own_names_alone(port: int) -> None:
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LocalHost:{port}"):
        answer = _ask(port, "/", host=host)
        assert answer.status == 200
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert b"What it is" in answer.read()
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        answer = _ask(port, "/", host=host)
        assert answer.status == 403
        assert b"What it is" not in answer.read()


def test_clients_that_go_away_are_not_talked_of(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for sent in (
        b"",
        b"GET / HTTP/1.1\r\n",
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode(),
    ):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(sent)
    assert _ask(port, "/").status == 200
    assert capfd.readouterr().err == ""


def test_a_server_s_own_errors_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    with make_server(lambda target: None, port=0) as server:  # type: ignore[arg-type, return-value]
        for error, words in ((ValueError("bug"), "bug"), (BrokenPipeError(), "")):
            try:
                raise error
            except Exception:
                server.handle_error(None, ("here", 0))  # type: ignore[arg-type]
            told = capfd.readouterr().err
            assert words in told
            assert bool(told) == bool(words)


def test_what_changed_on_the_disk_is_seen(cache: Cache, dataset: Dataset) -> None:
    pages = Browser(inspect(cache, dataset))
    assert "witness equal" in pages.answer("/images?tar=1&view=2").html
    for path in cache.path.glob("*witness/c/1/1/*"):
        path.write_bytes(path.read_bytes()[::-1])
    assert pages.answer("/images?tar=1&view=2").status == 500
    (cache.path / "commits/1-1.json").unlink()
    assert pages.answer("/images?tar=1&view=2").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_nothing_but_get_is_answered(port: int, method: str) -> None:
    assert _ask(port, "/", method=method).status == 501


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(UsageError, match=f"^--port {port}: "):
        make_server(lambda target: None, port=port)  # type: ignore[arg-type, return-value]


def test_every_image_is_on_the_page_of_its_block(pages: Browser) -> None:
    keys = set()
    for tar, blocks in ((0, 3), (1, 3), (2, 1)):
        for block in range(blocks):
            answer = pages.answer(f"/images?tar={tar}&view=3&block={block}")
            assert answer.status == 200
            keys |= {at["data-key"] for at in Page(answer.html).all("article")}
    assert len(keys) == 24


def test_links_lead_through_all_blocks_and_views(pages: Browser) -> None:
    seen, todo = set[str](), ["/images"]
    while todo:
        here = todo.pop()
        if here in seen or not here.startswith("/images"):
            continue
        seen.add(here)
        answer = pages.answer(here)
        assert answer.status == 200
        todo += [str(at["href"]) for at in Page(answer.html).all("a")]
    assert len(seen - {"/images"}) == 4 * (3 + 3 + 1)


def test_an_image_is_found_by_its_key(pages: Browser) -> None:
    source = pages.seen.source
    assert source is not None
    for tar, row in ((0, 0), (1, 9), (2, 3)):
        answer = pages.answer(f"/search?key={quote(source.key(tar, row))}")
        assert (answer.status, answer.to) == (303, f"/image?tar={tar}&row={row}&view=0")
        (article,) = Page(pages.answer(answer.to).html).all("article")
        assert article["data-key"] == source.key(tar, row)
    for key in ("nothing", "", "%3Cscript%3E", "%ff"):
        answer = pages.answer(f"/search?key={key}")
        assert answer.status == 404
        assert "<script>" not in answer.html.partition("<body>")[2].partition('<script>"use')[0]


@pytest.mark.parametrize(
    "target",
    [
        "/other",
        "/images/../x",
        "/images?tar=3",
        "/images?tar=-1",
        "/images?tar=%00",
        "/images?view=4",
        "/images?block=3",
        "/image?row=10",
        "/image?row=1e1",
        f"/image?row={'9' * 5000}",
        "//[",
    ],
)
def test_what_is_not_there_is_said_in_a_page(pages: Browser, target: str) -> None:
    answer = pages.answer(target)
    assert answer.status == 404
    assert Page(answer.html).text["h1"] == ["Nothing to show"]


def test_an_image_s_page_leads_through_its_views(pages: Browser) -> None:
    shown = []
    target: str | None = "/image?tar=1&row=2&view=0"
    while target is not None:
        page = Page(pages.answer(target).html)
        shown += [text for text in page.text["h4"] if "view" in text]
        links = dict(zip(page.text["a"], page.all("a"), strict=True))
        target = links["next views"]["href"] if "next views" in links else None
    assert [text.split()[-1] for text in shown] == ["0", "1", "2", "3"]


def test_a_span_that_is_missing_or_damaged_is_said(tmp_path: Path, dataset: Dataset) -> None:
    tiny.precompute_first(tmp_path / "c", dataset, tiny.make_recipe(), spans=2)
    (tmp_path / "c/commits/0-1.json").write_text("{}")
    pages = Browser(inspect(tmp_path / "c", dataset))
    assert pages.answer("/images?tar=0&view=1").status == 200
    missing = pages.answer("/images?tar=1&view=0")
    assert (missing.status, "is not computed" in missing.html) == (404, True)
    damaged = pages.answer("/images?tar=0&view=2")
    assert (damaged.status, "damaged record" in damaged.html) == (500, True)


def test_without_images_there_is_the_front_page_alone(cache: Cache) -> None:
    pages = Browser(inspect(cache, None))
    assert pages.answer("/").status == 200
    for target in ("/images", "/image", "/search?key=x"):
        assert pages.answer(target).status == 404
