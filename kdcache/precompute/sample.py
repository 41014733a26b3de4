"""A teacher's logits of a few random views, and what encodings cost and lose on them.

Invariant: a sample is fixed by its source, teacher and options. It is a mean over few images, from
which a cache differs by a few percent; a tile of few rows costs more bytes a view.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.shard import encode_tile
from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.errors import DataError, IncompleteError, UsageError
from kdcache.models.teacher import Teacher
from kdcache.targets.choice import Measured
from kdcache.targets.encoding import Dense, Encoding, to_arrays
from kdcache.targets.fidelity import NO_ROWS, measure

SAMPLES = 1024
SAMPLED_VIEWS = 16
ROWS_OF_BLOCK = 16  # more blocks, so more classes where tars are not shuffled
TILE_ROWS = 1024
ENTRIES = 2**22  # logits that are compared at once, which bounds memory
SEED = 0

Report = Callable[[int], None]


def sample_logits(
    source: BlockSource,
    teacher: Teacher,
    *,
    num_rows: int = SAMPLES,
    num_views: int = SAMPLED_VIEWS,
    batch_size: int = 256,
    progress: Report = lambda _: None,
) -> Tensor:
    """Return the teacher's logits (N, C), on its device, of random views; or of all, if fewer.

    num_views: views are drawn from the first so many. progress is given the views of each batch.

    Raises:
        DataError: no image that was drawn can be used.
        UsageError: the teacher gives logits that are not finite.
    """
    parts: list[Tensor] = []
    waiting: list[Tensor] = []
    found = 0
    for pixels in _sampled_pixels(source, num_rows=num_rows, num_views=num_views):
        kept = pixels[: num_rows - found]
        found += len(kept)
        waiting.append(kept)
        if found < num_rows and sum(map(len, waiting)) < batch_size:
            continue
        parts += _taught(teacher, waiting, batch_size=batch_size, progress=progress)
        waiting = []
        if found >= num_rows:
            break
    parts += _taught(teacher, waiting, batch_size=batch_size, progress=progress)
    if not parts:
        raise DataError(f"{source.dataset.root}: no image of the sample can be used; look at them")
    return torch.cat(parts)


def _taught(
    teacher: Teacher, waiting: list[Tensor], *, batch_size: int, progress: Report
) -> Iterator[Tensor]:
    if not waiting:
        return
    pixels_N3HW = torch.cat(waiting)
    for start in range(0, len(pixels_N3HW), batch_size):
        logits = teacher(pixels_N3HW[start : start + batch_size])
        if not logits.isfinite().all():
            raise UsageError(
                f"teacher {teacher.spec}: gave logits that are not finite; check its weights, or "
                "use --precision float32"
            )
        progress(len(logits))
        yield logits


def _sampled_pixels(source: BlockSource, *, num_rows: int, num_views: int) -> Iterator[Tensor]:
    """Yield uint8 pixels (rows, 3, H, W) of some rows of each block in a view, blocks in turn.

    Each time round, the blocks come in another order and in another view.
    """
    rng = np.random.default_rng(SEED)
    blocks = [(tar, rows) for tar in range(source.num_tars) for rows in source.blocks(tar)]
    first_view = rng.integers(0, num_views, len(blocks))
    per_block = max(ROWS_OF_BLOCK, -(-num_rows // len(blocks)))
    for turn in range(num_views):
        for number in rng.permutation(len(blocks)).tolist():
            tar, rows = blocks[number]
            view = (int(first_view[number]) + turn) % num_views
            block = source.render(tar, rows, views=[view], role="teacher")
            usable = np.flatnonzero(block.usable_N)
            chosen = np.sort(rng.permutation(usable)[:per_block])
            if len(chosen):
                yield torch.from_numpy(block.pixels_GNHW3[0, chosen]).permute(0, 3, 1, 2)


def stored_logits(cache: Cache, *, num_rows: int = SAMPLES) -> Tensor:
    """Return the log-probabilities (N, C) of random views of a dense cache; or of all, if fewer.

    Raises:
        UsageError: the cache is not dense: classes that it does not hold cannot be compared.
        IncompleteError: nothing is stored yet.
    """
    info = cache.info
    if not isinstance(info.encoding, Dense):
        raise UsageError(
            f"{cache.place}: its encoding is {info.encoding}, which does not hold every class; "
            "pass a dense:f2 or dense:u1 cache, or --data, --teacher and --recipe"
        )
    absent = set(cache.missing())
    spans = [span for span in cache.grid.spans() if span not in absent]
    tiles = [(span.tar, view) for span in spans for view in cache.grid.views(span)]
    if not tiles:
        raise IncompleteError(f"{cache.place}: holds no views yet; run kdcache precompute again")
    parts: list[Tensor] = []
    found = 0
    for part in _stored_parts(cache, tiles, num_rows=num_rows):
        parts.append(part[: num_rows - found])
        found += len(parts[-1])
        if found == num_rows:
            break
    if not found:
        raise IncompleteError(f"{cache.place}: holds no usable row; kdcache inspect says how many")
    return torch.cat(parts)


def _stored_parts(
    cache: Cache, tiles: Sequence[tuple[int, int]], *, num_rows: int
) -> Iterator[Tensor]:
    """Yield log-probabilities of some rows of each tile, tiles in turn; other rows each time."""
    info = cache.info
    order = np.random.default_rng(SEED).permutation(len(tiles)).tolist()
    per_tile = max(ROWS_OF_BLOCK, -(-num_rows // len(tiles)))
    for start in range(0, cache.grid.max_rows, per_tile):
        for number in order:
            tile = cache.read_tile(*tiles[number])
            shuffled = np.random.default_rng((SEED, number)).permutation(
                np.flatnonzero(tile.usable)
            )
            rows = torch.from_numpy(shuffled[start : start + per_tile])
            fields = {name: field[rows] for name, field in tile.fields.items()}
            yield info.encoding.decode(
                fields, num_classes=info.num_classes, temperature=1.0
            ).log_probs_NK


def measure_encodings(
    logits_NC: Tensor,
    encodings: Sequence[Encoding],
    *,
    tile_rows: int = TILE_ROWS,
    progress: Report = lambda _: None,
) -> tuple[Measured, ...]:
    """Return what each encoding costs and loses on logits, in tiles of up to tile_rows rows.

    tile_rows: of a tar, whose tiles are compressed one by one. progress is called with 1 after each
    encoding.
    """
    found = []
    for encoding in encodings:
        found.append(_measure(logits_NC, encoding, tile_rows=tile_rows))
        progress(1)
    return tuple(found)


def _measure(logits_NC: Tensor, encoding: Encoding, *, tile_rows: int) -> Measured:
    num_rows, num_classes = logits_NC.shape
    specs = encoding.specs(num_classes)
    fidelity, size_bytes = NO_ROWS, 0
    step = max(ENTRIES // num_classes, 1)
    for first in range(0, num_rows, tile_rows):
        tile_NC = logits_NC[first : first + tile_rows]
        parts = []
        for start in range(0, len(tile_NC), step):
            part_NC = tile_NC[start : start + step]
            fields = encoding.encode(part_NC)
            fidelity += measure(part_NC, fields, encoding)
            parts.append(to_arrays(fields, specs))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        size_bytes += sum(map(len, encode_tile(rows, specs, num_rows=len(tile_NC)).values()))
    return Measured(encoding, size_bytes / num_rows, fidelity)
