"""Claims about what is said of tests: what separates, what is contradicted, what is undecided."""

from typing import Any

import pytest

from pipelines.study import verdicts
from tests.pipelines.study_result import make_result

HOLDING = make_result(holds=True)


def _test(**changes: Any) -> dict[str, Any]:
    return {**HOLDING["tests"][0], **changes}


def test_a_claim_separates_is_contradicted_or_undecided() -> None:
    assert verdicts.finding(_test(separates=True)) == "separates"
    assert verdicts.finding(_test(separates=False, low=0.1, high=0.2)) == "undecided"
    assert verdicts.finding(_test(separates=False, contradicted=True)) == "contradicted"
    beside = _test(separates=True, registered=False, difference=0.1)
    assert verdicts.finding(beside) == "separates: fixed is lower"
    assert verdicts.finding({**beside, "separates": False}) == "does not separate"
    assert verdicts.hypothesis(beside) == "consistent against fixed"


def test_tests_that_do_not_separate_are_named() -> None:
    one, other = _test(name="a"), _test(name="b", separates=False, difference=0.01, p_holm=0.3)
    beside = _test(separates=False, registered=False)
    assert verdicts.tests_found([one, _test(name="c"), beside]) == (
        "Of 2 registered comparisons, all separate, by paired t tests with Holm's correction."
    )
    assert verdicts.tests_found([one, other, beside]) == (
        "Of 2 registered comparisons, 1 separates and 1 is undecided, by paired t tests with "
        "Holm's correction. Not separating: consistent < fixed after 3,000 epochs (+0.010 nats, "
        "p = 0.300, undecided)."
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("ss", "is shown: all separate."),
        ("su", "is not shown: 1 separates and 1 is undecided. Undecided: “y”."),
        ("uu", "is not shown: 0 separate and 2 are undecided. Undecided: all 2 arms."),
        (
            "cu",
            "is contradicted for 1 of 2 arms, whose KL is the higher (weakest for “x”: p = 0.040, "
            "two-sided, corrected); undecided for “y”.",
        ),
    ],
)
def test_a_claim_is_shown_if_all_its_comparisons_separate(found: str, said: str) -> None:
    parts = [
        _test(
            name="worst", better=arm, separates=one == "s", contradicted=one == "c",
            p_two_sided_holm=0.04,
        )
        for arm, one in zip("xy", found, strict=True)
    ]  # fmt: skip
    (claim,) = verdicts.claims_found({**HOLDING, "tests": [*parts, _test()]})
    assert claim.startswith(f"The claim “worst” {said} By mean KL function matching is number 1 ")
    assert "Not separating" not in verdicts.tests_found([*parts, _test()])


def test_beside_a_claim_stands_where_its_settings_were_tuned() -> None:
    inner = {"learning_rate": 0.01, "temperature": None, "weight_decay": 0.0}
    edge = {**inner, "learning_rate": 0.03}
    said = "Settings were tuned at 600 epochs alone"
    assert verdicts.tuned_elsewhere({"a": inner}, HOLDING["design"]) == f"{said}."
    assert verdicts.tuned_elsewhere({"a": inner, "b": edge}, HOLDING["design"]) == (
        f"{said}, many at the edge of the grid: learning rate of 1 of 2 arms."
    )
