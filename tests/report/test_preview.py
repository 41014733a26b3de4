"""Claims about the preview of a recipe: the very pixels of views, boxes where crops are."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.report.preview import CELL, GAP, LINE, _mixed, draw_preview
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
    factor, wide = CELL // SIZE, CELL + GAP
    assert sheet.shape[1] == GAP + 4 * wide
    tops = _tops(sheet)
    for row, y in zip(rows, tops, strict=True):
        block = next(b for b in source.blocks(0) if b.start <= row < b.stop)
        pixels = source.render(0, block, views=views).pixels_GNHW3[:, row - block.start]
        for column, view in enumerate(pixels):
            x = GAP + (column + 1) * wide
            shown = sheet[y : y + CELL : factor, x : x + CELL : factor]
            np.testing.assert_array_equal(shown, view)


def _tops(sheet: NDArray[np.uint8]) -> list[int]:
    """Return where lines begin: after GAP white rows, the first picture's full width of colour."""
    column = sheet[:, GAP + CELL + GAP : GAP + 2 * CELL + GAP]
    full = (column != 255).any(-1).mean(axis=1) > 0.9
    return [y for y in range(1, len(full)) if full[y] and not full[y - 1]]


def test_long_captions_stay_in_their_cells(dataset: Dataset) -> None:
    """Ten steps a view: no text between the columns, and none is cut at the right edge."""
    chance = {"probability": 1.0}
    names = ("grey", "blur", "solarize", "posterize", "equalize", "autocontrast", "erase")
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    recipe = tiny.make_recipe(size=SIZE, jitter=jitter, **dict.fromkeys(names, chance))
    sheet = np.asarray(draw_preview(dataset_source(dataset, recipe), tar=0, rows=[0], views=[0, 1]))
    assert sheet.shape[0] > GAP + CELL + 5 * LINE
    for column in range(1, 4):
        gap = sheet[:, column * (CELL + GAP) : column * (CELL + GAP) + GAP]
        assert (gap == 255).all()


def test_a_mixed_view_names_the_key_of_its_partner(dataset: Dataset) -> None:
    source = dataset_source(dataset, tiny.make_recipe(size=SIZE, block=4, mix={"law": "mixup"}))
    (params,) = source.render(0, slice(4, 6), views=[0]).params
    text = _mixed(source, 0, 4, params=params, row=0)
    assert text.startswith("mixup: ")
    assert text.endswith(f" of {source.key(0, 5)}")


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
    red = (sheet == (0xCC, 0, 0)).all(-1).any(axis=1)
    first, last = np.flatnonzero(red)[[0, -1]]
    tops = _tops(sheet)
    assert len(tops) == 2, "two images can be used"
    assert tops[0] + CELL < first < last < tops[1]
