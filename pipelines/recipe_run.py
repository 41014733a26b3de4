"""A ready recipe as a script: kdcache's commands, from a dataset's own files to a measured student.

    python -m pipelines.recipe_run flowers102
    python -m pipelines.recipe_run flowers102 fast --data data --teacher SPEC --weights FILE

The first prints what the recipe takes; the second prints the script. Neither runs it; `make recipe`
gives it to a shell. Every command goes on where it stopped, so the script may be run again. All are
parsed first: a typing error in a recipe shows now, not after days of precompute. So does it if
images were packed of another source: beside each packed dataset lies a note of what it is made of.
"""

import itertools
import os
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from kdcache.cli.app import app
from kdcache.errors import KdcacheError, MismatchError, UsageError
from kdcache.processes import num_cores
from kdcache.report.plan import Views, views_of_epochs

READY = Path(__file__).parent / "recipes" / "runs"
REPLAYED = 0.001  # share of the blocks that verify renders: its default takes days of ImageNet
Options = dict[str, StrictStr | StrictInt | StrictFloat]

TRIAL = "trial"  # a schedule of every recipe, to see that all steps run; all else is its first's
TRIAL_OPTIONS: Options = {
    "epochs": 2,
    "batch-size": 16,
    "views-per-load": 1,
    "eval-every": 1,
    "save-every": 1,
}


class Part(BaseModel):
    """Images to pack: the source that `kdcache pack` is given, and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    options: Options = {}


class Ready(BaseModel):
    """A recipe file. Options are those of kdcache's commands, by their long names.

    views, central: recipes of the student's views and of those it is measured on. train, val: the
    images; {data} is where the dataset lies, {out} where all is made. precompute: options that
    `kdcache plan` has, too. student: options of `kdcache train`, to which a schedule adds its
    own, epochs among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    views: str
    central: str
    train: Part
    val: Part
    precompute: Options
    student: Options
    schedule: dict[str, Options] = Field(min_length=1)

    def training(self, schedule: str) -> Options:
        """Return the options of `kdcache train` for a schedule.

        Raises:
            UsageError: there is no such schedule.
        """
        known = {TRIAL: {**next(iter(self.schedule.values())), **TRIAL_OPTIONS}, **self.schedule}
        if schedule not in known:
            names = dict.fromkeys([*self.schedule, TRIAL])
            raise UsageError(f"schedule {schedule!r}: choose one of {', '.join(names)}")
        return {**self.student, **known[schedule]}

    def with_workers(self, most: int) -> "Ready":
        """Return the recipe with no more workers than so many, where it has any."""

        def fewer(options: Options) -> Options:
            wished = options.get("workers")
            return options | ({"workers": min(wished, most)} if isinstance(wished, int) else {})

        schedule = {name: fewer(options) for name, options in self.schedule.items()}
        parts = {"precompute": fewer(self.precompute), "student": fewer(self.student)}
        return self.model_copy(update={**parts, "schedule": schedule})

    def num_views(self, schedule: str, *, reuse: float | None) -> Views:
        """Return the views that `kdcache plan` reckons with for a schedule and a reuse."""
        return views_of_epochs(int(self.training(schedule)["epochs"]), reuse=reuse)


class Step(StrEnum):
    """What a command is part of, in order."""

    pack = "pack"
    plan = "plan"
    precompute = "precompute"
    verify = "verify"
    train = "train"
    eval = "eval"


@dataclass(frozen=True)
class Place:
    """What the user brings and wishes.

    out: folder of all that is made. reuse: None for as many views as are enough by the rule of
    docs/how-to/choose-views.md. pack, precompute, train: more words of these commands; `kdcache
    plan` gets those of precompute that it knows.
    """

    data: Path
    teacher: str
    weights: Path | None
    out: Path
    reuse: float | None = None
    gpus: int = 1
    pack: tuple[str, ...] = ()
    precompute: tuple[str, ...] = ()
    train: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packing:
    """What a packed dataset is made of: `source`, noted beside its folder."""

    folder: Path
    source: str

    @property
    def done(self) -> Path:
        """Return the file that is there once the images are packed."""
        return self.folder / "dataset.json"

    @property
    def note(self) -> Path:
        """Return the file that keeps the source."""
        return self.folder.with_name(f"{self.folder.name}.packed")

    def check(self) -> None:
        """Check that images which are packed already are of this source, as far as it was noted.

        Raises:
            MismatchError: they are of another.
        """
        if not (self.done.exists() and self.note.exists()):
            return
        found = self.note.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
        if found != self.source:
            raise MismatchError(
                f"{self.folder}: packed of {found}; asked for {self.source}; give another OUT=…, "
                f"or the same DATA and PACK_ARGS, or remove {self.note} if the images are the same"
            )


@dataclass(frozen=True)
class Command:
    """The words of a kdcache command. packing: of images, which are packed but once."""

    step: Step
    words: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    packing: Packing | None = None

    def __str__(self) -> str:
        """Return a line of shell, which stops where a part of it fails if the shell has -e."""
        line = shlex.join([*self.launcher, "kdcache", *self.words])
        if self.packing is None:
            return line
        found = (self.packing.done, self.packing.folder.parent, self.packing.source)
        done, out, source, note = (shlex.quote(str(v)) for v in (*found, self.packing.note))
        return f"test -e {done} || {{ mkdir -p {out}; printf '%s\\n' {source} > {note}; {line}; }}"


def recipe_path(name: str) -> Path:
    """Return the file of a ready recipe's name, or of one's own, which ends in .toml.

    Raises:
        UsageError: it is neither.
    """
    if name.endswith(".toml"):
        return Path(name)
    if "/" in name:
        raise UsageError("a ready recipe's name has no slash, and a file of your own ends in .toml")
    return READY / f"{name}.toml"


def load_ready(path: Path) -> Ready:
    """Return the recipe of a TOML file.

    Raises:
        UsageError: there is no such file, or it is no recipe.
    """
    try:
        return Ready.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        names = ", ".join(sorted(file.stem for file in READY.glob("*.toml")))
        raise UsageError(f"{path}: no such file; ready recipes are {names}") from None
    except OSError as error:
        raise UsageError(f"{path!s:.200}: {error.strerror}") from None
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{path}: {found}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None


def commands(ready: Ready, schedule: str, *, place: Place) -> list[Command]:
    """Return all commands of a schedule, in order, parsed.

    Images and central targets are shared by the schedules; cache and run are of a schedule and a
    number of views.

    Raises:
        UsageError: there is no such schedule.
    """
    train, val, central = (str(place.out / name) for name in ("train", "val", "val-cache"))
    training = ready.training(schedule)
    views = ready.num_views(schedule, reuse=place.reuse).num_views
    own = place.out / schedule
    cache, run = (str(own / f"{name}-{views}-views") for name in ("cache", "run"))
    teacher = ["--teacher", place.teacher]
    teacher += [] if place.weights is None else ["--weights", str(place.weights)]
    kept = [*teacher, *_words(ready.precompute)]
    job = ["precompute", "--data", train, *kept, "--recipe", ready.views]
    measured = ["precompute", "--data", val, *kept, "--recipe", ready.central]
    more = place.precompute
    wished = ["--epochs", str(training["epochs"]), "--gpus", str(place.gpus)]
    planned = ["--recipe", ready.views, *wished]
    planned += [] if place.reuse is None else ["--reuse", str(place.reuse)]
    several = place.gpus > 1
    engine = ["--engine", "processes"] if several else []
    torchrun = ("torchrun", "--no-python", "--nproc-per-node", str(place.gpus)) if several else ()
    student = ["train", "--data", train, "--cache", cache, *_words(training)]
    student += ["--val-data", val, "--val-cache", central, "--out", run, "--resume", *place.train]
    found = [
        _pack(ready.train, train, place=place),
        _pack(ready.val, val, place=place),
        Command(Step.plan, ("plan", "--data", train, *kept, *planned, *_known("plan", more))),
        Command(Step.precompute, (*job, "--views", str(views), "--cache", cache, *engine, *more)),
        Command(Step.precompute, (*measured, "--views", "1", "--cache", central, *more)),
        Command(Step.verify, ("verify", cache, "--data", train, "--replay", str(REPLAYED))),
        Command(Step.train, tuple(student), launcher=torchrun),
        Command(Step.eval, ("eval", run, "--data", val, "--cache", central)),
    ]
    for command in found:
        parse(command)
    return found


def _pack(part: Part, out: str, *, place: Place) -> Command:
    def words(data: Path, more: dict[str, str]) -> list[str]:
        there = {"{data}": str(data), **more}
        given = [part.source, *_words(part.options)]
        return [re.sub(r"{data}|{out}", lambda m: there.get(m[0], m[0]), word) for word in given]

    source, *options = words(place.data, {"{out}": str(place.out)})
    noted = [*words(Path(os.path.abspath(place.data)), {}), *place.pack]  # OUT may be moved
    packing = Packing(Path(out), shlex.join(noted))
    return Command(Step.pack, ("pack", source, out, *options, *place.pack), packing=packing)


def _known(name: str, words: Sequence[str]) -> list[str]:
    """Return those options, with their values, that a kdcache command has."""
    group: Any = typer.main.get_command(app)
    names = {option for param in group.commands[name].params for option in param.opts}
    names -= {"--batch-size"} if "auto" in words else set()  # a number in plan
    found, known = list[str](), False
    for word in words:
        known = word.partition("=")[0] in names if word.startswith("--") else known
        found += [word] * known
    return found


def _words(options: Options) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def parse(command: Command) -> dict[str, Any]:
    """Return the parameters that kdcache takes from a command's words; nothing is run.

    What it refuses, it refuses as on the command line: with typer's error, which `main` shows.
    """
    group: Any = typer.main.get_command(app)
    name, *words = command.words
    found: dict[str, Any] = group.commands[name].make_context(name, words).params
    return found


def head(path: Path) -> str:
    """Return the comment that a recipe's file begins with, without its marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment)


def _missing(name: str, schedule: str, *, missing: list[str]) -> str:
    """Say which of make's variables are still to be given, and give an example of all."""
    return (
        f"{', '.join(missing)} missing; for example: make recipe NAME={name} SCHEDULE={schedule} "
        "DATA=data TEACHER=timm:resnetv2_152x2_bit WEIGHTS=teacher.safetensors"
    )


def _split(variable: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{variable} {text!r}: {error}") from None


def main(
    name: Annotated[str, typer.Argument(help=f"{READY.name}/NAME.toml, or your own FILE.toml.")],
    schedule: Annotated[str | None, typer.Argument(help=f"One of its own, or {TRIAL}.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the dataset's own files.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Its spec; docs/how-to/teachers.md.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    out: Annotated[Path, typer.Option(help="All is made in OUT/NAME.")] = Path("build/recipes"),
    reuse: Annotated[
        float | None,
        typer.Option(help="Uses of each view; default: views by docs/how-to/choose-views.md."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of this machine.")] = 1,
    pack_args: Annotated[str, typer.Option(help="More options of kdcache pack.")] = "",
    precompute_args: Annotated[str, typer.Option(help="More options of kdcache precompute.")] = "",
    train_args: Annotated[str, typer.Option(help="More options of kdcache train.")] = "",
    step: Annotated[list[Step] | None, typer.Option(help="Only this step, or these.")] = None,
) -> None:
    """Print a recipe's commands, a line each; of a name alone, the head of its file."""
    try:
        path = recipe_path(name)
        ready = load_ready(path).with_workers(max(num_cores() // gpus - 1, 1))
        if schedule is None or data is None or teacher is None:
            typer.echo(f"{head(path)}\n", err=True)
            given = {"SCHEDULE": schedule, "DATA": data, "TEACHER": teacher}
            missing = [variable for variable, value in given.items() if value is None]
            raise UsageError(_missing(name, next(iter(ready.schedule)), missing=missing))
        place = Place(
            data,
            teacher,
            weights,
            out / path.stem,
            reuse=reuse,
            gpus=gpus,
            pack=_split("PACK_ARGS", pack_args),
            precompute=_split("PRECOMPUTE_ARGS", precompute_args),
            train=_split("TRAIN_ARGS", train_args),
        )
        found = commands(ready, schedule, place=place)
        for command in found:
            if command.packing is not None:
                command.packing.check()
    except KdcacheError as error:
        typer.echo(f"recipe {name:.200}: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    for command in found:
        if not step or command.step in step:
            print(command)


if __name__ == "__main__":
    typer.run(main)
