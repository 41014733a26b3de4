"""What a stream handed over, by the names of its views."""

from collections.abc import Iterable

from kdcache.replay.batch import Batch
from tests.tiny import view_digest

Name = tuple[int, int, int]

_STORED = {"indices": "u2"}  # torch has no unsigned indices: the stream hands them over as int64


def digests(batches: Iterable[Batch]) -> list[tuple[Name, str]]:
    """Return (tar, row, view) and the digest of pixels and target of each view, in order."""
    found = []
    for batch in batches:
        pixels_NHW3 = batch.pixels.permute(0, 2, 3, 1).numpy()
        fields = {
            name: field.numpy().astype(_STORED.get(name, field.numpy().dtype))
            for name, field in (batch.fields or {}).items()
        }
        names = zip(batch.tars.tolist(), batch.rows.tolist(), batch.views.tolist(), strict=True)
        for number, name in enumerate(names):
            target = [field[number] for field in fields.values()]
            found.append((name, view_digest(pixels_NHW3[number], target)))
    return found


def names(batches: Iterable[Batch]) -> list[Name]:
    """Return (tar, row, view) of each view, in order."""
    return [name for name, _ in digests(batches)]
