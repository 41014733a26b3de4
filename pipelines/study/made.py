"""Where rows of the study were made: by which code, on what."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

from kdcache.identity import canonical_json

PACKAGES = ("kdcache", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "zarr", "pillow")


@cache
def made_here() -> dict[str, Any]:
    """Return commit, machine and versions of this process, as they were when first asked for."""
    from pipelines.bench.record import make_record  # asks torch, which a start need not wait for

    record = make_record("digits", (), figures={}, packages=PACKAGES)
    return {
        "commit": record.commit,
        "machine": record.machine.model_dump(),
        "versions": record.versions,
    }


def origins(made: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each distinct origin with the number of units that have it, the most first."""
    found = list(made)
    by_text = {canonical_json(one): one for one in found}
    counts = Counter(map(canonical_json, found))
    return [{**by_text[text], "units": count} for text, count in counts.most_common()]
