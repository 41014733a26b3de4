"""Claims about the digests that a span keeps of its layers, and about what they explain."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from kdcache.cache.layers import explain_difference
from kdcache.cache.layout import Span
from kdcache.cache.manifest import write_commit
from kdcache.cache.store import Cache, open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.pixels.witness import PIXEL_LIBRARIES, Layer, LayerDigests
from tests import tiny
from tests.pixels.altering import alter


def made_here(cache: Cache, dataset: Dataset, tar: int, view: int) -> dict[str, str]:
    """Return the digests of a tar's layers in one view, rendered without the cache."""
    blocks, source = [], dataset_source(dataset, cache.info.recipe)
    for rows in source.blocks(tar):
        blocks.append(LayerDigests())
        source.render(tar, rows, views=[view], layers=blocks[-1])
    return {
        layer: xxhash.xxh3_64_hexdigest(np.array([b.values()[layer] for b in blocks], "<u8"))
        for layer in ("draw", "decode", "resize", "steps")
    }


@pytest.mark.parametrize(("span_views", "batch_size"), [(1, 3), (2, 100), (4, 1)])
def test_a_span_keeps_the_digests_of_its_first_view(
    tmp_path: Path, dataset: Dataset, span_views: int, batch_size: int
) -> None:
    """Whatever its length, and however many images the teacher takes at once."""
    recipe = tiny.make_recipe(augment={"law": "trivial"}, mix={"law": "switch"})
    options = {"span_views": span_views, "batch_size": batch_size}
    cache = open_cache(tiny.precompute(tmp_path / "c", dataset, recipe, **options).path)
    kept = [cache.commit(span).layers for span in cache.grid.spans()]
    assert len(kept) == 3 * 4 // span_views
    assert all(set(layers) == {"draw", "decode", "resize", "steps"} for layers in kept)
    for span in cache.grid.spans():
        view = cache.grid.views(span)[0]
        assert cache.commit(span).layers == made_here(cache, dataset, span.tar, view)


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 images in two tars; rows 2, 3 and 11 are no images, row 7 is cut off."""
    root = tmp_path_factory.mktemp("spoiled")
    files = sorted(tiny.write_images(root / "images", 12, sides=(60, 90)).rglob("*.*"))
    for row in (2, 3, 11):
        files[row].write_bytes(b"no image")
    files[7].write_bytes(files[7].read_bytes()[:900])
    return tiny.pack_images(root / "images", root / "data", rows_per_tar=6)


@pytest.mark.parametrize("law", ["mixup", "cutmix", None])
def test_where_nothing_differs_no_layer_is_blamed_rows_without_targets_or_not(
    tmp_path: Path, spoiled: Dataset, law: str | None
) -> None:
    recipe = tiny.make_recipe(mix=law and {"law": law})
    cache = tiny.precompute(tmp_path / "c", spoiled, recipe, skip_bad=True)
    assert cache.totals().unusable == {0: (2, 3), 1: (1, 5)}
    source = dataset_source(spoiled, recipe)
    for span in cache.grid.spans():
        first = cache.grid.views(span)[0]
        found = explain_difference(cache, source, span)
        assert found.startswith(f"no layer differs in view {first} of this tar, the one whose")
        assert all(f"{name} " in found for name in (*PIXEL_LIBRARIES, "kdcache"))
        assert found.endswith("other pixels; precompute a new cache here")


@pytest.mark.parametrize("layer", sorted(set(Layer) - {Layer.STEPS}))
def test_the_altered_layer_is_blamed_rows_without_targets_or_not(
    tmp_path: Path, spoiled: Dataset, monkeypatch: pytest.MonkeyPatch, layer: Layer
) -> None:
    cache = tiny.precompute(tmp_path / "c", spoiled, tiny.make_recipe(), skip_bad=True)
    source = dataset_source(spoiled, cache.info.recipe)
    alter(monkeypatch, layer)
    for span in cache.grid.spans():
        found = explain_difference(cache, source, span)
        assert found.startswith(f"the first layer that differs is {layer} (")


def test_a_record_that_tells_of_no_layers_blames_none(tmp_path: Path, dataset: Dataset) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe())
    span = Span(0, 0)
    commit = cache.commit(span)
    (cache.path / span.commit_name).unlink()
    write_commit(cache.folder, replace(commit, layers={"draw": commit.layers["draw"]}))
    found = explain_difference(
        open_cache(cache.path), dataset_source(dataset, cache.info.recipe), span
    )
    assert found.startswith("which layer cannot be told, since the commit record lacks digests")
