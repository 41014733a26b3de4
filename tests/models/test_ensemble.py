"""Claims about teachers made of teachers: the mean's arithmetic, its fingerprint, other classes."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdcache.errors import UsageError
from kdcache.models.ensemble import TeacherSpec, average_teachers, map_teacher
from kdcache.targets.combine import Average
from kdcache.targets.labels import LabelMap
from tests import tiny

ONE, OTHER = "tests.tiny:linear_teacher", "tests.tiny:other_teacher"
PIXELS = torch.randint(0, 256, (6, 3, 12, 12), generator=torch.Generator().manual_seed(0)).byte()
SPEC = TeacherSpec(ONE, preprocessing=tiny.PLAIN, others=(OTHER,))
LABELS = LabelMap(("first", "rest"), ((range(1),), ()), rest="rest")


@pytest.mark.parametrize("shares", [None, (0.7, 0.3), (7.0, 3.0)])
def test_the_mean_of_logits_is_that_of_log_probabilities(
    shares: tuple[float, ...] | None,
) -> None:
    first, second = (tiny.make_teacher(n)(PIXELS) for n in ("linear_teacher", "other_teacher"))
    share = 0.5 if shares is None else 0.7
    expected = torch.lerp(second, first, share).log_softmax(1)
    found = replace(SPEC, shares=shares).load("cpu")(PIXELS).log_softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)
    logged = torch.lerp(second.log_softmax(1), first.log_softmax(1), share).log_softmax(1)
    assert torch.allclose(found, logged, atol=1e-5)


def test_the_mean_of_probabilities_is_another() -> None:
    first, second = (tiny.make_teacher(n)(PIXELS) for n in ("linear_teacher", "other_teacher"))
    expected = ((first.softmax(1) + second.softmax(1)) / 2).log()
    found = replace(SPEC, average="probabilities").load("cpu")(PIXELS).log_softmax(1)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, SPEC.load("cpu")(PIXELS).log_softmax(1), atol=0.1)


def test_a_fingerprint_names_members_shares_average_and_labels() -> None:
    averages: tuple[Average, ...] = ("logits", "probabilities")
    specs = [
        SPEC,
        TeacherSpec(ONE, preprocessing=tiny.PLAIN),
        TeacherSpec(OTHER, preprocessing=tiny.PLAIN, others=(ONE,)),
        replace(SPEC, others=(OTHER, OTHER)),
        replace(SPEC, shares=(0.7, 0.3)),
        replace(SPEC, average=averages[1]),
        replace(SPEC, labels=LABELS),
        replace(SPEC, precision="bfloat16"),
        replace(SPEC, preprocessing=None),
    ]
    ids = [spec.load("cpu").description["id"] for spec in specs]
    assert len(set(ids)) == len(specs)
    assert SPEC.load("cpu").description["id"] == ids[0]
    assert replace(SPEC, shares=(2.0, 2.0)).load("cpu").description["id"] == ids[0]


def test_a_mean_says_whose_it_is() -> None:
    teacher = SPEC.load("cpu")
    assert teacher.spec == f"{ONE} + {OTHER}"
    description = teacher.description
    assert len(description["members"]) == 2
    assert (description["shares"], description["average"]) == ((0.5, 0.5), "logits")
    assert (teacher.preprocessing, teacher.takes) == (tiny.PLAIN, "pixels")


def test_probabilities_of_mapped_classes_are_sums() -> None:
    plain = tiny.make_teacher()
    mapped = map_teacher(plain, LABELS)
    probabilities = plain(PIXELS).softmax(1)
    found = mapped(PIXELS).softmax(1)
    assert found.shape == (6, 2)
    assert torch.allclose(found[:, 0], probabilities[:, 0], atol=1e-5)
    assert mapped.classes == ("first", "rest")
    assert mapped.num_classes(12) == 2


def test_members_of_other_classes_are_refused() -> None:
    members = [tiny.make_teacher(), tiny.make_teacher(num_classes=4)]
    teacher = average_teachers(members, (0.5, 0.5))
    with pytest.raises(UsageError, match=r"has 4 classes, tests\.tiny:linear_teacher has 5") as e:
        teacher(PIXELS)
    assert "fails on" not in str(e.value)
    ours, other, swapped = (
        replace(members[0], classes=tuple(n)) for n in ("abcde", "vwxyz", "bacde")
    )
    assert average_teachers([ours, other], (0.5, 0.5)).classes == ours.classes
    with pytest.raises(UsageError, match="number classes of one name otherwise"):
        average_teachers([ours, swapped], (0.5, 0.5))


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 1.0, 1.0), (0.0, 1.0), (float("nan"), 1.0)])
def test_shares_that_do_not_fit_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="share"):
        replace(SPEC, shares=shares).load("cpu")


def test_weights_of_several_stand_in_their_specs(tmp_path: Path) -> None:
    state = {name: tensor + 1 for name, tensor in tiny.linear_teacher().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="of which teacher"):
        replace(SPEC, weights=tmp_path / "w.safetensors").load("cpu")
    named = replace(SPEC, spec=f"{ONE}@{tmp_path / 'w.safetensors'}").load("cpu")
    assert named.spec == f"{ONE} + {OTHER}"
    assert named.weights_id != SPEC.load("cpu").weights_id


def test_a_spec_travels_to_processes_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tiny.linear_teacher().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    spec = TeacherSpec(OTHER, others=(f"{ONE}@w.safetensors",), labels=LABELS).absolute()
    monkeypatch.chdir("/")
    again: TeacherSpec = pickle.loads(pickle.dumps(spec))
    assert again == spec
    assert again.load("cpu")(PIXELS).shape == (6, 2)


def test_a_compiled_mean_compiles_each_member() -> None:
    teacher = replace(SPEC, compiled=True)
    assert teacher.load("cpu").compiled
