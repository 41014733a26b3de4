"""Claims about many requests at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests.servers import delays, static

DATA = bytes(range(256)) * 4000


def test_threads_wait_for_a_distant_server_at_the_same_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    serve = static.plain if static.missing() else static.nginx
    with serve(tmp_path) as server, delays.delaying(server.url, 0.2) as url:
        store = Store(Location(url))
        store.size("a")
        before = time.monotonic()
        with ThreadPoolExecutor(32) as threads:
            got = list(threads.map(lambda n: store.read_range("a", n * 5000, 64_000), range(128)))
        took = time.monotonic() - before
    assert got == [DATA[n * 5000 :][:64_000] for n in range(128)]
    assert took < 0.2 * 128 / 4  # of 32 at once, eight times that
