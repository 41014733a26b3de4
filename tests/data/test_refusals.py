"""Claims about datasets that other processes and hands have touched."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache.data.document import load_dataset
from kdcache.data.pack import PackOptions, open_source, pack
from kdcache.errors import CorruptError, DataError, UsageError
from kdcache.files import alone


@pytest.fixture
def arrays(tmp_path: Path) -> str:
    """Nine grey images of three classes."""
    images, labels = np.zeros((9, 8, 8), np.uint8), np.arange(9) % 3
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    return str(tmp_path / "a.npz")


def hold(folder: Path) -> None:
    folder.mkdir()
    with alone(folder, "held"):
        (folder / "held").touch()
        time.sleep(60)


def test_a_second_pack_leaves_the_first_alone(arrays: str, tmp_path: Path) -> None:
    partial = tmp_path / ".out.kdcache-partial"
    other = multiprocessing.get_context("fork").Process(target=hold, args=(partial,))
    other.start()
    try:
        while not (partial / "held").exists():
            time.sleep(0.01)
        with pytest.raises(UsageError, match="another process is packing there"):
            pack(open_source(arrays), tmp_path / "out", options=PackOptions())
        assert (partial / "held").exists()
        assert not (tmp_path / "out").exists()
    finally:
        other.kill()
        other.join()
    dataset = pack(open_source(arrays), tmp_path / "out", options=PackOptions()).dataset
    assert dataset.num_samples == 9
    assert not partial.exists()
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_classes": 2}, CorruptError),
        ({"num_classes": 0}, CorruptError),
        ({"num_classes": -4}, CorruptError),
        ({"classes": ["one"]}, CorruptError),
        ({"root": "a\0b"}, DataError),
    ],
)
def test_classes_edited_by_hand_must_hold_the_labels(
    arrays: str, tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    pack(open_source(arrays), tmp_path / "out", options=PackOptions())
    path = tmp_path / "out/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(error, match=r"dataset\.json"):
        load_dataset(path)


def test_a_class_folder_out_of_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Path(f"{tmp_path}/photos/\udcff").mkdir()
    with pytest.raises(DataError, match="not in UTF-8"):
        open_source(str(tmp_path / "photos"))
