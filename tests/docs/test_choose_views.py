"""Claims about how many views to store: the rule, its page, and what the study found."""

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdcache.report.plan import enough_views, views_of_epochs
from pipelines.study.statistics import LEVEL, equivalence_test
from tests.cli.making import ROOT

PAGE = (ROOT / "docs/how-to/choose-views.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
RECIPES = " ".join((ROOT / "pipelines/recipes/runs/README.md").read_text(encoding="utf-8").split())
LENGTHS = (100, 600, 3000)
KINDS = pytest.mark.parametrize(("kind", "mixed"), [("mixed", True), ("unmixed", False)])


@cache
def _study() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs/results/digits.json").read_text("utf-8"))
    return found


def _views(mixed: bool, epochs: int, views: int | None) -> dict[int, float]:
    """Return each seed's KL with so many stored views; None: with a live teacher."""
    wanted = (mixed, epochs, views)
    rows = _study()["views"]
    return {r["seed"]: r["kl"] for r in rows if (r["mixed"], r["epochs"], r["views"]) == wanted}


def _arm(arm: str, epochs: int) -> dict[int, float]:
    rows = _study()["runs"]
    return {r["seed"]: r["kl"] for r in rows if (r["arm"], r["epochs"]) == (arm, epochs)}


def _above(mixed: bool, epochs: int, views: int) -> float:
    """Return the nats by which the KL is above a live teacher's, paired by seed."""
    ours, live = _views(mixed, epochs, views), _views(mixed, epochs, None)
    return float(np.mean([ours[seed] - live[seed] for seed in ours]))


def _ratio(mixed: bool, epochs: int, views: int) -> float:
    live = np.mean(list(_views(mixed, epochs, None).values()))
    return float(1 + _above(mixed, epochs, views) / live)


def _fewest(mixed: bool, epochs: int, *, share: float | None = None) -> int | None:
    """Return the fewest views that are shown to be close, with all larger numbers.

    share: of the live teacher's KL as the margin; None for the study's own.
    """
    live = _views(mixed, epochs, None)
    margin = 0.03 if share is None else share * float(np.mean(list(live.values())))
    fewest = None
    for views in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1):
        if ours := _views(mixed, epochs, views):
            pairs = [(ours[seed], live[seed]) for seed in ours]
            if equivalence_test(*zip(*pairs, strict=True), margin=margin).p >= LEVEL:
                break
            fewest = views
    return fewest


def _rival(arm: str, mixed: bool, epochs: int, views: int) -> tuple[float, float, float]:
    """Return how far above an arm's KL it is, and the 95% interval, paired by seed."""
    ours, other = _views(mixed, epochs, views), _arm(arm, epochs)
    found = stats.ttest_1samp([ours[seed] - other[seed] for seed in ours], 0)
    low, high = found.confidence_interval()
    return float(np.mean([ours[seed] - other[seed] for seed in ours])), float(low), float(high)


def _cells(head: str) -> list[str]:
    """Return the cells of the page's rows of this name, in order."""
    lines = re.findall(rf"^\| {re.escape(head)} \|(.*)\|$", PAGE, re.MULTILINE)
    return [cell.strip() for line in lines for cell in line.split("|")]


def _row(head: str) -> list[int]:
    return [int(cell.replace(",", "")) for cell in _cells(head)]


# --- what the study found ------------------------------------------------------------------


@KINDS
def test_the_page_tells_the_fewest_views(kind: str, mixed: bool) -> None:
    found = {e["epochs"]: e for e in _study()["equivalence"] if e["mixed"] == mixed}
    fewest = [_fewest(mixed, epochs) for epochs in LENGTHS]
    assert fewest == [found[epochs]["smallest_views"] for epochs in LENGTHS]
    assert _row(f"{kind}, within 0.03 nats") == fewest
    within = [_fewest(mixed, epochs, share=0.1) for epochs in LENGTHS]
    assert _cells(f"{kind}, within 10%") == [str(n or "none up to 512") for n in within]


def test_the_page_tells_what_the_fewest_cost() -> None:
    costs = [
        f"+{_above(mixed, epochs, views):.3f}, × {_ratio(mixed, epochs, views):.2f}"
        for mixed in (True, False)
        for epochs in LENGTHS
        if (views := _fewest(mixed, epochs)) is not None
    ]
    assert _cells("their KL") == costs


def test_the_page_tells_what_more_views_gain() -> None:
    live = np.mean(list(_views(True, 3000, None).values()))
    assert f"{0.03 / live:.0%} of the live student's {live:.3f} (mixed)" in TEXT
    cost = {views: f"{_above(True, 3000, views):.3f}" for views in (64, 128, 256, 512)}
    assert cost[512] == "0.000"
    said = f"64 mixed views cost {cost[64]} nats, 128 cost {cost[128]}, 256 cost {cost[256]}"
    assert f"{said} and 512 nothing" in TEXT
    assert f"512 views (× {_ratio(False, 3000, 512):.2f})" in TEXT


@pytest.mark.parametrize("text", [TEXT, RECIPES], ids=["page", "recipes"])
def test_uses_alone_do_not_tell_what_views_cost(text: str) -> None:
    few, many, some = ((100, 8), (3000, 256), (600, 64))
    cost = [f"{_above(True, *pair):.3f}" for pair in (few, many, some)]
    uses = [f"{epochs / views:.1f}" for epochs, views in (few, many, some)]
    for parts in zip(uses, cost, (8, 256, 64), strict=True):
        assert re.search(
            r"used {} times (?:cost )?{} (?:nats )?where they (?:are|were) {}\b".format(
                *map(str, parts)
            ),
            text,
        ), parts


def test_few_views_are_worse_than_a_fixed_prediction_where_the_page_says_so() -> None:
    for epochs in LENGTHS:
        for views in (1, 2):
            assert _rival("fixed + mixup", True, epochs, views)[1] > 0
            assert _rival("fixed", True, epochs, views)[1] > 0
            assert _rival("fixed", False, epochs, views)[1] > 0
    two = [np.mean(list(_views(True, epochs, 2).values())) for epochs in LENGTHS]
    rival = [np.mean(list(_arm("fixed + mixup", epochs).values())) for epochs in LENGTHS]
    assert f"two mixed views: {min(two):.2f} to {max(two):.2f} nats" in TEXT
    assert f"*fixed + mixup*: {min(rival):.2f} to {max(rival):.2f})" in TEXT

    assert _rival("fixed + mixup", True, 100, 4)[1] < 0
    for arm, mixed, shown in (("fixed + mixup", True, True), ("fixed", False, False)):
        found = [_rival(arm, mixed, epochs, 4) for epochs in LENGTHS[1:]]
        assert [low > 0 for _, low, _ in found] == [shown, shown]
        said = " and ".join(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in found)
        assert said.replace("-", "−") in TEXT


# --- the rule ------------------------------------------------------------------------------


def test_the_page_tells_the_rule() -> None:
    assert _row("views") == [enough_views(epochs) for epochs in _row("epochs")]
    assert _row("the rule, in whole spans") == [views_of_epochs(e).num_views for e in LENGTHS]
    assert _row("`--reuse 3`") == [views_of_epochs(e, reuse=3).num_views for e in LENGTHS]


def test_the_rule_in_whole_spans_is_no_less_than_what_was_needed() -> None:
    needed = {(mixed, e): _fewest(mixed, e) or 0 for mixed in (True, False) for e in LENGTHS}
    assert all(views_of_epochs(e).num_views >= views for (_, e), views in needed.items())
    below = {pair: views for pair, views in needed.items() if enough_views(pair[1]) < views}
    assert below == {(True, 100): 32}
    assert enough_views(100) == 30


def test_the_root_is_more_cautious_than_what_was_measured() -> None:
    for mixed in (True, False):
        first, last = _fewest(mixed, LENGTHS[0]), _fewest(mixed, LENGTHS[-1])
        assert first is not None
        assert last is not None
        assert last / first in (2, 4)
        assert round(np.log(last / first) / np.log(30), 1) in (0.2, 0.4)


@pytest.mark.parametrize(("epochs", "beside"), [(600, (64, 128)), (3000, (128, 256))])
def test_the_page_tells_what_is_known_beside_the_rule(epochs: int, beside: tuple[int, int]) -> None:
    low, high = beside
    assert low < views_of_epochs(epochs).num_views < high
    costs = [_above(mixed, epochs, views) for mixed in (True, False) for views in beside]
    assert f"{min(costs):.3f} to {max(costs):.3f}" in TEXT
