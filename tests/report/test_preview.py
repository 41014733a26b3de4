"""Claims about the preview of a recipe: the very pixels of views, boxes where crops are."""

from pathlib import Path

import numpy as np
import pytest

from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.report.preview import CELL, GAP, LINE, draw_preview
from tests import tiny

SIZE = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.make_dataset(tmp_path_factory.mktemp("preview"), count=6, rows_per_tar=6)


def test_a_sheet_shows_every_view_pixel_by_pixel(dataset: Dataset) -> None:
    tables = {"augment": {"law": "trivial"}, "mix": {"law": "switch"}}
    source = dataset_source(dataset, tiny.make_recipe(size=SIZE, block=4, **tables))
    rows, views = [1, 5], [3, 0, 7]
    sheet = np.asarray(draw_preview(source, tar=0, rows=rows, views=views))
    factor, wide, tall = CELL // SIZE, CELL + GAP, CELL + 3 * LINE + GAP
    assert sheet.shape == (GAP + 2 * tall, GAP + 4 * wide, 3)
    for line, row in enumerate(rows):
        block = next(b for b in source.blocks(0) if b.start <= row < b.stop)
        pixels = source.render(0, block, views=views).pixels_GNHW3[:, row - block.start]
        for column, view in enumerate(pixels):
            y, x = GAP + line * tall, GAP + (column + 1) * wide
            shown = sheet[y : y + CELL : factor, x : x + CELL : factor]
            np.testing.assert_array_equal(shown, view)


def test_boxes_are_drawn_where_the_crops_are(dataset: Dataset) -> None:
    """Two sheets whose recipes differ in the crop differ in the whole image's cell alone."""
    cells = []
    for area in ([0.1, 0.11], [0.8, 0.9]):
        recipe = tiny.make_recipe(size=SIZE, crop={"law": "inception", "area": area})
        sheet = draw_preview(dataset_source(dataset, recipe), tar=0, rows=[0], views=[0])
        cells.append(np.asarray(sheet)[GAP : GAP + CELL, GAP : GAP + CELL])
    blue = [(cell == (0x44, 0x77, 0xAA)).all(-1) for cell in cells]
    extents = [np.ptp(np.argwhere(mask), axis=0) + 1 for mask in blue]
    assert (extents[0] < 0.6 * CELL).all()
    assert (extents[1] > 0.6 * extents[1].max()).all()
    assert extents[1].max() > 1.5 * extents[0].max()


def test_an_image_that_cannot_be_used_says_why(dataset: Dataset, tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "images", 3)
    sorted(folder.rglob("*.*"))[1].write_bytes(b"not an image")
    broken = tiny.pack_images(folder, tmp_path / "data")
    source = dataset_source(broken, tiny.make_recipe(size=SIZE))
    sheet = np.asarray(draw_preview(source, tar=0, rows=[0, 1, 2], views=[0]))
    tall = CELL + 3 * LINE + GAP
    red = (sheet == (0xCC, 0, 0)).all(-1)
    assert red[GAP + tall : GAP + 2 * tall].any()
    assert not red[: GAP + tall].any()
