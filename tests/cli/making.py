"""Files that commands read."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from kdcache.recipe.schema import Recipe, load_recipe
from tests import tiny
from tests.cli.conftest import Outcome
from tests.student import nets

ROOT = Path(__file__).parents[2]
TEACHER = "tests.tiny:linear_teacher"
PLAIN = ["--mean", "0,0,0", "--std", "1,1,1"]


def teacher_option(options: Sequence[object]) -> list[str]:
    """Return the option that names the tiny teacher, unless options name another."""
    return [] if "--teacher" in options else ["--teacher", TEACHER]


def write_recipe(path: Path, recipe: Recipe) -> Path:
    """Write a recipe as TOML."""
    tables: dict[str, dict[str, Any]] = {"": {}}
    for name, value in recipe.canonical().items():
        if isinstance(value, dict):
            tables[name] = value
        else:
            tables[""][name] = value
    lines = []
    for name, values in tables.items():
        lines += [f"[{name}]"] if name else []
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines))
    assert load_recipe(path) == recipe
    return path


def write_weights(path: Path, name: str = "linear_teacher") -> Path:
    """Write the weights of a teacher of `tests.tiny`."""
    save_file(getattr(tiny, name)().state_dict(), path)
    return path


def seven_classes() -> nn.Module:
    """Return a teacher that knows other classes than the dataset."""
    return tiny.linear_teacher(7)


def printing() -> nn.Module:
    """Return the teacher, and talk about it."""
    print("loading the best teacher ever")
    return tiny.linear_teacher()


PROBES = 2  # batches on which precompute measures how steady a new cache's teacher is
INTERRUPT_AT: int | None = None  # tests set it


class _Interrupted(nn.Module):
    """A network during whose batch of that number somebody presses Ctrl-C."""

    calls = 0

    def forward(self, images_N3HW: Tensor) -> Tensor:
        self.calls += len(images_N3HW) > 1  # a first try has one image
        if self.calls == INTERRUPT_AT:
            raise KeyboardInterrupt
        logits: Tensor = super().forward(images_N3HW)
        return logits


class _InterruptedTeacher(_Interrupted, tiny.Exact):
    calls = -PROBES


class _InterruptedStudent(_Interrupted, nn.Sequential):
    pass


def interrupted_teacher() -> nn.Module:
    """Return the teacher, interrupted."""
    return _InterruptedTeacher(tiny.NUM_CLASSES, seed=0)


def interrupted_student(num_classes: int) -> nn.Module:
    """Return the small student, interrupted."""
    return _InterruptedStudent(*nets.small(num_classes))


SIGNALLED: tuple[int, int] | None = None  # tests set it: a batch, and a signal


class _SignalledStudent(nn.Sequential):
    """A network during whose batch of that number this process gets a signal."""

    calls = 0

    def forward(self, images_N3HW: Tensor) -> Tensor:
        self.calls += len(images_N3HW) > 1
        if SIGNALLED is not None and self.calls == SIGNALLED[0]:
            os.kill(os.getpid(), SIGNALLED[1])
        logits: Tensor = super().forward(images_N3HW)
        return logits


def signalled_student(num_classes: int) -> nn.Module:
    """Return the small student, asked to stop."""
    return _SignalledStudent(*nets.small(num_classes))


TERMINATE_AT: int | None = None  # tests set it


class _Terminated(tiny.Exact):
    """A network during whose batch of that number the machine is pre-empted."""

    calls = -PROBES

    def forward(self, images_N3HW: Tensor) -> Tensor:
        self.calls += len(images_N3HW) > 1
        if self.calls == TERMINATE_AT:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(images_N3HW)


def terminated_teacher() -> nn.Module:
    """Return the teacher, pre-empted."""
    return _Terminated(tiny.NUM_CLASSES, seed=0)


class _Bereft(tiny.Exact):
    """A network during whose first batch this process' children are killed."""

    calls = -PROBES

    def forward(self, images_N3HW: Tensor) -> Tensor:
        self.calls += len(images_N3HW) > 1
        if self.calls > 0:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
            time.sleep(5)  # the news of their end interrupts this
        return super().forward(images_N3HW)


def bereft_teacher() -> nn.Module:
    """Return the teacher, whose renderers die."""
    return _Bereft(tiny.NUM_CLASSES, seed=0)


class _Leaving(tiny.Exact):
    def forward(self, images_N3HW: Tensor) -> Tensor:
        if len(images_N3HW) > 1:
            sys.exit()
        return super().forward(images_N3HW)


def leaving_teacher() -> nn.Module:
    """Return the teacher, which ends the program."""
    return _Leaving(tiny.NUM_CLASSES, seed=0)


def nan_logits() -> nn.Module:
    """Return a teacher that has diverged."""
    teacher = tiny.linear_teacher()
    next(teacher.parameters()).data[0] = float("nan")
    return teacher


def check_refusal(outcome: Outcome, code: int, *words: str) -> None:
    """Check that a command stopped with one line that holds the words."""
    assert outcome.code == code, outcome.stderr
    assert outcome.stderr.startswith("kdcache: ")
    assert outcome.stderr.count("\n") == 1
    for word in words:
        assert word in outcome.stderr
