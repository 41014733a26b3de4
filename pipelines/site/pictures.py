"""The pictures of docs/concepts.md, as SVG: `python -m pipelines.site.pictures` writes them.

Each has a ground of its own, light or dark as the reader's page is, and is drawn 440 wide with
letters of 15, so that a phone shows it legibly.
"""

from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
WIDTH = 440
STYLE = """
  .ground { fill: #f6f8fa } .box { fill: #ffffff; stroke: #57606a }
  .kept { fill: #9ecbff; stroke: #0550ae } .doing { fill: #ffe2a8; stroke: #9a6700 }
  .none { fill: none; stroke: #8c959f; stroke-dasharray: 3 2 } .frame { fill: none; stroke: #cf222e; stroke-width: 2.5 }
  .line { fill: none; stroke: #57606a; stroke-width: 1.5 } .tip, text { fill: #1f2328 }
  .hill { fill: #7fbf8e } .sun { fill: #eac54f } .dot { fill: #0550ae }
  text { font: 15px system-ui, sans-serif; text-anchor: middle } .left { text-anchor: start } .right { text-anchor: end } .small { font-size: 13px }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #22272e } .box { fill: #2d333b; stroke: #909dab }
    .kept { fill: #1f4b7a; stroke: #6cb6ff } .doing { fill: #5c4614; stroke: #daaa3f }
    .none { stroke: #768390 } .frame { stroke: #ff938a } .line { stroke: #909dab } .tip, text { fill: #e6edf3 }
    .hill { fill: #3f7d52 } .sun { fill: #c69026 } .dot { fill: #6cb6ff }
  }
"""  # noqa: E501


def box(x: int, y: int, width: int, text: str, *, kind: str = "box", height: int = 36) -> str:
    """Return a box with a line of text in its middle."""
    shape = f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    return shape + label(x + width / 2, y + height / 2 + 5, text)


def label(x: float, y: float, text: str, *, kind: str = "") -> str:
    """Return a line of text about x, or from x on where kind says left."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{text}</text>'


def arrow(*points: tuple[int, int]) -> str:
    """Return a line through points that ends in a tip."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    tip = [(x, y), (x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx)]
    tip += [(x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx)]
    return _line(points) + f'<polygon class="tip" points="{_points(tip)}"/>'


def _line(points: tuple[tuple[int, int], ...]) -> str:
    return f'<polyline class="line" points="{_points(list(points))}"/>'


def _points(points: list[tuple[int, int]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def picture(height: int, title: str, *parts: str) -> str:
    """Return an SVG document."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="10"/>',
            *parts,
            "</svg>\n",
        ]
    )


def view() -> str:
    """Return how a name becomes pixels, and pixels a target."""
    return picture(
        404,
        "A view is a name",
        box(90, 16, 260, "a name: seed, uid, view number"),
        arrow((220, 52), (220, 76)),
        box(70, 76, 300, "numbers: crop, flips, colours, partner"),
        arrow((220, 112), (220, 136)),
        box(145, 136, 150, "uint8 pixels", kind="doing"),
        box(16, 136, 90, "the image"),
        arrow((106, 154), (145, 154)),
        arrow((170, 172), (170, 196), (105, 196), (105, 222)),
        arrow((270, 172), (270, 196), (335, 196), (335, 222)),
        box(30, 222, 150, "teacher, once"),
        box(260, 222, 150, "students, always"),
        arrow((105, 258), (105, 330)),
        label(114, 300, "stores", kind="left small"),
        arrow((335, 330), (335, 258)),
        label(326, 290, "reads the target,", kind="right small"),
        label(326, 308, "compares the witness", kind="right small"),
        box(30, 330, 380, "cache: target and witness, a few dozen bytes", kind="kept", height=50),
    )


def grid() -> str:
    """Return tars and views as a grid of spans."""
    states = (("kept", "kept"), ("kept", "doing"), ("doing", "none"), ("none", "none"))
    cell, parts = 20, []
    for run in range(2):
        left = 84 + run * (8 * cell + 12)
        parts.append(label(left + 4 * cell, 28, f"views {8 * run} to {8 * run + 7}"))
        for tar, row in enumerate(states):
            for number in range(8):
                x, y = left + number * cell, 42 + tar * 30
                parts.append(
                    f'<rect class="{row[run]}" x="{x}" y="{y}" width="{cell}" height="{cell}"/>'
                )
    parts += [label(40, 57 + 30 * tar, f"tar {tar}") for tar in range(len(states))]
    parts += [_crop(124, 42, cell, cell), _crop(82, 70, 8 * cell + 4, cell + 4)]
    names = {"kept": "committed", "doing": "being computed", "none": "missing"}
    for number, (kind, name) in enumerate(names.items()):
        x = 20 + (0, 120, 290)[number]
        parts.append(f'<rect class="{kind}" x="{x}" y="176" width="20" height="20"/>')
        parts.append(label(x + 28, 191, name, kind="left"))
    framed = "Framed: a tile (tar 0, view 2), a span (tar 1, views 0 to 7)"
    parts.append(label(20, 226, framed, kind="left small"))
    return picture(244, "Tars, views, tiles and spans", *parts)


def _scene(x: int, y: int, *, other: bool = False) -> str:
    """Return a photograph of a hill, or of another one."""
    hill = "0,70 25,20 80,70" if not other else "0,40 40,58 80,10 80,70 0,70"
    sun = (58, 18) if not other else (20, 20)
    return (
        f'<g transform="translate({x} {y})"><rect class="box" width="80" height="70"/>'
        f'<polygon class="hill" points="{hill}"/><circle class="sun" cx="{sun[0]}" cy="{sun[1]}" '
        'r="9"/></g>'
    )


def _crop(x: int, y: int, width: int = 46, height: int = 42) -> str:
    return f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}"/>'


def teaching() -> str:
    """Return what teacher and student see, three ways."""
    parts = [label(230, 26, "teacher sees"), label(360, 26, "student sees")]
    for number, name in enumerate(("fixed", "consistent", "function")):
        y = 40 + 90 * number
        parts += [label(80, y + 40, name), _scene(190, y), _scene(320, y)]
        if name == "function":
            parts.append(label(80, y + 58, "matching"))
            for x in (190, 320):
                parts.append(f'<g opacity="0.5">{_scene(x, y, other=True)}</g>')
        if name == "fixed":
            parts += [_crop(190, y, 80, 70), _crop(330, y + 20)]
        else:
            parts += [_crop(x + 24, y + 8) for x in (190, 320)]
    return picture(316, "What teacher and student see", *parts)


def reuse() -> str:
    """Return which view each epoch uses."""
    left, bottom, parts = 52, 176, []
    for epoch in range(48):
        x, y = left + 8 * epoch, bottom - 9 * (epoch % 16)
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>')
    parts += [label(28, bottom + 5, "0", kind="small"), label(28, bottom - 130, "15", kind="small")]
    parts += [label(28, bottom - 62, "view", kind="small")]
    parts += [label(left + 128 * n, 204, f"epoch {16 * n}", kind="small") for n in range(3)]
    parts.append(label(220, 232, "reuse = epochs / views = 48 / 16 = 3"))
    return picture(250, "Views are used again", *parts)


PICTURES: dict[str, Callable[[], str]] = {
    "view": view,
    "grid": grid,
    "teaching": teaching,
    "reuse": reuse,
}


def main() -> None:
    """Write all pictures."""
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw())


if __name__ == "__main__":
    main()
