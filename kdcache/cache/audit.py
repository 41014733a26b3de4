"""Verification: digests of every object, views rendered again, the teacher run again."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.decided import REPAIR
from kdcache.cache.in_place import PublishedFolder
from kdcache.cache.info import read_attributes
from kdcache.cache.layers import explain_difference
from kdcache.cache.layout import Span
from kdcache.cache.manifest import committed, summarise
from kdcache.cache.metadata import ROOT
from kdcache.cache.store import Cache
from kdcache.cache.zarr_path import read_by_zarr
from kdcache.data.blocks import BlockSource
from kdcache.errors import CorruptError, IncompleteError, KdcacheError
from kdcache.identity import digest
from kdcache.models.teacher import Teacher
from kdcache.pixels.render import RenderedBlock
from kdcache.recipe.draws import Stream, permutation
from kdcache.recipe.parts import Role
from kdcache.targets.encoding import to_arrays
from kdcache.targets.packed import Arrays

TEACHER_KL_NATS = 1e-3
TILES_BY_ZARR = 64
READERS = 16  # objects of a published cache that are read at once

DigestOf = Callable[[str], dict[str, int | str]]
Item = tuple[Span, int, slice]  # a committed span, one of its views, the rows of a block


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, and the span to compute again if that mends it."""

    where: str
    problem: str
    span: Span | None


def check_objects(cache: Cache) -> Iterator[Finding]:
    """Yield what differs: metadata, sample names, commit records, objects, seal.

    Of sound spans, some tiles are read by zarr-python as well. The objects of a published cache are
    read whole from their store, past this disk, and not by zarr-python.
    """
    metadata = list(_check_metadata(cache))
    yield from metadata
    yield from _check_samples(cache)
    done, sound, digest_of = committed(cache.objects), [], _digests(cache)
    yield from _check_published(cache, done, digest_of)
    for span in sorted(done):
        findings = list(check_span(cache, span, digest_of=digest_of))
        yield from findings
        if not findings:
            sound.append(span)
    if not metadata and cache.is_local:
        for span in sound[:: max(1, len(sound) // TILES_BY_ZARR)]:
            yield from _check_by_zarr(cache, span)
    yield from _check_seal(cache, [span for span in cache.grid.spans() if span not in done])


def _check_metadata(cache: Cache) -> Iterator[Finding]:
    problems = cache.problems()
    try:  # attributes may have changed since the cache was opened
        read_attributes(cache.attributes(), source=cache.place)
    except KdcacheError as error:
        problems[ROOT] = str(error)
    for name, problem in problems.items():
        yield Finding(name, problem, None)


def _digests(cache: Cache) -> DigestOf:
    """Return what tells size and sha256 of an object: of published ones, all of which are read."""
    objects = cache.objects
    if not isinstance(objects, PublishedFolder):
        return objects.digest
    with ThreadPoolExecutor(READERS) as pool:
        found = {name: pool.submit(objects.digest, name) for name in objects.manifest.objects}

    def digest_of(name: str) -> dict[str, int | str]:
        if name not in found:
            raise CorruptError(f"{objects.place / name}: is not in the manifest")
        return found[name].result()

    return digest_of


def _check_published(cache: Cache, done: set[Span], digest_of: DigestOf) -> Iterator[Finding]:
    """Yield which objects, of no span, are other than the manifest of a published cache says."""
    if not isinstance(cache.objects, PublishedFolder):
        return
    of_spans = {name for span in done for name in cache.object_names(span).values()}
    for name, entry in cache.objects.manifest.objects.items():
        if name in of_spans:
            continue
        try:
            if digest_of(name) != entry.model_dump():
                yield Finding(name, "its sha256 differs from the manifest's", None)
        except CorruptError as error:
            yield Finding(name, str(error).split(": ", 1)[1], None)


def check_span(cache: Cache, span: Span, *, digest_of: DigestOf | None = None) -> Iterator[Finding]:
    """Yield what is wrong with a committed span. digest_of: an object's, where it was read before.

    Raises:
        UsageError: the system cannot read something of it, which may be sound.
    """
    if span.tar >= cache.grid.num_tars or span not in cache.grid.spans_of(span.tar):
        yield Finding(span.commit_name, "is of a span that this cache has not", span)
        return
    try:
        commit = cache.commit(span)
    except (CorruptError, IncompleteError) as error:
        yield Finding(span.commit_name, str(error), span)
        return
    sound = True
    for name in cache.object_names(span).values():
        entry = commit.objects.get(name)
        try:
            found = (digest_of or cache.objects.digest)(name)
        except CorruptError as error:
            yield Finding(name, str(error).split(": ", 1)[1].removesuffix(f"; {REPAIR}"), span)
            sound = False
            continue
        if found != entry:
            sound = False
            sizes = f"{found['size_bytes']} bytes" + (
                f", {entry['size_bytes']} committed" if entry else ", not in its commit record"
            )
            yield Finding(name, f"its sha256 differs ({sizes})", span)
    for view in cache.grid.views(span) if sound else ():
        where = f"tar {span.tar}, view {view}"
        try:
            tile = cache.read_tile(span.tar, view)
            for role in cache.info.recipe.roles:
                cache.read_witness(span.tar, view, role=role)
        except CorruptError as error:
            yield Finding(where, str(error), span)
            continue
        arrays = {name: field.numpy() for name, field in tile.fields.items()}
        if not cache.info.encoding.in_range(arrays, cache.info.num_classes):
            yield Finding(where, "names classes that the teacher has not", span)


def _check_by_zarr(cache: Cache, span: Span) -> Iterator[Finding]:
    """Compare a span's last tile with what other readers see."""
    view = cache.grid.views(span)[-1]
    where = f"tar {span.tar}, view {view}"
    try:
        theirs = read_by_zarr(cache, span.tar, view)
    except CorruptError as error:
        yield Finding(where, str(error), span)
        return
    ours = cache.read_tile(span.tar, view).fields
    if any(not np.array_equal(a, ours[n].numpy(), equal_nan=True) for n, a in theirs.items()):
        yield Finding(where, "zarr reads other numbers than kdcache", span)


def _check_samples(cache: Cache) -> Iterator[Finding]:
    digests = [tar["digest"] for tar in cache.info.dataset["tars"]]
    for tar in range(cache.grid.num_tars):
        try:
            cache.uids(tar)
        except CorruptError as error:
            yield Finding(f"uids/c/{tar}/0, contents/c/{tar}/0", str(error), None)
    if digest({"tars": digests}) != cache.info.dataset["id"]:
        yield Finding("zarr.json", "its tars do not give the dataset's id", None)


def _check_seal(cache: Cache, missing: list[Span]) -> Iterator[Finding]:
    try:
        seal = cache.valid_seal()
        if seal is None:
            if not missing:
                yield Finding("seal.json", "missing, though all spans are there", None)
        elif missing:
            problem = f"says that all spans are there, and span {missing[0]} is not"
            yield Finding("seal.json", problem, None)
        elif seal != summarise(cache.objects, cache.grid, cache.info.id):
            yield Finding("seal.json", "differs from the commit records", None)
    except (CorruptError, IncompleteError) as error:
        yield Finding("seal.json", str(error), None)


def _sample(cache: Cache, source: BlockSource, share: float) -> Iterator[Item]:
    """Yield a share of the committed (span, view, block) at random, at least one, in order."""
    done = committed(cache.objects)
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


def _render(cache: Cache, source: BlockSource, item: Item, *, role: Role) -> RenderedBlock:
    span, view, rows = item
    skip = set(cache.commit(span).unusable)
    return source.render(span.tar, rows, views=[view], role=role, skip=skip)


def check_replay(cache: Cache, source: BlockSource, *, share: float) -> Iterator[Finding | None]:
    """Render a share of the blocks again; as check_blocks."""
    return check_blocks(cache, source, _sample(cache, source, share))


def check_blocks(
    cache: Cache, source: BlockSource, items: Iterable[Item]
) -> Iterator[Finding | None]:
    """Render blocks again, as each role sees them.

    Yields None for each that is equal, else what differs. The first difference is explained, by
    rendering its tar once more.
    """
    explained = False
    for item in items:
        span, view, rows = item
        for role in source.recipe.roles:
            where = f"tar {span.tar}, view {view}, rows {rows.start} to {rows.stop - 1}"
            where += " as the teacher sees them" if role == "teacher" else ""
            try:
                block = _render(cache, source, item, role=role)
                witnesses = cache.read_witness(span.tar, view, role=role)
            except CorruptError as error:
                yield Finding(where, str(error), span)
                continue
            if block.problems:
                yield Finding(where, min(block.problems.items())[1], None)
            elif block.witnesses()[0] == witnesses[rows.start // source.recipe.block]:
                yield None
            else:
                reason = "the pixels differ from the teacher's"
                if not explained:
                    reason, explained = f"{reason}; {explain_difference(cache, source, span)}", True
                yield Finding(where, reason, None)


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
    encoding = cache.info.encoding
    rows_seen = agree = equal = 0
    kl, difference = 0.0, 0.0
    for item in _sample(cache, source, share):
        block, (span, view, rows) = _render(cache, source, item, role="teacher"), item
        usable = np.flatnonzero(block.usable_N)
        if not len(usable):
            continue
        pixels = torch.from_numpy(block.pixels_GNHW3[0][usable]).permute(0, 3, 1, 2)
        again = to_arrays(encoding.encode(teacher(pixels)), cache.info.specs)
        tile = cache.read_tile(span.tar, view)
        stored = {name: field.numpy()[rows][usable] for name, field in tile.fields.items()}
        ours, theirs = (_dense(cache, arrays) for arrays in (again, stored))
        terms = ours.exp() * (ours - theirs)
        kl += float(terms.nan_to_num(nan=0.0).sum())
        likely = theirs > -16
        difference = max(difference, float((ours - theirs).abs()[likely].max()))
        agree += int((ours.argmax(1) == theirs.argmax(1)).sum())
        same = [(again[name] == array).all(1) for name, array in stored.items()]
        equal += int(np.stack(same).all(0).sum())
        rows_seen += len(usable)
    if rows_seen == 0:
        raise IncompleteError(
            f"{cache.place}: no target to compare in the {share:g} of the blocks that was drawn; "
            "take a larger share, or run kdcache precompute again"
        )
    return TeacherCheck(rows_seen, difference, kl / rows_seen, agree / rows_seen, equal / rows_seen)


def _dense(cache: Cache, arrays: Arrays) -> Tensor:
    """Return float64 log-probabilities (N, C) of encoded targets."""
    fields = {name: torch.from_numpy(array) for name, array in arrays.items()}
    classes = cache.info.num_classes
    target = cache.info.encoding.decode(fields, num_classes=classes, temperature=1.0)
    return target.dense(classes).double()
