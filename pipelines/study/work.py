"""The work of one seed: its views, and its units, each kept in a file of its own."""

import shutil
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from kdcache.data.document import load_dataset
from kdcache.errors import CorruptError, DataError, IncompleteError, MismatchError
from kdcache.targets.target import SparseTarget
from pipelines.study.bank import Bank, Lesson, score_bank, train_bank
from pipelines.study.cases import Case, Unit, columns
from pipelines.study.data import Source, Table, teacher_accuracy
from pipelines.study.design import Design, Part, student
from pipelines.study.faults import wrong_pixels
from pipelines.study.kept import Row, SeedRows, Task, files, keep_rows, seed_rows
from pipelines.study.lessons import RECIPES, make_lesson
from pipelines.study.made import made_here

# What a seed's folder can be damaged by; other errors are not mended by making it anew.
DAMAGE = (CorruptError, DataError, IncompleteError, MismatchError)


class Views:
    """A seed's tables, made when they are first asked for."""

    def __init__(self, source: Source, *, encoding: str | None = None) -> None:
        self.source, self._encoding = source, encoding
        self._tables: dict[str, Table] = {}

    def views(self, recipe: str) -> Table:
        """Return the student's views under a recipe."""
        if recipe not in self._tables:
            self._tables[recipe] = self.source.table(recipe, encoding=self._encoding)
        return self._tables[recipe]

    @cached_property
    def _centre(self) -> Table:
        return self.source.centre("student")

    def centre(self) -> Table:
        """Return the student's whole images."""
        return self._centre

    @cached_property
    def measured(self) -> Table:
        """Return the digits that students are measured on, whole."""
        return self.source.centre("measured")


class Seed:
    """All that a seed's students learn from. part: what they are measured on."""

    def __init__(self, design: Design, folder: Path, seed: int, *, part: Part) -> None:
        self._design, self._folder, self._seed, self._part = design, folder, seed, part
        self._opened: dict[Any, Views] = {}

    def views(self, *, kept: int | None = None, small: bool = False) -> Views:
        """Return what students see. kept: classes of each target; small: of the small teacher."""
        if (small, kept) not in self._opened:
            self._opened[small, kept] = self._open(small, kept)
        return self._opened[small, kept]

    def _open(self, small: bool, kept: int | None) -> Views:
        design, middle = self._design, self._design.middle
        most = design.tuning_epochs if self._part == "validation" else design.budgets[-1]
        if small or kept is not None:
            most = middle
        source = Source(
            folder=self._folder / f"seed-{self._seed}" / ("small" if small else "large"),
            seed=self._seed,
            views={"consistent": most, "funmatch": most, "mild": min(most, design.mild_views)},
            pupils="student" if small else "teacher",
            teacher_epochs=design.small_teacher_epochs if small else design.teacher_epochs,
            measured=self._part,
        )
        return Views(source, encoding=None if kept is None else f"packed:{kept}")

    def _views(self, unit: Unit, kept: int | None = None) -> Views:
        return self.views(kept=kept, small=unit.section == "small_teacher")

    def rows(self, unit: Unit) -> list[Row]:
        """Return a row of each student of a unit, trained and measured."""
        lessons = [self._lesson(unit, case) for case in unit.cases]
        torch.manual_seed(unit.seed)  # all students of a seed start equal
        bank = Bank([student()] * len(lessons))
        train_bank(
            bank,
            lessons,
            settings=[case.setting for case in unit.cases],
            epochs=unit.epochs,
            batch_size=self._design.batch_size,
            seed=unit.seed,
        )
        measured = self._views(unit).measured
        target = measured.target(1.0)
        scores = score_bank(
            bank,
            measured.pixels_VRHW[0],
            target=SparseTarget(None, target.log_probs_NK[0], target.log_tail_N[0]),
            labels_N=measured.labels_R,
        )
        named = [self._columns(unit, case) for case in unit.cases]
        return [columns | score for columns, score in zip(named, scores, strict=True)]

    def _lesson(self, unit: Unit, case: Case) -> Lesson:
        views = self._views(unit, case.kept)
        used = min(unit.epochs, case.views or unit.epochs)
        temperature = case.setting.temperature
        lesson = make_lesson(case.arm, views, temperature=temperature, num_views=used)
        if case.fault == "none":
            return lesson
        demo = views.source.demo
        recipe, dataset = demo.recipe(RECIPES[case.arm]), load_dataset(demo.data("student"))
        pixels = wrong_pixels(dataset, recipe, fault=case.fault, num_views=used)
        return replace(lesson, pixels_VRHW=pixels)

    def _columns(self, unit: Unit, case: Case) -> Row:
        """Return what stands before a student's scores."""
        named = columns(unit, case)
        if unit.section != "encodings":
            return named
        table = self._views(unit, case.kept).views("funmatch")
        return {**named, "bytes_per_view": table.bytes_per_view}

    def teacher(self, small: bool) -> list[Row]:
        """Return the row of the seed's teacher."""
        measured = self.views(small=small).measured
        return [{"seed": self._seed, "accuracy": teacher_accuracy(measured)}]


def run_seed(design: Design, folder: Path, task: Task) -> SeedRows:
    """Return the rows of a task; all are kept in files.

    What the seed's students learn from is made anew, once, where it is damaged.

    Raises:
        KdcacheError: what was made anew cannot be used, either.
    """
    torch.set_num_threads(1)  # networks this small lose by more, and other seeds have the cores
    own = folder / f"seed-{task.seed}"
    try:
        return _run_seed(design, folder, task)
    except DAMAGE as error:
        print(f"{error}\n{own}: damaged; made anew", flush=True)
        shutil.rmtree(own)
    try:
        return _run_seed(design, folder, task)
    except DAMAGE as error:
        raise type(error)(f"{error}; made anew it is the same: delete {own}, run again") from None


def _run_seed(design: Design, folder: Path, task: Task) -> SeedRows:
    work, made = Seed(design, folder, task.seed, part=task.part), made_here()
    makers = [partial(work.teacher, small) for small in task.teachers]
    makers += [partial(work.rows, unit) for unit in task.units]
    found = zip(files(folder, task), makers, strict=True)
    return seed_rows(task, [keep_rows(file, make, made=made) for file, make in found])
