"""Rows of trained students, as work.py makes them, to what the study found. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from math import isnan
from statistics import mean
from typing import Any

from pipelines.study.cases import grid
from pipelines.study.design import ARMS, FAULTS, Arm, Comparison, Design, Setting
from pipelines.study.statistics import (
    LEVEL,
    Paired,
    equivalence_test,
    holm,
    p_of_ratio,
    paired_test,
)
from pipelines.study.summary import bootstrap, distinct, estimate, select

Row = dict[str, Any]
_MEASURES = ("kl", "agreement", "accuracy")
RATIO_MARGIN = 0.1  # not registered: the registered one is wide beside the low KL of long training


def choose(design: Design, rows: Sequence[Row]) -> dict[Arm, tuple[Setting, float]]:
    """Return each arm's setting of the lowest mean validation KL, and that KL.

    Where training diverged, the KL is NaN, and the setting stands behind all others.
    """
    chosen = {}
    for arm in ARMS:
        scores = {
            setting: mean(
                r["kl"] for r in rows if r["arm"] == arm and r["setting"] == asdict(setting)
            )
            for setting in grid(design, arm)
        }
        best = min(scores, key=lambda setting: (isnan(scores[setting]), scores[setting]))
        chosen[arm] = best, scores[best]
    return chosen


def findings(
    design: Design,
    sections: Mapping[str, Sequence[Row]],
    *,
    tuned: Mapping[Arm, tuple[Setting, float]],
) -> dict[str, Any]:
    """Return all sections of the result that follow from rows and chosen settings."""
    runs = sections["runs"]
    views = [*sections["views"], *_live(design, runs)]
    return {
        "tuned": {arm: asdict(setting) | {"kl": kl} for arm, (setting, kl) in tuned.items()},
        "runs": list(runs),
        "intervals": intervals(runs),
        "tests": make_tests(design, runs),
        "views": views,
        "equivalence": [
            equivalence(design, views, mixed=mixed, epochs=epochs)
            for mixed in (False, True)
            for epochs in design.budgets
        ],
        "encodings": list(sections["encodings"]),
        "wrong_replay": [*_right(design, runs), *sections["wrong_replay"]],
        "small_teacher": list(sections["small_teacher"]),
    }


def intervals(runs: Sequence[Row]) -> list[Row]:
    """Return the means that the report shows with Student's interval, and the bootstrap's."""
    rows = []
    for (arm, epochs), measure in product(distinct(runs, "arm", "epochs"), _MEASURES):
        values = tuple(row[measure] for row in select(runs, arm=arm, epochs=epochs))
        t, resampled = estimate(values), bootstrap(values)
        rows.append(
            {
                "arm": arm,
                "epochs": epochs,
                "measure": measure,
                "mean": t.mean,
                "low": _known(t.low),
                "high": _known(t.high),
                "bootstrap_low": _known(resampled.low),
                "bootstrap_high": _known(resampled.high),
            }
        )
    return rows


def _known(value: float) -> float | None:
    """Return an end of an interval; None where there are too few seeds for one."""
    return None if isnan(value) else value


def _columns(found: Paired) -> Row:
    return {**found._asdict(), "low": _known(found.low), "high": _known(found.high)}


def make_tests(design: Design, runs: Sequence[Row]) -> list[Row]:
    """Return the registered comparisons, corrected for together, and those beside them."""
    registered = [_test(design, runs, c, registered=True) for c in design.registered]
    for row, p in zip(registered, holm([row["p"] for row in registered]), strict=True):
        row["p_holm"], row["separates"] = p, p < LEVEL
    two_sided = [2 * min(row["p"], 1 - row["p"]) for row in registered]
    for row, p in zip(registered, holm(two_sided), strict=True):
        row["p_two_sided_holm"], row["contradicted"] = p, row["difference"] > 0 and p < LEVEL
    return registered + [_test(design, runs, c, registered=False) for c in design.beside]


def _test(design: Design, runs: Sequence[Row], comparison: Comparison, *, registered: bool) -> Row:
    kl = {(r["arm"], r["seed"]): r["kl"] for r in runs if r["epochs"] == comparison.epochs}
    better, worse = (
        [kl[arm, seed] for seed in design.seeds] for arm in (comparison.better, comparison.worse)
    )
    found = paired_test(better, worse, one_sided=registered)
    resampled = bootstrap(tuple(ours - theirs for ours, theirs in zip(better, worse, strict=True)))
    return {
        **comparison._asdict(),
        "pairs": len(better),
        **_columns(found),
        "bootstrap_low": _known(resampled.low),
        "bootstrap_high": _known(resampled.high),
        "p_holm": None,
        "separates": found.p < LEVEL,
        "p_two_sided_holm": None,
        "contradicted": False,
        "registered": registered,
    }


def _live(design: Design, runs: Sequence[Row]) -> list[Row]:
    """Return the runs in which each epoch has a view of its own, as rows of the V-curve."""
    mixed = {"consistent": False, "function matching": True}
    return [
        {"views": None, "mixed": mixed[r["arm"]], **_scores(r)}
        for r in runs
        if r["arm"] in mixed and r["seed"] in design.side_seeds
    ]


def _right(design: Design, runs: Sequence[Row]) -> list[Row]:
    """Return the runs whose replay is right, as rows beside the wrong ones."""
    recipes = {arm: recipe for recipe, (arm, _) in FAULTS.items()}
    return [
        {"fault": "none", "recipe": recipes[r["arm"]], **_scores(r)}
        for r in runs
        if r["arm"] in recipes and r["seed"] in design.side_seeds and r["epochs"] == design.middle
    ]


def _scores(row: Row) -> Row:
    return {name: row[name] for name in ("epochs", "seed", *_MEASURES)}


def equivalence(design: Design, views: Sequence[Row], *, mixed: bool, epochs: int) -> Row:
    """Return how many stored views are as good as live, within the margin.

    smallest_views: the fewest that are equivalent with all larger counts; None for none.
    smallest_views_ratio: so, where the KL must be within RATIO_MARGIN of the live one.
    """
    kl: dict[int | None, dict[int, float]] = {}
    for r in views:
        if r["mixed"] == mixed and r["epochs"] == epochs:
            kl.setdefault(r["views"], {})[r["seed"]] = r["kl"]
    live = [kl[None][seed] for seed in sorted(kl[None])]
    rows: list[Row] = []
    for count in sorted(c for c in kl if c is not None):
        if kl[count].keys() != kl[None].keys():
            raise ValueError(f"{count} views: seeds {sorted(kl[count])}, live {sorted(kl[None])}")
        ours = [kl[count][seed] for seed in sorted(kl[count])]
        found = equivalence_test(ours, live, margin=design.margin_nats)
        p_ratio = p_of_ratio(ours, live, margin=RATIO_MARGIN)
        rows.append(
            {
                "views": count,
                **_columns(found),
                "equivalent": found.p < LEVEL,
                "ratio": mean(ours) / mean(live),
                "p_ratio": p_ratio,
                "equivalent_ratio": p_ratio < LEVEL,
            }
        )
    smallest = _smallest(rows, "equivalent")
    return {
        "mixed": mixed,
        "epochs": epochs,
        "margin": design.margin_nats,
        "smallest_views": smallest,
        "reuse": None if smallest is None else epochs / smallest,
        "live_kl": mean(live),
        "ratio_margin": RATIO_MARGIN,
        "smallest_views_ratio": _smallest(rows, "equivalent_ratio"),
        "rows": rows,
    }


def _smallest(rows: Sequence[Row], name: str) -> int | None:
    """Return the views of the first row from which on all are equivalent."""
    smallest = None
    for row in reversed(rows):
        if not row[name]:
            break
        smallest = row["views"]
    return smallest
