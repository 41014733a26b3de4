"""The sharing benchmark: replay and a student's waiting, from a cache and tars behind slow HTTP.

    make bench-sharing
    python -m pipelines.bench.sharing --quick

Every answer comes 30 ms late; nothing is on this disk when a round begins. Takes about 2 minutes on
two quiet cores, which serve as well, and writes build/bench/sharing.json. Exit code 1: a bar does
not hold.
"""

import os
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdcache.cache.layout import Span
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.cache.wanted import wanted_record, wanted_tile
from kdcache.data.blocks import dataset_source
from kdcache.data.document import load_dataset
from kdcache.data.pack import PackOptions, open_source, pack
from kdcache.models.teacher import load_teacher
from kdcache.precompute.engines import run_inline
from kdcache.precompute.prepare import describe_cache, prepare_cache
from kdcache.precompute.span import Job
from kdcache.recipe.schema import parse_recipe
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.stores.ahead import ahead
from kdcache.stores.disk import FOLDER, disk_cache
from kdcache.stores.location import Place
from pipelines.bench.filled import DEFAULT, SPAN_VIEWS, Found, empty_cache, encode, fill_span
from pipelines.bench.logits import simulate_logits
from pipelines.bench.material import WORKERS
from pipelines.bench.record import (
    Bar,
    Progress,
    conclude,
    load_average,
    make_bar,
    make_record,
    read_options,
)
from pipelines.bench.serving import Served, publish_by_hand, serving
from pipelines.bench.timing import rounded

PACKAGES = ("numpy", "obstore", "torch")
DELAY_S = 0.03
ROWS_PER_S, WAIT_SHARE, REQUESTS = 50_000, 0.05, 1.0  # the bars
IMAGES_PER_S, BATCH, SIDE = 2_000, 128, 32  # of the student
_RECIPE = {
    "seed": 0,
    "size": SIDE,
    "crop": {"law": "inception", "area": [0.05, 1.0], "ratio": [3 / 4, 4 / 3]},
    "flip": {"horizontal": 0.5},
    "mix": {"law": "mixup"},
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured. tars, rows: of the tiles that are read. images: of the student."""

    tars: int
    rows: int
    images: int
    epochs: int
    rounds: int


FULL = Sizes(tars=48, rows=1024, images=8192, epochs=3, rounds=3)
QUICK = Sizes(tars=2, rows=32, images=256, epochs=2, rounds=1)


@contextmanager
def _empty_disk(folder: Path) -> Iterator[None]:
    """Keep pieces in a folder that is empty at first."""
    shutil.rmtree(folder, ignore_errors=True)
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(FOLDER)
        if before is not None:
            os.environ[FOLDER] = before


# --- reading tiles -------------------------------------------------------------------------


def make_tiles(path: Path, sizes: Sizes) -> Cache:
    """Return a cache of simulated targets: as many tars, in eight views."""
    logits_NC = simulate_logits("ce", num_rows=SPAN_VIEWS * sizes.rows)
    targets = encode(DEFAULT, logits_NC, measured=False)
    tiles = targets.tiles(sizes.rows)
    cache = empty_cache(path, DEFAULT, rows=[sizes.rows] * sizes.tars, num_views=SPAN_VIEWS)
    for tar in range(sizes.tars):
        fill_span(cache, Span(tar, 0), tiles)
    seal(cache)
    return cache


def read_tiles(cache: Cache, *, brought: bool) -> float:
    """Return the rows a second of all tiles, view after view, tars in another order each time."""
    rng, tars = np.random.default_rng(0), cache.grid.num_tars
    order = [(int(t), v) for v in range(SPAN_VIEWS) for t in rng.permutation(tars)]
    stages = [
        lambda tile: wanted_record(cache, *tile),
        lambda tile: wanted_tile(cache, *tile, witness=True),
    ]
    started, rows = time.monotonic(), 0
    for (tar, view), error in ahead(order, stages if brought else []):
        assert error is None
        rows += len(cache.read_tile(tar, view).usable)
        cache.read_witness(tar, view)
    return rows / (time.monotonic() - started)


def tile_bars(folder: Path, server: Served, name: str, sizes: Sizes) -> Found:
    """Return the bars of tiles that are read in place. name: of their cache."""
    rates: list[float] = []
    requests: list[Counter[str]] = []
    used = 0
    for _ in range(sizes.rounds):
        with _empty_disk(folder / "disk"):
            cache = open_cache(server.location / name)
            server.told()
            rates.append(read_tiles(cache, brought=True))
            requests.append(server.told())
            used = disk_cache().used_bytes
            again = read_tiles(open_cache(server.location / name), brought=True)
            server.told()
    with _empty_disk(folder / "disk"):
        one_by_one = read_tiles(open_cache(server.location / name), brought=False)
        server.told()
    fields = [spec.name for spec in cache.info.specs]
    tiles = sizes.tars * SPAN_VIEWS
    of_fields = [
        sum(n for path, n in asked.items() if path.split("/")[2] in fields) for asked in requests
    ]
    bars = [
        make_bar("in_place_rows_per_s_1024", rates, bar=ROWS_PER_S, unit="rows/s"),
        make_bar(
            "requests_per_array_and_tile",
            [count / (tiles * len(fields)) for count in of_fields],
            bar=REQUESTS,
            better="lower",
            unit="requests",
        ),
    ]
    figures = {
        "rows_per_s_one_by_one": rounded(one_by_one),
        "rows_per_s_from_this_disk": rounded(again),
        "tiles": tiles,
        "requests": median(sum(asked.values()) for asked in requests),
        "most_requests_of_a_record_or_witness": max(
            (n for a in requests for path, n in a.items() if path.split("/")[2] not in fields),
            default=0,
        ),
        "disk_mb": rounded(used / 1e6),
    }
    return bars, {"tiles": figures}


# --- a student -----------------------------------------------------------------------------


def make_images(folder: Path, out: Path, count: int) -> None:
    """Pack so many small images into tars of 1,024, and their views' targets into a cache."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 10}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        large = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        large.save(path, compress_level=1)
    pack(open_source(str(folder)), out, options=PackOptions(rows_per_tar=1024, shuffle_seed=0))


def make_student_cache(data: Path, path: Path, *, views: int) -> Cache:
    """Return the cache of a teacher that costs nothing."""
    dataset, recipe = load_dataset(data), parse_recipe(_RECIPE, source="the benchmark's recipe")
    teacher = load_teacher("pipelines.bench.material:pooled_teacher", None)
    info = describe_cache(dataset, recipe, teacher=teacher, encoding=DEFAULT, other_classes=True)
    cache = prepare_cache(path, info, dataset=dataset, num_views=views, span_views=views)
    run_inline(Job(dataset_source(dataset, recipe), teacher, cache, batch_size=256, skip_bad=False))
    return cache


def wait_shares(cache: Place, data: Place, *, epochs: int) -> tuple[float, float, float]:
    """Return the share of its time that a student waits for data, and how long for the first.

    A step sleeps as long as one at 2,000 images a second takes. Also returns the images a second.
    """
    options = StreamOptions(batch_size=BATCH, num_epochs=epochs, num_workers=WORKERS)
    stream = replay_stream(open_cache(cache), load_dataset(data), options)
    batches, began = iter(stream), time.monotonic()
    next(batches)
    first_s, waited_s, images, started = time.monotonic() - began, 0.0, 0, time.monotonic()
    while True:
        time.sleep(BATCH / IMAGES_PER_S)
        images += BATCH
        asked = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            break
        waited_s += time.monotonic() - asked
    total_s = time.monotonic() - started
    return waited_s / total_s, first_s, images / total_s


def student_bars(folder: Path, server: Served, *, cache: str, data: Path, sizes: Sizes) -> Found:
    """Return the bar of a student's waiting. cache: its name at the server."""
    place, images = server.location / cache, server.location / "data"
    found = []
    for _ in range(sizes.rounds):
        with _empty_disk(folder / "disk"):
            server.told()
            found.append(wait_shares(place, images, epochs=sizes.epochs))
            asked, used = server.told(), disk_cache().used_bytes
    local = wait_shares(data.parent / cache, data, epochs=sizes.epochs)
    shares, first_s, rates = zip(*found, strict=True)
    bar = make_bar("data_wait_share_in_place", shares, bar=WAIT_SHARE, better="lower", unit="share")
    figures = {
        "images_per_s": rounded(median(rates)),
        "first_batch_s": rounded(median(first_s)),
        "data_wait_share_local": rounded(local[0]),
        "first_batch_s_local": rounded(local[1]),
        "requests": sum(asked.values()),
        "disk_mb": rounded(used / 1e6),
        "peak_memory_mb": rounded(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "peak_memory_of_a_worker_mb": rounded(
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        ),
    }
    return [bar], {"student": figures}


def run(folder: Path, *, quick: bool) -> Found:
    """Return all bars and figures. folder: what is made afresh."""
    say, sizes = Progress(), QUICK if quick else FULL
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "quick": quick,
        "delay_ms": 1e3 * DELAY_S,
        "load_average_at_start": round(load_average(), 2),
    }
    bars: list[Bar] = []
    shutil.rmtree(folder, ignore_errors=True)
    web = folder / "web"
    tiles = publish_by_hand(make_tiles(folder / "tiles", sizes), web)
    make_images(folder / "images", web / "data", sizes.images)
    made = make_student_cache(web / "data", folder / "cache", views=sizes.epochs)
    student = publish_by_hand(made, web)
    say("material")
    with serving(web, delay_s=DELAY_S) as server:

        def add(found: Found, text: str) -> None:
            bars.extend(found[0])
            figures.update(found[1])
            say(text)

        add(tile_bars(folder, server, tiles, sizes), "tiles")
        data = web / "data"
        add(student_bars(folder, server, cache=student, data=data, sizes=sizes), "student")
    figures["cores_used_by_others"] = say.others
    return bars, figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, write its record, and print it."""
    options = read_options(
        "sharing", "Measure reading in place over slow HTTP: tiles, requests, waiting.", arguments
    )
    bars, figures = run(options.out / "sharing", quick=options.quick)
    conclude(make_record("sharing", bars, figures=figures, packages=PACKAGES), options)


if __name__ == "__main__":
    main()
