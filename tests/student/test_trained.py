"""Claims about weights files: what they say is data, and code runs only when it is named."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdcache.errors import CorruptError, UsageError
from kdcache.models.specs import build_network
from kdcache.models.teacher import Preprocessing
from kdcache.student.trained import Facts, load_trained, make_facts
from tests.student import nets

SPEC = "tests.student.nets:small"
NOTES = {"student": SPEC, "num_classes": 5, "size": 16, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}


def write_weights(path: Path, notes: object = None, **changes: Any) -> Path:
    """Write a fresh small network's weights with what the file says of itself."""
    torch.manual_seed(0)
    text = notes if isinstance(notes, str) else json.dumps(NOTES | changes)
    save_file(nets.small(5).state_dict(), path, metadata={"kdcache": text})
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "student.safetensors")


@pytest.fixture
def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once the module `spying` was imported."""
    seen = tmp_path / "seen"
    text = f"from tests.student.nets import small\nopen({str(seen)!r}, 'w').close()\n"
    (tmp_path / "spying.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spying", raising=False)
    return seen


def test_a_student_is_its_files_but_for_code_which_the_user_names(weights: Path) -> None:
    for source in (weights, weights.parent):  # a run's folder holds it
        trained = load_trained(source, Facts(student=SPEC))
        assert (trained.spec, trained.noted, trained.num_classes, trained.size) == (
            SPEC,
            SPEC,
            5,
            16,
        )
        assert trained.preprocessing == Preprocessing((0.1, 0.2, 0.3), (1, 2, 3))
        assert not any(module.training for module in trained.network.modules())
        torch.manual_seed(0)
        expected = nets.small(5).state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in trained.network.state_dict().items())


def test_a_spec_in_a_file_is_imported_only_when_the_user_names_it(
    tmp_path: Path, spy: Path
) -> None:
    path = write_weights(tmp_path / "student.safetensors", student="spying:small")
    with pytest.raises(UsageError, match="repeat the command with --student spying:small"):
        load_trained(path, Facts())
    assert not spy.exists()
    load_trained(path, Facts(student="spying:small"))
    assert spy.exists()


def test_torchvisions_networks_are_taken_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    spec = "torchvision:squeezenet1_1"
    notes = json.dumps(NOTES | {"student": spec, "size": 32})
    save_file(build_network(spec, num_classes=5).state_dict(), path, metadata={"kdcache": notes})
    assert load_trained(path, Facts()).spec == spec


def test_timms_networks_are_taken_from_the_file(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    path = tmp_path / "student.safetensors"
    for spec in ("timm:test_resnet", "timm:test_resnet.r160_in1k"):
        notes = json.dumps(NOTES | {"student": spec, "size": 32})
        state = build_network(spec, num_classes=5).state_dict()
        save_file(state, path, metadata={"kdcache": notes})
        assert load_trained(path, Facts()).spec == spec


@pytest.mark.parametrize("student", ["hf:owner/name", "hf:some folder/x; rm -r y"])
def test_a_folder_or_hub_in_a_file_is_read_only_when_the_user_names_it(
    tmp_path: Path, student: str
) -> None:
    path = write_weights(tmp_path / "student.safetensors", student=student)
    with pytest.raises(UsageError, match=r"is described by hf:.*, which is read only when you"):
        load_trained(path, Facts())
    quoted = shlex.quote(student)
    with pytest.raises(UsageError, match=f"repeat the command with --student {re.escape(quoted)}$"):
        load_trained(path, Facts())


def test_a_student_of_transformers_is_its_files_and_its_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tiny resnet"
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"
    )
    config.save_pretrained(folder)
    spec = f"hf:{folder}"
    network = build_network(spec, num_classes=5)
    path = tmp_path / "student.safetensors"
    notes = json.dumps(NOTES | {"student": spec})
    save_file(network.state_dict(), path, metadata={"kdcache": notes})
    trained = load_trained(path, Facts(student=spec))
    expected = network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in trained.network.state_dict().items())


@pytest.mark.parametrize(
    "student", ["timm:hf-hub:owner/name", "timm:owner/name", "timm:local-dir:x", "hf:a\nb"]
)
def test_timms_other_places_are_no_spec_of_a_file(tmp_path: Path, student: str) -> None:
    path = write_weights(tmp_path / "student.safetensors", student=student)
    with pytest.raises(CorruptError, match=r"student: .* expected torchvision:NAME, timm:NAME"):
        load_trained(path, Facts(student=SPEC))


@pytest.mark.parametrize("student", ["torchvision:os", "torchvision.models:resnet18", "spying:x"])
def test_no_other_spec_in_a_file_is_looked_up(tmp_path: Path, spy: Path, student: str) -> None:
    path = write_weights(tmp_path / "student.safetensors", student=student)
    with pytest.raises(UsageError, match=r"torchvision has no model 'os'|repeat the command"):
        load_trained(path, Facts())
    assert not spy.exists()


def test_images_may_have_another_size_and_modules_may_move(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "student.safetensors", student="old.place:small")
    trained = load_trained(path, Facts(student=SPEC, size=32))
    assert (trained.spec, trained.noted, trained.size) == (SPEC, "old.place:small", 32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_classes": 6}, "trained with --num-classes 5, not 6; leave it out"),
        ({"mean": (0.1, 0.2, 0.4)}, "trained with --mean"),
        ({"std": (1.0, 2.0, 4.0)}, "trained with --std"),
    ],
)
def test_what_contradicts_the_file_is_refused(
    weights: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        load_trained(weights, make_facts(student=SPEC, **given))


def test_weights_that_say_nothing_need_all_facts(tmp_path: Path) -> None:
    state = nets.small(5).state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    given = {name: value for name, value in NOTES.items() if name != "size"}
    for path in (tmp_path / "plain.safetensors", tmp_path / "plain.pt"):
        with pytest.raises(UsageError, match="add --student, --num-classes, --size, --mean, --std"):
            load_trained(path, Facts())
        with pytest.raises(UsageError, match=r"say all of its student; add --size$"):
            load_trained(path, make_facts(**given))
        trained = load_trained(path, make_facts(**NOTES))
        assert (trained.noted, trained.size) == (None, 16)


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ("{", "kdcache: Invalid JSON"),
        ("[]", "kdcache: Input should be an object"),
        (json.dumps(NOTES | {"classes": ["a", "b"]}), "kdcache: .* 2 names of 5 classes"),
        (json.dumps(NOTES | {"classes": [1, 2, 3, 4, 5]}), "classes.0: Input should be"),
        (json.dumps(NOTES | {"size": 10**12}), "size: Input should be less than"),
        (json.dumps(NOTES | {"num_classes": "five"}), "num_classes: Input should be a valid int"),
        (json.dumps(NOTES | {"mean": [0.1]}), "mean.1: Field required"),
        (json.dumps(NOTES | {"student": "a:b; rm -r x"}), "student: .* expected torchvision:NAME"),
        (json.dumps(NOTES | {"student": "a:\x1b[2J"}), "student: .* expected torchvision:NAME"),
    ],
)
def test_notes_that_are_none_are_corrupt(tmp_path: Path, notes: str, words: str) -> None:
    path = write_weights(tmp_path / "student.safetensors", notes)
    with pytest.raises(CorruptError, match=f"its metadata cannot be read: {words}") as caught:
        load_trained(path, Facts(student=SPEC))
    assert "\x1b" not in str(caught.value)


def test_a_deviation_of_zero_is_no_normalisation(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "student.safetensors", std=[1, 0, 1])
    with pytest.raises(UsageError, match="std above 0"):
        load_trained(path, Facts(student=SPEC))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"student": "resnet18"}, "student: .*expected torchvision:NAME, timm:NAME"),
        ({"size": 0}, "size: Input should be greater than"),
        ({"num_classes": 1}, "num_classes: Input should be greater than"),
        ({"mean": (0.0, float("nan"), 0.0)}, "mean.1: Input should be a finite number"),
    ],
)
def test_what_the_user_says_is_checked(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_facts(**given)


def test_weights_that_are_gone_damaged_or_of_another_network_are_refused(weights: Path) -> None:
    folder = weights.parent
    with pytest.raises(UsageError, match="weights do not fit the model"):
        load_trained(weights, Facts(student="tests.student.nets:large"))
    with pytest.raises(UsageError, match="no such weights file"):
        load_trained(folder / "none.safetensors", Facts())
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"student\.safetensors: not a readable weights file"):
        load_trained(folder, Facts())
    weights.unlink()
    with pytest.raises(UsageError, match=r"no student\.safetensors there; finish the run"):
        load_trained(folder, Facts())
