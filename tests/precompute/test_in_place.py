"""Claims about targets of images that stay in a store."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit
from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.errors import DataError, KdcacheError
from kdcache.precompute.span import run_spans
from tests import tiny
from tests.serving import Served, served


@pytest.fixture
def server(tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("KDCACHE_DISK_CACHE", str(tmp_path / "disk"))
    shutil.copytree(dataset.root, tmp_path / "web/data")
    with served(tmp_path / "web") as found:
        yield found


def _run(
    path: Path, server: Served, num_workers: int
) -> tuple[Cache, list[Span], dict[Span, KdcacheError]]:
    stored = load_dataset(server.location / "data")
    job = replace(tiny.make_job(path, stored, tiny.make_recipe()), num_workers=num_workers)
    done: list[Span] = []
    errors: dict[Span, KdcacheError] = {}

    def committed(commit: Commit) -> None:
        done.append(Span(commit.tar, commit.run))

    def failed(span: Span, error: KdcacheError, of_images: bool) -> None:
        assert not of_images
        errors[span] = error

    run_spans(job, job.cache.missing(), committed=committed, failed=failed)
    return job.cache, done, errors


def _arrays(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in tiny.tree(path).items() if "/c/" in name}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_targets_are_those_of_local_images(
    server: Served, tmp_path: Path, complete: Path, num_workers: int
) -> None:
    cache, done, errors = _run(tmp_path / "made", server, num_workers)
    assert (len(done), errors) == (6, {})
    assert _arrays(cache.path) == _arrays(complete)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_tar_that_is_gone_fails_its_spans_alone(
    server: Served, tmp_path: Path, dataset: Dataset, num_workers: int
) -> None:
    (server.root / "data" / dataset.tars[1].name).unlink()
    cache, done, errors = _run(tmp_path / "made", server, num_workers)
    assert list(errors) == cache.missing() == cache.grid.spans_of(1)
    assert len(done) == 4
    for error in errors.values():
        assert isinstance(error, DataError)
        assert str(error).startswith(f"{server.location}/data/{dataset.tars[1].name}: missing")


def test_an_image_that_cannot_be_used_is_named_by_its_key(
    server: Served, tmp_path: Path, dataset: Dataset
) -> None:
    images = tmp_path / "images"
    tiny.write_images(images, 8)
    path = next(images.rglob("00003.png"))
    path.write_bytes(path.read_bytes()[:60])
    tiny.pack_images(images, server.root / "bad")
    stored = load_dataset(server.location / "bad")
    job = tiny.make_job(tmp_path / "made", stored, tiny.make_recipe())
    found: list[KdcacheError] = []
    run_spans(
        replace(job, num_workers=1),
        job.cache.missing()[:1],
        committed=lambda _: None,
        failed=lambda span, error, of_images: found.append(error),
    )
    assert str(found[0]).startswith(f"{server.location}/bad/000000.tar, key class3/00003: ")
