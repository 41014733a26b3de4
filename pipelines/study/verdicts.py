"""What the tests found, told from their numbers alone; pure."""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from pipelines.study.sentences import FUNCTION_MATCHING, GRIDS, is_end, place
from pipelines.study.summary import Row
from pipelines.study.words import DIVERGED, arms_named, listed, number, p_value, signed_nats

HOLM = "paired t tests with Holm's correction"
SEPARATES, CONTRADICTED, UNDECIDED = "separates", "contradicted", "undecided"
Test = Mapping[str, Any]


def verdict(test: Test) -> str:
    """Return what a registered test says of its claim."""
    if test["separates"]:
        return SEPARATES
    return CONTRADICTED if test["contradicted"] else UNDECIDED


def finding(test: Test) -> str:
    """Say what a test found."""
    if test["registered"]:
        return verdict(test)
    if not test["separates"]:
        return "does not separate"
    return f"{SEPARATES}: {test['better'] if test['difference'] < 0 else test['worse']} is lower"


def hypothesis(test: Test) -> str:
    """Return the two arms that a test compares: one-sided where it was registered."""
    return f"{test['better']} {'<' if test['registered'] else 'against'} {test['worse']}"


def tests_found(tests: Sequence[Test]) -> str:
    """Say how many of the registered tests separate, and which single ones do not."""
    registered = [test for test in tests if test["registered"]]
    counted = f"Of {len(registered)} registered comparisons, {_counts(registered)}, by {HOLM}."
    missed = [_missed(parts[0]) for parts in _claims(registered) if len(parts) == 1]
    told = [text for text in missed if text]
    return f"{counted} Not separating: {'; '.join(told)}." if told else counted


def _claims(tests: Sequence[Test]) -> list[list[Test]]:
    """Return the registered tests of each name: several of one name are one claim."""
    registered = [test for test in tests if test["registered"]]
    names = dict.fromkeys(test["name"] for test in registered)
    return [[test for test in registered if test["name"] == name] for name in names]


def _counts(tests: Sequence[Test]) -> str:
    found = [verdict(test) for test in tests]
    if set(found) == {SEPARATES}:
        return "all separate"
    num = found.count(SEPARATES)
    said = [f"{num} {SEPARATES if num == 1 else 'separate'}"]
    said += [
        f"{found.count(word)} {'is' if found.count(word) == 1 else 'are'} {word}"
        for word in (CONTRADICTED, UNDECIDED)
        if word in found
    ]
    return listed(said)


def _missed(test: Test) -> str:
    if test["separates"]:
        return ""
    found = f"{signed_nats(test['difference'])} nats, p = {p_value(test['p_holm'])}"
    if isnan(test["difference"]):
        found = DIVERGED
    return f"{hypothesis(test)} after {number(test['epochs'])} epochs ({found}, {verdict(test)})"


def claims_found(result: Mapping[str, Any]) -> list[str]:
    """Say of each claim of several tests, all of which must separate, whether it is shown."""
    return [
        " ".join(
            [
                _claim(parts),
                place(result["runs"], FUNCTION_MATCHING, parts[0]["epochs"]),
                tuned_elsewhere(result["tuned"], result["design"]),
            ]
        )
        for parts in _claims(result["tests"])
        if len(parts) > 1
    ]


def _claim(parts: Sequence[Test]) -> str:
    """Say whether a claim is shown, and which of its arms contradict it or leave it open."""
    shown = all(test["separates"] for test in parts)
    against = [test for test in parts if verdict(test) == CONTRADICTED]
    open_ = [test["better"] for test in parts if verdict(test) == UNDECIDED]
    start = f"The claim “{parts[0]['name']}” "
    if not against:
        left = f" Undecided: {arms_named(open_, of=len(parts))}." if open_ else ""
        return f"{start}is {'shown' if shown else 'not shown'}: {_counts(parts)}.{left}"
    most = max(against, key=lambda test: float(test["p_two_sided_holm"]))
    rest = f"; undecided for {arms_named(open_, of=len(parts))}" if open_ else ""
    return (
        f"{start}is contradicted for {len(against)} of {len(parts)} arms, whose KL is the higher "
        f"(weakest for “{most['better']}”: p = {p_value(most['p_two_sided_holm'])}, two-sided, "
        f"corrected){rest}."
    )


def tuned_elsewhere(tuned: Mapping[str, Row], design: Mapping[str, Any]) -> str:
    """Say at how many epochs settings were tuned, and how many lie at the edge of a grid."""
    edges = [
        f"{name.replace('_', ' ')} of {count} of {len(tuned)} arms"
        for name in GRIDS
        if (count := sum(is_end(chosen[name], design[f"{name}_grid"]) for chosen in tuned.values()))
    ]
    said = f"Settings were tuned at {number(design['tuning_epochs'])} epochs alone"
    return f"{said}, many at the edge of the grid: {listed(edges)}." if edges else f"{said}."
