"""The students of each seed: what is trained, before anything is. Pure.

Invariant: the students of a unit share seed, epochs and shapes of targets, so that one bank trains
them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple

from pipelines.study.design import ARMS, FAULTS, Arm, Design, Fault, Setting

Section = Literal["tuning", "runs", "views", "encodings", "wrong_replay", "small_teacher"]
_MOST = 10  # more students at once are slower: their activations leave the caches


class Case(NamedTuple):
    """One student. views: stored ones that it uses, None for one an epoch. kept: None for all."""

    arm: Arm
    setting: Setting
    views: int | None = None
    kept: int | None = None
    fault: Fault = "none"


@dataclass(frozen=True)
class Unit:
    """Students that are trained side by side, and whose rows are kept in one file."""

    section: Section
    number: int
    seed: int
    epochs: int
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """Return the file name, without its ending."""
        return f"seed-{self.seed}-{self.section}-{self.epochs}-{self.number}"

    @property
    def passes(self) -> int:
        """Return what it costs: epochs, over its students."""
        return self.epochs * len(self.cases)


def columns(unit: Unit, case: Case) -> dict[str, Any]:
    """Return what names a student in its section of the result."""
    common = {"epochs": unit.epochs, "seed": unit.seed}
    if unit.section == "tuning":
        return {"arm": case.arm, **common, "setting": asdict(case.setting)}
    if unit.section == "views":
        return {"views": case.views, "mixed": case.arm == "function matching", **common}
    if unit.section == "wrong_replay":
        recipe = next(name for name, (arm, _) in FAULTS.items() if arm == case.arm)
        return {"fault": case.fault, "recipe": recipe, **common}
    if unit.section == "encodings":
        temperature = case.setting.temperature
        return {"k": case.kept, "stored_temperature": None, "temperature": temperature, **common}
    return {"arm": case.arm, **common}


def grid(design: Design, arm: Arm) -> list[Setting]:
    """Return the settings among which an arm's is chosen."""
    temperatures = (None,) if arm.startswith("labels") else design.temperatures
    choices = product(design.learning_rates, temperatures, design.weight_decays)
    return [Setting(*choice) for choice in choices]


def tuning_units(design: Design, seed: int) -> list[Unit]:
    """Return the units that settings are chosen by."""
    cases = [Case(arm, setting) for arm in ARMS for setting in grid(design, arm)]
    return _units("tuning", seed, design.tuning_epochs, cases)


def seed_units(design: Design, seed: int, *, tuned: Mapping[Arm, Setting]) -> list[Unit]:
    """Return the units of a seed, with each arm's chosen setting."""
    arms = [Case(arm, tuned[arm]) for arm in ARMS]
    units = [unit for epochs in design.budgets for unit in _units("runs", seed, epochs, arms)]
    if seed not in design.side_seeds:
        return units
    for epochs in design.budgets:
        counts = [count for count in design.view_counts if count < epochs]  # else live
        pairs = product(_MIXED.values(), counts)
        cases = [Case(arm, tuned[arm], views=count) for arm, count in pairs]
        units += _units("views", seed, epochs, cases)
    middle = design.middle
    units += [
        Unit("encodings", number, seed, middle, tuple(_encoding_cases(design, kept, tuned)))
        for number, kept in enumerate(design.kept)
    ]
    faulty = [
        Case(arm, tuned[arm], fault=fault)
        for arm, faults in FAULTS.values()
        for fault in faults
        if fault != "none"
    ]
    units += _units("wrong_replay", seed, middle, faulty)
    return units + _units("small_teacher", seed, middle, arms)


_MIXED: dict[bool, Arm] = {False: "consistent", True: "function matching"}


def _encoding_cases(
    design: Design, kept: int | None, tuned: Mapping[Arm, Setting]
) -> Iterator[Case]:
    """Yield students of one encoding at each temperature: their targets are of one shape."""
    arm: Arm = "function matching"
    for temperature in design.temperatures:
        rate, decay = tuned[arm].learning_rate, tuned[arm].weight_decay
        yield Case(arm, Setting(rate, temperature, decay), kept=kept)


def _units(section: Section, seed: int, epochs: int, cases: Sequence[Case]) -> list[Unit]:
    """Return the cases in as few units as hold them, as equal as can be."""
    count = -(-len(cases) // _MOST)
    ends = [len(cases) * n // count for n in range(count + 1)] if count else [0]
    return [
        Unit(section, number, seed, epochs, tuple(cases[start:stop]))
        for number, (start, stop) in enumerate(pairwise(ends))
    ]
