"""Claims about names and weight files: a network, or an error that says what to fix."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdcache.errors import UsageError
from kdcache.models.specs import build_network


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
