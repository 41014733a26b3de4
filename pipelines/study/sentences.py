"""What the study found, told from its numbers alone; pure.

No sentence assumes a result: each has a form for what holds and one for what does not. What
"separates" has a 95% interval over the seeds that leaves zero out.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from pipelines.study.summary import (
    Estimate,
    Row,
    budgets,
    difference,
    distinct,
    mean_over_seeds,
    select,
)
from pipelines.study.words import (
    arms_named,
    capital,
    listed,
    nats,
    number,
    percent,
    points,
    share,
    signed_nats,
    with_interval,
)

FUNCTION_MATCHING = "function matching"
GRIDS = ("learning_rate", "temperature", "weight_decay")


def ranking(runs: Sequence[Row], epochs: int) -> list[tuple[str, float]]:
    """Return the arms and their mean KL after so many epochs: the lowest first, NaN last."""
    there = select(runs, epochs=epochs)
    means = [
        (arm, mean_over_seeds(select(there, arm=arm)).mean) for (arm,) in distinct(there, "arm")
    ]
    return sorted(means, key=lambda pair: (isnan(pair[1]), pair[1]))


def best_and_worst(runs: Sequence[Row], epochs: int) -> str:
    """Say which arms come first, second and last."""
    (first, low), (second, next_to), *_, (last, high) = ranking(runs, epochs)
    return (
        f"After {number(epochs)} epochs {first} has the lowest mean KL to the teacher, {nats(low)} "
        f"nats, before {second} with {nats(next_to)}; {last} has the highest, {nats(high)}."
    )


def places(runs: Sequence[Row], arm: str) -> str:
    """Say an arm's place among all after each number of epochs."""
    said = [
        f"{_place(runs, arm, epochs)} after {number(epochs)} epochs" for epochs in budgets(runs)
    ]
    return f"By mean KL, {arm} is number {listed(said)}."


def place(runs: Sequence[Row], arm: str, epochs: int) -> str:
    """Say an arm's place among all after so many epochs."""
    return f"By mean KL {arm} is number {_place(runs, arm, epochs)} there."


def _place(runs: Sequence[Row], arm: str, epochs: int) -> str:
    order = [name for name, _ in ranking(runs, epochs)]
    return f"{order.index(arm) + 1} of {len(order)}"


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
        for sign, verb in ((-1, "falls"), (1, "rises"), (0, "does not separate"))
        if moves[sign]
    ]
    return f"From {number(short)} to {number(long)} epochs the KL {'; it '.join(said)}."


def enough_views(equivalence: Sequence[Mapping[str, Any]], *, mixed: bool) -> str:
    """Say how many stored views, mixed or not, come how near to a live teacher."""
    parts = [part for part in equivalence if part["mixed"] == mixed]
    said = []
    for part in parts:
        enough = fewest(part, part["smallest_views"])
        if part["smallest_views"] is not None:
            enough += f" ({above_live(part)})"
        said.append(f"{enough} in {number(part['epochs'])} epochs")
    stricter = [
        f"{fewest(part, part['smallest_views_ratio'])} in {number(part['epochs'])}"
        for part in parts
    ]
    return (
        f"{capital(kind_of_views(mixed))} views from which on the KL is shown to be within "
        f"{listed(sorted({number(part['margin']) for part in parts}))} nats of a live teacher's: "
        f"{'; '.join(said)}. Within {share(parts[0]['ratio_margin'])} of it: {listed(stricter)}."
    )


def above_live(part: Mapping[str, Any]) -> str:
    """Return by how much the KL of the fewest views is above a live teacher's."""
    row = next(row for row in part["rows"] if row["views"] == part["smallest_views"])
    return f"{signed_nats(row['difference'])} nats, {row['ratio']:.2f} times"


def fewest(part: Mapping[str, Any], views: int | None) -> str:
    """Return a number of views; where none is shown to be enough, up to which it is not."""
    most = max((row["views"] for row in part["rows"]), default=0)
    return f"not reached by {number(most)}" if views is None else number(views)


def margins_are(equivalence: Sequence[Mapping[str, Any]]) -> str:
    """Say where the margins come from, and how wide the first one is."""
    part = max(equivalence, key=lambda part: (part["epochs"], part["mixed"]))
    said = f"The margin of {number(part['margin'])} nats was named with the task, before any run."
    if not isnan(part["live_kl"]):
        said += (
            f" It is {share(part['margin'] / part['live_kl'])} of the KL of "
            f"{kind_of_views(part['mixed'])} views with a live teacher after "
            f"{number(part['epochs'])} epochs, so it is wide there."
        )
    added = f"the margin of {share(part['ratio_margin'])} was added after the results were seen."
    return f"{said[:-1]}; {added}"


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
    """Say which costs separate, dearest first, which do not, and which are gains."""
    told = {sign: [pair for pair in costs if pair[1].sign == sign] for sign in (1, 0, -1)}
    dearest = sorted(told[1], key=lambda pair: -pair[1].mean)
    said = []
    if dearest:
        prices = [f"{name} costs {with_interval(cost)} nats" for name, cost in dearest]
        said.append(listed(prices))
    if told[0]:
        said.append(f"not separating: {listed([name for name, _ in told[0]])}")
    if told[-1]:
        said.append(f"better: {listed([name for name, _ in told[-1]])}")
    return "; ".join(said) if said else "nothing was compared"


def small_teacher_found(result: Mapping[str, Any]) -> list[str]:
    """Say how good the small teacher is, and what function matching gains with it, and usually."""
    rows = result["small_teacher"]
    (epochs,) = distinct(rows, "epochs")[0]
    there = select(rows, epochs=epochs)
    seeds = {row["seed"] for row in rows}
    same = [row for row in select(result["runs"], epochs=epochs) if row["seed"] in seeds]
    gains = [
        f"{with_interval(found, points)} points {teacher}"
        for found, teacher in (
            (_above(there, "labels"), "with this teacher"),
            (_above(same, "labels"), "with the usual one"),
        )
        if found is not None
    ]
    images = number(result["design"]["images"])
    accuracy = with_interval(mean_over_seeds(result["small_teachers"], "accuracy"), percent)
    said = [
        f"This teacher learned from the student's own {images} images, and names {accuracy} per "
        "cent of the test digits."
    ]
    if gains:
        said.append(
            f"In {number(epochs)} epochs {FUNCTION_MATCHING} is above labels in accuracy by "
            f"{listed(gains)}. {_next_best(there)}"
        )
    return said


def _above(rows: Sequence[Row], arm: str) -> Estimate | None:
    """Return by how much function matching's accuracy is above another arm's."""
    ours = select(rows, arm=FUNCTION_MATCHING)
    return difference(ours, select(rows, arm=arm), measure="accuracy")


def _next_best(rows: Sequence[Row]) -> str:
    """Say whether function matching's accuracy is above the best of the other arms."""
    means = {
        arm: mean_over_seeds(select(rows, arm=arm), "accuracy").mean
        for (arm,) in distinct(rows, "arm")
        if arm != FUNCTION_MATCHING
    }
    best = max(means, key=lambda arm: means[arm])
    gain = _above(rows, best)
    assert gain is not None
    verdict = {1: "above", 0: "not shown to be above", -1: "below"}[gain.sign]
    return (
        f"It is {verdict} “{best}”, the most accurate of the other arms: by "
        f"{with_interval(gain, points)} points."
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
            if is_end(chosen[name], design[f"{name}_grid"]):
                ends.setdefault((name, chosen[name]), []).append(arm)
    if not ends:
        return "Every chosen setting lies inside what was tried."
    said = [
        f"{name.replace('_', ' ')} {number(value)} of {arms_named(arms, of=len(tuned))}"
        for (name, value), arms in ends.items()
    ]
    return f"At an end of what was tried, so that better may lie beyond: {'; '.join(said)}."


def is_end(value: float | None, grid: Sequence[float]) -> bool:
    """Say whether a value is the last tried on a side where there are others; none is below 0."""
    return value is not None and len(grid) > 1 and (value == max(grid) or 0 < value == min(grid))
