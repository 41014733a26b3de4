"""The manifest of a cache brought in line with what lies in the catalogue.

Invariant: at each moment the manifest that is there names only what is there, or none is there.
Whoever has written one looks again, until what lies there is what it says: so publishers that race
end with the union of what they brought, whoever comes last, and one that is killed leaves the older
manifest, or the newer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kdcache.cache.in_place import CACHES, DOCUMENTS
from kdcache.cache.info import read_attributes
from kdcache.cache.layout import Span, span_named
from kdcache.cache.manifest import COMMITS
from kdcache.cache.metadata import ROOT, Document
from kdcache.cache.published import CONTRIBUTIONS, MANIFEST, Licences, Manifest, parse_manifest
from kdcache.errors import CorruptError, MismatchError, UsageError
from kdcache.identity import read_json
from kdcache.sharing.catalogue import AGAIN, Catalogue, Published, cache_name, sha256
from kdcache.sharing.draft import ROWS, Basis, Draft, draft, make_manifest
from kdcache.sharing.together import together
from kdcache.stores.location import Place

ROUNDS = 32
LAID_OUT = ("span_views", "max_rows")  # of the grid: what spans of one cache must agree in

Describe = Callable[[Manifest, Document], dict[str, bytes]]


@dataclass(frozen=True)
class Settled:
    """The manifest that stands, how many times it was written, and what is wrong beside it."""

    published: Published
    rounds: int
    damaged: dict[Span, str]


class Folder(NamedTuple):
    """What lies below a cache's folder: bytes of each object by name."""

    catalogue: Catalogue
    cache: str
    sizes: dict[str, int]

    @property
    def place(self) -> Place:
        """Return where it is."""
        return self.catalogue.place / CACHES / self.cache

    def size(self, name: str) -> int | None:
        """Return an object's bytes; asks once more for what a listing may not show yet."""
        if name in self.sizes:
            return self.sizes[name]
        return self.catalogue.store.size(cache_name(self.cache, name))

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of objects that are there, by name."""
        names = sorted(names)
        found = together(self._read, names)
        return {name: data for name, data in zip(names, found, strict=True) if data is not None}

    def _read(self, name: str) -> bytes | None:
        return self.catalogue.read_small(cache_name(self.cache, name))

    def write(self, objects: Mapping[str, bytes]) -> None:
        """Write objects, one after the other."""
        for name, data in objects.items():
            self.catalogue.store.write(cache_name(self.cache, name), data)


def list_folder(catalogue: Catalogue, cache: str) -> Folder:
    """Return what lies below a cache's folder now."""
    prefix = cache_name(cache)
    listed = catalogue.store.names(prefix)
    return Folder(catalogue, cache, {e.name.removeprefix(prefix): e.size_bytes for e in listed})


def basis_of(published: Published) -> Basis:
    """Return what a published cache is, whatever spans of it are there.

    Raises:
        CorruptError: its metadata are damaged.
        UsageError: the store refuses, or does not answer.
    """
    where = published.place / ROOT
    try:
        document = read_json(published.read(ROOT))
        attributes = dict(document["attributes"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptError(f"{where}: damaged: {error}; {AGAIN}") from None
    manifest = published.manifest
    try:
        described = read_attributes(attributes, source=published.place)
    except CorruptError as error:
        raise CorruptError(f"{str(error).partition('; run kdcache repair')[0]}; {AGAIN}") from None
    if described.info.id != published.id or described.grid.num_views != manifest.views:
        raise CorruptError(f"{where}: of another cache than its manifest; {AGAIN}")
    objects, samples = manifest.objects, ("rows/c/", "uids/c/", "contents/c/")
    return Basis(
        attributes=attributes,
        views=manifest.views,
        rows=published.read(ROWS),
        samples={name: entry for name, entry in objects.items() if name.startswith(samples)},
        licences=manifest.licences,
    )


def joined(mine: Basis, there: Basis, *, where: str) -> Basis:
    """Return what two publishers' cache is: of the larger number of views, else what was there.

    Raises:
        MismatchError: its spans are laid out otherwise, or its licences differ.
    """
    grids = [basis.attributes["kdcache"]["grid"] for basis in (mine, there)]
    if any(grids[0][name] != grids[1][name] for name in LAID_OUT):
        differs = ", ".join(f"{name} {grids[1][name]}, here {grids[0][name]}" for name in LAID_OUT)
        raise MismatchError(
            f"{where}: its spans are laid out otherwise: {differs}; precompute with the same "
            "--span-views, or publish in another catalogue"
        )
    licences = mine.licences
    if not mine.corrects:
        licences = joined_licences(licences, there.licences, where=where)
    larger = mine if mine.views > there.views else there
    return Basis(larger.attributes, larger.views, there.rows, there.samples, licences)


def joined_licences(mine: Licences, there: Licences, *, where: str) -> Licences:
    """Return licences of which one publisher knows one, the other another.

    Raises:
        MismatchError: they differ.
    """
    ours, theirs = mine.model_dump(), there.model_dump()
    for part, licence in theirs.items():
        if None not in (licence, ours[part]) and licence != ours[part]:
            raise MismatchError(
                f"{where}: published with the {part} licence {licence}, here it is {ours[part]}; "
                f"see who is right (kdcache show names who published); --again --licence-{part} "
                "corrects it"
            )
    return Licences(**{part: theirs[part] or ours[part] for part in theirs})


def settle(
    catalogue: Catalogue,
    cache: str,
    *,
    mine: Basis | None,
    describe: Describe,
    known: Iterable[str] = (),
) -> Settled:
    """Return the manifest that names all that lies there, after writing it where it did not.

    mine: what the cache is, by a publisher; None to mend what is published. describe: the
    objects that tell people and other programs of a manifest. known: names of objects that are
    there, which a listing may not show yet.

    Raises:
        UsageError: others keep publishing, or the store refuses or does not answer.
        MismatchError: what is there is laid out otherwise.
        CorruptError: what is there is damaged.
    """
    known = set(known)
    for number in range(ROUNDS):
        there = find_there(catalogue, cache, mend=mine is not None)
        basis = joined_with(there, mine)
        folder = list_folder(catalogue, cache)
        manifest, drafted = _draft(folder, basis, known=known | _named(there))
        data = manifest.to_bytes()
        folder.write(_kept(drafted, folder))
        if there is None:
            folder.write(drafted.documents)
        if there is not None and there.data == data:
            _mend_documents(folder, drafted)
            return Settled(there, number, drafted.damaged)
        parse_manifest(data, where=folder.place / MANIFEST)  # as those do who read it
        folder.write(describe(manifest, basis.attributes))
        folder.write({MANIFEST: data})
    raise UsageError(
        f"{catalogue.place}: others keep publishing cache {cache[:12]}; what was sent is there: "
        "run the same command again"
    )


def find_there(catalogue: Catalogue, cache: str, *, mend: bool) -> Published | None:
    """Return a published cache; None without. mend: a damaged manifest is as good as none."""
    try:
        return catalogue.find(cache)
    except CorruptError:
        if mend:
            return None
        raise


def _named(there: Published | None) -> set[str]:
    return set() if there is None else set(there.manifest.objects)


def joined_with(there: Published | None, mine: Basis | None) -> Basis:
    """Return what a cache is by what is published of it, and by a publisher.

    Raises:
        UsageError: nothing is known of it.
        MismatchError: as joined.
        CorruptError: what is published is damaged, and the publisher's cannot take its place.
    """
    if there is None:
        if mine is None:
            raise UsageError("no manifest is there to be mended; publish the cache again")
        return mine
    try:
        theirs = basis_of(there)
    except CorruptError:
        if mine is None or mine.views < there.manifest.views:
            raise
        return mine
    return theirs if mine is None else joined(mine, theirs, where=str(there.place))


def _draft(folder: Folder, basis: Basis, *, known: set[str]) -> tuple[Manifest, Draft]:
    """Return the manifest and the documents of what lies in a folder."""
    seen = known | set(folder.sizes)
    spans = {f"{COMMITS}/{span}.json": span for span in map(_span, seen) if span is not None}
    read = folder.read([*spans, *(name for name in seen if name.startswith(f"{CONTRIBUTIONS}/"))])
    records = {span: read[name] for name, span in spans.items() if name in read}
    where = folder.place
    drafted = draft(basis, records, where=where)
    lost = _lost(folder, drafted)
    if lost:
        kept = {span: data for span, data in records.items() if span not in lost}
        drafted = draft(basis, kept, where=where)
        drafted.damaged.update(lost)
    contributions = {n: data for n, data in read.items() if n.startswith(f"{CONTRIBUTIONS}/")}
    manifest = make_manifest(
        drafted, basis, spans=drafted.commits, records=records, contributions=contributions
    )
    return manifest, drafted


def _span(name: str) -> Span | None:
    folder, _, last = name.rpartition("/")
    return span_named(last) if folder == COMMITS else None


def _lost(folder: Folder, drafted: Draft) -> dict[Span, str]:
    """Return the spans whose objects are not there as their records say, and what is wrong."""
    lost = {}
    for span, commit in drafted.commits.items():
        for name, entry in commit.objects.items():
            if (size := folder.size(name)) != entry["size_bytes"]:
                found = "missing" if size is None else f"{size} bytes"
                lost[span] = f"{name}: {found}, {entry['size_bytes']} bytes committed"
    return lost


def _kept(drafted: Draft, folder: Folder) -> dict[str, bytes]:
    """Return those documents, by their digests, that are not there yet."""
    names = {f"{DOCUMENTS}/{sha256(data)}": data for data in drafted.documents.values()}
    return {name: data for name, data in names.items() if folder.sizes.get(name) != len(data)}


def _mend_documents(folder: Folder, drafted: Draft) -> None:
    """Bring the documents at their names in line with the manifest."""
    found = folder.read(drafted.documents)
    folder.write({n: data for n, data in drafted.documents.items() if found.get(n) != data})
