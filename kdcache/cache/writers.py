"""Who is writing to a cache: one small file of each writer below it, replaced while it works.

A writer is a process that computes spans. Its file holds no data and is no part of the cache:
anybody may delete it, and a writer that cannot write it goes on without. A writer that ends in
order takes it away; what killed ones leave is swept by the next writer.

How long a writer has been silent is the age of its file by the clock of the file system that holds
it, since the clocks of machines differ.
"""

import json
import math
import os
import re
import secrets
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from kdcache.cache.layout import Span, span_named
from kdcache.cache.manifest import Commit
from kdcache.cache.objects import Folder
from kdcache.errors import KdcacheError
from kdcache.identity import read_json

FOLDER = "writers"
BEAT_S = 5.0
ALIVE_S = 60.0  # network file systems show a file's new time up to a minute late
GONE_S = 3 * BEAT_S  # for a process of this machine that the system does not know
RATE_S = 60.0
SWEEP_S = 86_400.0
_NAME = re.compile(r"\.?(?P<host>[\w.-]+)-(?P<pid>\d{1,9})-[0-9a-f]{4}\.json(\.\d+\.partial)?")


@dataclass(frozen=True)
class Writer:
    """What a writer said last.

    name: of its file, HOST-PID-RANDOM. started, updated: by its own clock. spans_todo: those it set
    out to do, which it may share with others. views_done: views times images that it committed.
    views_per_s: computed in the last minute. span: the one at work, if any. silent_s: how long it
    has said nothing.
    """

    name: str
    host: str
    pid: int
    device: str
    started: datetime
    updated: datetime
    spans_done: int
    spans_todo: int
    views_done: int
    views_per_s: float
    span: Span | None
    silent_s: float

    @property
    def is_alive(self) -> bool:
        """Return whether it spoke within a minute, and is known to the system if it is of here."""
        limit_s = GONE_S if _is_gone(f"{self.name}.json") else ALIVE_S
        return self.silent_s < limit_s


class Heartbeat:
    """Says what this process does to a cache, at its start and every 5 seconds, while it is open.

    A thread writes, also while the teacher takes long. No error of the file system leaves this
    class: it is not worth a job.
    """

    def __init__(self, folder: Folder, *, device: str, span_views: int) -> None:
        self._folder, self._device, self._span_views = folder, device, span_views
        self._name = f"{FOLDER}/{_here()}-{os.getpid()}-{secrets.token_hex(2)}.json"
        self._started = _utc()
        self._spans_done = self._spans_todo = self._views_done = self._computed = 0
        self._at_work: list[Span] = []
        self._seen = deque([(time.monotonic(), 0)])  # views computed, at times
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat()
        self._sweep()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        try:
            self._thread.join(BEAT_S)  # it may be waiting for a file server
        finally:
            with suppress(OSError):
                self._folder.drop(self._name)

    def expect(self, num_spans: int) -> None:
        """Take note of how many spans there are to do."""
        self._spans_todo = num_spans

    def begin(self, span: Span) -> None:
        """Take note of a span that is to be computed after those that were begun before."""
        self._at_work.append(span)

    def advance(self, images: int) -> None:
        """Take note of images that are done in the views of a span."""
        self._computed += images * self._span_views

    def end(self, span: Span, commit: Commit | None = None) -> None:
        """Take note of a span that is committed, or was given up."""
        self._at_work = [other for other in self._at_work if other != span]
        if commit is not None:
            self._spans_done += 1
            self._views_done += commit.rows * len(commit.views)

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        now, done = time.monotonic(), self._computed
        self._seen.append((now, done))
        while now - self._seen[1][0] >= RATE_S:
            self._seen.popleft()
        since, before = self._seen[0]
        at_work = tuple(self._at_work)  # the job changes it meanwhile
        body = {
            "host": _here(),
            "pid": os.getpid(),
            "device": self._device,
            "started": self._started,
            "updated": _utc(),
            "spans_done": self._spans_done,
            "spans_todo": self._spans_todo,
            "views_done": self._views_done,
            "views_per_s": round((done - before) / max(now - since, 1e-3), 1),
            "span": str(at_work[0]) if at_work else None,
        }
        with suppress(OSError):
            self._folder.note(self._name, json.dumps(body, indent=1).encode())

    def _sweep(self) -> None:
        """Delete what dead writers of this machine left, and all that is older than a day."""
        with suppress(OSError):
            now = self._folder.modified(self._name)
            for name in self._folder.names(FOLDER):
                path = f"{FOLDER}/{name}"
                with suppress(OSError):
                    old = now - self._folder.modified(path) > SWEEP_S
                    if path != self._name and (old or _is_gone(name, but_this=False)):
                        self._folder.drop(path)


def _here() -> str:
    """Return the name of this machine, as far as it may stand in the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())[:64] or "unnamed"


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_gone(name: str, *, but_this: bool = True) -> bool:
    """Return whether a file is of a process of this machine that is not there any more.

    Containers may share a machine's name, but not its processes: a living writer whose file was
    deleted by mistake writes it again. but_this: False takes the files of this process for old.
    """
    found = _NAME.fullmatch(name)
    if found is None or found["host"] != _here():
        return False
    pid = int(found["pid"])
    if pid == os.getpid():
        return not but_this
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


# --- reading -------------------------------------------------------------------------------------


def read_writers(folder: Folder) -> tuple[list[Writer], list[str]]:
    """Return the writers that left a file, by name, and notes of files that cannot be read."""
    found, notes = [], []
    try:
        names = [name for name in folder.names(FOLDER) if name.endswith(".json")]
    except OSError as error:
        return [], [f"{folder.path / FOLDER}: cannot be read: {error.strerror}"]
    clock = _Clock(folder)
    for name in names:
        try:
            written = folder.modified(f"{FOLDER}/{name}")
            data = folder.read(f"{FOLDER}/{name}")
            silent_s = clock.age_s(written)
            found.append(_writer(name.removesuffix(".json"), read_json(data), silent_s=silent_s))
        except FileNotFoundError:
            continue  # it ended meanwhile
        except OSError as error:
            notes.append(f"{folder.path / FOLDER / name}: cannot be read: {error.strerror}")
        except KdcacheError as error:
            notes.append(str(error))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            notes.append(f"{folder.path / FOLDER / name}: damaged; may be deleted")
    return found, notes


class _Clock:
    """Ages of files by their file system's clock, which is asked once, and only if it matters."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._ahead_s: float | None = None

    def age_s(self, written: float) -> float:
        age_s = time.time() - written
        if 0 <= age_s < GONE_S:
            return age_s
        if self._ahead_s is None:
            now = self._folder.now(FOLDER)
            self._ahead_s = 0.0 if now is None else now - time.time()
        return max(0.0, age_s + self._ahead_s)


def _writer(name: str, body: dict[str, object], *, silent_s: float) -> Writer:
    """Return what a writer's file says.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is damaged.
    """
    return Writer(
        name=_text(name),
        host=_text(body["host"]),
        pid=_count(body["pid"]),
        device=_text(body["device"]),
        started=_time(body["started"]),
        updated=_time(body["updated"]),
        spans_done=_count(body["spans_done"]),
        spans_todo=_count(body["spans_todo"]),
        views_done=_count(body["views_done"]),
        views_per_s=_rate(body["views_per_s"]),
        span=None if body["span"] is None else _span(body["span"]),
        silent_s=silent_s,
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 200:
        raise ValueError("not a short text")  # which a terminal may be shown
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError("not a count")
    return value


def _rate(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("not a rate")
    return float(value)


def _time(value: object) -> datetime:
    found = datetime.fromisoformat(_text(value))
    if found.tzinfo is None:
        raise ValueError("not a time in UTC")
    return found


def _span(value: object) -> Span:
    span = span_named(f"{_text(value)}.json")
    if span is None:
        raise ValueError("not a span")
    return span
