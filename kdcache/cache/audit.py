"""Verification: digests of every object, views rendered again, the teacher run again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from kdcache.cache.create import expected_metadata
from kdcache.cache.layers import explain_difference
from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed, read_commit, read_seal, summarise
from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.data.dataset import tar_digest
from kdcache.errors import CorruptError, IncompleteError, KdcacheError
from kdcache.identity import canonical_json, digest
from kdcache.models.teacher import Teacher
from kdcache.pixels.render import RenderedBlock
from kdcache.recipe.draws import Stream, permutation

TEACHER_KL_NATS = 1e-3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, and the span to compute again if that mends it."""

    where: str
    problem: str
    span: Span | None


def check_objects(cache: Cache) -> Iterator[Finding]:
    """Yield what differs: metadata, sample names, commit records, objects, seal."""
    yield from _check_metadata(cache)
    yield from _check_samples(cache)
    for span in sorted(committed(cache.folder)):
        try:
            commit = read_commit(cache.folder, span)
        except KdcacheError as error:
            yield Finding(span.commit_name, str(error), span)
            continue
        for name, entry in commit.objects.items():
            try:
                found = cache.folder.digest(name)
            except CorruptError:
                yield Finding(name, "missing", span)
                continue
            if found != entry:
                sizes = f"{found['size_bytes']} bytes, {entry['size_bytes']} committed"
                yield Finding(name, f"its sha256 differs ({sizes})", span)
    if not cache.missing():  # else precompute writes the seal anew
        yield from _check_seal(cache)


def _check_metadata(cache: Cache) -> Iterator[Finding]:
    arrays = expected_metadata(cache.info, cache.grid)
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"kdcache": json.loads(canonical_json(cache.info.attributes()))},
    }
    # A sealed cache repeats the arrays' metadata, which other readers take in place of theirs.
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    documents = {"zarr.json": root, **{f"{name}/zarr.json": body for name, body in arrays.items()}}
    for where, expected in documents.items():
        try:
            found = dict(json.loads(cache.folder.read(where)))
        except (OSError, ValueError, TypeError) as error:
            yield Finding(where, f"unreadable: {error}", None)
            continue
        if expected is root and found.get("consolidated_metadata") == consolidated:
            del found["consolidated_metadata"]
        if found != expected:
            yield Finding(where, "differs from what this cache's attributes ask for", None)


def _check_samples(cache: Cache) -> Iterator[Finding]:
    tars = cache.info.dataset["tars"]
    try:
        digests = [tar_digest(cache.uids(t), cache.contents(t)) for t in range(cache.grid.num_tars)]
    except CorruptError as error:
        yield Finding("uids, contents", str(error), None)
        return
    for entry, found in zip(tars, digests, strict=True):
        if entry["digest"] != found:
            yield Finding("uids, contents", f"{entry['name']} differs from its digest", None)
    if digest({"tars": digests}) != cache.info.dataset["id"]:
        yield Finding("uids, contents", "do not give the dataset's id", None)


def _check_seal(cache: Cache) -> Iterator[Finding]:
    try:
        seal = read_seal(cache.folder)
        if seal is not None and seal != summarise(cache.folder, cache.grid, cache.info.id):
            yield Finding("seal.json", "differs from the commit records", None)
    except KdcacheError as error:
        yield Finding("seal.json", str(error), None)


def _sample(cache: Cache, source: BlockSource, share: float) -> Iterator[tuple[Span, int, slice]]:
    """Yield a share of the committed (span, view, block) at random, at least one, in order."""
    done = committed(cache.folder)
    items = [
        (span, view, rows)
        for span in cache.grid.spans()
        if span in done
        for view in cache.grid.views(span)
        for rows in source.blocks(span.tar)
    ]
    count = min(len(items), max(1, round(share * len(items))))
    chosen = permutation(0, 0, view=0, count=len(items), stream=Stream.WITNESS)[:count]
    for index in sorted(chosen.tolist()):
        yield items[index]


def _render(cache: Cache, source: BlockSource, span: Span, view: int, rows: slice) -> RenderedBlock:
    skip = set(cache.commit(span).unusable)
    return source.render(span.tar, rows, views=[view], skip=skip)


def check_replay(cache: Cache, source: BlockSource, *, share: float) -> Iterator[Finding | None]:
    """Render a share of the blocks again; yield None for each that is equal, else what differs.

    The first difference is explained, by rendering its tar once more.
    """
    explained = False
    for span, view, rows in _sample(cache, source, share):
        where = f"tar {span.tar}, view {view}, rows {rows.start} to {rows.stop - 1}"
        try:
            block = _render(cache, source, span, view, rows)
            stored = cache.read_witness(span.tar, view)[rows.start // source.recipe.block]
        except CorruptError as error:
            yield Finding(where, str(error), span)
            continue
        if block.problems or block.witnesses()[0] != stored:
            reason = "the pixels differ from the teacher's"
            if block.problems:
                reason = min(block.problems.items())[1]
            elif not explained:
                reason, explained = f"{reason}; {explain_difference(cache, source, span)}", True
            yield Finding(where, reason, None)
        else:
            yield None


@dataclass(frozen=True)
class TeacherCheck:
    """A teacher run again against the stored targets, both encoded.

    max_difference: of log-probabilities, nats. kl_nats: mean KL(again || stored). top1_agreement:
    share of equal first classes. rows_equal: share of rows that are stored to the very byte.
    """

    rows: int
    max_difference: float
    kl_nats: float
    top1_agreement: float
    rows_equal: float

    @property
    def same(self) -> bool:
        """Return whether this is the teacher that made the cache."""
        return self.kl_nats <= TEACHER_KL_NATS


def check_teacher(
    cache: Cache, source: BlockSource, teacher: Teacher, *, share: float
) -> TeacherCheck:
    """Run the teacher again over a share of the blocks.

    Raises:
        CorruptError: a tile is damaged.
        IncompleteError: the share holds no target.
    """
    encoding, num_classes = cache.info.encoding, cache.info.num_classes
    rows_seen = agree = equal = 0
    kl, difference = 0.0, 0.0
    for span, view, rows in _sample(cache, source, share):
        block = _render(cache, source, span, view, rows)
        usable = np.flatnonzero(block.usable_N)
        if not len(usable):
            continue
        pixels = torch.from_numpy(block.pixels_GNHW3[0][usable]).permute(0, 3, 1, 2)
        again = {name: field.cpu() for name, field in encoding.encode(teacher(pixels)).items()}
        tile = cache.read_tile(span.tar, view)
        stored = {name: field[rows][usable] for name, field in tile.fields.items()}
        ours, theirs = (
            encoding.decode(f, num_classes=num_classes, temperature=1.0).dense(num_classes)
            for f in (again, stored)
        )
        ours, theirs = ours.double(), theirs.double()
        terms = ours.exp() * (ours - theirs)
        kl += float(terms.nan_to_num(nan=0.0).sum())
        likely = theirs > -16
        difference = max(difference, float((ours - theirs).abs()[likely].max()))
        agree += int((ours.argmax(1) == theirs.argmax(1)).sum())
        same = [(again[name] == field).all(1) for name, field in stored.items()]
        equal += int(torch.stack(same).all(0).sum())
        rows_seen += len(usable)
    if rows_seen == 0:
        raise IncompleteError(
            f"{cache.path}: no target to compare in the {share:g} of the blocks that was drawn; "
            "take a larger share, or run kdcache precompute again"
        )
    return TeacherCheck(rows_seen, difference, kl / rows_seen, agree / rows_seen, equal / rows_seen)
