"""Claims about what is read of runs, and how it is drawn."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from kdcache.errors import CorruptError, UsageError
from kdcache.report import runs
from kdcache.report.curves import COLOURS, draw_curves
from kdcache.report.runs import Line, differing, read_metrics, read_run, run_names
from kdcache.student.checkpoint import METRICS
from kdcache.student.folder import CONFIG
from tests.report.making import SETTINGS, metrics, write_run

# --- reading -------------------------------------------------------------------------------


def test_the_files_are_those_that_training_writes() -> None:
    assert (runs.CONFIG, runs.METRICS) == (CONFIG, METRICS)


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = metrics(3)
    log = read_run(write_run(tmp_path / "run", written, seed=7))
    assert log.settings == SETTINGS | {"seed": 7}
    assert [line.step for line in log.lines] == [line["step"] for line in written]
    assert [line.epoch for line in log.closing] == [1, 2, 3]
    assert (log.epochs_done, log.epochs) == (3, 4)
    losses = [line["loss"] for line in written if "epoch" in line]
    assert log.epoch_values("loss") == losses
    assert log.epoch_values("val_unheard") == []


def test_a_run_that_has_just_begun_has_no_lines(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [])
    assert (read_run(folder).lines, read_run(folder).epochs_done) == ((), 0)
    (folder / "metrics.jsonl").unlink()
    assert read_run(folder).lines == ()


def test_what_is_no_number_is_left_out_and_what_is_not_finite_is_no_value(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "epoch": 1, "loss": float("inf"), "val_top1": None, "note": "x", "done": True},
        {"step": 2, "epoch": 2, "loss": 1, "memory_bytes": 2**40},
    ]
    log = read_run(write_run(tmp_path / "run", lines))
    assert [line.numbers.keys() for line in log.lines] == [{"loss"}, {"loss", "memory_bytes"}]
    assert log.epoch_values("loss") == [1]


@given(cut=st.integers(min_value=0))
def test_metrics_cut_anywhere_are_those_lines_that_are_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    whole = "".join(json.dumps(line) + "\n" for line in metrics(2)).encode()
    path.write_bytes(whole)
    lines = read_metrics(path)
    part = whole[: cut % (len(whole) + 1)]
    path.write_bytes(part)
    assert read_metrics(path) == lines[: part.count(b"\n")]


@pytest.mark.parametrize(
    "damaged",
    [
        '{"step": 2, "lo',
        "",
        "\0\0\0",
        "[2]",
        "{}",
        '{"step": "2"}',
        '{"step": 0}',
        '{"step": true}',
        '{"step": 2, "epoch": 1.5}',
        '{"step": 2, "loss": 1' + "0" * 400 + "}",
        '{"step": 2, "loss": ' + "1" * 5000 + "}",
        '{"step": 9007199254740993}',
        '{"step": 2, "epoch": 1' + "0" * 300 + "}",
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 3}}\n')
    with pytest.raises(CorruptError, match=r"metrics\.jsonl: line 2 is damaged") as refused:
        read_metrics(path)
    assert len(str(refused.value)) < 300 + len(str(path))
    assert "sys." not in str(refused.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"step": 5}, {"step": 4}),
        ({"step": 5, "epoch": 1}, {"step": 4}),
        ({"step": 5, "epoch": 1}, {"step": 6, "epoch": 1}),
    ],
)
def test_lines_of_two_runs_are_refused(
    tmp_path: Path, first: dict[str, int], second: dict[str, int]
) -> None:
    folder = write_run(tmp_path / "run", [first, second])
    with pytest.raises(CorruptError, match="line 2 has step"):
        read_run(folder)


def test_a_line_may_close_an_epoch_at_the_step_of_the_one_before(tmp_path: Path) -> None:
    log = read_run(write_run(tmp_path / "run", [{"step": 5}, {"step": 5, "epoch": 1}]))
    assert log.lines == (Line(5, None, {}), Line(5, 1, {}))


def test_a_folder_that_is_no_runs_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", write_run(tmp_path / "a", []) / "config.json"):
        with pytest.raises(UsageError, match="no run here; kdcache train"):
            read_run(folder)
    (tmp_path / "config.json").write_text('{"epochs": "many", "student": "x"}')
    with pytest.raises(UsageError, match=r"no run here; its config\.json says no learn, epochs, b"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UsageError, match="no run here"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"epochs": ')
    with pytest.raises(CorruptError, match=r"config\.json: no readable settings"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"learn": "\\ud800"', "no readable settings: not UTF-8"),
        ('"clip": NaN', "no readable settings: a number is not finite"),
        ('"clip": 1e999', "no readable settings: a number is not finite"),
        ('"epochs": ' + "1" * 5000, "no readable settings: a number of 5000 digits; train again"),
        ('"epochs": 1' + "0" * 300, "epochs out of 1 to 9007199254740992; train again"),
        ('"epochs": -1, "batch_size": 0', "epochs and batch_size out of 1 to"),
    ],
)
def test_settings_that_no_run_has_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = write_run(tmp_path / "run", []) / "config.json"
    known = {name: SETTINGS[name] for name in runs.NEEDED if f'"{name}"' not in text}
    file.write_text(f"{json.dumps(known)[:-1]}, {text}}}")
    with pytest.raises(CorruptError, match=rf"config\.json: {words}"):
        read_run(tmp_path / "run")


def test_settings_are_of_the_very_kind_and_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="says no epochs"):
        read_run(write_run(tmp_path / "run", [], epochs=True))
    (tmp_path / "run/metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "run/metrics.jsonl")
    (tmp_path / "run/config.json").write_text(json.dumps(SETTINGS))
    assert read_run(tmp_path / "run").lines == ()
    (tmp_path / "run/config.json").unlink()
    os.mkfifo(tmp_path / "run/config.json")
    with pytest.raises(CorruptError, match="not a regular file"):
        read_run(tmp_path / "run")


def test_numbers_beyond_all_measures_are_none_and_the_least_are_zero(tmp_path: Path) -> None:
    values = [1e308, -1e308, 5e-324, -1e-70, 1e29, 2**63]
    lines = [{"step": n, "epoch": n, "loss": value} for n, value in enumerate(values, 1)]
    found = read_run(write_run(tmp_path / "run", lines)).epoch_values("loss")
    assert found == [0, 0, 1e29, 2**63]


# --- names and settings --------------------------------------------------------------------

PARTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=5)


@given(paths=st.lists(PARTS, min_size=1, max_size=8, unique_by=tuple))
def test_names_are_unique_ends_of_paths(paths: list[list[str]]) -> None:
    folders = [Path("/", *parts) for parts in paths]
    names = run_names(folders)
    assert len(set(names)) == len(names)
    assert all(str(folder).endswith(name) for folder, name in zip(folders, names, strict=True))


def test_names_are_as_short_as_they_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    assert run_names([Path("a/run"), Path("b/run"), Path("long"), Path()]) == [
        "a/run", "b/run", "long", "x"
    ]  # fmt: skip


def test_a_folder_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for other in ("run", "link", "link/../run"):
        with pytest.raises(UsageError, match="given twice"):
            run_names([tmp_path / "run", tmp_path / other])


LEAVES = st.none() | st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2)
TREES = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES),
    lambda inner: st.dictionaries(st.sampled_from("abc"), LEAVES | inner),
    max_leaves=6,
)


def follow(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return None if isinstance(tree, dict) else tree


def paths_of(tree: dict[str, Any]) -> Iterator[str]:
    for name, value in tree.items():
        yield from [f"{name}.{p}" for p in paths_of(value)] if isinstance(value, dict) else [name]


@given(trees=st.lists(TREES, min_size=1, max_size=4))
def test_settings_differ_where_two_have_other_values(trees: list[dict[str, Any]]) -> None:
    found = differing(trees)
    paths = {path for tree in trees for path in paths_of(tree)}
    values = {path: [follow(tree, path) for tree in trees] for path in paths}
    assert found == {p: v for p, v in values.items() if any(one != v[0] for one in v)}
    assert differing(trees[::-1]) == {path: value[::-1] for path, value in found.items()}
    assert differing([trees[0]] * 3) == {}


# --- drawing -------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(1e308, -1e308), (5e-324,), (-1e60, 1e60), (1e-60, 1e60)])
def test_odd_numbers_are_drawn_without_a_warning(tmp_path: Path, values: tuple[float, ...]) -> None:
    lines = [
        {"step": step, "epoch": step, "loss": value, "learning_rate": value}
        for step, value in zip((1, 2**53), values, strict=False)
    ]
    draw([write_run(tmp_path / "odd", lines, batch_size=2**53)], tmp_path / "odd.png")


def draw(folders: list[Path], path: Path) -> None:
    draw_curves([read_run(folder) for folder in folders], path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size[0] == 1500


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title("left").split(" (")[0]: axes for axes in figure.axes}


def points(axes: Axes) -> list[list[list[float]]]:
    return [line.get_xydata().tolist() for line in axes.lines]  # type: ignore[union-attr]


def test_one_run_is_drawn_against_its_epochs(tmp_path: Path, figures: list[Figure]) -> None:
    written = metrics(4)
    draw([write_run(tmp_path / "run", written)], tmp_path / "a.png")
    (figure,) = figures
    assert list(panels(figure)) == [
        "training loss", "validation KL, nats", "validation top-1", "agreement with the teacher",
        "calibration error", "learning rate",
    ]  # fmt: skip
    closing = [line for line in written if "epoch" in line]
    top1, top5 = points(panels(figure)["validation top-1"])
    assert top1 == [[line["epoch"], line["val_top1"]] for line in closing]
    assert top5 == [[line["epoch"], line["val_top5"]] for line in closing]
    mean, within = points(panels(figure)["training loss"])
    assert mean == [[line["epoch"], line["loss"]] for line in closing]
    assert [x for x, _ in within] == pytest.approx(
        [line["step"] / 10 for line in written if "epoch" not in line]
    )
    assert len(points(panels(figure)["learning rate"])[0]) == len(written)
    assert figure.get_supxlabel() == "epochs"
    assert figure.get_suptitle() == "run: torchvision:resnet18, cache"
    assert not figure.legends


def test_several_runs_have_a_legend_with_a_style_each(
    tmp_path: Path, figures: list[Figure]
) -> None:
    names = ["$a_1$", "_b", *(f"run {number}" for number in range(10))]
    folders = [write_run(tmp_path / name, metrics(4, better=1.1)) for name in names[:-1]]
    draw([*folders, write_run(tmp_path / names[-1], metrics(2))], tmp_path / "a.png")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *names[:-1], "run 9 (2 of 4 epochs)"
    ]  # fmt: skip
    styles = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()]
    assert len(set(styles)) == 12
    assert [colour for colour, _ in styles[:7]] == list(COLOURS)
    kl = panels(figures[0])["validation KL, nats"].lines
    assert [(line.get_color(), line.get_linestyle()) for line in kl] == styles


@pytest.mark.parametrize(
    ("settings", "lines", "label"),
    [
        ({}, metrics(4, steps=20), "epochs"),
        ({"batch_size": 64}, metrics(4, steps=5), "images seen"),
        ({"epochs": 8}, metrics(8, of=8), "images seen"),
        ({}, metrics(1)[:2], "images seen"),
    ],
)
def test_runs_of_other_lengths_are_drawn_against_images_seen(
    tmp_path: Path,
    figures: list[Figure],
    settings: dict[str, int],
    lines: list[dict[str, Any]],
    label: str,
) -> None:
    other = write_run(tmp_path / "other", lines, **settings)
    draw([write_run(tmp_path / "run", metrics(4)), other], tmp_path / "a.png")
    assert figures[0].get_supxlabel() == label
    last = max(x for line in points(panels(figures[0])["learning rate"]) for x, _ in line)
    batch_size = settings.get("batch_size", 32)
    assert last == (4 if label == "epochs" else max(40 * 32, lines[-1]["step"] * batch_size))


def test_panels_without_data_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    blind = write_run(tmp_path / "run", metrics(4, validated=False))
    draw([blind], tmp_path / "a.png")
    assert list(panels(figures[0])) == ["training loss", "learning rate"]
    draw([blind, write_run(tmp_path / "other", metrics(4))], tmp_path / "b.png")
    assert len(figures[1].axes) == 6


def test_one_epoch_is_a_point_that_shows(tmp_path: Path, figures: list[Figure]) -> None:
    draw([write_run(tmp_path / "run", metrics(1, of=1), epochs=1)], tmp_path / "a.png")
    (line,) = panels(figures[0])["validation KL, nats"].lines
    assert line.get_marker() == "o"


def test_a_logarithm_is_used_where_values_span_much(tmp_path: Path, figures: list[Figure]) -> None:
    def scales(folder: Path) -> list[str]:
        draw([folder], tmp_path / "a.png")
        return [axes.get_yscale() for axes in figures[-1].axes]

    assert scales(write_run(tmp_path / "near", metrics(4))) == ["linear"] * 6
    far = [line | {"loss": 10.0 ** -line["step"]} for line in metrics(4)]
    assert scales(write_run(tmp_path / "far", far)) == ["log", *["linear"] * 5]
    zero = [line | {"loss": 0.0} for line in metrics(4)]
    assert scales(write_run(tmp_path / "zero", zero)) == ["linear"] * 6
    with_inf = [*metrics(3), metrics(4)[-1] | {"loss": float("inf"), "val_kl_nats": float("nan")}]
    assert scales(write_run(tmp_path / "inf", with_inf)) == ["linear"] * 6
