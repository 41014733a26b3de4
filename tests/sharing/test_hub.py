"""Caches on the Hugging Face Hub: a stub of its HTTP API on loopback stands for it."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcache.cache.published import MANIFEST
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, MismatchError, UsageError
from kdcache.sharing import hub as hubs
from kdcache.sharing.catalogue import Published, open_catalogue, published_at
from kdcache.sharing.hub import published_on_hub, push
from kdcache.sharing.hub_store import HubStore
from kdcache.sharing.publish import Publisher, publish
from kdcache.stores.location import Location
from kdcache.stores.store import Store
from tests.servers.hub import TOKEN, Hub, reach, serve_hub
from tests.sharing.described import LICENCES
from tests.tiny import make_dataset, make_recipe, precompute, precompute_first

pytest.importorskip("huggingface_hub")

NAME = "team/targets"
NOBODY = "http://127.0.0.1:9"  # the port of "discard", where nothing listens


@pytest.fixture(scope="module")
def cache(complete: Path) -> Cache:
    return open_cache(complete)


@pytest.fixture
def published(cache: Cache, tmp_path: Path) -> Published:
    """The cache in a catalogue."""
    return published_in(cache, tmp_path / "catalogue")


def published_in(cache: Cache, catalogue: Path) -> Published:
    return publish(
        cache, open_catalogue(catalogue, create=True), Publisher("Team A", LICENCES)
    ).published


def folder_of(published: Published) -> Path:
    assert isinstance(published.place, Path)
    return published.place


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve_hub() as served:
        reach(monkeypatch, served.address)
        yield served


def files_at(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    files = hub.repositories[NAME].files(revision)
    assert files is not None
    return files


# --- push ----------------------------------------------------------------------------------


def test_a_pushed_repository_holds_the_cache_its_manifest_and_what_describes_it(
    cache: Cache, published: Published, hub: Hub
) -> None:
    pushed = push(published, NAME)
    files = dict(files_at(hub))
    assert pushed.address == f"{hub.address}/datasets/{NAME}"
    assert pushed.commit == hub.repositories[NAME].branches["main"]
    assert json.loads(files.pop("croissant.json"))["identifier"] == cache.info.id
    assert files.pop("README.md").startswith(b"---\nlicense: ")
    assert files.pop(MANIFEST) == published.data
    del files[".gitattributes"]
    assert files == {name: published.read(name) for name in published.manifest.objects}


def test_every_commit_holds_what_its_manifest_names(
    cache: Cache, published: Published, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "COMMIT_FILES", 7)
    monkeypatch.setattr(hubs, "GROUP_FILES", 5)
    push(published, NAME)
    commits = hub.repositories[NAME].commits
    assert len(commits) > 3
    assert [MANIFEST in files for _, _, files in commits] == [False] * (len(commits) - 1) + [True]


def test_a_push_that_was_cut_off_goes_on(published: Published, hub: Hub) -> None:
    hub.refusals[f"POST /api/datasets/{NAME}/commit"] = (400, "")
    with pytest.raises(UsageError, match=f"{NAME}: the hub answers 400"):
        push(published, NAME)
    assert list(files_at(hub)) == [".gitattributes"]
    hub.refusals.clear()
    hub.requests.clear()
    push(published, NAME)
    assert not [request for request in hub.requests if request.startswith("PUT")]  # were there
    assert MANIFEST in files_at(hub)


def test_a_second_push_changes_nothing(published: Published, hub: Hub) -> None:
    first = push(published, NAME)
    commits = list(hub.repositories[NAME].commits)
    assert push(published, NAME).commit == first.commit
    assert hub.repositories[NAME].commits == commits


def test_a_signature_goes_with_the_manifest(published: Published, hub: Hub) -> None:
    (folder_of(published) / "manifest.sig.json").write_bytes(b'{"a": 1}')
    push(published, NAME)
    assert files_at(hub)["manifest.sig.json"] == b'{"a": 1}'


def test_a_new_repository_is_private_if_told(published: Published, hub: Hub) -> None:
    push(published, NAME, private=True)
    push(published, "team/open")
    assert (hub.repositories[NAME].private, hub.repositories["team/open"].private) == (True, False)


def test_a_revision_is_a_branch_that_is_made(published: Published, hub: Hub) -> None:
    push(published, NAME, revision="wide")
    assert MANIFEST in files_at(hub, "wide")
    assert MANIFEST not in files_at(hub)


def test_a_repository_of_another_cache_is_left_alone(
    published: Published, hub: Hub, tmp_path: Path
) -> None:
    push(published, NAME)
    before = list(hub.repositories[NAME].commits)
    other = precompute(
        tmp_path / "other", make_dataset(tmp_path / "o", 5), make_recipe(), num_views=2
    )
    with pytest.raises(MismatchError, match="push to another repository"):
        push(published_in(other, tmp_path / "others"), NAME)
    assert hub.repositories[NAME].commits == before


def test_spans_that_others_pushed_are_not_lost(
    cache: Cache, published: Published, hub: Hub, tmp_path: Path
) -> None:
    push(published, NAME)
    part = precompute_first(tmp_path / "p", make_dataset(tmp_path / "d"), make_recipe(), spans=2)
    assert part.info.id == cache.info.id
    with pytest.raises(UsageError, match=r"has 4 spans that .* lacks"):
        push(published_in(part, tmp_path / "parts"), NAME)


def test_a_push_that_meets_another_one_does_not_overwrite_it(
    published: Published, hub: Hub
) -> None:
    def meet(count: int) -> None:
        if not met:
            met.append(hub.repositories[NAME].commit("main", "another", {MANIFEST: b"{}"}))

    met: list[str] = []
    with pytest.raises(UsageError, match="somebody else changed it meanwhile; run the same comm"):
        push(published, NAME, progress=meet)
    assert hub.repositories[NAME].branches["main"] == met[0]


def test_an_object_that_differs_from_the_manifest_is_not_sent(
    published: Published, hub: Hub
) -> None:
    name = "values/c/1/0/0/0"
    path = folder_of(published) / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptError, match=f"{name}: its sha256 differs"):
        push(published, NAME)
    path.unlink()
    with pytest.raises(CorruptError, match=f"{name}: missing"):
        push(published, NAME)
    assert MANIFEST not in files_at(hub)


def test_what_is_not_published_is_not_pushed(
    cache: Cache, published: Published, tmp_path: Path
) -> None:
    folder = folder_of(published)
    for place in (cache.path, tmp_path, folder.parent, folder.with_name("0" * 64)):
        with pytest.raises(UsageError, match=r"no published cache; run kdcache publish"):
            published_at(place)
    (folder / MANIFEST).unlink()
    with pytest.raises(UsageError, match=r"no published cache; run kdcache publish"):
        published_at(folder)


# --- refusals ------------------------------------------------------------------------------


def refusal_of(published: Published, name: str = NAME) -> str:
    """Return what a push is refused with: one sentence, without the token."""
    with pytest.raises(UsageError) as caught:
        push(published, name)
    message = str(caught.value)
    assert TOKEN not in message
    assert "\n" not in message
    assert message.startswith(f"dataset repository {name}: ")
    return message


def test_without_a_token_that_may_write_a_push_says_what_to_do(
    published: Published, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of-somebody-else")
    assert "the hub refuses (401); run hf auth login" in refusal_of(published)
    hub.new(NAME)
    assert "the hub refuses (403); run hf auth login" in refusal_of(published)


def test_a_hub_that_does_not_answer_is_one_sentence(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, NOBODY)
    begun = time.monotonic()
    assert "the hub does not answer (ConnectError); check the network" in refusal_of(published)
    assert time.monotonic() - begun < 5


def test_a_switched_off_hub_is_one_sentence(
    published: Published, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the hub is switched off by HF_HUB_OFFLINE" in refusal_of(published)


def test_an_upload_that_fails_is_one_sentence(published: Published, hub: Hub) -> None:
    hub.refusals["PUT /large"] = (403, "")
    assert "the hub refuses (403)" in refusal_of(published)


def test_a_missing_library_says_what_to_install(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", None)
    assert "pip install 'kdcache[hub]'" in refusal_of(published)


@pytest.mark.parametrize("name", ["", "a", "a/b/c", "../a", "a/..", "a b/c", "https://x/y", "a/ü"])
def test_what_names_no_repository_is_refused(name: str, published: Published) -> None:
    with pytest.raises(UsageError, match="expected OWNER/NAME"):
        push(published, name)


def test_the_library_of_the_hub_says_nothing_and_keeps_its_settings(
    published: Published, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    logger = logging.getLogger("huggingface_hub")
    before = (logger.level, are_progress_bars_disabled())
    push(published, NAME)
    push(published, NAME)  # of which the library warns
    assert capfd.readouterr() == ("", "")
    assert (logger.level, are_progress_bars_disabled()) == before


def test_a_repository_without_a_cache_says_so(hub: Hub) -> None:
    hub.new(NAME)
    with pytest.raises(UsageError, match=f"{NAME}: holds no cache"):
        published_on_hub(NAME)


# --- reading -------------------------------------------------------------------------------


def test_a_repository_is_a_store_of_one_commit(published: Published, hub: Hub) -> None:
    push(published, NAME)
    store = HubStore(NAME)
    name, small = "values/c/1/0/0/0", MANIFEST  # a large file, and one in git
    hub.repositories[NAME].commit("main", "other", {name: b"other", small: b"{}"})
    for file in (name, small):
        data = (folder_of(published) / file).read_bytes()
        assert store.read(file) == data
        assert store.read(f"caches/{'0' * 64}/{file}") == data
        assert store.read_range(file, 3, 5) == data[3:8]
        assert store.size(file) == len(data)
        with pytest.raises(UsageError, match=f"{len(data) - 2} of {len(data)} bytes came"):
            store.read_range(file, 2, len(data))
    assert store.read_range(name, 0, 0) == b""
    assert store.size("absent") is None
    with pytest.raises(FileNotFoundError):
        store.read("absent")


def test_a_repository_that_is_not_to_be_read_is_one_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="the hub has none of this name, or shows it to its own"):
        HubStore(NAME)
    hub.new(NAME, private=True)
    with pytest.raises(UsageError, match="it has no revision old"):
        HubStore(NAME, "old")
    HubStore(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_of-somebody-else")
    with pytest.raises(UsageError, match="the hub has none of this name, or shows it to its own"):
        HubStore(NAME)


def test_a_gated_repository_says_whom_to_ask(hub: Hub) -> None:
    hub.new(NAME)
    store = HubStore(NAME)
    hub.refusals[f"GET /datasets/{NAME}/resolve"] = (403, "GatedRepo")
    with pytest.raises(UsageError, match="its owner must let you in"):
        store.read(".gitattributes")


def test_a_hub_that_fails_for_a_moment_is_asked_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.new(NAME)
    store = HubStore(NAME)
    start = f"GET /datasets/{NAME}/resolve"
    hub.refusals[start] = (503, "")
    slept: list[float] = []

    def recover(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            hub.refusals.clear()

    monkeypatch.setattr(time, "sleep", recover)
    assert store.read(".gitattributes").startswith(b"*.bin")
    hub.refusals[start] = (503, "")
    slept[:] = [0.0, 0.0]
    with pytest.raises(UsageError, match="the hub answers 503; run the same command again"):
        store.read(".gitattributes")
    assert len(slept) == 5


def test_a_public_repository_is_read_in_place_as_any_server_of_files(
    published: Published, hub: Hub
) -> None:
    push(published, NAME)
    store = Store(Location(f"{hub.address}/datasets/{NAME}/resolve/main"))
    for file in ("values/c/1/0/0/0", MANIFEST):  # a large file, to which the hub redirects
        data = (folder_of(published) / file).read_bytes()
        assert store.read(file) == data
        assert store.read_range(file, 3, 5) == data[3:8]
