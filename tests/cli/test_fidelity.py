"""Claims about `kdcache fidelity` and `--encoding auto`: one measurement, one choice."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kdcache.cache.store import open_cache
from kdcache.data.dataset import Dataset
from tests import tiny
from tests.cli.conftest import Outcome, Run
from tests.cli.making import (
    PLAIN,
    check_refusal,
    teacher_option,
    write_recipe,
    write_weights,
)
from tests.tiny import files_of

Fidelity = Callable[..., Outcome]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.toml", tiny.make_recipe())


@pytest.fixture
def fidelity(kdcache: Run, dataset: Dataset, recipe: Path) -> Fidelity:
    """A function that measures the tiny teacher; options go last."""

    def run(*options: object) -> Outcome:
        return kdcache(
            *("fidelity", "--data", dataset.root, *teacher_option(options), *PLAIN),
            *("--recipe", recipe, "--samples", "90", *options),
        )

    return run


@pytest.fixture(scope="module")
def dense(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete dense cache of 24 images in 4 views."""
    path = tmp_path_factory.mktemp("dense") / "cache"
    tiny.precompute(path, dataset, tiny.make_recipe(), encoding="dense:f2")
    return path


# --- what is measured ----------------------------------------------------------------------


def test_all_candidates_are_shown_and_the_last_line_is_ready_to_use(fidelity: Fidelity) -> None:
    outcome = fidelity("--max-gradient-error", "5%")
    assert outcome.code == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0].split()[:2] == ["encoding", "bytes"]
    table = {line.split()[0]: line.split()[1:] for line in lines[1:] if ":" in line.split()[0]}
    assert {"topk:3", "packed:3", "adaptive:0.01", "dense:u1", "dense:f2"} <= table.keys()
    assert table["dense:f2"][-1] == "*"
    assert "measured on 90 views" in outcome.stdout
    assert lines[-2].endswith(": the smallest with a gradient error of at most 5% at T = 1")
    option, _, name = lines[-1].partition(" ")
    assert option == "--encoding"
    assert lines[-2].startswith(f"{name}: ")
    assert float(table[name][5].removesuffix("%")) <= 5


def test_without_limits_nothing_is_chosen(fidelity: Fidelity) -> None:
    outcome = fidelity()
    assert outcome.code == 0
    assert "--encoding" not in outcome.stdout
    assert fidelity("--json").value["chosen"] is None


def test_the_table_fits_eighty_columns(fidelity: Fidelity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [line for line in fidelity().stdout.splitlines() if line[:6] in ("topk:1", "dense:")]
    assert len(rows) == 3
    for row in rows:
        assert len(row) <= 80
        assert "…" not in row


def test_json_holds_what_was_measured_at_every_temperature(fidelity: Fidelity) -> None:
    options = ["--max-bytes", "12", "--temperature", "2"]
    outcome = fidelity(*options, "--json")
    assert outcome.stderr == ""
    value = outcome.value
    assert value["views"] == 90
    by_name = {entry["encoding"]: entry for entry in value["encodings"]}
    chosen = by_name[value["chosen"]]
    assert chosen["bytes_per_view"] <= 12
    for entry in by_name.values():
        assert entry.keys() == {
            "encoding", "bytes_per_view", "top1_agreement", "kl_nats", "gradient_error", "front"
        }  # fmt: skip
        assert list(entry["gradient_error"]) == list(entry["kl_nats"]) == ["1", "2", "4"]
        if entry["bytes_per_view"] <= 12:
            assert chosen["gradient_error"]["2"] <= entry["gradient_error"]["2"]
    assert fidelity(*options).stdout.splitlines()[-1] == f"--encoding {value['chosen']}"


def test_percent_and_share_are_the_same_limit(fidelity: Fidelity) -> None:
    found = {fidelity("--max-gradient-error", text).stdout for text in ("5%", "0.05", "5.0%")}
    assert len(found) == 1


def test_a_picture_is_drawn(fidelity: Fidelity, tmp_path: Path) -> None:
    out = tmp_path / "encodings.png"
    assert fidelity("--out", out, "--max-kl", "0.01").code == 0
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert min(image.size) > 1000


def test_a_dense_cache_is_measured_without_its_teacher(
    kdcache: Run, fidelity: Fidelity, dense: Path
) -> None:
    before = files_of(dense)
    outcome = kdcache("fidelity", dense, "--json", "--max-gradient-error", "5%")
    assert outcome.code == 0, outcome.stderr
    assert outcome.value["views"] == 96
    assert kdcache("fidelity", dense, "--json", "--samples", "10").value["views"] == 10
    found = {entry["encoding"]: entry for entry in outcome.value["encodings"]}
    again = fidelity("--json").value["encodings"]
    for entry in again:  # other views of the same images
        error = found[entry["encoding"]]["gradient_error"]["1"]
        assert error == pytest.approx(entry["gradient_error"]["1"], rel=0.5, abs=0.01)
    assert files_of(dense) == before


def test_limits_that_nothing_meets_are_refused_after_the_table(
    fidelity: Fidelity, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    outcome = fidelity("--max-gradient-error", "0.001%", "--max-bytes", "2", "--out", out)
    check_refusal(
        outcome, 2, "no encoding has a gradient error of at most 0.001%", "the closest is"
    )
    assert "packed:1" in outcome.stdout
    assert out.is_file()
    value = fidelity("--max-bytes", "0.01", "--json")
    assert (value.code, value.value["chosen"]) == (2, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-gradient-error", "little"], "'little': expected a share, as 1% or 0.01"),
        (["--max-gradient-error", "0"], "must be a number above 0"),
        (["--max-kl", "-1"], "must be a number above 0"),
        (["--max-bytes", "nan"], "must be a number above 0"),
        (["--out", "picture.jpg"], "picture.jpg: expected a name that ends in .png"),
        (["--out", "/no/folder/a.png"], "in a folder that is there"),
        (["--recipe", "unheard"], "unheard"),
        (["--teacher", "tests.tiny:nobody"], "nobody"),
        (["--teacher", "tests.cli.making:nan_logits"], "not finite; check its weights"),
    ],
)
def test_what_does_not_serve_is_refused(fidelity: Fidelity, options: list[str], words: str) -> None:
    check_refusal(fidelity(*options), 2, words)


def test_a_teacher_of_other_classes_needs_to_say_so(fidelity: Fidelity) -> None:
    seven = ["--teacher", "tests.cli.making:seven_classes"]
    check_refusal(fidelity(*seven), 3, "has 7 classes", "--teacher-classes")
    assert fidelity(*seven, "--teacher-classes", "7", "--json").code == 0


def test_one_source_of_logits_is_asked_for(
    kdcache: Run, fidelity: Fidelity, dense: Path, complete: Path, dataset: Dataset, tmp_path: Path
) -> None:
    check_refusal(kdcache("fidelity"), 2, "Missing --data, --teacher, --recipe", "or a dense cache")
    check_refusal(
        kdcache("fidelity", "--data", dataset.root, "--recipe", "mild"), 2, "Missing --teacher:"
    )
    check_refusal(fidelity(dense), 2, "--data, --teacher, --recipe: two sources of logits")
    check_refusal(
        kdcache("fidelity", dense, "--weights", write_weights(tmp_path / "w.safetensors")),
        2,
        "--weights: two sources",
    )
    check_refusal(
        kdcache("fidelity", complete), 2, "its encoding is topk:3", "pass a dense:f2 or dense:u1"
    )
    check_refusal(kdcache("fidelity", tmp_path), 2, "no cache here")


# --- precompute --encoding auto ------------------------------------------------------------


@pytest.fixture
def precompute(
    kdcache: Run, tmp_path: Path, dataset: Dataset, recipe: Path
) -> Callable[..., Outcome]:
    """A function that runs precompute into tmp_path / "cache"; options go last."""

    def run(*options: object) -> Outcome:
        return kdcache(
            *("precompute", "--data", dataset.root, *teacher_option(options), *PLAIN),
            *("--recipe", recipe, "--views", "4", "--span-views", "2"),
            *("--cache", tmp_path / "cache", *options),
        )

    return run


AUTO = ("--encoding", "auto")


def test_auto_makes_the_cache_of_the_encoding_that_it_names(
    precompute: Callable[..., Outcome], tmp_path: Path, dataset: Dataset
) -> None:
    outcome = precompute(*AUTO, "--max-gradient-error", "3%", "--temperature", "2")
    assert outcome.code == 0, outcome.stderr
    first = outcome.stdout.splitlines()[0]
    cache = open_cache(tmp_path / "cache")
    assert first.startswith(f"encoding {cache.info.encoding}: ")
    assert first.endswith("on 96 views: the smallest with a gradient error of at most 3% at T = 2")
    # The sample was the whole dataset, so the limit holds for the cache, but for its cut tiles.
    assert cache.totals().fidelity.summary()["gradient_error"]["2"] <= 0.03
    plain = tiny.precompute(
        tmp_path / "plain", dataset, tiny.make_recipe(), encoding=str(cache.info.encoding)
    )
    made, expected = tiny.tree(cache.path), tiny.tree(plain.path)
    assert {name for name in made if made[name] != expected[name]} <= {"zarr.json"}


def test_auto_keeps_the_encoding_of_a_cache_that_is_there(
    precompute: Callable[..., Outcome], tmp_path: Path, complete: Path
) -> None:
    """Without a sample: one would have chosen dense:f2."""
    shutil.copytree(complete, tmp_path / "cache")
    (tmp_path / "cache/commits/1-0.json").unlink()
    outcome = precompute(*AUTO, "--max-kl", "1e-9", "--json")
    assert (outcome.code, outcome.value["spans_computed"]) == (0, 1)
    assert f"encoding topk:3: that of {tmp_path / 'cache'}, which is there" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (AUTO, 2, ["--encoding auto: nothing to choose by", "--max-gradient-error"]),
        (["--max-kl", "1"], 2, ["go with --encoding auto, found none"]),
        (["--encoding", "topk:2", "--max-bytes", "9"], 2, ["go with --encoding auto", "topk:2"]),
        ([*AUTO, "--max-gradient-error", "much"], 2, ["'much': expected a share"]),
        ([*AUTO, "--max-bytes", "0.5"], 2, ["no encoding has at most 0.5 bytes", "closest"]),
        (
            [*AUTO, "--max-bytes", "9", "--teacher", "tests.cli.making:seven_classes"],
            3,
            ["has 7 classes", "has 5"],
        ),
    ],
)
def test_a_choice_that_cannot_be_made_makes_no_cache(
    precompute: Callable[..., Outcome],
    tmp_path: Path,
    options: list[str],
    code: int,
    words: list[str],
) -> None:
    check_refusal(precompute(*options), code, *words)
    assert not (tmp_path / "cache").exists()
