"""What the study found, told from its numbers alone; pure.

No sentence assumes a result: each has a form for what holds and one for what does not. "Clear"
means that a 95% interval over the seeds leaves zero out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.study.summary import (
    Estimate,
    Row,
    budgets,
    difference,
    distinct,
    estimate_of,
    mean_over_seeds,
    select,
)
from pipelines.study.words import (
    arms_named,
    capital,
    listed,
    nats,
    number,
    p_value,
    percent,
    points,
    signed_nats,
    with_interval,
)

FUNCTION_MATCHING = "function matching"
SEPARATES, NOT_SEPARATES = "separates", "does not separate"
GRIDS = ("learning_rate", "temperature", "weight_decay")


def ranking(runs: Sequence[Row], epochs: int) -> list[tuple[str, float]]:
    """Return the arms and their mean KL after so many epochs, the lowest first."""
    there = select(runs, epochs=epochs)
    means = [
        (arm, mean_over_seeds(select(there, arm=arm)).mean) for (arm,) in distinct(there, "arm")
    ]
    return sorted(means, key=lambda pair: pair[1])


def best_and_worst(runs: Sequence[Row], epochs: int) -> str:
    """Say which arms come first, second and last."""
    (first, low), (second, next_to), *_, (last, high) = ranking(runs, epochs)
    return (
        f"After {number(epochs)} epochs {first} has the lowest mean KL to the teacher, {nats(low)} "
        f"nats, before {second} with {nats(next_to)}; {last} has the highest, {nats(high)}."
    )


def places(runs: Sequence[Row], arm: str) -> str:
    """Say an arm's place among all after each number of epochs."""
    said = []
    for epochs in budgets(runs):
        order = [name for name, _ in ranking(runs, epochs)]
        if arm in order:
            said.append(f"{order.index(arm) + 1} of {len(order)} after {number(epochs)} epochs")
    return f"By mean KL, {arm} is number {listed(said)}."


def patience(runs: Sequence[Row], *, short: int, long: int) -> str:
    """Say for which arms more epochs lower the KL, for which they raise it."""
    moves: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    arms = distinct(runs, "arm")
    for (arm,) in arms:
        before, after = (select(runs, arm=arm, epochs=epochs) for epochs in (short, long))
        change = difference(after, before)
        if change is not None:
            moves[change.sign].append(arm)
    said = [
        f"{verb} for {arms_named(moves[sign], of=len(arms))}"
        for sign, verb in ((-1, "falls"), (1, "rises"), (0, "does not change clearly"))
        if moves[sign]
    ]
    return f"From {number(short)} to {number(long)} epochs the KL {'; it '.join(said)}."


def finding(test: Mapping[str, Any]) -> str:
    """Say what a test found."""
    if not test["separates"]:
        other = estimate_of(test).sign > 0
        return NOT_SEPARATES + ("; clearly the other way round" if other else "")
    if test["registered"]:
        return SEPARATES
    return f"{SEPARATES}: {test['better'] if test['difference'] < 0 else test['worse']} is lower"


def hypothesis(test: Mapping[str, Any]) -> str:
    """Return the two arms that a test compares: one-sided where it was registered."""
    return f"{test['better']} {'<' if test['registered'] else 'against'} {test['worse']}"


def tests_found(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how many of the registered tests separate, which do not, and what claims are shown.

    A claim is what several tests have as their name: all of them must separate.
    """
    registered = [test for test in tests if test["registered"]]
    held = sum(test["separates"] for test in registered)
    counted = (
        f"Of {len(registered)} registered comparisons, "
        f"{'all' if held == len(registered) else held} {_separate(held)} after Holm's correction."
    )
    missed, claims = [], []
    for name in dict.fromkeys(test["name"] for test in registered):
        parts = [test for test in registered if test["name"] == name]
        if len(parts) > 1:
            claims.append(_claim(name, [test["separates"] for test in parts]))
        elif not parts[0]["separates"]:
            missed.append(_missed(parts[0]))
    said = [f"{counted} Not separating: {'; '.join(missed)}." if missed else counted]
    return said + claims


def _missed(test: Mapping[str, Any]) -> str:
    return (
        f"{hypothesis(test)} after {number(test['epochs'])} epochs "
        f"({signed_nats(test['difference'])} nats, p = {p_value(test['p_holm'])})"
    )


def _claim(name: str, parts: Sequence[bool]) -> str:
    verdict = "is shown" if all(parts) else "is not shown"
    return (
        f"The claim “{name}” {verdict}: {sum(parts)} of its {len(parts)} comparisons "
        f"{_separate(sum(parts))}."
    )


def _separate(count: int) -> str:
    return SEPARATES if count == 1 else "separate"


def enough_views(equivalence: Sequence[Mapping[str, Any]], *, mixed: bool) -> str:
    """Say how many stored views, mixed or not, are as good as a live teacher."""
    parts = [part for part in equivalence if part["mixed"] == mixed]
    said = []
    for part in parts:
        views, epochs = part["smallest_views"], f"in {number(part['epochs'])} epochs"
        if views is None:
            most = max((row["views"] for row in part["rows"]), default=0)
            said.append(f"no number up to {number(most)} {epochs}")
        else:
            said.append(f"{number(views)} {epochs} ({part['reuse']:.3g} uses of each)")
    return (
        f"{capital(kind_of_views(mixed))} views from which on the KL is shown to be within "
        f"{listed(sorted({number(part['margin']) for part in parts}))} nats of a live teacher's: "
        f"{'; '.join(said)}."
    )


def kind_of_views(mixed: bool) -> str:
    """Return the word for views with or without mixup."""
    return "mixed" if mixed else "unmixed"


def encoding_name(k: int | None, stored_temperature: float | None) -> str:
    """Return what is kept of a view."""
    kept = "all classes" if k is None else f"k = {k}"
    if stored_temperature is None:
        return kept
    return f"{kept}, stored at T = {number(stored_temperature)}"


def encoding_costs(rows: Sequence[Row]) -> list[tuple[str, Estimate | None]]:
    """Return of each encoding by how much its KL is above that of all classes.

    rows: of one temperature and budget. The first that keeps all classes is the measure.
    """
    kinds = distinct(rows, "k", "stored_temperature")
    dense = next((kind for kind in kinds if kind[0] is None), None)
    base = [] if dense is None else select(rows, k=None, stored_temperature=dense[1])
    return [
        (
            encoding_name(k, stored),
            None
            if (k, stored) == dense
            else difference(select(rows, k=k, stored_temperature=stored), base),
        )
        for k, stored in kinds
    ]


def encodings_found(rows: Sequence[Row], temperature: float) -> str:
    """Say which encodings cost something against all classes. rows: of this temperature."""
    at = f"With a loss at T = {number(temperature)}, against keeping all classes"
    return f"{at}, {_costs([(name, cost) for name, cost in encoding_costs(rows) if cost])}."


def replay_costs(rows: Sequence[Row]) -> list[tuple[str, Estimate]]:
    """Return each fault's price in KL. rows: of one recipe and budget."""
    right = select(rows, fault="none")
    faults = [fault for (fault,) in distinct(rows, "fault") if fault != "none"]
    found = [(fault, difference(select(rows, fault=fault), right)) for fault in faults]
    return [(fault, price) for fault, price in found if price is not None]


def replay_found(rows: Sequence[Row], recipe: str) -> str:
    """Say what each fault of a replay costs. rows: of this recipe."""
    return f"When views of the recipe {recipe} are replayed wrongly, {_costs(replay_costs(rows))}."


def _costs(costs: Sequence[tuple[str, Estimate]]) -> str:
    """Say which costs are clear, dearest first, which are none, and which are gains."""
    told = {sign: [pair for pair in costs if pair[1].sign == sign] for sign in (1, 0, -1)}
    dearest = sorted(told[1], key=lambda pair: -pair[1].mean)
    said = []
    if dearest:
        prices = [f"{name} costs {with_interval(cost)} nats" for name, cost in dearest]
        said.append(listed(prices))
    if told[0]:
        said.append(f"no clear cost shows for {listed([name for name, _ in told[0]])}")
    if told[-1]:
        said.append(f"{listed([name for name, _ in told[-1]])} is clearly better")
    return "; ".join(said) if said else "nothing was compared"


def _gain(rows: Sequence[Row], arm: str) -> Estimate | None:
    """Return by how much an arm's accuracy is above that of learning from labels."""
    return difference(select(rows, arm=arm), select(rows, arm="labels"), measure="accuracy")


def small_teacher_found(result: Mapping[str, Any]) -> str:
    """Say what function matching gains over labels with a teacher of as few images, and usually."""
    rows = result["small_teacher"]
    (epochs,) = distinct(rows, "epochs")[0]
    small = _gain(select(rows, epochs=epochs), FUNCTION_MATCHING)
    seeds = {row["seed"] for row in rows}
    same = [row for row in select(result["runs"], epochs=epochs) if row["seed"] in seeds]
    usual = _gain(same, FUNCTION_MATCHING)
    said = [
        f"{with_interval(found, points)} points {teacher}"
        for found, teacher in ((small, "with this teacher"), (usual, "with the usual one"))
        if found is not None
    ]
    images = number(result["design"]["images"])
    start = f"This teacher learned from the student's own {images} images."
    if not said:
        return start
    return (
        f"{start} In {number(epochs)} epochs {FUNCTION_MATCHING} is above labels in accuracy by "
        f"{listed(said)}."
    )


def teachers_are(teachers: Sequence[Row]) -> str:
    """Say how good the teachers are."""
    accuracy = with_interval(mean_over_seeds(teachers, "accuracy"), percent)
    one = len(teachers) == 1
    return (
        f"{'The teacher names' if one else f'The {len(teachers)} teachers, one a seed, name'} "
        f"{accuracy} per cent of the test digits."
    )


def at_edges(tuned: Mapping[str, Mapping[str, Any]], design: Mapping[str, Any]) -> str:
    """Say which chosen settings lie at an end of what was tried, where better may lie beyond."""
    ends: dict[tuple[str, float], list[str]] = {}
    for name in GRIDS:
        for arm, chosen in tuned.items():
            if chosen[name] is not None and _is_end(chosen[name], design[f"{name}_grid"]):
                ends.setdefault((name, chosen[name]), []).append(arm)
    if not ends:
        return "Every chosen setting lies inside what was tried."
    said = [
        f"{name.replace('_', ' ')} {number(value)} of {arms_named(arms, of=len(tuned))}"
        for (name, value), arms in ends.items()
    ]
    return f"At an end of what was tried, so that better may lie beyond: {'; '.join(said)}."


def _is_end(value: float, grid: Sequence[float]) -> bool:
    """Say whether a value is the last tried on a side where there are others; none is below 0."""
    return len(grid) > 1 and (value == max(grid) or 0 < value == min(grid))
