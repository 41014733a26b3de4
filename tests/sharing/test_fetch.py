import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.cache.audit import check_objects
from kdcache.cache.info import with_extent
from kdcache.cache.layout import Span
from kdcache.cache.merge import prepare_merge, run_copying
from kdcache.cache.metadata import ROOT
from kdcache.cache.sealing import seal
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, MismatchError, UntrustedError, UsageError
from kdcache.identity import canonical_json
from kdcache.sharing.catalogue import Catalogue, Published, sha256
from kdcache.sharing.fetch import prepare_fetch, prepare_spans, run_fetch
from kdcache.sharing.signed import check_signed, sign_manifest
from tests.cache import filling
from tests.sharing import catalogues, signing
from tests.sharing.catalogues import Dying, KilledError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A complete cache, sealed."""
    found = catalogues.part(tmp_path / "cache", unusable={2: (1, 4)})
    seal(found)
    return found


@pytest.fixture
def published(tmp_path: Path, cache: Cache) -> Published:
    """The same cache in a catalogue."""
    return catalogues.send(cache, catalogues.new(tmp_path / "catalogue")).published


def test_a_fetched_cache_is_the_published_one_to_the_last_byte(
    tmp_path: Path, cache: Cache, published: Published
) -> None:
    fetched = catalogues.fetch(published, tmp_path / "out")
    assert (fetched.spans, fetched.damaged) == (tuple(cache.grid.spans()), ())
    assert catalogues.files(tmp_path / "out") == catalogues.files(cache.path)
    assert not list(check_objects(open_cache(tmp_path / "out")))
    assert catalogues.fetch(published, tmp_path / "out").spans == ()


@pytest.mark.parametrize("encoding", ["dense:f2", "packed:4", "adaptive:0.05"])
def test_caches_of_all_encodings_are_fetched(tmp_path: Path, encoding: str) -> None:
    cache = catalogues.part(tmp_path / "cache", encoding=encoding, num_classes=12)
    seal(cache)
    published = catalogues.send(cache, catalogues.new(tmp_path / "catalogue")).published
    catalogues.fetch(published, tmp_path / "out")
    assert catalogues.files(tmp_path / "out") == catalogues.files(cache.path)


def test_a_part_is_an_ordinary_cache_of_which_spans_are_missing(
    tmp_path: Path, cache: Cache, published: Published
) -> None:
    catalogues.fetch(published, tmp_path / "one", first_view=2, tars=range(1, 3))
    found = open_cache(tmp_path / "one")
    assert set(found.grid.spans()) - set(found.missing()) == {Span(1, 1), Span(2, 1)}
    catalogues.fetch(published, tmp_path / "other", num_views=2)
    assert open_cache(tmp_path / "other").grid.num_views == 2
    assert not open_cache(tmp_path / "other").missing()
    run_copying(prepare_merge(tmp_path / "one", [tmp_path / "other"]))
    assert set(open_cache(tmp_path / "one").missing()) == {Span(0, 1)}
    catalogues.fetch(published, tmp_path / "one")
    assert catalogues.files(tmp_path / "one") == catalogues.files(cache.path)


def test_what_is_not_published_is_told(tmp_path: Path) -> None:
    catalogue = catalogues.new(tmp_path / "catalogue")
    part = catalogues.part(tmp_path / "part", [Span(0, 0), Span(2, 1)])
    published = catalogues.send(part, catalogue).published
    fetching = prepare_fetch(published, tmp_path / "out", num_views=2)
    assert fetching.spans == (Span(0, 0),)
    assert fetching.absent == (Span(1, 0), Span(2, 0))
    run_fetch(fetching)
    assert prepare_fetch(published, tmp_path / "out", num_views=2).there == 1


def test_views_and_tars_that_cannot_be_fetched_are_refused_before_anything_is_written(
    tmp_path: Path, published: Published
) -> None:
    for options, words in (
        ({"num_views": 3}, "stored in spans of 2"),
        ({"first_view": 1}, "stored in spans of 2"),
        ({"num_views": 6}, r"has views 0\.\.3"),
        ({"first_view": 4}, "ask for a --from below --views"),
        ({"tars": range(2, 4)}, r"has tars 0\.\.2"),
    ):
        with pytest.raises(UsageError, match=words):
            prepare_fetch(published, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds something that is no cache"):
        prepare_fetch(published, tmp_path / "out")
    filling.empty(tmp_path / "more", num_views=6)
    with pytest.raises(UsageError, match="has 6 views, 4 are asked for"):
        prepare_fetch(published, tmp_path / "more")
    filling.empty(tmp_path / "another", teacher="u")
    with pytest.raises(MismatchError, match="teacher"):
        prepare_fetch(published, tmp_path / "another")


def test_spans_are_fetched_to_a_cache_of_more_views(tmp_path: Path, published: Published) -> None:
    target = filling.empty(tmp_path / "more", num_views=6).cache
    fetching = prepare_spans(published, target)
    assert fetching.absent == tuple(Span(tar, 2) for tar in range(3))
    run_fetch(fetching)
    assert tuple(target.missing()) == fetching.absent


# --- killed ------------------------------------------------------------------------------------


def test_a_fetch_that_is_killed_leaves_whole_spans_and_goes_on(tmp_path: Path) -> None:
    cache = catalogues.part(tmp_path / "cache", rows=(3,), span_views=1, encoding="dense:f2")
    seal(cache)
    place = tmp_path / "catalogue"
    catalogues.send(cache, catalogues.new(place))

    def run(out: Path, at: int | None) -> int:
        store = Dying(place, at=at)
        catalogues.fetch(Catalogue(place, store=store).published(cache.info.id), out)
        return store.calls

    calls, left = run(tmp_path / "whole", None), set()
    for at in range(1, calls + 1, 2):
        with pytest.raises(KilledError):
            run(tmp_path / f"killed {at}", at)
        if (tmp_path / f"killed {at}").exists():
            found = open_cache(tmp_path / f"killed {at}")
            assert not [f for f in check_objects(found) if f.span is not None]
            left.add(len(found.missing()))
        run(tmp_path / f"killed {at}", None)
        assert catalogues.files(tmp_path / f"killed {at}") == catalogues.files(cache.path)
    assert len(left) > 1


def test_two_fetches_to_one_place_share_the_work(
    tmp_path: Path, cache: Cache, published: Published
) -> None:
    prepared = [prepare_fetch(published, tmp_path / "out") for _ in range(2)]
    run_fetch(prepared[0])
    assert run_fetch(prepared[1]).spans == ()
    assert catalogues.files(tmp_path / "out") == catalogues.files(cache.path)


# --- damaged and hostile -----------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "shorter": lambda path: os.truncate(path, path.stat().st_size - 1),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["values", "witness", "record"])
def test_a_damaged_span_is_refused_and_named_and_the_others_are_fetched(
    tmp_path: Path, cache: Cache, published: Published, damage: str, what: str
) -> None:
    span = Span(1, 0)
    name = span.commit_name if what == "record" else cache.object_names(span)[what]
    DAMAGES[damage](catalogues.stored(published.catalogue, cache.info.id, name))
    fetched = catalogues.fetch(published, tmp_path / "out")
    (told,) = fetched.damaged
    assert told.startswith(f"{published.place / name}: ")
    assert "publish --again" in told
    assert open_cache(tmp_path / "out").missing() == [span]
    assert not (tmp_path / "out" / cache.object_names(span)["indices"]).exists()


@pytest.mark.parametrize("name", [ROOT, "rows/c/0", "uids/c/1/0", "contents/c/2/0"])
def test_damaged_metadata_are_refused_before_anything_is_written(
    tmp_path: Path, published: Published, name: str
) -> None:
    _flip(catalogues.stored(published.catalogue, published.id, name))
    if name == ROOT:  # which lies there twice
        prepare_fetch(published, tmp_path / "sound")
        sha256 = published.manifest.objects[ROOT].sha256
        _flip(catalogues.stored(published.catalogue, published.id, f"documents/{sha256}"))
    with pytest.raises(CorruptError, match=f"{name}: its sha256 differs from the manifest"):
        prepare_fetch(published, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_another_size_than_its_objects_can_have_is_refused_unread(
    tmp_path: Path, published: Published
) -> None:
    name = "values/c/0/0/0/0"
    body = json.loads(published.data)
    body["objects"][name]["size_bytes"] = 2**40
    path = catalogues.stored(published.catalogue, published.id, "manifest.json")
    path.write_bytes(canonical_json(body))
    changed = published.catalogue.published(published.id)
    fetched = catalogues.fetch(changed, tmp_path / "out")
    assert f"{name} has {2**40} bytes, at most" in fetched.damaged[0]
    assert open_cache(tmp_path / "out").missing() == [Span(0, 0)]


def test_a_cache_of_another_extent_than_can_be_is_refused(
    tmp_path: Path, published: Published
) -> None:
    document, body = json.loads(published.read(ROOT)), json.loads(published.data)
    for root_views, views, problem in (
        (2**30, 2**30, "at most 4194304.*publish --again"),
        (6, 4, "of another cache"),
    ):
        attributes = with_extent(document["attributes"], views=root_views)
        root = json.dumps({**document, "attributes": attributes}).encode()
        body["objects"][ROOT] = {"size_bytes": len(root), "sha256": sha256(root)}
        changed = canonical_json({**body, "views": views})
        for name, data in ((ROOT, root), ("manifest.json", changed)):
            catalogues.stored(published.catalogue, published.id, name).write_bytes(data)
        with pytest.raises(CorruptError, match=problem):
            prepare_fetch(published.catalogue.published(published.id), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_under_another_id_is_refused(tmp_path: Path, published: Published) -> None:
    catalogue, other = published.catalogue, "0" * 64
    target = catalogues.stored(catalogue, other, "manifest.json")
    target.parent.mkdir(parents=True)
    target.write_bytes(published.data)
    with pytest.raises(CorruptError, match="the manifest of cache"):
        catalogue.find(other)
    body = json.loads(published.data)
    target.write_bytes(canonical_json({**body, "cache": other}))
    with pytest.raises(CorruptError, match="give other ids"):
        catalogue.find(other)


def test_nothing_is_written_through_a_link(tmp_path: Path, published: Published) -> None:
    fetching = prepare_fetch(published, tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out" / "values" / "c")
    with pytest.raises(UsageError, match="values/c: a link stands in a cache"):
        run_fetch(fetching)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_spans_that_another_process_fetches_are_left_to_it(
    tmp_path: Path, published: Published
) -> None:
    fetching = prepare_fetch(published, tmp_path / "out")
    folder, span = fetching.target.folder, Span(0, 0)
    pid = os.fork()
    if pid == 0:  # which asks no store
        with folder.lock(span.lock, wait=True):
            (tmp_path / "held").touch()
            while not (tmp_path / "go").exists():
                time.sleep(0.01)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    done: list[int] = []

    def progress(count: int) -> None:
        done.append(count)
        if len(done) == 5:  # all others
            (tmp_path / "go").touch()

    fetched = run_fetch(fetching, progress=progress)
    os.waitpid(pid, 0)
    assert fetched.spans[-1] == span
    assert len(done) == 6


def test_a_signature_is_checked_before_anything_is_fetched(
    tmp_path: Path, published: Published
) -> None:
    signer = signing.make_signer(tmp_path, "ours")
    trusted = signing.trusting(tmp_path, "ours")
    with pytest.raises(UntrustedError, match="no signature"):
        check_signed(published, trusted)
    sign_manifest(published, signer)
    assert check_signed(published, trusted) == "ours"
