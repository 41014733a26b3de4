"""Bars and a map of a page as SVG, small and without style of their own; pure.

They are drawn by hand, since matplotlib's would be ten times as large and slow.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from kdcache.report.figures import COLOURS, Picture

_WIDTH, _HEIGHT = 320, 180
_LEFT, _TOP, _BOTTOM = 8, 24, 24
_COUNT = 18  # above the tallest bar, for its count
_MAP_WIDTH, _MAP_LEFT = 560, 46
LEVELS = 4  # of coverage that are told apart between none and all


def bars(name: str, title: str, counts: NDArray[np.int64], *, top: float, words: str) -> Picture:
    """Return a histogram from 0 to top. words: what it shows, if not seen."""
    wide, high = _WIDTH - 2 * _LEFT, _HEIGHT - _TOP - _COUNT - _BOTTOM
    base, step = _HEIGHT - _BOTTOM, wide / len(counts)
    tallest = max(int(counts.max()), 1)
    marks = [
        _rect(_LEFT + n * step + 0.5, base - high * c / tallest, step - 1, high * c / tallest)
        for n, c in enumerate(counts.tolist())
        if c
    ]
    middle = min(max(_LEFT + (int(counts.argmax()) + 0.5) * step, 48), _WIDTH - 48)
    marks.append(_text(middle, _TOP + _COUNT - 4, f"{tallest:,} views", anchor="middle"))
    marks.append(f'<path d="M{_LEFT} {base}H{_LEFT + wide}" stroke="currentColor"/>')
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        marks.append(_text(_LEFT + part * wide, base + 16, f"{part * top:.3g}", anchor=anchor))
    marks.append(_text(_LEFT, 14, title, anchor="start"))
    return Picture(name, _svg(_WIDTH, _HEIGHT, marks), words)


def coverage_map(shares: NDArray[np.float64], *, tars: int, views: int, words: str) -> Picture:
    """Return a map of what is computed: tars down, views across; full where all of it is there."""
    rows, columns = shares.shape
    wide = _MAP_WIDTH - _MAP_LEFT
    cell, tall = wide / columns, max(min(14, 280 / rows), 2)
    levels = np.ceil(shares * LEVELS).astype(int)
    levels[shares >= 1] = LEVELS + 1
    marks = [
        f'<rect x="{_MAP_LEFT}" y="{_TOP}" width="{wide}" height="{tall * rows:.5g}" fill="none" '
        'stroke="currentColor" stroke-opacity="0.5"/>'
    ]
    for row, line in enumerate(levels.tolist()):
        for start, end, level in _runs(line):
            if level:
                opacity = 1 if level > LEVELS else 0.15 + 0.55 * level / LEVELS
                marks.append(
                    _rect(
                        _MAP_LEFT + start * cell, _TOP + row * tall, (end - start) * cell, tall,
                        opacity=opacity,
                    )
                )  # fmt: skip
    bottom = _TOP + rows * tall
    marks += [
        _text(_MAP_LEFT, 14, "view 0", anchor="start"),
        _text(_MAP_WIDTH, 14, f"{views - 1}", anchor="end"),
        _text(_MAP_LEFT - 6, _TOP + 11, "tar 0", anchor="end"),
    ]
    if bottom - _TOP > 26:
        marks.append(_text(_MAP_LEFT - 6, bottom, f"{tars - 1}", anchor="end"))
    return Picture("coverage", _svg(_MAP_WIDTH, round(bottom) + 6, marks), words)


def _runs(levels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return start, end and level of each run of equal levels."""
    cuts = [0, *(n for n in range(1, len(levels)) if levels[n] != levels[n - 1]), len(levels)]
    return [(start, end, levels[start]) for start, end in pairwise(cuts)]


def _rect(x: float, y: float, width: float, height: float, *, opacity: float = 1) -> str:
    faint = "" if opacity == 1 else f' fill-opacity="{opacity:.3g}"'
    return (
        f'<rect x="{x:.5g}" y="{y:.5g}" width="{width:.5g}" height="{height:.5g}" '
        f'fill="{COLOURS[0]}" shape-rendering="crispEdges"{faint}/>'
    )


def _text(x: float, y: float, words: str, *, anchor: str) -> str:
    return (
        f'<text x="{x:.5g}" y="{y:.5g}" font-size="12" text-anchor="{anchor}" '
        f'fill="currentColor">{escape(words)}</text>'
    )


def _svg(width: int, height: int, marks: Sequence[str]) -> str:
    inside = "".join(marks)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{inside}</svg>'
