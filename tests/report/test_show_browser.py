"""Claims about the pages of caches and runs in a real browser."""

import io
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from kdcache.cache.store import open_cache
from kdcache.data.document import load_dataset
from kdcache.report.browse import Browser as Pages
from kdcache.report.cache_page import DAMAGED, WRONG, cache_sections, cache_title
from kdcache.report.gallery import gallery, gallery_sections
from kdcache.report.page import Section, render_page, template_source
from kdcache.report.run_page import compared_sections, run_sections, run_title
from kdcache.report.runs import read_run
from kdcache.report.serving import make_server
from tests import tiny
from tests.report.browser import Browser
from tests.report.making import metrics, write_run
from tests.report.reading import faults
from tests.report.showing import EVIL, inspect, mixed_recipe, odd_dataset

STATE = """[document.activeElement.id, document.getElementById("found").textContent,
  [...document.querySelectorAll("article")].filter((e) => e.getClientRects().length).length]"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of oddly named images, and their data."""
    root = tmp_path_factory.mktemp("odd")
    dataset = odd_dataset(root)
    tiny.precompute(root / "cache", dataset, mixed_recipe(size=80))
    return root


@pytest.fixture(scope="module")
def page(odd: Path) -> Path:
    """The page of that cache, with all that may stand on one."""
    seen = inspect(odd / "cache", odd / "data")
    found, _ = gallery(seen, images=24, seed=0)
    loud = {WRONG: ["x" * 300], DAMAGED: [EVIL] * 30}
    sections = [*cache_sections(seen, loud=loud), *gallery_sections(found)]
    path = odd / "page.html"
    script = template_source("search.js")
    path.write_text(render_page(cache_title(seen.cache), sections, script=script))
    return path


def test_a_table_that_scrolls_is_shaded_where_it_is_cut(browser: Browser, odd: Path) -> None:
    path = odd / "wide.html"
    heads = [f"heading {n}" for n in range(9)]
    path.write_text(render_page("t", [Section("Wide", table=[heads, [""] * 9])]))
    browser.open(path, width=360, scheme="light")
    left, right, bottom = browser.value(
        "(({left, right, bottom}) => [left, right, bottom])"
        "(document.querySelector('.scroll').getBoundingClientRect())"
    )

    def shade() -> int:
        """Return how much darker the right edge is than the middle, in a row without text."""
        shot = Image.open(io.BytesIO(browser.screenshot())).convert("L")
        edge, middle = (
            shot.getpixel((int(x), int(bottom) - 8)) for x in (right - 2, (left + right) / 2)
        )
        assert isinstance(edge, int)
        assert isinstance(middle, int)
        return middle - edge

    assert shade() > 30
    browser.value("document.querySelector('.scroll').scrollLeft = 9999")
    assert shade() == 0


def test_the_page_of_a_cache_has_no_fault(browser: Browser, page: Path) -> None:
    assert faults(browser, page) == []


def test_the_page_of_an_incomplete_cache_without_images_has_no_fault(
    browser: Browser, tmp_path: Path
) -> None:
    dataset = tiny.make_dataset(tmp_path)
    cache = tiny.precompute_first(tmp_path / "c", dataset, tiny.make_recipe(), spans=3)
    page = tmp_path / "page.html"
    page.write_text(render_page("c", cache_sections(inspect(cache, None), loud={})))
    assert faults(browser, page) == []


def test_pages_of_runs_have_no_fault(browser: Browser, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"run-{'long' * 10}-{n}", metrics(4, better=n), seed=n)
        for n in (1, 2, 3)
    ]
    logs = [read_run(run) for run in runs]
    one, several = tmp_path / "one.html", tmp_path / "several.html"
    one.write_text(render_page(run_title(logs[0]), run_sections(logs[0])))
    table = [["run", "top-1"], ["a" * 90, "1"]]
    names = [run.name for run in runs]
    several.write_text(render_page("Runs", compared_sections(logs, names, table=table)))
    assert faults(browser, one) == []
    assert faults(browser, several) == []


def _press(browser: Browser, key: str, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        letters = {"text": text} if text and kind == "keyDown" else {}
        browser("Input.dispatchKeyEvent", type=kind, key=key, **letters)


def test_images_are_found_by_key_with_the_keyboard_alone(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280, scheme="light")
    total = browser.value(STATE)[2]
    assert browser.value(STATE)[:2] == ["", "press / to search"]
    _press(browser, "/", "/")
    assert browser.value(STATE)[0] == "key"
    assert browser.value("document.getElementById('key').value") == ""
    browser("Input.insertText", text="ONERROR")
    _, found, shown = browser.value(STATE)
    assert 0 < shown < total
    assert found == f"{shown} of {total} images"
    assert browser.value("document.getElementById('found').ariaLive") == "polite"
    browser("Input.insertText", text="/")
    assert browser.value(STATE)[1:] == [f"0 of {total} images", 0]
    _press(browser, "Escape")
    assert browser.value(STATE) == ["", "press / to search", total]
    assert browser.complaints == []


def test_without_script_all_images_are_shown_and_no_search(browser: Browser, page: Path) -> None:
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page, width=1280, scheme="light")
        _, _, shown = browser.value(STATE)
        assert shown == browser.value("document.querySelectorAll('article').length") > 0
        assert browser.value("document.getElementById('search').getClientRects().length") == 0
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)


def test_a_script_that_is_not_the_page_s_own_does_not_run(browser: Browser, page: Path) -> None:
    hostile = page.with_name("hostile.html")
    hostile.write_text(
        page.read_text().replace("</body>", "<script>window.ran = 1</script><p style='color:red'>")
    )
    browser.open(hostile, width=1280, scheme="light")
    assert browser.value("window.ran") is None
    assert sum("violates" in text for text in browser.complaints) == 2


@pytest.fixture
def address(odd: Path) -> Iterator[str]:
    """The address of a server of the odd cache."""
    pages = Pages(inspect(open_cache(odd / "cache"), load_dataset(odd / "data")))
    with make_server(pages.answer, port=0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "target", ["/", "/images?tar=1&view=2&block=1", "/image?tar=0&row=3", "/x"]
)
def test_a_served_page_has_no_fault(browser: Browser, address: str, target: str) -> None:
    allowed = {"Failed to load resource", "favicon"}
    found = [
        fault
        for fault in faults(browser, address + target)
        if not any(word in fault for word in allowed)
    ]
    assert found == []


def test_a_served_image_is_found_by_key(browser: Browser, address: str) -> None:
    browser.open(f"{address}/", width=360, scheme="light")
    key = f"{EVIL}/plain 05"
    _press(browser, "/", "/")
    browser("Input.insertText", text=key)
    browser.value("document.querySelector('[role=search] button').click()")
    browser.wait_for_page()
    assert browser.value("document.querySelector('h3').textContent") == key
