"""kdcache hub: what goes to the hub comes back, byte for byte, or is refused by name."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcache.cache.published import MANIFEST, SIGNATURE, Licences
from kdcache.cache.store import open_cache
from kdcache.sharing.catalogue import open_catalogue
from kdcache.sharing.publish import Publisher, publish
from kdcache.sharing.trust import sign
from tests.cli.conftest import Outcome, Run
from tests.cli.making import check_refusal
from tests.servers.hub import TOKEN, Hub, Repository, reach, serve_hub
from tests.sharing.described import objects_of
from tests.sharing.signing import make_signer, trusting

pytest.importorskip("huggingface_hub")

NAME = "team/targets"
OBJECT, RECORD = "values/c/1/0/0/0", "commits/1-0.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve_hub() as served:
        reach(monkeypatch, served.address)
        yield served


@pytest.fixture
def pushed(hub: Hub, kdcache: Run, complete: Path, tmp_path: Path) -> Repository:
    """The repository of the complete cache: 4 views in spans of 2, of three tars."""
    assert push(kdcache, complete, tmp_path).code == 0
    return hub.repositories[NAME]


def push(kdcache: Run, path: Path, tmp_path: Path, *options: str) -> Outcome:
    """Publish a cache in a catalogue, and push it from there."""
    licences = Licences(data="CC-BY-4.0", weights="MIT", output="CC-BY-4.0")
    catalogue = open_catalogue(tmp_path / "catalogue", create=True)
    sent = publish(open_cache(path), catalogue, Publisher("Team A", licences))
    return kdcache("hub", "push", sent.published.place, NAME, *options)


def test_a_cache_comes_back_from_the_hub_as_it_went(
    kdcache: Run, pushed: Repository, complete: Path, tmp_path: Path
) -> None:
    outcome = kdcache("hub", "pull", NAME, tmp_path / "out", "--json")
    assert (outcome.code, outcome.stderr) == (0, "")
    value = outcome.value
    assert (value["spans_fetched"], value["spans_missing"], value["damaged"]) == (6, 0, [])
    assert objects_of(tmp_path / "out") == objects_of(complete)
    assert kdcache("verify", tmp_path / "out").code == 0


def test_a_push_says_where_it_went(kdcache: Run, hub: Hub, complete: Path, tmp_path: Path) -> None:
    outcome = push(kdcache, complete, tmp_path, "--json", "--private")
    repository = hub.repositories[NAME]
    assert outcome.value["address"] == f"{hub.address}/datasets/{NAME}"
    assert outcome.value["commit"] == repository.branches["main"]
    assert repository.private
    table = push(kdcache, complete, tmp_path).stdout
    assert f"{hub.address}/datasets/{NAME}" in table
    assert TOKEN not in table


def test_parts_are_pulled_one_by_one(
    kdcache: Run, pushed: Repository, complete: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = kdcache("hub", "pull", NAME, out, "--views", 4, "--tars", "1..2", "--json").value
    assert (first["spans_fetched"], first["spans_missing"]) == (4, 2)
    again = kdcache("hub", "pull", NAME, out, "--json").value
    assert (again["spans_fetched"], again["spans_there"], again["spans_missing"]) == (2, 4, 0)
    assert objects_of(out) == objects_of(complete)
    small = kdcache("hub", "pull", NAME, tmp_path / "small", "--views", 2, "--json").value
    assert (small["views"], small["spans_fetched"], small["spans_missing"]) == (2, 3, 0)


def test_a_revision_is_pulled(kdcache: Run, hub: Hub, complete: Path, tmp_path: Path) -> None:
    assert push(kdcache, complete, tmp_path, "--revision", "wide").code == 0
    check_refusal(kdcache("hub", "pull", NAME, tmp_path / "out"), 2, "holds no cache")
    assert kdcache("hub", "pull", NAME, tmp_path / "out", "--revision", "wide").code == 0
    check_refusal(
        kdcache("hub", "pull", NAME, tmp_path / "other", "--revision", "old"),
        *(2, f"dataset repository {NAME}: it has no revision old"),
    )


@pytest.mark.parametrize("name", [OBJECT, RECORD])
def test_a_tampered_file_is_refused_and_named_and_the_rest_is_pulled(
    name: str, kdcache: Run, pushed: Repository, complete: Path, tmp_path: Path
) -> None:
    out, sound = tmp_path / "out", objects_of(complete)[name]
    for data in (sound[:-1] + b"?", sound[:-1], b""):
        pushed.commit("main", "tampered", {name: data})
        outcome = kdcache("hub", "pull", NAME, out, "--json")
        assert outcome.code == 5
        assert outcome.stderr.splitlines()[-1].startswith("kdcache: hf://datasets/team/targets@")
        assert name in outcome.stderr.splitlines()[-1]
        assert "1 spans were refused, the others are here" in outcome.stderr
        assert [str(span) for span in open_cache(out).missing()] == ["1-0"]
    pushed.commit("main", "mended", {name: sound})
    assert kdcache("hub", "pull", NAME, out).code == 0
    assert objects_of(out) == objects_of(complete)


def test_tampered_metadata_are_refused_and_nothing_is_written(
    kdcache: Run, pushed: Repository, tmp_path: Path
) -> None:
    out, files = tmp_path / "out", dict(pushed.files() or {})
    for name in ("zarr.json", "uids/c/1/0", "rows/c/0"):
        pushed.commit("main", "tampered", {**files, name: files[name][:-1] + b"?"})
        check_refusal(kdcache("hub", "pull", NAME, out), 5, name)
        assert not out.exists()
    body = json.loads(files[MANIFEST])
    body["objects"]["../../evil"] = body["objects"]["zarr.json"]
    pushed.commit("main", "tampered", {**files, MANIFEST: json.dumps(body).encode()})
    check_refusal(kdcache("hub", "pull", NAME, out), 5, MANIFEST)
    assert not out.exists()
    assert not (tmp_path / "evil").exists()


def test_a_signature_is_asked_for_if_told(kdcache: Run, pushed: Repository, tmp_path: Path) -> None:
    signer = make_signer(tmp_path, "Team A")
    trusting(tmp_path, "Team A")
    options = ("--require-signature", "--trusted", tmp_path / "trusted")
    check_refusal(kdcache("hub", "pull", NAME, tmp_path / "out", *options), 6, SIGNATURE)
    assert not (tmp_path / "out").exists()
    files = pushed.files() or {}
    envelope = sign(files[MANIFEST], signer, where=tmp_path)
    pushed.commit("main", "signed", {SIGNATURE: envelope})
    outcome = kdcache("hub", "pull", NAME, tmp_path / "out", *options, "--json")
    assert outcome.code == 0, outcome.stderr
    assert "Team A" in outcome.value["signed_by"]


def test_help_has_examples_and_waits_for_no_library(kdcache: Run) -> None:
    for command in ("push", "pull"):
        assert f"kdcache hub {command} " in kdcache("hub", command, "--help").stdout
    code = "import sys, kdcache.cli.app as a; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout.split() == [b"False"]


def test_a_repository_that_is_not_there_is_one_sentence(
    kdcache: Run, hub: Hub, tmp_path: Path
) -> None:
    check_refusal(
        kdcache("hub", "pull", NAME, tmp_path / "out"),
        *(2, f"dataset repository {NAME}: the hub has none of this name"),
    )
    assert not (tmp_path / "out").exists()
