"""Claims about the picture of encodings: every one is named, those on the front are filled."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from kdcache.precompute.sample import measure_encodings
from kdcache.report.fidelity import FAMILIES, draw_comparison
from kdcache.targets.choice import Budget, Measured, candidates, choose, pareto
from kdcache.targets.encoding import parse_encoding
from kdcache.targets.fidelity import Fidelity
from tests.targets.logits import classifier_logits


@pytest.fixture(scope="module")
def measured() -> tuple[Measured, ...]:
    return measure_encodings(classifier_logits(100, num_classes=200), candidates(200))


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of the picture that is drawn, before it becomes pixels."""
    drawn: list[Axes] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        drawn.extend(figure.axes)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return drawn


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_picture_is_a_png_with_every_colour_of_a_family(
    measured: tuple[Measured, ...], tmp_path: Path
) -> None:
    draw_comparison(measured, tmp_path / "a.png", title="Encodings")
    shown = pixels(tmp_path / "a.png")
    assert shown.shape[0] > 1000
    assert shown.shape[1] > 1000
    assert shown.mean() > 230  # on white
    for colour, _, _ in FAMILIES.values():
        wanted = np.round(255 * np.array(to_rgb(colour)))
        assert (np.abs(shown.astype(float) - wanted).max(2) < 2).sum() > 50


def test_all_panels_name_every_point_at_its_place(
    measured: tuple[Measured, ...], tmp_path: Path, panels: list[Axes]
) -> None:
    draw_comparison(measured, tmp_path / "a.png", title="Encodings")
    assert len(panels) == 3
    for axes, temperature in zip(panels, (1, 2, 4), strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_ylabel().endswith(f"T = {temperature}")
        names = {(text.get_text(), text.xy) for text in axes.texts}  # type: ignore[attr-defined]
        assert names == {
            (
                str(one.encoding).partition(":")[2],
                (one.bytes_per_view, one.gradient_error(temperature)),
            )
            for one in measured
        }


def test_names_hardly_cover_each_other(
    measured: tuple[Measured, ...], tmp_path: Path, panels: list[Axes]
) -> None:
    draw_comparison(measured, tmp_path / "a.png", title="Encodings")
    for axes in panels:
        boxes = [text.get_window_extent() for text in axes.texts]
        covered = [
            (a, b) for number, a in enumerate(boxes) for b in boxes[number + 1 :] if a.overlaps(b)
        ]
        assert len(covered) <= 4  # of 36 names
        frame = axes.get_window_extent().padded(12)
        assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)


def test_points_on_the_front_are_filled_and_the_chosen_has_a_ring(
    measured: tuple[Measured, ...], tmp_path: Path, panels: list[Axes]
) -> None:
    chosen = choose(measured, Budget(max_gradient_error=0.02))
    draw_comparison(measured, tmp_path / "a.png", title="Encodings", chosen=chosen)
    front = pareto(measured)
    assert 0 < len(front) < len(measured)
    for axes, temperature in zip(panels, (1, 2, 4), strict=True):
        filled, rings = set(), set()
        for line in axes.lines:
            if len(line.get_xdata()) > 1:  # type: ignore[arg-type]
                continue
            place = (float(line.get_xdata()[0]), float(line.get_ydata()[0]))  # type: ignore[index]
            if line.get_markerfacecolor() == "none":
                rings.add(place)
            elif line.get_markerfacecolor() != "white":
                filled.add(place)
        assert filled == {(o.bytes_per_view, o.gradient_error(temperature)) for o in front}
        assert rings == {(chosen.bytes_per_view, chosen.gradient_error(temperature))}
    legend = panels[0].get_legend()
    assert legend is not None
    assert f"chosen: {chosen.encoding}" in [text.get_text() for text in legend.get_texts()]


def test_one_encoding_without_any_loss_is_drawn(tmp_path: Path) -> None:
    exact = Fidelity(5, (0.0,) * 3, 5, (0.0,) * 3, (1.0,) * 3)
    one = Measured(parse_encoding("dense:f2", 5), 20.0, exact)
    draw_comparison([one], tmp_path / "a.png", title="One")
    assert pixels(tmp_path / "a.png").min() < 100
