"""Golden caches of format version 1, never rewritten: `python -m tests.cache.golden` makes those
that are absent.

Two tars of five and three images, the second of which is none; four views in spans of two; five
classes. `data` holds the images; NAME.npz what decoding NAME gives at three temperatures.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.store import Cache, open_cache
from kdcache.data.document import load_dataset
from kdcache.data.pack import PackOptions, open_source, pack
from kdcache.precompute.engines import run_inline
from tests import tiny

FOLDER = Path(__file__).parents[1] / "golden" / "caches"
DATA = FOLDER / "data"
CACHES = {
    "v1-topk": "topk:3",
    "v1-packed": "packed:3",
    "v1-adaptive": "adaptive:0.15",
    "v1-dense-f2": "dense:f2",
    "v1-dense-u1": "dense:u1",
}
TEMPERATURES = (1.0, 2.0, 3.0)
RECIPE: dict[str, Any] = {"mix": {"law": "mixup"}, "jitter": {"brightness": 0.4}}


def decoded(cache: Cache) -> dict[str, NDArray[Any]]:
    """Return the log-probabilities of all usable rows, (rows, classes), by tar, view and T."""
    found = {}
    for tar in range(cache.grid.num_tars):
        for view in range(cache.grid.num_views):
            tile = cache.read_tile(tar, view)
            for temperature in TEMPERATURES:
                target = cache.info.encoding.decode(
                    tile.fields, num_classes=cache.info.num_classes, temperature=temperature
                )
                usable = np.flatnonzero(tile.usable)
                kept = target.indices_NK
                if kept is not None:  # unusable rows name classes that are none
                    kept.clamp_(max=cache.info.num_classes)
                dense = target.dense(cache.info.num_classes).numpy()[usable]
                found[f"{tar}-{view}-{temperature:g}"] = dense
    return found


def main() -> None:
    """Make what is absent."""
    if not DATA.exists():
        images = tiny.write_images(FOLDER / "images", 8)
        sorted(images.rglob("*.*"))[1].write_bytes(b"no image")
        pack(open_source(str(images)), DATA, options=PackOptions(rows_per_tar=5))
    for name, encoding in CACHES.items():
        path = FOLDER / name
        if path.exists():
            print(f"{name}: is there")
            continue
        dataset, recipe = load_dataset(DATA), tiny.make_recipe(**RECIPE)
        job = tiny.make_job(path, dataset, recipe, encoding=encoding, skip_bad=True)
        run_inline(job)
        (path / ".lock").unlink()
        np.savez_compressed(FOLDER / f"{name}.npz", **decoded(open_cache(path)))
        print(f"{name}: made")


if __name__ == "__main__":
    sys.exit(main())
