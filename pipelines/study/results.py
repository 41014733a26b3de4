"""Rows of trained students, as work.py makes them, to what the study found. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isnan
from statistics import mean
from typing import Any

from pipelines.study.bank import Setting
from pipelines.study.cases import grid
from pipelines.study.design import ARMS, FAULTS, Arm, Comparison, Design
from pipelines.study.statistics import LEVEL, equivalence_test, holm, paired_test

Row = dict[str, Any]
_MEASURES = ("kl", "agreement", "accuracy")


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


def make_tests(design: Design, runs: Sequence[Row]) -> list[Row]:
    """Return the registered comparisons, corrected for together, and those beside them."""
    registered = [_test(design, runs, c, registered=True) for c in design.registered]
    for row, p in zip(registered, holm([row["p"] for row in registered]), strict=True):
        row["p_holm"], row["separates"] = p, p < LEVEL
    return registered + [_test(design, runs, c, registered=False) for c in design.beside]


def _test(design: Design, runs: Sequence[Row], comparison: Comparison, *, registered: bool) -> Row:
    kl = {(r["arm"], r["seed"]): r["kl"] for r in runs if r["epochs"] == comparison.epochs}
    better, worse = (
        [kl[arm, seed] for seed in design.seeds] for arm in (comparison.better, comparison.worse)
    )
    found = paired_test(better, worse, one_sided=registered)
    return {
        **comparison._asdict(),
        "pairs": len(better),
        **found._asdict(),
        "p_holm": None,
        "separates": found.p < LEVEL,
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
    """
    kl: dict[int | None, list[float]] = {}
    for r in sorted(views, key=lambda r: r["seed"]):
        if r["mixed"] == mixed and r["epochs"] == epochs:
            kl.setdefault(r["views"], []).append(r["kl"])
    rows: list[Row] = []
    smallest = None
    for count in sorted((c for c in kl if c is not None), reverse=True):
        found = equivalence_test(kl[count], kl[None], margin=design.margin_nats)
        rows.insert(0, {"views": count, **found._asdict(), "equivalent": found.p < LEVEL})
        if all(row["equivalent"] for row in rows):
            smallest = count
    return {
        "mixed": mixed,
        "epochs": epochs,
        "margin": design.margin_nats,
        "smallest_views": smallest,
        "reuse": None if smallest is None else epochs / smallest,
        "rows": rows,
    }
