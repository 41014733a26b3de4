"""Claims about caches that are read where they lie, and that a trusted key must have signed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kdcache.cache.store import open_cache
from kdcache.errors import CorruptError, MismatchError, UntrustedError, UsageError
from kdcache.sharing.catalogue import Published, cache_name
from kdcache.sharing.keys import TrustedKeys, load_signer, load_trusted, make_key, public_file
from kdcache.sharing.signed import check_folder, check_pinned, sign_manifest
from kdcache.stores.location import Location
from tests.cli.conftest import Run
from tests.cli.making import check_refusal
from tests.serving import served
from tests.sharing import catalogues


class Signed(NamedTuple):
    """A signed cache of a served catalogue, and whom its reader trusts."""

    published: Published
    place: Location
    trusted: TrustedKeys
    public: Path

    def file(self, name: str) -> Path:
        """Return the file of an object."""
        return catalogues.stored(self.published.catalogue, self.published.id, name)


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Signed]:
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(tmp_path / "disk"))
    catalogue = catalogues.new(tmp_path / "web")
    published = catalogues.send(catalogues.part(tmp_path / "cache"), catalogue).published
    make_key(tmp_path / "key", name="Vision team")
    sign_manifest(published, load_signer(tmp_path / "key"))
    public = public_file(tmp_path / "key")
    with served(tmp_path / "web") as server:
        place = server.location / "caches" / published.id
        yield Signed(published, place, load_trusted(public), public)


def _damage_view(signed: Signed, view: int) -> None:
    """Change the chunk of a view of the first span, and leave those of others."""
    local = open_cache(signed.file("").parent / signed.published.id)
    span = local.grid.span_of(0, view)
    array = local.info.specs[0].name
    path = signed.file(local.object_names(span)[array])
    data = bytearray(path.read_bytes())
    data[local.commit(span).tiles[array][view].offset] ^= 1
    path.write_bytes(data)


def test_what_is_signed_is_read_as_what_is_not(signed: Signed) -> None:
    place, names = check_pinned(signed.place, signed.trusted)
    assert (str(place), names) == (str(signed.place), "Vision team")
    plain, pinned = open_cache(signed.place), open_cache(place)
    for view in range(plain.grid.num_views):
        ours, theirs = pinned.read_tile(1, view), plain.read_tile(1, view)
        assert all(bool((f == theirs.fields[n]).all()) for n, f in ours.fields.items())
        assert np.array_equal(pinned.read_witness(1, view), plain.read_witness(1, view))


def test_an_object_is_refused_though_the_part_that_is_read_is_sound(signed: Signed) -> None:
    _damage_view(signed, 1)
    open_cache(signed.place).read_tile(0, 0)
    place, _ = check_pinned(signed.place, signed.trusted)
    with pytest.raises(CorruptError, match="/c/0/0"):
        open_cache(place).read_tile(0, 0)


def test_a_manifest_that_changes_after_it_was_checked_is_refused(signed: Signed) -> None:
    place, _ = check_pinned(signed.place, signed.trusted)
    data = signed.published.data.replace(b'"name":null', b'"name":"x"', 1)
    signed.file("manifest.json").write_bytes(data)
    with pytest.raises(MismatchError, match="published anew meanwhile, or somebody changed it"):
        open_cache(place)
    with pytest.raises(UntrustedError, match="for another manifest"):
        check_pinned(signed.place, signed.trusted)


def test_a_folder_of_a_catalogue_is_compared_whole(signed: Signed) -> None:
    folder = signed.file("").parent / signed.published.id
    assert check_folder(folder, signed.trusted) == ("Vision team", [])
    _damage_view(signed, 1)
    (finding,) = check_folder(folder, signed.trusted)[1]
    assert "/c/0/0" in finding.where
    signed.file("seal.json").unlink()
    assert len(check_folder(folder, signed.trusted)[1]) == 2


def test_what_lies_here_is_to_be_fetched_first(signed: Signed, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kdcache fetch --require-signature"):
        check_pinned(tmp_path / "cache", signed.trusted)


def test_a_folder_that_holds_another_cache_than_its_name_is_refused(
    signed: Signed, tmp_path: Path
) -> None:
    other = catalogues.part(tmp_path / "other", teacher="another")
    folder = signed.file("").parent / signed.published.id
    (folder / "zarr.json").write_bytes((other.path / "zarr.json").read_bytes())
    with pytest.raises(CorruptError, match="holds cache"):
        open_cache(folder)
    signed.file("manifest.json").unlink()
    with pytest.raises(UsageError, match="not published yet"):
        open_cache(folder)


def test_commands_ask_for_signatures(signed: Signed, kdcache: Run, tmp_path: Path) -> None:
    require = ["--require-signature", "--trusted"]
    good, nobody = [*require, signed.public], [*require, tmp_path / "nobody"]
    (tmp_path / "nobody").mkdir()
    folder = tmp_path / "web" / cache_name(signed.published.id).rstrip("/")
    for place in (signed.place.url, folder):
        done = kdcache("verify", place, *good, "--json")
        assert (done.code, done.value["signed_by"]) == (0, "Vision team"), done.stderr
        check_refusal(kdcache("verify", place, *nobody), 6, "none of the 0 trusted keys")
    train = [
        "train",
        "--data",
        tmp_path,
        "--student",
        "a:b",
        "--epochs",
        1,
        "--out",
        tmp_path / "r",
    ]
    asked = kdcache(*train, "--cache", signed.place.url, *nobody)
    check_refusal(asked, 6, "none of the 0 trusted keys")
    asked = kdcache("eval", "w", "--data", tmp_path, "--cache", signed.place.url, *nobody)
    check_refusal(asked, 6, "none of the 0 trusted keys")
    _damage_view(signed, 1)
    for place in (signed.place.url, folder):
        assert kdcache("verify", place, *good).code == 5
