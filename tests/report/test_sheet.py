import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.store import Cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.report.sheet import Card, contact_sheet, png_address
from tests import tiny


def _pixels(address: str) -> NDArray[np.uint8]:
    head, data = address.split(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def _sheet(
    cache: Cache, dataset: Dataset, tar: int, rows: list[int], views: list[int]
) -> list[list[Card]]:
    source = dataset_source(dataset, cache.info.recipe)
    return contact_sheet(cache, source, tar=tar, rows=rows, views=views)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_picture_is_its_pixels(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(_pixels(png_address(pixels)), pixels)


@pytest.mark.parametrize("law", ["mixup", "cutmix", "switch"])
def test_the_pictures_are_those_that_the_student_sees(
    tmp_path: Path, dataset: Dataset, law: str
) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(mix={"law": law}))
    rows, views = [0, 3, 4, 9], [0, 2, 3]
    sheet = _sheet(cache, dataset, 1, rows, views)
    assert [len(cards) for cards in sheet] == [3, 3, 3, 3]
    options = StreamOptions(batch_size=5, num_epochs=4, shuffle=False)
    seen = {}
    for batch in replay_stream(cache, dataset, options):
        for n in range(len(batch)):
            name = int(batch.tars[n]), int(batch.rows[n]), int(batch.views[n])
            seen[name] = (batch.pixels[n].permute(1, 2, 0).numpy(), float(batch.weights[n]))
    for row, cards in zip(rows, sheet, strict=True):
        for view, card in zip(views, cards, strict=True):
            pixels, weight = seen[1, row, view]
            assert np.array_equal(_pixels(card.picture), pixels)
            assert card.caption.startswith(f"row {row}, view {view}")
            mixed = f", mixed with {1 - weight:.0%} of row " if weight < 1 else ""
            assert card.caption[len(f"row {row}, view {view}") :].startswith(mixed)
    assert any("mixed with" in card.caption for cards in sheet for card in cards)


@pytest.mark.parametrize("encoding", ["topk:3", "topk:2", "dense:f2"])
def test_the_classes_are_the_three_likeliest_of_the_stored_target(
    tmp_path: Path, dataset: Dataset, encoding: str
) -> None:
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), encoding=encoding)
    rows, views = [1, 8], [0, 3]
    sheet = _sheet(cache, dataset, 0, rows, views)
    for row, cards in zip(rows, sheet, strict=True):
        for view, card in zip(views, cards, strict=True):
            expected = _likeliest(cache, row, view)
            found = [(name, pytest.approx(share, abs=1e-6)) for name, share in card.top]
            assert [name for name, _ in expected][:2] == [name for name, _ in found][:2]
            assert [share for _, share in found] == [share for _, share in expected]
            if encoding != "topk:2":  # there the third is any of those not kept
                assert expected[2][0] == found[2][0]


def _likeliest(cache: Cache, row: int, view: int) -> list[tuple[str, float]]:
    """Return the classes and probabilities of a row, worked out from the stored numbers."""
    fields = {k: v[row].numpy().astype(float) for k, v in cache.read_tile(0, view).fields.items()}
    probs = np.zeros(5)
    if "logits" in fields:
        probs = np.exp(fields["logits"]) / np.exp(fields["logits"]).sum()
    else:
        classes = fields["indices"].astype(int)
        kept = np.exp(-32 * (fields["values"] / 255) ** 2)
        tail = np.exp(fields["tails"][0])
        probs[:] = tail / (5 - len(classes))
        probs[classes] = kept / kept.sum() * (1 - tail)
    order = np.argsort(-probs, kind="stable")[:3]
    return [(f"class{c}", float(probs[c])) for c in order]


def test_classes_without_names_are_numbered(tmp_path: Path, dataset: Dataset) -> None:
    teacher = tiny.make_teacher(num_classes=2)
    images = tiny.write_images(tmp_path / "images", 4)
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(images.rglob("*.*"))):
        path.rename(tmp_path / "flat" / f"{number}{path.suffix}")
    unlabelled = tiny.pack_images(tmp_path / "flat", tmp_path / "data")
    cache = tiny.precompute(
        tmp_path / "c", unlabelled, tiny.make_recipe(), teacher=teacher, encoding="topk:1"
    )
    ((card,),) = _sheet(cache, unlabelled, 0, [2], [1])
    assert {name for name, _ in card.top} == {"0", "1"}
    assert sum(share for _, share in card.top) == pytest.approx(1, abs=1e-3)


def test_rows_beyond_the_tar_are_left_out(cache: Cache, dataset: Dataset) -> None:
    """The third tar has four rows."""
    sheet = _sheet(cache, dataset, 2, [3, 4, 100], [0])
    assert [[card.caption.split(",")[0] for card in cards] for cards in sheet] == [["row 3"]]


def test_unusable_rows_are_left_out(tmp_path: Path) -> None:
    folder = tiny.write_images(tmp_path / "images", 6)
    sorted(folder.rglob("*.*"))[2].write_bytes(b"no image")
    dataset = tiny.pack_images(folder, tmp_path / "data")
    cache = tiny.precompute(tmp_path / "c", dataset, tiny.make_recipe(), skip_bad=True)
    sheet = _sheet(cache, dataset, 0, [1, 2, 3], [0, 1])
    assert [cards[0].caption.split(",")[0] for cards in sheet] == ["row 1", "row 3"]
