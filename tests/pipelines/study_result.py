"""Results of the study that no run made: one where the paper's claims hold, one where none does."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipelines.study import design

ARMS = tuple(design.ARMS)
BUDGETS = (100, 600, 3000)
VIEWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, None)
FAULTS = design.FAULTS["funmatch"][1]
ENCODINGS = (  # k, bytes a view, cost in nats where it costs anything
    (1, 9.5, 0.1),
    (2, 11.5, 0.05),
    (3, 14.0, 0.02),
    (5, 19.5, 0.0),
    (None, 22.0, 0.0),
)
MARGIN = 0.03

# KL to the teacher of each arm at each budget, in nats.
HOLDING = (
    (1.1, 0.95, 0.97),
    (0.9, 0.8, 0.75),
    (0.45, 0.33, 0.25),
    (0.42, 0.3, 0.22),
    (0.4, 0.26, 0.2),
    (0.5, 0.3, 0.24),
    (0.38, 0.24, 0.17),
    (0.35, 0.2, 0.12),
    (0.6, 0.14, 0.06),
)
FAILING = tuple((0.4, 0.42, 0.44) for _ in ARMS)


def make_result(*, holds: bool, seeds: int = 6) -> dict[str, Any]:
    """Return a result in the study's form. holds: patience and consistency pay."""
    rng = np.random.Generator(np.random.PCG64(holds))
    level = dict(zip(ARMS, HOLDING if holds else FAILING, strict=True))

    def rows(kl: float, **keys: Any) -> list[dict[str, Any]]:
        """Return a row for each seed; accuracy and agreement follow the KL."""
        noisy = kl * np.exp(0.05 * rng.standard_normal(seeds))
        return [
            {
                **keys,
                "seed": seed,
                "kl": round(float(nats), 5),
                "agreement": round(float(np.exp(-0.4 * nats)), 5),
                "accuracy": round(float(0.98 * np.exp(-0.4 * nats)), 5),
            }
            for seed, nats in enumerate(noisy)
        ]

    def view_kl(views: int | None, mixed: bool, epochs: int) -> float:
        live = (0.14 if mixed else 0.2) * (epochs / 600) ** -0.3
        if views is None:
            return live
        return live + (0.002 * epochs / views if holds else 1.2 / views**0.2)

    pairs = [("consistent", "fixed"), ("function matching", "fixed"), ("consistent", "independent")]
    late = [(f"{a} < {b}", a, b, 3000, True) for a, b in pairs]
    early = "function matching worst at 100 epochs"
    first = [(early, arm, "function matching", 100, True) for arm in ("fixed", "consistent")]
    beside = [("fixed against independent", "fixed", "independent", 3000, False)]
    return {
        "command": "make paper",
        "date": "2031-05-06",
        "commit": "0123abc",
        "seconds": 3500.0,
        "quick": False,
        "made": [
            {
                "commit": "4567def",
                "machine": {"cpu": "a CPU", "cores": 2, "gpu": None},
                "versions": {"python": "3.11.2", "torch": "2.11.0"},
                "units": 30,
            }
        ],
        "machine": {"cpu": "a CPU", "cores": 2, "gpu": None},
        "versions": {"python": "3.11.2", "torch": "2.11.0"},
        "design": {
            "budgets": list(BUDGETS),
            "seeds": list(range(seeds)),
            "side_seeds": list(range(seeds)),
            "batch_size": 50,
            "images": 100,
            "test_images": 797,
            "temperature_grid": [1.0, 2.0, 4.0],
            "learning_rate_grid": [0.003, 0.01, 0.03],
            "weight_decay_grid": [0.0, 1e-4],
            "tuning_seeds": [100, 101],
            "tuning_epochs": 600,
            "view_counts": [views for views in VIEWS if views],
            "mild_views": 600,
            "margin_nats": MARGIN,
            "student_parameters": 14458,
            "teacher_parameters": 390890,
            "arms": {arm: f"Sees and learns what {arm} says." for arm in ARMS},
        },
        "teachers": [{"seed": seed, "accuracy": 0.97} for seed in range(seeds)],
        "small_teachers": [{"seed": seed, "accuracy": 0.88} for seed in range(seeds)],
        "tuned": {
            arm: {
                "learning_rate": 0.03 if arm == "fixed" else 0.01,
                "temperature": None if "labels" in arm else 2.0,
                "weight_decay": 1e-4,
                "kl": level[arm][1],
            }
            for arm in ARMS
        },
        "runs": [
            row
            for arm in ARMS
            for epochs, kl in zip(BUDGETS, level[arm], strict=True)
            for row in rows(kl, arm=arm, epochs=epochs)
        ],
        "tests": [_test(*test, holds=holds, pairs=seeds) for test in late + first + beside],
        "views": [
            row
            for mixed in (True, False)
            for epochs in BUDGETS
            for views in VIEWS
            if views is None or views < epochs
            for row in rows(view_kl(views, mixed, epochs), views=views, mixed=mixed, epochs=epochs)
        ],
        "equivalence": [
            _equivalence(mixed, epochs, view_kl=view_kl)
            for mixed in (True, False)
            for epochs in BUDGETS
        ],
        "encodings": [
            row
            for temperature in (1.0, 2.0)
            for k, size, cost in ENCODINGS
            for row in rows(
                0.14 + (cost if holds else 0.0), k=k, stored_temperature=None,
                temperature=temperature, epochs=600, bytes_per_view=size,
            )
        ],
        "wrong_replay": [
            row
            for recipe in ("funmatch", "consistent")
            for fault, price in zip(FAULTS, (0.0, 0.3, 0.05, 0.6), strict=True)
            if (recipe, fault) != ("consistent", "partner swapped")
            for row in rows(
                0.14 + (price if holds else 0.0), fault=fault, recipe=recipe, epochs=600
            )
        ],
        "small_teacher": [
            row for arm in ARMS for row in rows(0.3 + level[arm][1] / 10, arm=arm, epochs=600)
        ],
    }  # fmt: skip


def _test(
    name: str, better: str, worse: str, epochs: int, registered: bool, *, holds: bool, pairs: int
) -> dict[str, Any]:
    centre = -0.1 if holds else 0.01
    return {
        "name": name,
        "better": better,
        "worse": worse,
        "epochs": epochs,
        "pairs": pairs,
        "difference": centre,
        "low": centre - 0.02,
        "high": centre + 0.02,
        "p": 0.0004 if holds else 0.7,
        "p_holm": (0.002 if holds else 1.0) if registered else None,
        "separates": holds,
        "p_two_sided_holm": 0.9 if registered else None,
        "contradicted": False,
        "registered": registered,
    }


def _equivalence(mixed: bool, epochs: int, *, view_kl: Callable[..., float]) -> dict[str, Any]:
    rows = []
    for views in VIEWS:
        if views is None or views >= epochs:
            continue
        ours, live = view_kl(views, mixed, epochs), view_kl(None, mixed, epochs)
        difference, ratio = ours - live, ours / live
        rows.append(
            {
                "views": views,
                "difference": difference,
                "low": difference - 0.005,
                "high": difference + 0.005,
                "p": 0.001 if difference + 0.005 < MARGIN else 0.8,
                "equivalent": difference + 0.005 < MARGIN,
                "ratio": ratio,
                "p_ratio": 0.001 if ratio < 1.05 else 0.8,
                "equivalent_ratio": ratio < 1.05,
            }
        )
    smallest, strictly = (
        next((row["views"] for row in rows if row[name]), None)
        for name in ("equivalent", "equivalent_ratio")
    )
    return {
        "mixed": mixed,
        "epochs": epochs,
        "margin": MARGIN,
        "smallest_views": smallest,
        "reuse": None if smallest is None else epochs / smallest,
        "live_kl": view_kl(None, mixed, epochs),
        "ratio_margin": 0.1,
        "smallest_views_ratio": strictly,
        "rows": rows,
    }
