"""Claims about the cache that a job fills: the right one, a new one, or a refusal that says why."""

from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kdcache.cache.info import CacheInfo
from kdcache.cache.store import Cache, open_cache
from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError, UsageError
from kdcache.precompute.prepare import default_encoding, describe_cache, prepare_cache
from tests import tiny


def describe(dataset: Dataset, **changes: Any) -> CacheInfo:
    options = {"recipe": tiny.make_recipe(), "teacher": tiny.make_teacher(), "encoding": "topk:3"}
    options |= changes
    return describe_cache(dataset, options.pop("recipe"), **options)


def prepare(path: Path, dataset: Dataset, *, num_views: int = 4, **changes: Any) -> Cache:
    return prepare_cache(path, describe(dataset, **changes), dataset=dataset, num_views=num_views)


@pytest.mark.parametrize(
    ("num_classes", "expected"),
    [(2, "dense:f2"), (64, "dense:f2"), (65, "packed:32"), (21_843, "packed:32")],
)
def test_few_classes_are_kept_all_and_many_by_the_largest(num_classes: int, expected: str) -> None:
    assert default_encoding(num_classes) == expected


def test_a_cache_says_what_made_it(dataset: Dataset) -> None:
    teacher = tiny.make_teacher()
    info = describe(dataset, teacher=teacher, licences={"data": "CC-BY-4.0"})
    assert info.dataset["id"] == dataset.id
    assert [tar["num_rows"] for tar in info.dataset["tars"]] == [10, 10, 4]
    assert info.teacher == teacher.description
    assert (info.num_classes, info.classes) == (5, dataset.classes)
    assert info.licences == {"data": "CC-BY-4.0", "weights": None, "output": None}
    assert info.versions.keys() == {
        "numpy", "pillow", "simplejpeg", "torch", "kdcache", "device", *teacher.settings
    }  # fmt: skip
    assert teacher.settings.keys() == {"compiled", "deterministic", "matmul_precision", "threads"}


def test_a_teacher_of_other_classes_is_refused(dataset: Dataset) -> None:
    other = tiny.make_teacher(num_classes=7)
    with pytest.raises(MismatchError, match=r"has 7 classes, .* has 5; .*--teacher-classes"):
        describe(dataset, teacher=other)
    info = describe(dataset, teacher=other, other_classes=True)
    assert (info.num_classes, info.classes) == (7, None)


def test_a_teacher_that_knows_a_class_by_another_number_is_refused(dataset: Dataset) -> None:
    other = replace(tiny.make_teacher(), classes=("class1", "class0", "c", "d", "e"))
    with pytest.raises(MismatchError, match=r"2 of 5 classes differ: class 0 is 'class0', 1 is"):
        describe(dataset, teacher=other)
    assert describe(dataset, teacher=other, other_classes=True).classes == other.classes
    spelt = replace(other, classes=("Class 0", "tench", "class2", "d", "e"))
    assert describe(dataset, teacher=spelt).classes == dataset.classes
    twice = replace(other, classes=("class0", "class1", "crane", "class3", "crane"))
    cranes = replace(dataset, classes=twice.classes)
    assert describe(cranes, teacher=twice).classes == cranes.classes


def test_a_dataset_without_classes_takes_any_teacher(dataset: Dataset) -> None:
    info = describe(replace(dataset, num_classes=None, classes=None))
    assert (info.num_classes, info.classes) == (5, None)


def test_class_names_are_not_taken_from_other_classes(dataset: Dataset) -> None:
    assert describe(dataset, other_classes=True).classes is None


@pytest.mark.parametrize("encoding", ["topk:6", "topk:0", "topk", "dense:f4"])
def test_an_encoding_that_does_not_serve_is_refused(dataset: Dataset, encoding: str) -> None:
    with pytest.raises(UsageError, match=f"encoding '?{encoding}"):
        describe(dataset, encoding=encoding)


def test_the_same_job_opens_the_cache_it_made(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    made = prepare(tmp_path / "c", dataset)
    assert made.missing() == list(made.grid.spans())
    for tar in range(3):
        assert made.uids(tar).tolist() == dataset.uids[dataset.rows(tar)].tolist()
        assert made.contents(tar).tolist() == dataset.contents[dataset.rows(tar)].tolist()
    before = tiny.tree(tmp_path / "c")
    again = prepare(tmp_path / "c", dataset)
    assert (again.info.id, again.grid) == (made.info.id, made.grid)
    assert tiny.tree(tmp_path / "c") == before


def test_a_cache_of_something_else_is_refused_by_name(
    dataset: Dataset, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    prepare(tmp_path / "c", dataset)
    before = tiny.tree(tmp_path / "c")
    other = tiny.make_dataset(tmp_path_factory.mktemp("other"), 12, seed=9)
    changes: dict[str, Any] = {
        "dataset": other,
        "recipe": tiny.make_recipe(seed=4),
        "teacher": tiny.make_teacher("other_teacher"),
        "encoding": "topk:2",
    }
    for names in [{name} for name in changes] + [set(changes)]:
        chosen = {"dataset": dataset, **{name: changes[name] for name in names}}
        with pytest.raises(MismatchError) as caught:
            prepare(tmp_path / "c", **chosen)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'c'}: made with ")
        for name in changes:
            assert (f"with {name} " in message) == (name in names), message
        assert caught.value.exit_code == 3
    assert tiny.tree(tmp_path / "c") == before


@pytest.mark.parametrize(("num_views", "span_views"), [(8, None), (2, None), (4, 4), (4, 1)])
def test_another_number_of_views_is_refused(
    dataset: Dataset, tmp_path: Path, num_views: int, span_views: int | None
) -> None:
    info = describe(dataset)
    options: dict[str, Any] = {"dataset": dataset, "num_views": 4, "span_views": 2}
    prepare_cache(tmp_path / "c", info, **options)
    options |= {"num_views": num_views, "span_views": span_views}
    with pytest.raises(UsageError, match="has 4 views in spans of 2, this run asks for"):
        prepare_cache(tmp_path / "c", info, **options)


def test_a_path_that_holds_something_else_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UsageError, match="holds something that is no cache; choose"):
            prepare(path, dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def _prepare(path: Path, dataset: Dataset, gate: Any, result: Connection) -> None:
    info = describe(dataset)
    gate.wait()
    try:
        result.send(prepare_cache(path, info, dataset=dataset, num_views=4).info.id)
    except Exception as error:
        result.send(repr(error))


def test_processes_that_make_one_cache_at_once_all_get_it(dataset: Dataset, tmp_path: Path) -> None:
    for attempt in range(4):
        path, gate = tmp_path / str(attempt), tiny.FORK.Barrier(3)
        pipes, children = [], []
        for _ in range(3):
            ours, theirs = tiny.FORK.Pipe(duplex=False)
            children.append(tiny.start(_prepare, path, dataset, gate, theirs))
            pipes.append(ours)
        assert {pipe.recv() for pipe in pipes} == {open_cache(path).info.id}
        for child in children:
            child.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_another_name_of_equal_weights_is_not_resumed_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    teacher = tiny.make_teacher()
    prepare(tmp_path / "cache", dataset, teacher=teacher)
    with pytest.raises(MismatchError, match=r"teacher's name tests.tiny:linear_teacher, this run"):
        prepare(tmp_path / "cache", dataset, teacher=replace(teacher, spec="other:name"))
