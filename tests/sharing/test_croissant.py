"""Croissant metadata: valid without a network, and readable from the published folder."""

import json
import logging
import socket
from pathlib import Path
from typing import Any

import mlcroissant as mlc
import pytest

from kdcache.cache.published import PublishedObject, manifest_digest
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, MismatchError
from kdcache.sharing.croissant import croissant
from tests.sharing.described import (
    LICENCES,
    attributes_of,
    contribution,
    manifest_of,
    publish_by_hand,
)
from tests.tiny import make_dataset, make_recipe, precompute, precompute_first

# Of rdflib, which mlcroissant asks.
pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def cache(complete: Path) -> Cache:
    return open_cache(complete)


def load(source: str | dict[str, Any], log: pytest.LogCaptureFixture) -> mlc.Dataset:
    """Return what mlcroissant reads, which must find nothing to say."""
    log.clear()
    with log.at_level(logging.WARNING):
        dataset = mlc.Dataset(jsonld=source)
    issues = dataset.metadata.ctx.issues
    assert (issues.errors, issues.warnings, log.records) == (set(), set(), [])
    return dataset


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing reach a network."""

    def refuse(*values: object) -> None:
        raise AssertionError("asks a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("encoding", ["topk:3", "packed:3", "adaptive:0.01", "dense:u1"])
def test_metadata_are_valid(
    encoding: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = precompute(
        tmp_path / "cache", make_dataset(tmp_path, 6), make_recipe(), encoding=encoding
    )
    data = croissant(manifest_of(made), attributes_of(made))
    sets = {each.name for each in load(json.loads(data), caplog).metadata.file_sets}
    assert sets == {
        "commits",
        *("uids", "contents", "rows", "witness"),
        *(spec.name for spec in made.info.specs),
    }


def test_what_is_described_can_be_read_from_the_folder(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = publish_by_hand(cache, tmp_path)
    dataset = load(str(folder / "croissant.json"), caplog)
    tars = list(dataset.records("tars"))
    assert [(t["tars/name"].decode(), int(t["tars/num_rows"])) for t in tars] == [
        (tar["name"], tar["num_rows"]) for tar in cache.info.dataset["tars"]
    ]
    spans = {(int(s["spans/tar"]), int(s["spans/run"])) for s in dataset.records("spans")}
    assert spans == set(cache.grid.spans())
    arrays = {row["arrays/name"]: row for row in dataset.records("arrays")}
    for name, row in arrays.items():
        document = json.loads((folder / name / "zarr.json").read_bytes())
        assert row["arrays/shape"] == " x ".join(map(str, document["shape"]))
        assert row["arrays/data_type"] == document["data_type"]
        assert row["arrays/meaning"] != name


def test_files_have_the_sizes_and_digests_of_the_manifest(cache: Cache, tmp_path: Path) -> None:
    folder = publish_by_hand(cache, tmp_path)
    body = json.loads((folder / "croissant.json").read_bytes())
    files = {f["@id"]: f for f in body["distribution"] if f["@type"] == "cr:FileObject"}
    assert set(files) == {"manifest.json", "zarr.json"}
    for name, file in files.items():
        data = (folder / name).read_bytes()
        assert (file["sha256"], file["contentSize"]) == (manifest_digest(data), f"{len(data)} B")


def test_thousands_of_objects_are_a_few_patterns(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    entry = PublishedObject(size_bytes=1, sha256="0" * 64)
    manifest = manifest_of(cache)
    many = {f"indices/c/{tar}/0/0/0": entry for tar in range(20_000)}
    grown = manifest.model_copy(update={"objects": {**manifest.objects, **many}})
    data = croissant(grown, attributes_of(cache))
    assert len(data) < 20_000
    load(json.loads(data), caplog)


def test_licences_are_addresses_of_spdx_where_it_lists_them(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.loads(croissant(manifest_of(cache), attributes_of(cache)))
    assert body["license"] == LICENCES.output
    listed = {part["name"]: part["license"] for part in body["isBasedOn"]}
    assert listed["images: photos"] == "https://spdx.org/licenses/CC-BY-4.0.html"
    none = LICENCES.model_copy(update={"data": None, "output": None})
    body = json.loads(croissant(manifest_of(cache, licences=none), attributes_of(cache)))
    assert body["license"] == body["isBasedOn"][0]["license"] == "NOASSERTION"
    load(body, caplog)


def test_who_when_and_what_it_cost_are_said(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    parts = (
        contribution(who="Team B", when="2026-03-01T23:30:00-02:00", device_hours=1.25),
        contribution(who="Team A", when="2026-01-02T00:00:00Z"),
    )
    body = json.loads(croissant(manifest_of(cache, contributions=parts), attributes_of(cache)))
    assert [each["name"] for each in body["creator"]] == ["Team A", "Team B"]
    assert (body["datePublished"], body["dateModified"]) == ("2026-01-02", "2026-03-02")
    assert "1.75 device-hours" in body["rai:dataCollection"]
    assert "code at commit " + "c" * 40 in body["rai:machineAnnotationTools"]
    load(body, caplog)


def test_a_cost_that_is_not_known_of_all_is_not_said(cache: Cache) -> None:
    parts = (contribution(), contribution(device_hours=None, commit=None, when="yesterday"))
    body = json.loads(croissant(manifest_of(cache, contributions=parts), attributes_of(cache)))
    assert "device-hours" not in body["rai:dataCollection"]
    assert body["datePublished"] == "2026-01-02"


def test_equal_caches_give_equal_bytes(cache: Cache) -> None:
    manifest, attributes = manifest_of(cache), attributes_of(cache)
    turned = manifest.model_copy(update={"objects": dict(reversed(manifest.objects.items()))})
    assert croissant(manifest, attributes) == croissant(turned, dict(reversed(attributes.items())))


def test_any_text_of_others_stays_a_text(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    text = '"}],"@id":"x\\é@context'
    manifest = manifest_of(cache, contributions=(contribution(who=text, versions={text: text}),))
    body = load(json.loads(croissant(manifest, attributes_of(cache))), caplog)
    assert [each.name for each in body.metadata.creators] == [text]


def test_a_part_of_a_cache_says_how_much_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = precompute_first(tmp_path / "cache", make_dataset(tmp_path), make_recipe(), spans=2)
    manifest = manifest_of(part)
    body = json.loads(croissant(manifest, attributes_of(part)))
    assert "; 2 spans of the views are there" in body["description"]
    assert body["version"] == "1.4.2"
    load(body, caplog)


def test_attributes_of_another_cache_are_refused(cache: Cache) -> None:
    attributes = attributes_of(cache)
    with pytest.raises(CorruptError, match="differ from their digest"):
        croissant(manifest_of(cache), {**attributes, "num_classes": 7})
    with pytest.raises(MismatchError, match="publish it again"):
        croissant(manifest_of(cache).model_copy(update={"cache": "0" * 64}), attributes)
