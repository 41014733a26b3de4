"""The spans of a local cache, sent to a catalogue's folder.

Invariant: what was checked is what is sent: a span's objects are compared with its commit record in
memory, and the record goes last. A span that is there already with other objects, such as another
GPU's, stays. Stores cannot be asked to write only what is not there yet: of two publishers who send
one span with different objects at the same time, each that sees the other's record reads back what
lies there, and sends its own once more where that is a mixture.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from kdcache.cache.copy import load_span
from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit, parse_commit
from kdcache.cache.published import PublishedObject
from kdcache.cache.store import Cache
from kdcache.errors import CorruptError, MismatchError
from kdcache.sharing.catalogue import Published, cache_name, sha256
from kdcache.sharing.draft import ROWS, described
from kdcache.sharing.settle import Folder
from kdcache.sharing.together import together


class Outcome(NamedTuple):
    """What became of a span. same: there with equal objects, by a record that is not ours."""

    span: Span
    what: Literal["sent", "there", "same", "differs"]
    size_bytes: int = 0


class Sending:
    """Sends a cache's spans to a folder. again: those too that are there already."""

    def __init__(self, cache: Cache, folder: Folder, *, again: bool) -> None:
        self.cache, self.folder, self.again = cache, folder, again
        self._contested: set[Span] = set()

    # --- spans ---------------------------------------------------------------------------------

    def send_all(self, spans: Iterable[Span], progress: Callable[[int], None]) -> list[Outcome]:
        """Return what became of each span; progress is given the number of spans done.

        Raises:
            CorruptError: a local object is damaged; nothing of its span was sent.
            MismatchError: a span that is there is laid out otherwise.
            UsageError: the store refuses, or does not answer.
        """
        outcomes = []
        for outcome in together(self._send, spans):
            outcomes.append(outcome)
            progress(1)
        return outcomes

    def _send(self, span: Span) -> Outcome:
        own = self.cache.folder.read(span.commit_name)
        objects = self.cache.commit(span).objects
        listed = span.commit_name in self.folder.sizes
        record = self._record(span) if listed else None
        there = None if record is None else self._commit(record, span)
        if record is not None and there is not None:
            equal, stands = there.objects == objects, self._stands(there)
            if stands and not equal:
                return Outcome(span, "differs")
            if stands and not self.again:
                return Outcome(span, "there" if record == own else "same")
        return self._write(span)

    def _write(self, span: Span) -> Outcome:
        stored = load_span(self.cache, span)
        self.folder.write(stored.objects)
        size_bytes = sum(map(len, stored.objects.values()))
        latest = self._record(span)
        there = None if latest is None else self._commit(latest, span)
        if there is not None and there.objects == self.cache.commit(span).objects:
            return Outcome(span, "sent" if latest == stored.record else "same", size_bytes)
        if there is not None:
            self._contested.add(span)
        self.folder.write({span.commit_name: stored.record})
        return Outcome(span, "sent", size_bytes)

    def _record(self, span: Span) -> bytes | None:
        return self.folder.read([span.commit_name]).get(span.commit_name)

    def _commit(self, record: bytes, span: Span) -> Commit | None:
        """Return what a record that is there says; None if it is damaged.

        Raises:
            MismatchError: the span is laid out otherwise.
        """
        where = self.folder.place / span.commit_name
        try:
            commit = parse_commit(record, span, cache=self.cache.info.id, where=where)
            if commit.views != tuple(self.cache.grid.views(span)):
                raise MismatchError(
                    f"{where}: somebody publishes this cache in spans of {len(commit.views)} views,"
                    f" here they are of {self.cache.grid.span_views}; precompute with the same "
                    "--span-views, or publish in another catalogue"
                )
            self.cache.check_extent(commit)
        except CorruptError:
            return None
        return commit

    def _stands(self, commit: Commit) -> bool:
        return all(
            self.folder.size(name) == entry["size_bytes"] for name, entry in commit.objects.items()
        )

    # --- races ---------------------------------------------------------------------------------

    def look_for_others(self, spans: Iterable[Span], there: Published | None) -> None:
        """Note the spans of which somebody else has published a record meanwhile."""
        for span in spans:
            entry = None if there is None else there.manifest.objects.get(span.commit_name)
            if entry is not None and entry != described(self.cache.folder.read(span.commit_name)):
                self._contested.add(span)

    def mend(self, spans: Iterable[Span]) -> tuple[list[Span], list[Span]]:
        """Return of the spans that were sent those that had to be once more, and those that differ.

        Raises:
            UsageError: the store refuses, or does not answer.
        """

        def look(span: Span) -> Literal["ours", "theirs", "mixed"]:
            record = self._record(span)
            there = None if record is None else self._commit(record, span)
            ours = there is not None and there.objects == self.cache.commit(span).objects
            if ours and span not in self._contested:
                return "ours"
            if there is None or not self._reads(there):
                self._write(span)
                return "mixed"
            self._contested.discard(span)
            return "ours" if ours else "theirs"

        spans = list(spans)
        found = list(zip(spans, together(look, spans), strict=True))
        return (
            [span for span, what in found if what == "mixed"],
            [span for span, what in found if what == "theirs"],
        )

    def _reads(self, commit: Commit) -> bool:
        """Return whether the objects that are there are those of a record."""
        found = self.folder.read(commit.objects)
        return commit.objects == {
            name: {"size_bytes": len(data), "sha256": sha256(data)} for name, data in found.items()
        }

    # --- sample names --------------------------------------------------------------------------

    def samples(self) -> dict[str, PublishedObject]:
        """Return the objects that tell of the samples, compared with the dataset's digests."""
        names = [ROWS]
        for tar in range(self.cache.grid.num_tars):
            self.cache.uids(tar)  # and contents
            names += [f"{array}/c/{tar}/0" for array in ("uids", "contents")]
        return {name: described(self.cache.folder.read(name)) for name in names}

    def send_samples(self, samples: Mapping[str, PublishedObject]) -> None:
        """Send the objects that tell of the samples, those that are not there."""

        def send(name: str) -> None:
            data = self.cache.folder.read(name)
            if described(data) != samples[name]:
                raise CorruptError(f"{self.cache.path / name}: changed while it was published")
            self.folder.catalogue.store.write(cache_name(self.folder.cache, name), data)

        sizes = self.folder.sizes
        absent = [n for n, o in samples.items() if self.again or sizes.get(n) != o.size_bytes]
        for _ in together(send, absent):
            pass
