"""Claims about how many views to store: the rule, its page, and what the study found."""

import json
import re
from typing import Any

import pytest

from kdcache.report.plan import enough_views, views_of_epochs
from tests.cli.making import ROOT

PAGE = (ROOT / "docs/how-to/choose-views.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def equivalences() -> list[dict[str, Any]]:
    """What the study found: for each recipe and training length, the fewest views that do."""
    result = json.loads((ROOT / "docs/results/digits.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = result["equivalence"]
    assert len(found) == 6
    return found


def _row(head: str) -> list[int]:
    """Return the numbers of a row of the page's tables."""
    (line,) = re.findall(rf"^\| {re.escape(head)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [int(cell.replace(",", "")) for cell in line.split("|")]


def test_the_rule_stores_what_the_study_found_to_be_enough(
    equivalences: list[dict[str, Any]],
) -> None:
    for found in equivalences:
        assert views_of_epochs(found["epochs"]).num_views >= found["smallest_views"]


def test_the_page_tells_what_the_study_found(equivalences: list[dict[str, Any]]) -> None:
    lengths = sorted({found["epochs"] for found in equivalences})
    fewest = {(found["mixed"], found["epochs"]): found["smallest_views"] for found in equivalences}
    assert _row("mixed views") == [fewest[True, epochs] for epochs in lengths]
    assert _row("unmixed views") == [fewest[False, epochs] for epochs in lengths]
    assert _row("the rule, in whole spans") == [views_of_epochs(e).num_views for e in lengths]


def test_the_page_tells_the_rule() -> None:
    assert _row("views") == [enough_views(epochs) for epochs in _row("epochs")]
