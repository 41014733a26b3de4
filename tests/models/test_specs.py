"""Claims about names and weight files: a network, or an error that says what to fix."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcache.errors import UsageError
from kdcache.models.specs import build_network
from kdcache.models.weights import load_weights


def make_net(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


def make_any(**options: int) -> nn.Module:
    return make_net(options.get("num_classes", 9))


def make_plain() -> nn.Module:
    return make_net(7)


def make_number() -> int:
    return 42


def make_failure() -> nn.Module:
    raise RuntimeError("out of ideas")


NOT_CALLABLE = 3


def spec(name: str) -> str:
    return f"{__name__}:{name}"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this test file importable by the name that a spec gives it."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        name: torch.randn(t.shape) if t.is_floating_point() else t
        for name, t in make_net().state_dict().items()
    }


def equal(network: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    found = network.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


# --- specs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("make_net", None, 3),
        ("make_net", 5, 5),
        ("make_any", None, 9),
        ("make_any", 5, 5),
        ("make_plain", 5, 7),
    ],
)
def test_a_factory_is_given_the_classes_where_it_takes_them(
    name: str, num_classes: int | None, expected: int
) -> None:
    network = build_network(spec(name), num_classes=num_classes)
    assert network.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, expected)


def test_torchvision_models_have_the_classes_asked_for() -> None:
    network = build_network("torchvision:squeezenet1_1", num_classes=6)
    assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 6)


@pytest.mark.parametrize("text", ["", "resnet18", ":resnet18", "torchvision:", "a:", ":"])
def test_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected torchvision:NAME, timm:NAME, .* or package\.module:factory"
    ):
        build_network(text, num_classes=None)


def test_an_unknown_torchvision_model_is_refused_with_near_names() -> None:
    with pytest.raises(UsageError, match=r"no model 'resnet19'; near it: .*resnet18"):
        build_network("torchvision:resnet19", num_classes=None)
    with pytest.raises(UsageError, match="no model 'zzzz'"):
        build_network("torchvision:zzzz", num_classes=None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no_such_module:make", "cannot import no_such_module"),
        (".relative:make", "cannot import .relative"),
        ("json:no_such_factory", "json has no factory named no_such_factory"),
        (spec("NOT_CALLABLE"), "has no factory named NOT_CALLABLE"),
        (spec("make_number"), "its factory gave <class 'int'>, expected a torch Module"),
        (spec("make_failure"), "its factory failed: RuntimeError\\('out of ideas'\\)"),
    ],
)
def test_a_factory_that_does_not_serve_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        build_network(text, num_classes=None)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("code", ["def make(:", "raise ValueError('broken on import')", "1 / 0"])
def test_a_module_that_cannot_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "kd_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="'kd_broken:make': cannot import kd_broken"):
        build_network("kd_broken:make", num_classes=None)


def test_a_factory_of_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kd_mine.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Identity()\n"
    )
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    assert isinstance(build_network("kd_mine:make", num_classes=3), nn.Identity)


# --- weights -------------------------------------------------------------------------------


def _wrapped(kind: str) -> Any:
    if kind == "module.":
        return {f"module.{name}": tensor for name, tensor in state().items()}
    return state() if kind == "plain" else {kind: state(), "epoch": 3}


@pytest.mark.parametrize("kind", ["plain", "state_dict", "model", "model_state_dict", "module."])
def test_weights_of_a_pytorch_file_are_loaded(tmp_path: Path, kind: str) -> None:
    torch.save(_wrapped(kind), tmp_path / "w.pt")
    network = make_net()
    load_weights(network, tmp_path / "w.pt")
    assert equal(network, state())


def test_weights_of_a_safetensors_file_are_loaded(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    network = make_net()
    load_weights(network, tmp_path / "w.safetensors")
    assert equal(network, state())


class Bomb:
    """What a hostile pickle looks like: loading it would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("bomb_went_off"),))


@pytest.mark.parametrize("content", [Bomb(), {"w": Bomb()}, make_net()])
def test_a_file_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"w\.pt: holds more than tensors.*as safetensors"):
        load_weights(make_net(), tmp_path / "w.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(UsageError, match=r"old\.pt: "):
        load_weights(make_net(), tmp_path / "old.pt")
    assert not (tmp_path / "bomb_went_off").exists()


def test_a_file_that_does_not_fit_names_what_differs(tmp_path: Path) -> None:
    wrong = state()
    del wrong["0.weight"], wrong["1.running_var"]
    wrong["0.bias"] = torch.zeros(8)
    wrong["head.weight"] = torch.zeros(1)
    save_file(wrong, tmp_path / "w.safetensors")
    network = make_net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(network, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "weights do not fit the model" in message
    assert "missing: 0.weight, 1.running_var" in message
    assert "unknown: head.weight" in message
    assert "shaped otherwise: 0.bias (8,) instead of (4,)" in message
    assert equal(network, before), "a refused file must not be loaded in part"


def test_many_differences_are_shortened(tmp_path: Path) -> None:
    save_file({f"layer{n}": torch.zeros(1) for n in range(10)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="unknown: layer0, layer1, layer2 and 7 more"):
        load_weights(make_net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.pth"])
def test_a_file_that_is_not_readable_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UsageError, match="no such weights file"):
        load_weights(make_net(), path)
    for data in (b"", b"garbage", b"\0" * 100, b"PK\x03\x04" + b"x" * 50):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=name):
            load_weights(make_net(), path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=name):
        load_weights(make_net(), path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "w.pt":
        torch.save(state(), path)
    else:
        save_file(state(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=name):
            load_weights(make_net(), path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"a": 1}, {0: torch.zeros(1)}, None])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"w\.pt: expected a state_dict of tensors"):
        load_weights(make_net(), tmp_path / "w.pt")
