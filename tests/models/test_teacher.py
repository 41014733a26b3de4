"""Claims about the teacher: frozen, and named by all that decides its logits."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.teacher import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    Teacher,
    load_teacher,
    weights_digest,
)


class Net(nn.Module):
    """A network with everything that training mode would change."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        features = self.norm(self.conv(images_N3HW)).relu().mean((2, 3))
        logits: Tensor = self.head(self.drop(features))
        return logits


def _giving(function: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    class Gives(nn.Module):
        def forward(self, images_N3HW: Tensor) -> Any:
            return function(images_N3HW)

    return Gives


def _only_square_eight(images_N3HW: Tensor) -> Tensor:
    torch._assert(images_N3HW.shape[2] == 8, "Wrong image height! Expected 8")
    return images_N3HW.mean((2, 3))


def _refuse(_: Tensor) -> Tensor:
    raise ValueError("not today")


gives_tuple = _giving(lambda x: (x, x))
gives_map = _giving(lambda x: x)
gives_one_row = _giving(lambda x: x.mean((2, 3)).sum(0, keepdim=True))
gives_one_class = _giving(lambda x: x.mean((1, 2, 3))[:, None])
gives_double = _giving(lambda x: x.double().mean((2, 3)))
asserts_size = _giving(_only_square_eight)
needs_size = _giving(lambda x: x.reshape(len(x), 3 * 8 * 8)[:, :3])
refuses = _giving(_refuse)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this test file importable by the name that a spec gives it."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def load(name: str = "Net", weights: Path | None = None, **options: Any) -> Teacher:
    return load_teacher(f"{__name__}:{name}", weights, **options)


def test_weights_that_train_wrote_name_the_classes_and_the_fingerprint_stays(
    tmp_path: Path,
) -> None:
    state, notes = Net().state_dict(), {"classes": ["a", "b", "c", "d"], "num_classes": 4}
    save_file(state, tmp_path / "plain.safetensors")
    save_file(state, tmp_path / "named.safetensors", {"kdcache": json.dumps(notes)})
    plain, named = (load(weights=tmp_path / f"{n}.safetensors") for n in ("plain", "named"))
    assert (plain.classes, named.classes) == (None, ("a", "b", "c", "d"))
    assert named.description == plain.description
    assert load(f"Net@{tmp_path / 'named.safetensors'}").classes == named.classes


def pixels(count: int = 5, size: int = 8) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))


# --- logits --------------------------------------------------------------------------------


def test_logits_are_those_of_the_network_on_normalised_pixels() -> None:
    network = Net().eval()
    scaled = (pixels().double() / 255).permute(0, 2, 3, 1)
    normal = (scaled - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    with torch.no_grad():
        expected = network(normal.permute(0, 3, 1, 2).float())
    torch.testing.assert_close(load()(pixels()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_teacher_is_frozen_and_in_evaluation_mode(precision: Any) -> None:
    teacher = load(precision=precision)
    before = {name: t.clone() for name, t in teacher.network.state_dict().items()}
    first, second = teacher(pixels()), teacher(pixels())
    assert torch.equal(first, second), "dropout is on"
    assert (first.dtype, first.requires_grad) == (torch.float32, False)
    assert not any(module.training for module in teacher.network.modules())
    assert not any(p.requires_grad for p in teacher.network.parameters())
    for name, tensor in teacher.network.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed"


def test_precision_changes_logits_a_little() -> None:
    exact, rough = load()(pixels()), load(precision="bfloat16")(pixels())
    assert 0 < (exact - rough).abs().max() < 0.1


def test_logits_are_float32_whatever_the_network_gives() -> None:
    assert load("gives_double")(pixels()).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gives_tuple", "gave tuple for 5 images"),
        ("gives_map", r"gave \(5, 3, 8, 8\) for 5 images"),
        ("gives_one_row", r"gave \(1, 3\) for 5 images"),
    ],
)
def test_output_that_is_no_logits_is_refused(name: str, found: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: {found}, expected a tensor of logits"):
        load(name)(pixels())


def test_classes_are_counted_on_an_image_of_the_recipes_size() -> None:
    assert load().num_classes(8) == 4
    assert load(num_classes=11).num_classes(30) == 11
    assert load("needs_size").num_classes(8) == 3


@pytest.mark.parametrize("name", ["needs_size", "asserts_size", "refuses", "Net"])
def test_a_size_that_the_network_does_not_take_is_refused(name: str) -> None:
    size = 2 if name == "Net" else 9
    with pytest.raises(UsageError, match=f"{name}: fails on {size} x {size} pixels, the recipe's"):
        load(name).num_classes(size)


def test_one_class_is_too_few() -> None:
    with pytest.raises(UsageError, match="has 1 class, distillation needs two"):
        load("gives_one_class").num_classes(8)


# --- fingerprint ---------------------------------------------------------------------------


def ident(teacher: Teacher) -> str:
    found: str = teacher.description["id"]
    return found


def test_the_fingerprint_is_fixed_by_weights_preprocessing_and_precision(tmp_path: Path) -> None:
    save_file(Net().state_dict(), tmp_path / "w.safetensors")
    base = load(weights=tmp_path / "w.safetensors")
    fingerprints = {
        ident(base),
        ident(load(weights=tmp_path / "w.safetensors", precision="bfloat16")),
        ident(load(weights=tmp_path / "w.safetensors", precision="float16")),
    }
    shift = Preprocessing(mean=(0.485, 0.456, 0.4061))
    stretch = Preprocessing(std=(0.229, 0.2241, 0.225))
    for preprocessing in (shift, stretch):
        weights = tmp_path / "w.safetensors"
        fingerprints.add(ident(load(weights=weights, preprocessing=preprocessing)))
    assert len(fingerprints) == 5
    assert all(len(found) == 64 for found in fingerprints)


def test_the_fingerprint_ignores_file_name_and_format(tmp_path: Path) -> None:
    state = Net().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    save_file(dict(reversed(state.items())), tmp_path / "other.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "x.pth")
    files = ["w.safetensors", "other.safetensors", "w.pt", "x.pth"]
    found = {ident(load(weights=tmp_path / name)) for name in files}
    assert len(found) == 1
    assert found == {ident(load())}, "a factory's own weights are weights as well"


def test_a_change_of_any_weight_changes_the_fingerprint(tmp_path: Path) -> None:
    """By one unit in the last place, and of buffers too."""
    path = tmp_path / "w.safetensors"
    state = Net().state_dict()
    found = set()
    for name in [None, *state]:
        changed = {key: tensor.clone() for key, tensor in state.items()}
        if name is not None:
            last = changed[name].reshape(-1)[-1:]
            bits = last.view(torch.uint8)
            bits[0] ^= 1
        save_file(changed, path)
        found.add(ident(load(weights=path)))
    assert len(found) == len(state) + 1


def test_the_digest_of_weights_knows_names_shapes_and_types() -> None:
    def module(**tensors: Tensor) -> nn.Module:
        holder = nn.Module()
        for name, tensor in tensors.items():
            holder.register_buffer(name, tensor)
        return holder

    zeros = torch.zeros(2, 6)
    others = [
        module(a=zeros),
        module(b=zeros),
        module(a=zeros.reshape(6, 2)),
        module(a=zeros.to(torch.int32)),
        module(a=zeros.reshape(12)),
        module(a=zeros[0], b=zeros[1]),
        module(a=zeros[1, :3], b=torch.zeros(9)),
        module(),
    ]
    assert len({weights_digest(other) for other in others}) == len(others)
    scalar = module(a=torch.tensor(True), b=torch.tensor(1.5, dtype=torch.bfloat16))
    assert weights_digest(scalar) == weights_digest(scalar)


def test_the_digest_of_weights_ignores_memory_layout_and_order() -> None:
    network = Net()
    before = weights_digest(network)
    network.to(memory_format=torch.channels_last)
    assert not network.conv.weight.is_contiguous()
    assert weights_digest(network) == before
    first, second = nn.Module(), nn.Module()
    for holder, names in ((first, "ab"), (second, "ba")):
        for name in names:
            holder.register_buffer(name, torch.full((2,), float(ord(name))))
    assert weights_digest(first) == weights_digest(second)


def test_the_description_is_plain_and_tells_the_parts() -> None:
    description = load(precision="bfloat16").description
    assert description.keys() == {"id", "spec", "weights", "mean", "std", "precision"}
    assert description["spec"] == f"{__name__}:Net"
    assert description["weights"] == weights_digest(Net())
    assert (description["mean"], description["precision"]) == (IMAGENET_MEAN, "bfloat16")


# --- loading -------------------------------------------------------------------------------


def test_a_torchvision_teacher_needs_weights() -> None:
    with pytest.raises(UsageError, match="without weights it knows nothing; give a weights file"):
        load_teacher("torchvision:resnet18", None)


def test_weights_from_a_file_are_those_that_teach(tmp_path: Path) -> None:
    other = Net()
    with torch.no_grad():
        other.head.bias += 1
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    assert torch.equal(load_file(tmp_path / "w.safetensors")["head.bias"], other.head.bias)
    difference = load(weights=tmp_path / "w.safetensors")(pixels()) - load()(pixels())
    torch.testing.assert_close(difference, torch.ones(5, 4))


@pytest.mark.parametrize("device", ["no_such_device", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"device '{device}': "):
        load(device=device)
