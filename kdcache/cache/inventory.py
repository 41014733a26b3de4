"""Which objects a published cache has, by what its manifest says of it; pure.

Invariant: a name that passes is a path of plain ASCII below the cache's own folder, without links,
case or unicode twins, and the cache's arrays alone are named: all of their objects, and no others.
Knows the arrays of each encoding by heart, so that looking through a catalogue waits for no torch.
"""

import re
from collections.abc import Collection, Iterable

_NUMBER = r"(?:0|[1-9][0-9]{0,9})"
_NAME = re.compile(
    rf"zarr\.json|seal\.json|commits/{_NUMBER}-{_NUMBER}\.json|contributions/[0-9a-f]{{16}}\.json"
    rf"|[a-z][a-z0-9_]{{0,31}}/(?:zarr\.json|c(?:/{_NUMBER}){{1,4}})"
)
_COMMIT = re.compile(rf"commits/({_NUMBER})-({_NUMBER})\.json")
# The number of dimensions of each array that a span writes, by the kind of encoding.
_ARRAYS: tuple[tuple[str, dict[str, int]], ...] = (
    (r"topk:[1-9][0-9]{0,9}", {"indices": 4, "values": 4, "tails": 4}),
    (r"packed:[1-9][0-9]{0,9}", {"gaps": 4, "codes": 4, "tails": 4}),
    (r"adaptive:[0-9.e-]{1,30}", {"gaps": 3, "codes": 3, "tails": 4, "counts": 4}),
    (r"dense:f2", {"logits": 4}),
    (r"dense:u1", {"codes": 4, "ranges": 4}),
)
_SAMPLES = ("uids", "contents")
_TEACHER_WITNESS = "teacher_witness"


def check_names(names: Iterable[str]) -> None:
    """Check that objects are named as a cache names them.

    Raises:
        ValueError: a name is anything else.
    """
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"object {name[:80]!a} is none of a cache")


def arrays_of(encoding: str) -> dict[str, int] | None:
    """Return the number of dimensions of an encoding's arrays; None if the encoding is unknown."""
    return next((dict(arrays) for kind, arrays in _ARRAYS if re.fullmatch(kind, encoding)), None)


def published_spans(names: Iterable[str]) -> list[tuple[int, int]]:
    """Return the spans whose commit records are among a cache's objects, as (tar, run)."""
    matches = map(_COMMIT.fullmatch, names)
    return [(int(match[1]), int(match[2])) for match in matches if match is not None]


def check_inventory(
    names: Collection[str], *, arrays: dict[str, int], num_tars: int, num_runs: int
) -> tuple[int, int]:
    """Return the number of spans, and of contributions, whose objects these are.

    arrays: as arrays_of. num_runs: spans of a tar.

    Raises:
        ValueError: an object is missing, or one is there that is not of such a cache.
    """
    if 2 * num_tars > len(names):
        raise ValueError(f"{num_tars} tars, of which too few objects tell")
    spans = [match.groups() for match in map(_COMMIT.fullmatch, names) if match is not None]
    for tar, run in spans:
        if int(tar) >= num_tars or int(run) >= num_runs:
            raise ValueError(f"span {tar}-{run} is outside of its {num_tars} × {num_runs}")
    arrays = {**arrays, "witness": 3}
    if f"{_TEACHER_WITNESS}/zarr.json" in names:
        arrays[_TEACHER_WITNESS] = 3
    expected = {"zarr.json", "rows/c/0", "rows/zarr.json"}
    expected.update(f"{array}/zarr.json" for array in (*arrays, *_SAMPLES))
    expected.update(f"{array}/c/{tar}/0" for array in _SAMPLES for tar in range(num_tars))
    expected.update(f"commits/{tar}-{run}.json" for tar, run in spans)
    for array, dimensions in arrays.items():
        end = "/0" * (dimensions - 2)
        expected.update(f"{array}/c/{tar}/{run}{end}" for tar, run in spans)
    contributions = {name for name in names if name.startswith("contributions/")}
    found = set(names) - contributions - {"seal.json"}
    if found != expected:
        absent, surplus = expected - found, found - expected
        name, problem = (min(absent), "missing") if absent else (min(surplus), "not one of its own")
        raise ValueError(f"object {name!a} is {problem}")
    return len(spans), len(contributions)
