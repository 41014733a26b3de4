"""The card of a published cache: what it says, and what nobody's text can make it say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from kdcache.cache.published import DatasetSummary, Licences, TeacherSummary
from kdcache.cache.store import Cache, open_cache
from kdcache.errors import CorruptError, MismatchError
from kdcache.sharing.card import card, code, plain
from tests.sharing.described import LICENCES, attributes_of, contribution, manifest_of
from tests.tiny import make_dataset, make_recipe, precompute_first

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def cache(complete: Path) -> Cache:
    return open_cache(complete)


def split(text: str) -> tuple[Any, list[Token]]:
    """Return the front matter, and the tokens of the Markdown below it."""
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), MARKDOWN.parse(body)


def kinds(tokens: list[Token]) -> list[str]:
    """Return what the page is made of, but for what is written in it."""
    parts = (t for token in tokens for t in (token, *(token.children or ())))
    return [part.type for part in parts]


def test_the_front_matter_is_what_the_hub_reads(cache: Cache) -> None:
    front, _ = split(card(manifest_of(cache), attributes_of(cache)))
    assert front == {
        "license": "other",
        "license_name": "cc-by-4.0-or-licenseref-ours",
        "license_link": "README.md",
        "pretty_name": "Targets of tests.tiny:linear_teacher for photos",
        "task_categories": ["image-classification"],
        "tags": ["knowledge-distillation", "teacher-logits", "kdcache", "zarr"],
        "size_categories": ["n<1K"],
        "viewer": False,
    }


@pytest.mark.parametrize(
    ("output", "named"), [("CC-BY-4.0", "cc-by-4.0"), (None, "unknown"), ("GPL-3.0-only", "other")]
)
def test_the_licence_is_named_as_the_hub_names_it(
    cache: Cache, output: str | None, named: str
) -> None:
    licences = LICENCES.model_copy(update={"output": output})
    front, _ = split(card(manifest_of(cache, licences=licences), attributes_of(cache)))
    assert front["license"] == named


@pytest.mark.parametrize(
    ("samples", "band"),
    [(249, "n<1K"), (250, "1K<n<10K"), (1_281_167, "1M<n<10M"), (2**47, "n>1T")],
)
def test_the_size_is_of_samples_times_views(cache: Cache, samples: int, band: str) -> None:
    manifest = manifest_of(cache)
    dataset = manifest.dataset.model_copy(update={"num_samples": samples})
    front, _ = split(card(manifest_of(cache, dataset=dataset), attributes_of(cache)))
    assert front["size_categories"] == [band]


def test_a_card_says_what_it_is_and_how_to_use_it(cache: Cache) -> None:
    manifest = manifest_of(cache)
    text = card(manifest, attributes_of(cache))
    rows = [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in text.splitlines()]
    table = {row[0]: row[1] for row in rows if len(row) == 2}
    assert table["cache"] == f"`{cache.info.id}`"
    assert table["views"] == "4 of each image, 12 x 12 pixels"
    assert table["spans"] == "complete, each of 2 views of one tar"
    assert table["encoding"] == "` topk:3 `"
    assert table["classes"] == "5, from ` class0 ` to ` class4 `"
    assert table["data"] == "` CC-BY-4.0 `"
    assert f"--cache CATALOGUE/caches/{cache.info.id} " in text
    assert f"kdcache fetch CATALOGUE {cache.info.id} OUT" in text
    assert "Together: 0.5 device-hours." in text
    assert (
        "| ` Team A ` | ` 2026-01-02T03:04:05Z ` | 6 | 0.5 | ` kdcache 0.1.0, commit "
        "cccccccccccc, torch 2.11.0 ` |"
    ) in text


def test_a_part_of_a_cache_says_how_much_is_there(tmp_path: Path) -> None:
    part = precompute_first(tmp_path / "cache", make_dataset(tmp_path), make_recipe(), spans=2)
    assert "| spans | 2 of 6, each of" in card(manifest_of(part), attributes_of(part))


def test_what_is_not_known_is_said_to_be(cache: Cache) -> None:
    none = Licences(data=None, weights=None, output=None)
    parts = (contribution(device_hours=None, commit=None),)
    text = card(manifest_of(cache, licences=none, contributions=parts), attributes_of(cache))
    assert text.count("` NOASSERTION `") == 3
    assert "Together: a cost that is not known." in text


_PIECES = [
    *("\n---\n", "`", "``", "```", "|", "\\", "\\|", "<b>", "</td>", "<!--", "&lt;", "~~", "- "),
    *("[a](http://b)", "http://b", "a@b.org", "![", "](", "# ", "'", '"', ": ", "{{ 1 }}", "{%"),
    *("\r", "\x00", "\x85", "\x1b[0m", "\u2028", "\u202e", "\ufeff", "\ud800"),
]
HOSTILE = st.one_of(
    st.text(max_size=80), st.lists(st.sampled_from(_PIECES), max_size=12).map("".join)
)


@given(text=HOSTILE)
@example(text="` |\n---\nlicense: mit\n---\n<script>alert(1)</script> [x](http://x) \\` \\|")
@settings(max_examples=60, deadline=None)
def test_no_text_of_others_adds_links_html_cells_or_front_matter(cache: Cache, text: str) -> None:
    manifest = manifest_of(cache)
    changed = manifest.model_copy(
        update={
            "dataset": DatasetSummary.model_construct(**{**dict(manifest.dataset), "name": text}),
            "teacher": TeacherSummary.model_construct(id=text, spec=text),
            "recipe": manifest.recipe.model_copy(update={"name": text}),
            "encoding": text,
            "licences": Licences.model_construct(data=text, weights=text, output=text),
            "contributions": (
                contribution().model_copy(
                    update={
                        **dict.fromkeys(("who", "when", "kdcache", "commit"), text),
                        "versions": {text: text},
                    }
                ),
            ),
        }
    )
    attributes = attributes_of(cache)
    front, tokens = split(card(changed, attributes))
    usual_front, usual = split(card(manifest, attributes))
    assert front.keys() == usual_front.keys()
    assert {k: v for k, v in front.items() if k not in ("license_name", "pretty_name")} == {
        k: v for k, v in usual_front.items() if k not in ("license_name", "pretty_name")
    }
    assert kinds(tokens) == kinds(usual)
    assert not {"link_open", "image", "html_inline", "html_block"} & set(kinds(tokens))


@given(text=HOSTILE)
def test_a_code_span_holds_the_text_and_nothing_else(text: str) -> None:
    (inline,) = (token for token in MARKDOWN.parse(code(text)) if token.type == "inline")
    assert inline.children is not None
    assert [child.type for child in inline.children] == ["code_inline"]
    shown = plain(text).replace("`", "'").replace("|", "¦")
    assert inline.children[0].content == (shown or "-")
    code(text).encode()


def test_a_long_text_is_cut() -> None:
    assert len(plain("x" * 10_000)) == 300
    assert plain("x" * 300) == "x" * 300


def test_a_card_of_another_cache_is_refused(cache: Cache) -> None:
    attributes = attributes_of(cache)
    with pytest.raises(CorruptError, match="differ from their digest"):
        card(manifest_of(cache), {**attributes, "views": 7})
    with pytest.raises(MismatchError, match="publish it again"):
        card(manifest_of(cache).model_copy(update={"cache": "0" * 64}), attributes)
