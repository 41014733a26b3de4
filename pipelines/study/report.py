"""The report of the study of patience and consistency: page, Markdown, pictures and numbers."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from kdcache.files import write_whole
from kdcache.identity import finite
from kdcache.report.figures import Picture
from kdcache.report.page import Section, render_page
from pipelines.study import figures, sentences, tables, verdicts
from pipelines.study.markdown import render_markdown
from pipelines.study.summary import FEWEST, budgets, distinct, in_order, select
from pipelines.study.words import listed, number, plural

TITLE = "Is a good teacher patient and consistent? A study on handwritten digits"
PAPER = "Beyer et al., “Knowledge distillation: a good teacher is patient and consistent” (2022)"
NAME = "digits"
DECISION = "docs/decisions.md, number 84"
LABELS = {
    "side_seeds": "side seeds (of the side studies)",
    "mild_views": "mild views (stored of the mild crops, of which an image has only 36)",
    "margin_nats": "margin of equivalence, nats",
}
PARTS = ("runs", "views", "encodings", "wrong_replay", "small_teacher")


def write_results(result: dict[str, Any], folder: Path) -> None:
    """Write digits.json, .md, .html and the pictures to a folder; equal results, equal files."""
    sections = make_sections(result)
    files = {
        f"{NAME}.json": json_text(result),
        f"{NAME}.md": render_markdown(TITLE, sections),
        f"{NAME}.html": render_page(TITLE, sections),
    }
    if not result["quick"]:  # the decisions lie beside the results of the whole study alone
        files[f"{NAME}.md"] = files[f"{NAME}.md"].replace(
            DECISION, f"[{DECISION}](../decisions.md)"
        )
    files |= {f"{one.name}.svg": one.svg for section in sections for one in section.figures}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_whole(folder / name, partial(_write, text))


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def json_text(result: Mapping[str, Any]) -> str:
    """Return a result as JSON with a line for each row of its lists, so that runs compare well.

    A KL that is none, of a student that diverged, is null, as is what follows from it.
    """
    items = finite(dict(result)).items()
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {_rows(v)}" for k, v in items) + "\n}\n"


def _rows(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return _one_line(value)
    return "[\n " + ",\n ".join(map(_one_line, value)) + "\n]"


def _one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def make_sections(result: Mapping[str, Any]) -> list[Section]:
    """Return what the report says, part by part; what was not run is left out."""
    result = in_order(result)
    return [
        Section("What was found", paragraphs=_found(result)),
        Section("What was done", paragraphs=_done(result), table=_design(result)),
        Section("What each student sees and learns", table=_arms(result)),
        *_main(result),
        *_tests(result),
        *_views(result),
        *_encodings(result),
        *_replay(result),
        *_small_teacher(result),
        Section("Chosen settings", paragraphs=_tuning(result), table=tables.tuned(result["tuned"])),
        Section("Limits", paragraphs=_limits(result)),
    ]


def _found(result: Mapping[str, Any]) -> list[str]:
    runs = result["runs"]
    said = ["This was a short trial: its numbers mean nothing."] if result["quick"] else []
    said += [
        sentences.best_and_worst(runs, budgets(runs)[-1]),
        sentences.places(runs, sentences.FUNCTION_MATCHING),
        verdicts.tests_found(result["tests"]),
        *verdicts.claims_found(result),
    ]
    return said + _enough(result)


def _enough(result: Mapping[str, Any]) -> list[str]:
    parts = result["equivalence"]
    return [sentences.enough_views(parts, mixed=mixed) for (mixed,) in distinct(parts, "mixed")]


def _done(result: Mapping[str, Any]) -> list[str]:
    design = result["design"]
    return [
        f"The study of {PAPER}, made small: a teacher and students of scikit-learn's digits. Each "
        f"student has {number(design['images'])} images and is measured on "
        f"{number(design['test_images'])} test images: KL(teacher || student) in nats at "
        "temperature 1, how often it agrees with the teacher, and accuracy. "
        + sentences.teachers_are(result["teachers"]),
        f"Stored views, encodings, wrong replays and the small teacher are side studies, of "
        f"{plural(len(design['side_seeds']), 'seed')}, the side seeds; all else has "
        f"{len(design['seeds'])}.",
        f"{_origins(result['made'])} They took {result['seconds'] / 60:.0f} minutes by the clock, "
        "added up over the runs of the command that made any. Report made by "
        f"{result['command']} on {result['date']}, {_at(result['commit'])}.",
    ]


def _origins(made: Sequence[Mapping[str, Any]]) -> str:
    """Say by which code and on what the units were computed."""
    places: dict[str, list[str]] = {}
    for one in made:
        machine = one["machine"]
        where = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
        versions = listed([f"{name} {version}" for name, version in one["versions"].items()])
        told = f"{number(one['units'])} {_at(one['commit'])}"
        places.setdefault(f"on {where}; {versions}", []).append(told)
    said = [f"{listed(commits)}, {place}." for place, commits in places.items()]
    return f"Units computed (a teacher measured, or students trained together): {' '.join(said)}"


def _at(commit: str | None) -> str:
    return f"at commit {commit}" if commit else "at a commit that is not known"


def _design(result: Mapping[str, Any]) -> tables.Table:
    settings = {name: value for name, value in result["design"].items() if name != "arms"}
    return [
        ["setting", "value"],
        *(
            [LABELS.get(name, name).replace("_", " "), _setting(value)]
            for name, value in settings.items()
        ),
    ]


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_setting(one)}" for name, one in value.items())
    if isinstance(value, list):
        return listed([_setting(one) for one in value])
    return value if isinstance(value, str) else number(value)


def _arms(result: Mapping[str, Any]) -> tables.Table:
    design = result["design"]
    return [
        ["arm", "what it sees and learns", "views"],
        *([arm, said, _views_of(arm, design)] for arm, said in design["arms"].items()),
    ]


def _views_of(arm: str, design: Mapping[str, Any]) -> str:
    """Say how many views an arm has."""
    most, mild = design["budgets"][-1], design["mild_views"]
    if "mild" in arm and mild < most:
        return f"one an epoch, {number(mild)} in all; then these again"
    if "mean" in arm:
        return (
            f"one an epoch; the mean is over {number(most)}, in tuning over "
            f"{number(design['tuning_epochs'])}, with the small teacher over "
            f"{number(design['budgets'][1])}"
        )
    return "one an epoch"


def _main(result: Mapping[str, Any]) -> list[Section]:
    runs = result["runs"]
    steps = [
        sentences.patience(runs, short=short, long=long) for short, long in pairwise(budgets(runs))
    ]
    return [
        Section(
            "KL to the teacher, and patience",
            paragraphs=[f"{_means_are(result['design'])} {' '.join(steps)}"],
            table=tables.by_budget(runs, "kl"),
            figures=_drawn(figures.arms(runs)),
        ),
        Section("Agreement with the teacher, %", table=tables.by_budget(runs, "agreement")),
        Section("Accuracy against the labels, %", table=tables.by_budget(runs, "accuracy")),
    ]


def _drawn(*pictures: Picture | None) -> list[Picture]:
    return [picture for picture in pictures if picture is not None]


def _means_are(design: Mapping[str, Any]) -> str:
    """Say what stands beside a mean."""
    if len(design["seeds"]) < FEWEST:
        return f"Means over the seeds; intervals need {FEWEST} or more."
    return "Means over the seeds, with 95% intervals of Student's t; see the limits."


def _tests(result: Mapping[str, Any]) -> list[Section]:
    registered = Section(
        "Registered tests",
        paragraphs=[
            "Student's paired t test over the seeds, one-sided: the first arm's KL is the lower. "
            "The comparisons, and Holm's correction for all of them, stand in "
            f"pipelines/study/design.py since before any seed of the study was run ({DECISION}). "
            "The difference is that of the means, first less second, with its 95% interval.",
            "Where the difference is the other way round, the same test, two-sided and again "
            "corrected for all, is the p of the opposite: below 0.05 the claim is contradicted, "
            "else it is undecided. This second test was not registered.",
        ],
        table=tables.tests(result["tests"], registered=True),
    )
    beside = Section(
        "Reported beside them",
        paragraphs=[
            "The same test, two-sided, not registered, not corrected: hints, not findings."
        ],
        table=tables.tests(result["tests"], registered=False),
    )
    return [part for part in (registered, beside) if part.table]


def _views(result: Mapping[str, Any]) -> list[Section]:
    rows, equivalence, design = result["views"], result["equivalence"], result["design"]
    if not rows:
        return []
    return [
        Section(
            "Test KL against stored views",
            paragraphs=[
                "A cache holds a number of views, which are used again and again; with a live "
                "teacher the student has a new view in every epoch, and uses each once. The live "
                "runs are those of “function matching” (mixed) and “consistent” (unmixed): the "
                f"same runs, here of the {len(design['side_seeds'])} side seeds, there of all "
                f"{len(design['seeds'])}, so that the means differ a little.",
            ],
            figures=_drawn(figures.views(rows, reuse=False), figures.views(rows, reuse=True)),
            table=tables.views(rows),
        ),
        *_near_live(equivalence),
    ]


def _near_live(equivalence: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not equivalence:
        return []
    return [
        Section(
            "How many stored views come near a live teacher",
            paragraphs=[
                "The fewest from which on all larger numbers are shown to be within a margin of a "
                "live teacher's KL: two one-sided paired t tests over the side seeds, 5% each.",
                sentences.margins_are(equivalence),
            ],
            table=tables.enough(equivalence),
        ),
        Section(
            "By how much stored views are above a live teacher",
            paragraphs=[
                "In nats, with the 90% interval of the two tests, and as a ratio of the KLs. That "
                "a margin is not shown does not refute it.",
            ],
            table=tables.equivalence(equivalence),
        ),
    ]


def _encodings(result: Mapping[str, Any]) -> list[Section]:
    rows = result["encodings"]
    if not rows:
        return []
    said = [
        sentences.encodings_found(select(rows, temperature=temperature, epochs=epochs), temperature)
        for temperature, epochs in distinct(rows, "temperature", "epochs")
    ]
    return [
        Section(
            "What an encoding costs",
            paragraphs=said,
            table=tables.encodings(rows),
            figures=_drawn(figures.encodings(rows)),
        )
    ]


def _replay(result: Mapping[str, Any]) -> list[Section]:
    rows = result["wrong_replay"]
    if not rows:
        return []
    said = [
        sentences.replay_found(select(rows, recipe=recipe, epochs=epochs), recipe)
        for recipe, epochs in distinct(rows, "recipe", "epochs")
    ]
    return [
        Section("The price of a wrong replay", paragraphs=said, table=tables.wrong_replay(rows))
    ]


def _small_teacher(result: Mapping[str, Any]) -> list[Section]:
    rows = result["small_teacher"]
    if not rows:
        return []
    said = sentences.small_teacher_found(result)
    title = "A teacher that knows no more images than the student"
    return [Section(title, paragraphs=said, table=tables.small_teacher(rows))]


def _tuning(result: Mapping[str, Any]) -> list[str]:
    design = result["design"]
    seeds = plural(len(design["tuning_seeds"]), "seed")
    return [
        f"The lowest mean KL on validation digits over {seeds} of "
        f"{number(design['tuning_epochs'])} epochs. {sentences.at_edges(result['tuned'], design)}"
    ]


def _limits(result: Mapping[str, Any]) -> list[str]:
    design = result["design"]
    counts = sorted({len(distinct(result[part], "seed")) for part in PARTS if result[part]})
    few = listed([number(count) for count in counts])
    return [
        f"One data set, of digits of 8 by 8 pixels; one student, of "
        f"{number(design['student_parameters'])} parameters: nothing here speaks for larger ones.",
        f"Seeds of each mean: {few}. Intervals, Student's t, stand where there are {FEWEST} "
        "or more: they hold the mean in 95% of cases where seeds spread normally, in 88% (5 seeds) "
        "and 90% (10) where they are as skewed as an exponential law. Percentile bootstrap "
        "intervals would hold it in 83% and 90% even where they spread normally; these stand "
        "beside them in digits.json.",
        "All seeds draw their splits from the same 1,797 digits: what one tests on, others learn "
        "or were tuned on. All arms share this, and the seeds are not wholly independent.",
        "Only the registered tests are corrected for their number. What else separates, falls, "
        "rises or costs has a 95% interval of its own that leaves zero out: of many, some do by "
        "chance.",
        f"Settings were chosen at {number(design['tuning_epochs'])} epochs and serve every budget.",
    ]
