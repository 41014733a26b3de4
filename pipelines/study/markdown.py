"""Sections of a report as Markdown, with its pictures as files beside it; pure."""

from collections.abc import Sequence

from kdcache.report.page import Section


def render_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the text; a picture is NAME.svg. Sections' sheets are left out."""
    blocks = [f"# {_plain(title)}"]
    for section in sections:
        blocks.append(f"## {_plain(section.title)}")
        blocks += [_plain(text) for text in section.paragraphs]
        blocks += [f"![{_plain(one.words)}]({one.name}.svg)" for one in section.figures]
        if section.table:
            blocks.append(_table(section.table))
    return "\n\n".join(blocks) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    heads, *body = [f"| {' | '.join(map(_plain, row))} |" for row in rows]
    return "\n".join([heads, "|---" * len(rows[0]) + "|", *body])


def _plain(text: str) -> str:
    """Return text whose characters mean nothing to Markdown."""
    for mark in "\\`*_[]|<":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
