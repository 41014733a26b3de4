import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from tests import tiny
from tests.cli import making
from tests.cli.conftest import Outcome, Run
from tests.cli.making import (
    PLAIN,
    TEACHER,
    check_refusal,
    teacher_option,
    write_recipe,
    write_weights,
)
from tests.tiny import files_of

OBJECT = "values/c/1/0/0/0"


def _flip(path: Path, at: int = 30) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe of the complete cache, as a file."""
    return write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())


@pytest.fixture
def copy(tmp_path: Path, complete: Path) -> Path:
    """A copy of the complete cache: 4 views in spans of 2, of three tars; topk:3."""
    shutil.copytree(complete, tmp_path / "cache")
    return tmp_path / "cache"


OTHER_MEAN = ["--mean", "0.5,0.5,0.5", "--std", "1,1,1"]
Precompute = Callable[..., Outcome]


@pytest.fixture
def precompute(kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path) -> Precompute:
    """A function that runs precompute over the dataset into tmp_path / "cache"; options go last."""

    def run(*options: object) -> Outcome:
        return kdcache(
            *("precompute", "--data", dataset.root, *teacher_option(options), *PLAIN),
            *("--recipe", recipe, "--views", "4", "--span-views", "2", "--encoding", "topk:3"),
            *("--cache", tmp_path / "cache", *options),
        )

    return run


# --- precompute ----------------------------------------------------------------------------


def test_the_command_fills_the_cache_that_the_library_fills(
    precompute: Precompute, tmp_path: Path, complete: Path, dataset: Dataset
) -> None:
    """Byte for byte but for times, in batches of another size."""
    outcome = precompute("--json", "--batch-size", "3")
    cache = open_cache(tmp_path / "cache")
    totals = cache.totals()
    assert outcome.code == 0
    assert outcome.value == {
        "id": cache.info.id,
        "path": str(tmp_path / "cache"),
        "spans_computed": 6,
        "spans_missing": 0,
        "views": 4,
        "size_bytes": totals.size_bytes,
        "rows_unusable": 0,
        "fidelity": totals.fidelity.summary(),
    }
    assert outcome.stderr == f"cache {cache.info.id[:12]}: 6 spans of 2 views to do on cpu\n"
    assert tiny.tree(tmp_path / "cache") == tiny.tree(complete)
    assert cache.info.teacher["steadiness"] == {"repeat_nats": 0.0, "batch_nats": 0.0}


def test_a_complete_cache_is_not_computed_again(precompute: Precompute, copy: Path) -> None:
    before = files_of(copy)
    outcome = precompute("--json")
    assert (outcome.code, outcome.value["spans_computed"]) == (0, 0)
    assert files_of(copy) == before


def test_what_is_missing_is_computed_alone(precompute: Precompute, copy: Path) -> None:
    before = tiny.tree(copy)
    for name in ("commits/0-1.json", "commits/2-0.json", "seal.json"):
        (copy / name).unlink()
    outcome = precompute()
    assert outcome.code == 0
    assert "computed  2 spans" in outcome.stdout
    assert tiny.tree(copy) == before


def test_licences_and_classes_are_kept(
    precompute: Precompute, tmp_path: Path, kdcache: Run
) -> None:
    licences = ["--data-licence", "CC-BY-4.0", "--weights-licence", "MIT"]
    assert precompute(*licences).code == 0
    value = kdcache("inspect", tmp_path / "cache", "--json").value
    assert value["licences"] == {"data": "CC-BY-4.0", "weights": "MIT", "output": None}
    assert open_cache(tmp_path / "cache").info.classes == tuple(f"class{n}" for n in range(5))


def test_labels_of_other_classes_may_be_declared(precompute: Precompute, tmp_path: Path) -> None:
    outcome = precompute("--teacher", "torchvision:resnet18")
    check_refusal(outcome, 2, "torchvision:resnet18: without weights")
    assert not (tmp_path / "cache").exists()
    options = ["--teacher", "tests.cli.making:seven_classes"]
    outcome = precompute(*options)
    check_refusal(outcome, 3, "has 7 classes", "--teacher-classes")
    assert not (tmp_path / "cache").exists()
    assert precompute(*options, "--teacher-classes", "7").code == 0
    info = open_cache(tmp_path / "cache").info
    assert (info.num_classes, info.classes) == (7, None)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--data", "/no/data"], 2, ["/no/data/dataset.json: missing", "kdcache index"]),
        (["--recipe", "/no/recipe.toml"], 2, ["/no/recipe.toml: neither a file nor a preset"]),
        (["--teacher", "resnet50"], 2, ["'resnet50'", "expected torchvision:NAME"]),
        (
            ["--teacher", "torchvision:resnet5O", "--weights", "w"],
            2,
            ["no model 'resnet5O'", "resnet50"],
        ),
        (["--teacher", "no.module:net"], 2, ["cannot import no.module"]),
        (["--weights", "/no/w.safetensors"], 2, ["/no/w.safetensors: no such weights"]),
        (["--mean", "1,2"], 2, ["--mean '1,2': expected three numbers"]),
        (["--std", "a,b,c"], 2, ["--std 'a,b,c': expected three numbers"]),
        (["--views", "5"], 2, ["5 views in spans of 2"]),
        (["--encoding", "topk:6"], 2, ["topk:6", "1 to 5"]),
        (["--encoding", "zip"], 2, ["'zip'", "adaptive:E, dense:f2 or dense:u1"]),
        (["--device", "abacus"], 2, ["device 'abacus'"]),
    ],
)
def test_a_command_that_cannot_start_makes_no_cache(
    precompute: Precompute, tmp_path: Path, options: list[str], code: int, words: list[str]
) -> None:
    before = files_of(tmp_path)
    check_refusal(precompute(*options), code, *words)
    assert files_of(tmp_path) == before
    assert not (tmp_path / "cache").exists()


def test_what_a_teacher_prints_does_not_reach_the_json(precompute: Precompute) -> None:
    outcome = precompute("--teacher", "tests.cli.making:printing", "--json")
    assert outcome.value["spans_computed"] == 6
    assert "loading the best teacher ever" in outcome.stderr


def test_an_interrupted_job_says_what_it_keeps_and_goes_on(
    precompute: Precompute, tmp_path: Path, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of 4 images in 2 views is a batch; the first tar has three blocks."""
    options = ["--teacher", "tests.cli.making:interrupted_teacher", "--batch-size", "8"]
    monkeypatch.setattr(making, "INTERRUPT_AT", 5)
    outcome = precompute(*options)
    assert outcome.code == 130
    assert outcome.stdout.splitlines()[-1].startswith("stopped; 1 spans more are stored")
    assert len(open_cache(tmp_path / "cache").missing()) == 5
    monkeypatch.setattr(making, "INTERRUPT_AT", None)
    assert precompute(*options, "--json").value["spans_computed"] == 5
    made, whole = tiny.tree(tmp_path / "cache"), tiny.tree(complete)
    assert made.keys() == whole.keys()
    assert {name for name in made if made[name] != whole[name]} == {"zarr.json"}  # its teacher


def test_a_recipe_with_unknown_fields_names_them_and_the_allowed(
    precompute: Precompute, recipe: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("[flip]", "[flip]\ndiagonal = 0.5"))
    check_refusal(
        precompute(), 2, str(recipe), "flip.diagonal: unknown field; allowed: horizontal, vertical"
    )


def test_a_diverged_teacher_stops_before_anything_is_written(
    precompute: Precompute, tmp_path: Path
) -> None:
    outcome = precompute("--teacher", "tests.cli.making:nan_logits")
    check_refusal(outcome, 2, "not finite for random images", "check its weights")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher", "tests.tiny:other_teacher"], "teacher "),
        (["--mean", "0.5,0.5,0.5"], "teacher "),
        (["--encoding", "topk:2"], "encoding topk:3, this run has topk:2"),
        (["--precision", "bfloat16"], "teacher "),
    ],
)
def test_a_cache_of_something_else_is_not_touched(
    precompute: Precompute, copy: Path, options: list[str], words: str
) -> None:
    before = files_of(copy)
    check_refusal(precompute(*options), 3, str(copy), f"made with {words}", "another path")
    assert files_of(copy) == before


def test_a_cache_of_another_recipe_or_dataset_is_not_touched(
    precompute: Precompute, copy: Path, tmp_path: Path, recipe: Path
) -> None:
    before = files_of(copy)
    write_recipe(recipe, tiny.make_recipe(seed=77))
    check_refusal(precompute(), 3, "made with recipe ")
    write_recipe(recipe, tiny.make_recipe())
    other = tiny.make_dataset(tmp_path / "other", 6, seed=2)
    check_refusal(precompute("--data", other.root), 3, "made with dataset ")
    check_refusal(precompute("--views", "8"), 2, "has 4 views", "asks for 8")
    assert files_of(copy) == before


# --- images that cannot be used ------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Dataset:
    """12 images in tars of 8 and 4; the second of the second tar is no image."""
    folder = tiny.write_images(tmp_path / "images", 12)
    sorted(folder.rglob("*.*"))[9].write_bytes(b"no image at all")
    return tiny.pack_images(folder, tmp_path / "spoilt", rows_per_tar=8)


def test_an_image_that_does_not_decode_stops_with_its_key_and_is_left_out_on_request(
    precompute: Precompute, kdcache: Run, tmp_path: Path, spoilt: Dataset
) -> None:
    arguments = ["--data", spoilt.root]
    outcome = precompute(*arguments)
    check_refusal(outcome, 7, "000001.tar, key class", "--skip-bad")
    written = files_of(tmp_path / "cache")
    commits = sorted(name for name in written if name.startswith("commits/"))
    assert commits == ["commits/0-0.json", "commits/0-1.json"]
    assert not [name for name in written if "/c/1/0/0/0" in name or name == "seal.json"]
    assert open_cache(tmp_path / "cache").missing() == [(1, 0), (1, 1)]

    outcome = precompute(*arguments, "--skip-bad", "--json")
    assert (outcome.code, outcome.value["spans_computed"]) == (0, 2)
    assert outcome.value["rows_unusable"] == 1
    assert "unusable  1 images" in kdcache("inspect", tmp_path / "cache").stdout
    verified = kdcache(
        *("verify", tmp_path / "cache", "--data", spoilt.root, "--replay", "1", "--json")
    )
    assert verified.value["replay"] == {"blocks": 12, "differing": []}
    trained = kdcache(
        *("train", "--data", spoilt.root, "--cache", tmp_path / "cache", "--epochs", "1"),
        *("--student", "tests.student.nets:small", "--batch-size", "11", "--workers", "0"),
        *("--out", tmp_path / "run"),
    )
    assert trained.code == 0
    assert trained.stdout.startswith("1 epochs of 11 samples on cpu; ")


def test_a_tar_that_is_gone_or_changed_is_a_data_error(
    precompute: Precompute, tmp_path: Path
) -> None:
    moved = tiny.make_dataset(tmp_path / "moved", 12, rows_per_tar=6)
    tar = moved.tar_path(1)
    whole = tar.read_bytes()
    tar.unlink()
    check_refusal(precompute("--data", moved.root), 7, str(tar))
    tar.write_bytes(whole[: len(whole) // 2])
    check_refusal(precompute("--data", moved.root), 7, str(tar), "kdcache index")
    tar.write_bytes(whole)
    outcome = precompute("--data", moved.root, "--json")
    assert (outcome.code, outcome.value["spans_computed"]) == (0, 2)


# --- inspect -------------------------------------------------------------------------------


def test_inspect_says_what_a_cache_is(kdcache: Run, copy: Path) -> None:
    value = kdcache("inspect", copy, "--json").value
    cache = open_cache(copy)
    assert value["id"] == cache.info.id
    assert (value["coverage"], value["views_stored"]) == (1, 96)
    text = kdcache("inspect", copy).stdout
    for words in (
        cache.info.id,
        "24 samples in 3 tars",
        "tests.tiny:linear_teacher, float32",
        "topk:3",
        "4 in spans of 2",
        "100.0% (0 of 6 spans missing)",
        f"{value['bytes_per_view']:.1f} bytes",
        "same top-1",
    ):
        assert words in text


def test_inspect_of_an_empty_cache_shows_its_want(
    kdcache: Run, tmp_path: Path, dataset: Dataset
) -> None:
    tiny.precompute_first(tmp_path / "c", dataset, tiny.make_recipe(), spans=0)
    outcome = kdcache("inspect", tmp_path / "c")
    assert outcome.code == 0
    assert "0.0% (6 of 6 spans missing)" in outcome.stdout
    assert kdcache("inspect", tmp_path / "c", "--json").value["bytes_per_view"] is None


def test_what_is_no_cache_is_refused(kdcache: Run, tmp_path: Path, copy: Path) -> None:
    for command in (["inspect"], ["verify"]):
        check_refusal(
            kdcache(*command, tmp_path / "no"), 2, "no: no cache here", "kdcache precompute"
        )
    _flip(copy / "zarr.json", 200)
    for command in (["inspect"], ["verify"]):
        check_refusal(kdcache(*command, copy), 5, "zarr.json", "copy")


# --- verify --------------------------------------------------------------------------------


def test_verify_finds_nothing_in_a_sound_cache(
    kdcache: Run, copy: Path, dataset: Dataset, tmp_path: Path
) -> None:
    weights = write_weights(tmp_path / "w.safetensors")
    before = files_of(copy)
    arguments = [
        *("verify", copy, "--data", dataset.root, "--replay", "1", "--teacher", "1"),
        *("--spec", TEACHER, "--weights", weights, *PLAIN),
    ]
    value = kdcache(*arguments, "--json").value
    assert value == {
        "id": open_cache(copy).info.id,
        "damaged": [],
        "spans_missing": 0,
        "replay": {"blocks": 28, "differing": []},
        "teacher": {
            "rows": 96,
            "max_difference": 0.0,
            "kl_nats": 0.0,
            "top1_agreement": 1.0,
            "rows_equal": 1.0,
            "same": True,
        },
    }
    text = kdcache(*arguments).stdout
    for words in ("all as committed", "complete", "28 blocks rendered again, 0 differ"):
        assert words in text
    assert files_of(copy) == before


def test_damage_is_listed_and_mended_by_the_steps_that_the_error_names(
    kdcache: Run, precompute: Precompute, copy: Path, dataset: Dataset
) -> None:
    sound = tiny.tree(copy)
    _flip(copy / OBJECT)
    outcome = kdcache("verify", copy, "--json")
    assert outcome.code == 5
    (damaged,) = outcome.value["damaged"]
    assert (damaged["where"], damaged["span"]) == (OBJECT, "1-0")
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith(f"kdcache: {copy}: 1 object is damaged; run kdcache repair {copy}")
    assert f"{OBJECT}: its sha256 differs" in outcome.stderr
    assert f"  {OBJECT}: its sha256 differs" in kdcache("verify", copy).stdout

    assert kdcache("repair", copy).code == 4  # the span is withdrawn
    assert precompute("--json").value["spans_computed"] == 1
    assert kdcache("verify", copy, "--data", dataset.root, "--replay", "1").code == 0
    assert tiny.tree(copy) == sound


def test_damaged_metadata_are_listed_with_all_else_and_mended(kdcache: Run, copy: Path) -> None:
    sound = tiny.tree(copy)
    _flip(copy / "tails/zarr.json")
    _flip(copy / "rows/c/0", 2)
    outcome = kdcache("verify", copy, "--json")
    assert outcome.code == 5
    found = {damaged["where"] for damaged in outcome.value["damaged"]}
    assert found == {"tails/zarr.json", "rows/c/0"}
    assert kdcache("repair", copy).code == 0
    assert tiny.tree(copy) == sound


def test_damage_is_listed_though_the_teacher_was_to_run(
    kdcache: Run, copy: Path, dataset: Dataset
) -> None:
    for name in (OBJECT, "tails/c/2/1/0/0"):
        _flip(copy / name)
    outcome = kdcache(
        *("verify", copy, "--data", dataset.root, "--teacher", "1", "--spec", TEACHER, *PLAIN),
        "--json",
    )
    assert outcome.code == 5
    assert [entry["span"] for entry in outcome.value["damaged"]] == ["1-0", "2-1"]


def test_damage_that_no_span_mends_is_told_apart(kdcache: Run, copy: Path) -> None:
    _flip(copy / "uids/c/1/0", 3)
    outcome = kdcache("verify", copy)
    assert outcome.code == 5
    assert "sound copy" in outcome.stderr
    assert "commit records" not in outcome.stderr


def test_verify_of_a_part_is_incomplete(kdcache: Run, tmp_path: Path, dataset: Dataset) -> None:
    tiny.precompute_first(tmp_path / "c", dataset, tiny.make_recipe(), spans=4)
    outcome = kdcache("verify", tmp_path / "c", "--json")
    assert (outcome.code, outcome.value["spans_missing"]) == (4, 2)
    assert "2 missing" in kdcache("verify", tmp_path / "c").stdout


def test_pixels_made_otherwise_are_a_mismatch(
    kdcache: Run, copy: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """The images differ, and the index with them: their contents are no longer the cache's."""
    other = tiny.make_dataset(tmp_path / "other", 24, seed=3)
    check_refusal(
        kdcache("verify", copy, "--data", other.root, "--replay", "1"),
        3,
        "image file",
        "pass that dataset",
    )


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--replay", "1"], 2, ["need the images: give --data"]),
        (["--teacher", "1"], 2, ["need the images: give --data"]),
        (["--data", "DATA", "--teacher", "1"], 2, ["give --spec and --weights"]),
        (["--data", "/no", "--replay", "1"], 2, ["/no/dataset.json: missing"]),
        (
            ["--data", "DATA", "--teacher", "1", "--spec", "tests.tiny:other_teacher", *PLAIN],
            3,
            ["made by teacher", "pass its weights"],
        ),
        (
            ["--data", "DATA", "--teacher", "1", "--spec", TEACHER, *OTHER_MEAN],
            3,
            ["made by teacher"],
        ),
    ],
)
def test_verify_asks_for_what_it_needs(
    kdcache: Run, copy: Path, dataset: Dataset, options: list[str], code: int, words: list[str]
) -> None:
    arguments = [dataset.root if word == "DATA" else word for word in options]
    check_refusal(kdcache("verify", copy, *arguments), code, *words)


def test_every_json_is_whole_and_alone_on_stdout(kdcache: Run, copy: Path) -> None:
    for command in ("inspect", "verify"):
        outcome = kdcache(command, copy, "--json")
        assert json.loads(outcome.stdout)["id"]
        assert outcome.stderr == ""
