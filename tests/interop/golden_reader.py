"""Reads the golden caches with NumPy and zarr alone, in any environment, and names what differs.

`python tests/interop/golden_reader.py` prints the version of zarr.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.interop.decoding import decode, rows_of

FOLDER = Path(__file__).parents[1] / "golden" / "caches"


def differing(folder: Path = FOLDER) -> list[str]:
    """Return which tiles of which golden caches are read otherwise than they were."""
    wrong = []
    for path in sorted(folder.glob("v*.npz")):
        cache = path.with_suffix("")
        about = json.loads((cache / "zarr.json").read_bytes())["attributes"]["kdcache"]
        group: Any = zarr.open_group(str(cache), mode="r", use_consolidated=False)
        names = [name for name in ("indices", "values", "gaps", "codes", "tails", "counts",
                                   "logits", "ranges") if (cache / name).is_dir()]  # fmt: skip
        whole = {name: np.asarray(group[name][:]) for name in names}
        with np.load(path) as expected:
            for key in expected.files:
                tar, view, temperature = key.split("-")
                stored = {name: array[int(tar), int(view)] for name, array in whole.items()}
                rows = int(np.asarray(group["rows"][:])[int(tar)])
                found = [
                    decode(
                        about["encoding"],
                        row,
                        num_classes=about["num_classes"],
                        temperature=float(temperature),
                    )[0]
                    for row in rows_of(about["encoding"], stored, rows=rows)
                    if row is not None
                ]
                if not np.allclose(np.stack(found), expected[key], rtol=2e-5, atol=2e-5):
                    wrong.append(f"{cache.name} {key}")
    return wrong


if __name__ == "__main__":
    print(zarr.__version__)
    sys.exit("; ".join(differing()) or 0)
