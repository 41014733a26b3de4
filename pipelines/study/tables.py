"""Tables of the study: rows of cells, the first row the headings; empty where nothing ran; pure."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan
from typing import Any

from pipelines.study.sentences import (
    encoding_costs,
    encoding_name,
    fewest,
    kind_of_views,
    replay_costs,
)
from pipelines.study.summary import (
    Measure,
    Row,
    budgets,
    bytes_per_view,
    distinct,
    estimate_of,
    mean_over_seeds,
    select,
)
from pipelines.study.verdicts import finding, hypothesis
from pipelines.study.words import (
    DIVERGED,
    listed,
    nats,
    number,
    p_value,
    percent,
    share,
    signed_nats,
    with_interval,
)

Table = list[list[str]]
ALL_MEASURES = ("KL, nats", "agreement, %", "accuracy, %")


def by_budget(runs: Sequence[Row], measure: Measure) -> Table:
    """Return a row for each arm and a column for each number of epochs."""
    show = nats if measure == "kl" else percent
    columns = budgets(runs)
    body = [
        [arm, *(_mean(select(runs, arm=arm, epochs=epochs), measure, show) for epochs in columns)]
        for (arm,) in distinct(runs, "arm")
    ]
    return _table(["arm", *(f"{number(epochs)} epochs" for epochs in columns)], body)


def tests(found: Sequence[Mapping[str, Any]], *, registered: bool) -> Table:
    """Return a row for each test, of those that were registered or of the others."""
    heads = [
        "KL of",
        "epochs",
        "pairs",
        "difference, nats",
        "p",
        "p after Holm",
        "p of the opposite",
        "finding",
    ]
    body = [
        [
            hypothesis(test),
            number(test["epochs"]),
            number(test["pairs"]),
            with_interval(estimate_of(test), signed_nats),
            p_value(test["p"]),
            p_value(test["p_holm"]),
            p_value(test["p_two_sided_holm"] if test["difference"] > 0 else None),
            finding(test),
        ]
        for test in found
        if test["registered"] == registered
    ]
    if registered:
        return _table(heads, body)
    return _table(heads[:5] + heads[7:], [row[:5] + row[7:] for row in body])


def views(rows: Sequence[Row]) -> Table:
    """Return a row for each number of stored views, a column for each kind and budget: the KL."""
    kinds = distinct(rows, "mixed", "epochs")
    counts = sorted((views for (views,) in distinct(rows, "views") if views), reverse=True)
    body = [
        [
            "live" if views is None else number(views),
            *(
                _mean(select(rows, views=views, mixed=mixed, epochs=epochs), "kl", nats)
                for mixed, epochs in kinds
            ),
        ]
        for views in (None, *counts)
    ]
    return _table(["views", *(_kind(*kind) for kind in kinds)], body)


def enough(parts: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for each kind of views and budget: the fewest that are enough."""
    margin, ratio = parts[0]["margin"], parts[0]["ratio_margin"]
    heads = ["views", "live KL, nats", f"fewest within {number(margin)} nats", "uses of each"]
    heads += ["above live, nats", "times live", f"fewest within {share(ratio)}"]
    body = []
    for part in parts:
        views, cells = part["smallest_views"], ["", "", ""]
        if views is not None:
            (row,) = select(part["rows"], views=views)
            cells = [
                f"{part['reuse']:.3g}", signed_nats(row["difference"]), f"{row['ratio']:.2f}"
            ]  # fmt: skip
        body.append(
            [
                _kind(part["mixed"], part["epochs"]),
                nats(part["live_kl"]),
                fewest(part, views),
                *cells,
                fewest(part, part["smallest_views_ratio"]),
            ]
        )
    return _table(heads, body)


def equivalence(parts: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for each number of stored views: its KL less that of a live teacher."""
    found = [{row["views"]: _above_live(row, part) for row in part["rows"]} for part in parts]
    counts = sorted({views for rows in found for views in rows}, reverse=True)
    body = [[number(views), *(cells.get(views, "") for cells in found)] for views in counts]
    return _table(["views", *(_kind(part["mixed"], part["epochs"]) for part in parts)], body)


def _above_live(row: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    if isnan(row["difference"]):
        return DIVERGED
    margins = [f"{number(part['margin'])} nats"] * row["equivalent"]
    margins += [share(part["ratio_margin"])] * row["equivalent_ratio"]
    above = f"{with_interval(estimate_of(row), signed_nats)}, {row['ratio']:.2f} times"
    return above + (f"; within {listed(margins)}" if margins else "")


def _kind(mixed: bool, epochs: int) -> str:
    return f"{kind_of_views(mixed)}, {number(epochs)} epochs"


def encodings(rows: Sequence[Row]) -> Table:
    """Return a row for each temperature of the loss and encoding."""
    heads = ["T of the loss", "kept", "epochs", "bytes a view", "above all classes, nats"]
    body = []
    for temperature, epochs in distinct(rows, "temperature", "epochs"):
        there = select(rows, temperature=temperature, epochs=epochs)
        costs = dict(encoding_costs(there))
        for k, stored in distinct(there, "k", "stored_temperature"):
            name = encoding_name(k, stored)
            used = select(there, k=k, stored_temperature=stored)
            cost = costs[name]
            body.append(
                [
                    number(temperature),
                    name,
                    number(epochs),
                    f"{bytes_per_view(used):.1f}",
                    "" if cost is None else with_interval(cost, signed_nats),
                    *_measures(used),
                ]
            )
    return _table([*heads, *ALL_MEASURES], body)


def wrong_replay(rows: Sequence[Row]) -> Table:
    """Return a row for each recipe and fault, with the fault's price in KL."""
    body = []
    for recipe, epochs in distinct(rows, "recipe", "epochs"):
        there = select(rows, recipe=recipe, epochs=epochs)
        prices = dict(replay_costs(there))
        for (fault,) in distinct(there, "fault"):
            price = with_interval(prices[fault], signed_nats) if fault in prices else ""
            used = select(there, fault=fault)
            body.append([recipe, fault, number(epochs), price, *_measures(used)])
    return _table(["recipe", "fault", "epochs", "price, nats", *ALL_MEASURES], body)


def small_teacher(rows: Sequence[Row]) -> Table:
    """Return a row for each arm."""
    body = []
    for arm, epochs in distinct(rows, "arm", "epochs"):
        there = select(rows, epochs=epochs)
        body.append([arm, number(epochs), *_measures(select(there, arm=arm))])
    return _table(["arm", "epochs", *ALL_MEASURES], body)


def tuned(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a row for each arm with what was chosen for it."""
    names = ("learning_rate", "temperature", "weight_decay")
    body = [
        [arm, *(number(chosen[name]) for name in names), nats(chosen["kl"])]
        for arm, chosen in settings.items()
    ]
    return _table(["arm", *(name.replace("_", " ") for name in names), "validation KL"], body)


def _measures(rows: Sequence[Row]) -> list[str]:
    return [
        _mean(rows, "kl", nats), _mean(rows, "agreement", percent), _mean(rows, "accuracy", percent)
    ]  # fmt: skip


def _mean(rows: Sequence[Row], measure: Measure, show: Callable[[float], str]) -> str:
    return with_interval(mean_over_seeds(rows, measure), show) if rows else ""


def _table(heads: list[str], body: Table) -> Table:
    return [heads, *body] if body else []
