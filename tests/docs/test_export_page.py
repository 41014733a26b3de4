"""docs/how-to/export.md, run as it stands."""

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.cli.conftest import Run
from tests.cli.making import write_recipe
from tests.docs.blocks import find_blocks, lines_of
from tests.docs.running import run_here

PAGE = "docs/how-to/export.md"
STUDENT = ["--student", "tests.student.nets:small"]  # code is imported only when it is named


def test_the_code_of_the_page_names_what_an_exported_student_sees(
    place: Path, kdcache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(place / "recipe.toml", tiny.make_recipe(mix=None))
    train = ["train", "--data", "build/train", "--learn", "labels", "--recipe", recipe, *STUDENT]
    size = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--out", "build/run"]
    assert kdcache(*train, *size).code == 0
    run_here(kdcache, lines_of(PAGE), more={"export": STUDENT}, monkeypatch=monkeypatch)
    blocks = find_blocks(PAGE, "python")
    assert [block.heading for block in blocks] == ["PyTorch", "ONNX Runtime"]
    said = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block.text, block.page, "exec"), names)
        assert names["logits"].shape == (1, tiny.NUM_CLASSES)
        assert (names["size"], names["known"]["takes"]) == (12, "pixels")
        said.append(names["best"])
    assert said[0] == said[1]
    assert said[0][0] in [f"class{number}" for number in range(tiny.NUM_CLASSES)]
