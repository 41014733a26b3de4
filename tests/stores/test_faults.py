"""Claims about servers and networks that fail: an answer is right, or the error is clear."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcache.errors import UsageError
from kdcache.stores import clients, store
from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests.servers import faults
from tests.servers.swift import SECRET_KEY, USER

DATA = bytes(range(256)) * 40
PASSING = {
    "reset": faults.reset,
    "cut": faults.cut,
    "503": faults.s3_error(503, "SlowDown"),
    "429": faults.status(429),
    "truncated": faults.truncated(),
    "chunked": faults.truncated(chunked=True),
    "lost": faults.lost_reply,
}
STALLED = {"stalled": faults.stalled(20)}
LASTING = {
    "403": (faults.denied, r"refuses \(403\)"),
    "expired": (faults.expired_token, r"refuses \(400\)"),
    "401": (faults.status(401), r"refuses \(401\)"),
}
# How a request of each kind is made, and what it gives.
ASKS: dict[str, tuple[Callable[[Store], Any], Any]] = {
    "read": (lambda store: store.read("a"), DATA),
    "read_range": (lambda store: store.read_range("a", 100, 900), DATA[100:1000]),
    "size": (lambda store: store.size("a"), len(DATA)),
    "names": (lambda store: [entry.name for entry in store.names()], ["a", "b"]),
    "write": (lambda store: store.write("b", DATA), None),
    "delete": (lambda store: store.delete(["c"]), None),
}


@pytest.fixture
def filled(bucket: Store) -> Store:
    """A store in a bucket that holds "a" and "b"."""
    bucket.write("a", DATA)
    bucket.write("b", b"")
    return bucket


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_noticed(filled: Store, s3: faults.Proxy, fault: str) -> None:
    for ask, expected in ASKS.values():
        s3.plan = faults.first(2, PASSING[fault])
        assert ask(filled) == expected
    s3.plan = None
    assert filled.read("b") == DATA


def test_a_server_that_stalls_is_asked_again(
    filled: Store, s3: faults.Proxy, impatient: float
) -> None:
    s3.plan = faults.first(2, faults.stalled(20))
    assert filled.read("a") == DATA


@pytest.mark.parametrize("fault", [*PASSING, *STALLED])
def test_a_fault_that_lasts_is_one_clear_error_in_time(
    filled: Store, s3: faults.Proxy, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv(clients.PATIENCE, "0.1")
    s3.plan = faults.always({**PASSING, **STALLED}[fault])
    asks = ["read", "read_range"] if fault in ("cut", "truncated", "chunked") else ASKS
    for ask in asks:
        with pytest.raises(UsageError, match=r"^s3://b\d+/pre fix/?[abc]?: the (store|server) "):
            ASKS[ask][0](filled)


@pytest.mark.parametrize("fault", LASTING)
def test_a_refusal_is_told_at_once(filled: Store, s3: faults.Proxy, fault: str) -> None:
    for ask, _ in ASKS.values():
        s3.requests.clear()
        s3.plan = faults.always(LASTING[fault][0])
        with pytest.raises(UsageError, match=LASTING[fault][1]):
            ask(filled)
        assert len(s3.requests) == 1


def test_an_answer_that_comes_slowly_is_waited_for(
    filled: Store, s3: faults.Proxy, impatient: float
) -> None:
    s3.plan = faults.always(faults.slow(len(DATA) / (impatient + 0.5)))
    assert filled.read("a") == DATA
    assert len(s3.asked("GET")) == 1


def test_a_listing_that_ends_early_is_no_shorter_listing(filled: Store, s3: faults.Proxy) -> None:
    for fault in (faults.shortened, faults.truncated(chunked=True)):
        s3.plan = faults.first(2, fault)
        assert [entry.name for entry in filled.names()] == ["a", "b"]
        s3.plan = faults.always(fault)
        with pytest.raises(UsageError, match=r"the (store|server) "):
            list(filled.names())


@pytest.mark.parametrize("fault", ["reset", "503", "lost"])
def test_a_large_file_goes_on_after_faults_and_sends_no_other_part_again(
    filled: Store,
    s3: faults.Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 500_000)
    monkeypatch.setattr(store, "SMALL_BYTES", 0)
    (tmp_path / "file").write_bytes(DATA * 200)
    s3.requests.clear()
    s3.plan = faults.every(3, PASSING[fault])
    filled.write_file("large", tmp_path / "file")
    assert len(s3.requests) <= 6 + 2 + 5
    s3.plan = None
    assert filled.read("large") == DATA * 200


def test_a_file_that_was_not_sent_whole_is_not_there(
    filled: Store, s3: faults.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 500_000)
    (tmp_path / "file").write_bytes(DATA * 200)
    s3.plan = faults.always(faults.denied, of="PUT", query="partNumber=3")
    with pytest.raises(UsageError, match=r"large: the store refuses \(403\)"):
        filled.write_file("large", tmp_path / "file")
    s3.plan = None
    assert filled.size("large") is None
    assert [entry.name for entry in filled.names()] == ["a", "b"]


# --- other bytes than were asked for -------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.other_range, "not with what was asked for"),
        (faults.shortened, "450 of 900 bytes came"),
        (faults.whole, "requests for ranges"),
    ],
)
def test_a_wrong_range_is_no_answer(
    web: tuple[Path, faults.Proxy], impatient: float, fault: faults.Fault, reason: str
) -> None:
    folder, proxy = web
    (folder / "a").write_bytes(DATA)
    server = Store(Location(proxy.url))
    if fault is not faults.whole:
        proxy.plan = faults.first(2, fault)
        assert server.read_range("a", 100, 900) == DATA[100:1000]
    proxy.plan = faults.always(fault)
    with pytest.raises(UsageError, match=reason):
        server.read_range("a", 100, 900)


def test_wrong_bytes_of_the_right_length_are_for_the_caller_to_tell(
    web: tuple[Path, faults.Proxy],
) -> None:
    folder, proxy = web
    (folder / "a").write_bytes(DATA)
    proxy.plan = faults.always(faults.shifted)
    assert Store(Location(proxy.url)).read_range("a", 100, 900) == DATA[101:1001]


# --- no server, no credentials -------------------------------------------------------------


def test_a_host_that_is_not_there_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(clients.PATIENCE, "0.5")
    for url in ("http://127.0.0.1:1/a", "https://nowhere.invalid/a"):
        with pytest.raises(UsageError, match="does not answer"):
            Store(Location(url)).read("a")


def test_patience_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, filled: Store) -> None:
    for text in ("a minute", "0", "-1", "inf", "nan"):
        monkeypatch.setenv(clients.PATIENCE, text)
        with pytest.raises(UsageError, match=f"KDCACHE_PATIENCE_S: '{text}' is no number"):
            filled.read("a")


WORDS = ("PLANTEDUSER", "PLANTEDPASSWORD", "PLANTEDQUERY", "PLANTEDTOKEN", SECRET_KEY, USER)


def shown(error: BaseException) -> str:
    """Return all that an error and what it came from may show."""
    others = [shown(other) for other in (error.__cause__, error.__context__) if other is not None]
    return "\n".join([str(error), repr(error), *traceback.format_exception(error), *others])


@pytest.mark.parametrize(
    "fault", ["reset", "cut", "503", "stalled", "403", "expired", "404", "wrong key"]
)
def test_no_error_shows_credentials(
    filled: Store,
    s3: faults.Proxy,
    web: tuple[Path, faults.Proxy],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "PLANTEDTOKEN")
    monkeypatch.setenv(clients.PATIENCE, "0.1")
    if fault == "wrong key":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "PLANTEDPASSWORD")
    else:
        made = {**PASSING, **STALLED, **{name: fault for name, (fault, _) in LASTING.items()}}
        body = " ".join(WORDS).encode()
        plan = faults.always(made.get(fault, faults.status(404, body)))
        s3.plan = web[1].plan = plan
    url = web[1].url.replace("://", "://PLANTEDUSER:PLANTEDPASSWORD@")
    other = Store(Location(f"{url}/x?sig=PLANTEDQUERY"))
    for place in (filled, other):
        for ask in ("read", "write"):
            try:
                ASKS[ask][0](place)
            except (UsageError, FileNotFoundError) as error:
                text = shown(error)
                assert not [word for word in WORDS if word in text]
                assert "in _asking" in text  # the traceback is looked into
            else:
                assert (fault, ask) == ("cut", "write")  # its answer has no body


def test_without_credentials_the_error_says_which_are_looked_for(
    filled: Store, s3: faults.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"{s3.url}/169.254.169.254")
    with pytest.raises(UsageError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        filled.read("a")


@pytest.mark.parametrize("url", ["az://container/a", "abfss://container/a"])
def test_a_store_that_lacks_settings_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        Store(Location(url)).read("a")
