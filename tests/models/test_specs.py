"""Claims about names: a network, or an error that says what to fix."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcache.errors import CorruptError, UsageError
from kdcache.models.source import Inputs
from kdcache.models.specs import Spec, build_network, open_model, parse_spec
from kdcache.models.teacher import Preprocessing, load_teacher


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


@pytest.mark.parametrize("name", ["make_net", "torchvision"])
def test_weights_that_kdcache_trained_say_what_they_were_trained_on(
    tmp_path: Path, name: str
) -> None:
    text = "torchvision:resnet18" if name == "torchvision" else spec(name)
    notes = {"student": "x:y", "step": 3, "size": 32, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 0.5]}
    state = build_network(text, num_classes=3).state_dict()
    for file, metadata in (("ours", {"kdcache": json.dumps(notes)}), ("others", {"by": "us"})):
        save_file(state, tmp_path / f"{file}.safetensors", metadata)
    ours, others = (
        load_teacher(text, tmp_path / f"{file}.safetensors", num_classes=3)
        for file in ("ours", "others")
    )
    assert ours.inputs == Inputs(size=32, mean=(0.1, 0.2, 0.3), std=(1, 1, 0.5))
    assert ours.preprocessing == Preprocessing((0.1, 0.2, 0.3), (1, 1, 0.5))
    assert others.inputs == Inputs()
    assert others.preprocessing == Preprocessing()
    assert ours.weights_id == others.weights_id
    save_file(state, tmp_path / "bad.safetensors", {"kdcache": '{"std": [0, 1, 1]}'})
    with pytest.raises(CorruptError, match=r"bad\.safetensors: its metadata cannot be read: std"):
        open_model(text, tmp_path / "bad.safetensors", num_classes=3)


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


# --- parts of a spec -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torchvision:resnet50", Spec("torchvision", "resnet50")),
        ("torchvision:resnet50@DEFAULT", Spec("torchvision", "resnet50", "DEFAULT")),
        ("torchvision:resnet50@a@b/w.pt", Spec("torchvision", "resnet50", "a@b/w.pt")),
        ("timm:resnet50.a1_in1k", Spec("timm", "resnet50.a1_in1k")),
        ("timm:resnet50@w.pt", Spec("timm", "resnet50", "w.pt")),
        ("hf:owner/name", Spec("hf", "owner/name")),
        ("hf:owner/name@main", Spec("hf", "owner/name", "main")),
        ("hf:a@b/c@main", Spec("hf", "a@b/c", "main")),
        ("pt2:a@b:c.pt2", Spec("pt2", "a@b:c.pt2")),
        ("onnx:w@v2.onnx", Spec("onnx", "w@v2.onnx")),
        ("my.models:tiny", Spec("my.models", "tiny")),
        ("my.models:tiny@a:b@c.pt", Spec("my.models", "tiny", "a:b@c.pt")),
    ],
)
def test_a_spec_is_its_parts(text: str, expected: Spec) -> None:
    assert parse_spec(text) == expected


def test_an_existing_folder_is_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()
    assert parse_spec(f"hf:{tmp_path}/a@b") == Spec("hf", f"{tmp_path}/a@b")
    assert parse_spec(f"hf:{tmp_path}/a@b@w.pt") == Spec("hf", f"{tmp_path}/a@b", "w.pt")


@pytest.mark.parametrize("text", ["torchvision:@w", "timm:resnet50@", "hf:@main", "a.b:c@"])
def test_half_a_spec_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a name before '@', and weights after it"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("torchvison:resnet50", "torchvision"),
        ("Timm:resnet50", "timm"),
        ("tim:resnet50", "timm"),
        ("onx:a.onnx", "onnx"),
        ("torchvision", "torchvision"),
    ],
)
def test_a_mistyped_source_is_told_what_is_near(text: str, near: str) -> None:
    for call in (build_network, open_model):
        with pytest.raises(UsageError, match=f"did you mean {near}:…\\?"):
            call(text, num_classes=None)


# --- models and students -------------------------------------------------------------------


def test_a_factory_is_a_model_with_its_own_weights_or_a_files(tmp_path: Path) -> None:
    other = make_net(5)
    with torch.no_grad():
        next(other.parameters()).zero_()
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    own = open_model(spec("make_net"), num_classes=5)
    for model in (
        open_model(spec("make_net"), tmp_path / "w.safetensors", num_classes=5),
        open_model(f"{spec('make_net')}@{tmp_path / 'w.safetensors'}", num_classes=5),
    ):
        assert (model.name, model.trained, model.inputs) == (spec("make_net"), True, Inputs())
        assert not next(model.network.parameters()).any()
    assert own.trained, "it is taken to load its own"
    assert next(own.network.parameters()).any()
    with pytest.raises(UsageError, match="weights do not fit the model"):
        open_model(spec("make_net"), tmp_path / "w.safetensors")


@pytest.mark.parametrize("text", ["torchvision:resnet18@DEFAULT", "hf:a/b@main", "a:b@w.pt"])
def test_weights_are_named_once(text: str) -> None:
    with pytest.raises(UsageError, match=r"names weights, and --weights w\.pt names others; leave"):
        open_model(text, Path("w.pt"))


@pytest.mark.parametrize("text", ["pt2:teacher.pt2", "onnx:teacher.onnx"])
def test_programs_hold_their_weights_and_are_no_students(text: str) -> None:
    with pytest.raises(UsageError, match="holds its own weights; leave --weights out"):
        open_model(text, Path("w.pt"))
    with pytest.raises(UsageError, match="is a fixed program; a student needs a network that can"):
        build_network(text, num_classes=3)
    with pytest.raises(UsageError, match="teacher"):
        open_model(text)


@pytest.mark.parametrize("text", ["torchvision:resnet18@DEFAULT", "timm:resnet18@w", "hf:a/b@main"])
def test_a_student_starts_with_fresh_weights(text: str) -> None:
    with pytest.raises(UsageError, match=r"leave out '@\w+', and give first weights with --init"):
        build_network(text, num_classes=3)
