"""Claims about files that anybody may have written: they name no other files, and end."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdcache.errors import KdcacheError, UsageError
from kdcache.models.hf_inputs import inputs_of, timm_inputs_of
from kdcache.models.source import Inputs
from kdcache.models.specs import build_network, open_model
from kdcache.models.weights import read_weights
from kdcache.recipe.schema import load_recipe
from kdcache.targets.labels import load_labels
from tests import tiny
from tests.models.planting import Bomb


def write_config(folder: Path, **values: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return f"hf:{folder}"


WRAPPER = {"model_type": "timm_wrapper", "architecture": "test_resnet", "num_classes": 5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_args": {"checkpoint_path": "BOMB"}}, "elsewhere|model_args"),
        ({"model_args": {"pretrained": True}}, "elsewhere|model_args"),
        ({"model_args": {"block_args": {"x": 1}}}, "model_args"),
        ({"model_args": ["checkpoint_path"]}, "model_args"),
        ({"architecture": "hf-hub:timm/resnet18.a1_in1k"}, "expected a model of timm"),
        ({"architecture": "local-dir:/somewhere"}, "expected a model of timm"),
        ({"architecture": 7}, "expected a model of timm"),
        (
            {"model_type": "vit", "backbone_config": {"use_pretrained_backbone": True}},
            "weights from elsewhere",
        ),
    ],
)
def test_a_config_names_no_weights_of_other_places(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    pytest.importorskip("transformers")
    marker, bomb = tmp_path / "mark", tmp_path / "bomb.pth"
    torch.save(Bomb(str(marker)), bomb)
    text = json.dumps({**WRAPPER, **changes}).replace("BOMB", str(bomb))
    spec = write_config(tmp_path / "hf", **json.loads(text))
    for ask in (lambda: open_model(spec), lambda: build_network(spec, num_classes=5)):
        with pytest.raises(UsageError, match=words):
            ask()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_parts_of_weights_lie_in_their_folder(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    spec = write_config(tmp_path / "hf", model_type="vit")
    index = tmp_path / "hf" / f"{name}.index.json"
    for outside in ("../bomb.bin", "/etc/passwd", "a/b.safetensors", 7):
        index.write_text(json.dumps({"weight_map": {"a": outside}}))
        with pytest.raises(UsageError, match="not beside it"):
            open_model(spec)


@pytest.mark.parametrize(
    "settings",
    [
        {"input_size": 5}, {"input_size": []}, {"input_size": "abc"}, {"input_size": [3, 0, 0]},
        {"mean": 5, "std": "abc"}, {"mean": "abc"}, {"mean": ["a", "b", "c"]},
        {"mean": [True, False, None]}, {"std": [0, 1, 1]}, {"std": [1e-9, 1, 1]},
        {"mean": [1e400, 0, 0]}, {"crop_pct": "x"}, {"crop_pct": 5}, {"crop_pct": -1},
        {"crop_pct": 0}, {"crop_pct": float("nan")}, {"interpolation": ["x"]},
        {"interpolation": "a\x1b[31m"},
    ],
)  # fmt: skip
def test_settings_of_images_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="here: cannot be understood"):
        timm_inputs_of(settings, where="here")


@pytest.mark.parametrize(
    "settings",
    [
        {"size": float("inf")}, {"size": 0}, {"image_mean": [10**400] * 3, "image_std": [1] * 3},
        {"size": 8, "crop_pct": float("nan")}, {"resample": {"a": 1}}, {"resample": -1},
        {"resample": 99}, {"size": {"height": "x", "width": "y"}},
    ],
)  # fmt: skip
def test_settings_of_processors_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="here: cannot be understood"):
        inputs_of(settings, where="here")


def test_what_a_source_says_is_checked() -> None:
    with pytest.raises(ValueError, match="size"):
        Inputs(size=224.5)  # type: ignore[arg-type]
    assert Inputs(size=224, crop=0.875, mean=(0, 0, 0), std=(1, 1, 1)).size == 224


def test_deep_json_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UsageError, match="cannot be read"):
        open_model(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"a":' + "[" * 900 + "]" * 900 + "}")
    with pytest.raises(UsageError):
        open_model(f"hf:{tmp_path}")
    labels = tmp_path / "labels.toml"
    labels.write_text("[classes]\n" + ".".join("a" * 20_000) + " = [1]\n")
    with pytest.raises(UsageError):
        load_labels(labels)


@pytest.mark.parametrize("name", ["raft_large", "fasterrcnn_resnet50_fpn", "fcn_resnet50", "s3d"])
def test_torchvisions_other_models_are_no_classifiers_of_images(name: str) -> None:
    for ask in (
        lambda: open_model(f"torchvision:{name}"),
        lambda: build_network(f"torchvision:{name}", num_classes=5),
    ):
        with pytest.raises(UsageError, match=f"torchvision has no model '{name}'"):
            ask()


@pytest.mark.parametrize("kind", ["fifo", "endless"])
def test_what_never_ends_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pipe"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    for read in (read_weights, load_labels, load_recipe):
        with pytest.raises(KdcacheError, match="not a regular file"):
            read(path)
    if kind == "fifo":
        pytest.importorskip("transformers")
        (tmp_path / "hf").mkdir()
        path.rename(tmp_path / "hf" / "config.json")
        with pytest.raises(UsageError, match="not a regular file"):
            open_model(f"hf:{tmp_path / 'hf'}")


def test_weights_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    state = tiny.linear_teacher().state_dict()
    save_file(
        {**state, **{f"module.{n}": t + 1 for n, t in state.items()}}, tmp_path / "w.safetensors"
    )
    with pytest.raises(UsageError, match="has weights twice"):
        read_weights(tmp_path / "w.safetensors")
