import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.layout import Span
from kdcache.cache.manifest import write_commit
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.pixels.witness import Layer
from kdcache.replay.blocks import BlockRenderer
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.report.contact import Sheet, draw_sheets, make_sheets
from kdcache.report.gallery import gallery, what_is_wrong
from tests import tiny
from tests.pixels.altering import alter
from tests.report.showing import EVIL, inspect, mixed_recipe, odd_dataset
from tests.report.test_page import Page


def _pixels(address: str) -> NDArray[np.uint8]:
    data = base64.b64decode(address.split(",")[1], validate=True)
    return np.asarray(Image.open(io.BytesIO(data)))


def test_pictures_are_what_the_student_s_stream_hands_over(
    tmp_path: Path, dataset: Dataset
) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, mixed_recipe())
    sheets = make_sheets(inspect(cache, dataset), tar=1, rows=range(4, 8), views=[2, 3])
    seen = {}
    for batch in replay_stream(cache, dataset, StreamOptions(5, num_epochs=4, shuffle=False)):
        for n in range(len(batch)):
            name = int(batch.tars[n]), int(batch.rows[n]), int(batch.views[n])
            label = int(batch.labels[n]), int(batch.partner_labels[n])
            seen[name] = batch.pixels[n].permute(1, 2, 0).numpy(), float(batch.weights[n]), *label
    laws = set()
    for sheet in sheets:
        for view in sheet.views:
            pixels, weight, label, partner = seen[1, sheet.row, view.view]
            assert np.array_equal(_pixels(view.student), pixels)
            assert np.array_equal(_pixels(view.teacher), pixels)
            assert (view.difference, view.unproven, view.amplified) == (0, (), None)
            assert view.share == pytest.approx(weight)
            assert sheet.whole.label == f"class{label}"
            if view.partner is not None:
                laws.add(view.law)
                assert view.partner.label == f"class{partner}"
            assert (view.partner is None) == (weight == 1)
    assert laws == {"mixup", "cutmix"}


def test_boxes_are_of_the_views_and_lie_within_the_image(tmp_path: Path, dataset: Dataset) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, mixed_recipe())
    (sheet,) = make_sheets(inspect(cache, dataset), tar=0, rows=[3], views=[0, 1])
    assert [box.view for box in sheet.whole.boxes] == [0, 1]
    partners = [view.partner for view in sheet.views if view.partner is not None]
    for whole in (sheet.whole, *partners):
        for box in whole.boxes:
            assert 0 <= box.left < box.left + box.width <= whole.width
            assert 0 <= box.top < box.top + box.height <= whole.height


def test_keys_are_those_of_the_tars(tmp_path: Path) -> None:
    dataset = odd_dataset(tmp_path, 10)
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe())
    sheets = make_sheets(inspect(cache, dataset), tar=0, rows=range(4), views=[0])
    assert sheets[0].whole.key.startswith(EVIL)
    assert len({sheet.whole.key for sheet in sheets}) == 4


def test_a_view_that_is_made_otherwise_here_is_told_with_its_layer(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = inspect(cache, dataset)
    alter(monkeypatch, Layer.RESIZE)
    (sheet,) = make_sheets(seen, tar=0, rows=[2], views=[1])
    assert [view.unproven for view in sheet.wrong] == [("teacher", "student")]
    assert "the first layer that differs is resize" in sheet.reason
    (line,) = what_is_wrong([sheet])
    assert line.startswith("tar 0, row 2, view 1: unlike its witness; the first layer that")
    assert "differ from the witness" in draw_sheets([sheet])
    commit = cache.commit(Span(0, 0))
    (cache.path / Span(0, 0).commit_name).unlink()
    write_commit(cache.folder, replace(commit, versions={"kdcache": "\x1b[31m"}))
    seen.cache.forget()
    (sheet,) = make_sheets(seen, tar=0, rows=[2], views=[1])
    assert "kdcache \\x1b[31m there" in sheet.reason


def test_a_student_that_sees_other_pixels_than_the_renderer_makes_is_shown(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, made = inspect(cache, dataset), BlockRenderer._render

    def other(self: BlockRenderer, request: object) -> object:
        block = made(self, request)  # type: ignore[arg-type]
        assert block.pixels is not None
        block.pixels[..., 5, 5, 0] ^= 4
        return block

    monkeypatch.setattr(BlockRenderer, "_render", other)
    (sheet,) = make_sheets(seen, tar=0, rows=[2], views=[1])
    (view,) = sheet.wrong
    assert (view.difference, view.unproven) == (4, ("student",))
    assert view.amplified is not None
    assert np.argwhere(_pixels(view.amplified)).tolist() == [[5, 5, 0]]
    assert what_is_wrong([sheet])[0].startswith("tar 0, row 2, view 1: difference 4; ")


def test_where_the_teacher_sees_another_size_each_is_compared_with_its_own(
    tmp_path: Path, dataset: Dataset
) -> None:
    recipe = mixed_recipe(teacher={"size": 18})
    cache = tiny.precompute(tmp_path / "c", dataset, recipe)
    sheets = make_sheets(inspect(cache, dataset), tar=0, rows=range(4), views=[0, 1])
    for sheet in sheets:
        assert not sheet.wrong
        for view in sheet.views:
            assert view.sizes == (18, 12)
            assert _pixels(view.teacher).shape == (18, 18, 3)
            assert _pixels(view.student).shape == (12, 12, 3)


def test_an_image_without_targets_is_said_to_have_none(tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "images", 6)
    sorted(folder.rglob("*.*"))[2].write_bytes(b"no image")
    dataset = tiny.pack_images(folder, tmp_path / "data")
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), skip_bad=True)
    sheets = make_sheets(inspect(cache, dataset), tar=0, rows=[1, 2], views=[0, 1])
    assert [len(sheet.views) for sheet in sheets] == [2, 0]
    assert "has no targets" in draw_sheets(sheets)


def test_the_gallery_is_fixed_by_its_seed(tmp_path: Path, dataset: Dataset) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, mixed_recipe())

    def places(seed: int) -> dict[str, list[tuple[int, int]]]:
        found, damage = gallery(inspect(cache, dataset, seed=0), images=5, seed=seed)
        assert damage == []
        return {title: [(s.tar, s.row) for s in sheets] for title, sheets in found.items()}

    one = places(1)
    assert one == places(1)
    assert one["Images"] != places(2)["Images"]
    assert [len({*those}) for those in one.values()] == [5, 4, 4]


def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    dataset = odd_dataset(tmp_path)
    cache = tiny.precompute(tmp_path / "c", dataset, mixed_recipe())
    sheets = [
        sheet
        for tar in range(3)
        for sheet in make_sheets(inspect(cache, dataset), tar=tar, rows=[0, 1], views=[0])
    ]
    html = draw_sheets(sheets)
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "b"}
    assert all(not name.startswith("on") for _, at in page.elements for name in at)
    _assert_keys(page, sheets)
    assert not any(letter in html for letter in "\u202e\x1b\t")


def _assert_keys(page: Page, sheets: list[Sheet]) -> None:
    keys = [attributes["data-key"] for attributes in page.all("article")]
    assert keys == [sheet.whole.key for sheet in sheets]


def test_a_damaged_witness_is_named_and_the_rest_is_shown(
    tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    del complete
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), num_views=2)
    for path in (tmp_path / "c/witness/c/0").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"x")
    found, damage = gallery(inspect(open_cache(cache.path), dataset), images=24, seed=0)
    assert damage
    assert all("witness" in text and text.startswith("tar 0, ") for text in damage)
    assert {sheet.tar for sheet in found["Images"]} == {1, 2}
