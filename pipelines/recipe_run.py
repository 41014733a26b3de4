"""A ready recipe as a script: kdcache's commands, from a dataset's own files to a measured student.

    python -m pipelines.recipe_run flowers102 fast --data data --teacher SPEC --weights FILE

Prints the script and runs nothing; `make recipe` gives it to a shell. Every command goes on where
it stopped, so the script may be run again. All are parsed first: a typing error in a recipe shows
now, not after days of precompute.
"""

import shlex
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, StrictFloat, StrictInt, StrictStr, ValidationError

from kdcache.cli.app import app
from kdcache.errors import KdcacheError, UsageError
from kdcache.report.plan import Views, views_of_epochs

READY = Path(__file__).parent / "recipes" / "runs"
REPLAYED = 0.001  # share of the blocks that verify renders: its default takes days of ImageNet
Options = dict[str, StrictStr | StrictInt | StrictFloat]


class Part(BaseModel):
    """Images to pack: the source that `kdcache pack` is given, and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    options: Options = {}


class Ready(BaseModel):
    """A recipe file. Options are those of kdcache's commands, by their long names.

    views, central: recipes of the student's views and of those it is measured on. train, val: the
    images; {data} is where the dataset lies. precompute: options that `kdcache plan` has, too.
    student: options of `kdcache train`, to which a schedule adds its own, epochs among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    views: str
    central: str
    train: Part
    val: Part
    precompute: Options
    student: Options
    schedule: dict[str, Options]

    def training(self, schedule: str) -> Options:
        """Return the options of `kdcache train` for a schedule.

        Raises:
            UsageError: there is no such schedule.
        """
        if schedule not in self.schedule:
            raise UsageError(f"schedule {schedule!r}: choose one of {', '.join(self.schedule)}")
        return {**self.student, **self.schedule[schedule]}

    def num_views(self, schedule: str, *, reuse: float) -> Views:
        """Return the views that a schedule uses `reuse` times each, as `kdcache plan` does."""
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
    """What the user brings and wishes. out: folder of all that is made."""

    data: Path
    teacher: str
    weights: Path | None
    out: Path
    reuse: float = 3.0
    gpus: int = 1


@dataclass(frozen=True)
class Command:
    """The words of a kdcache command. done: a file that is there once it need not run again."""

    step: Step
    words: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    done: Path | None = None

    def __str__(self) -> str:
        """Return a line of shell."""
        line = shlex.join([*self.launcher, "kdcache", *self.words])
        return line if self.done is None else f"test -e {shlex.quote(str(self.done))} || {line}"


def load_ready(path: Path) -> Ready:
    """Return the recipe of a TOML file.

    Raises:
        UsageError: there is no such file, or it is no recipe.
    """
    try:
        return Ready.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
        raise UsageError(f"{path}: no such recipe; there are {names}") from None
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(f"{path}: {found}") from None
    except ValueError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None


def commands(ready: Ready, schedule: str, *, place: Place) -> list[Command]:
    """Return all commands of a schedule, in order, parsed.

    Images and central targets are shared by the schedules; cache and run are each one's own.

    Raises:
        UsageError: there is no such schedule.
    """
    own = place.out / schedule
    train, val, central = (str(place.out / name) for name in ("train", "val", "val-cache"))
    cache, run = str(own / "cache"), str(own / "run")
    training = ready.training(schedule)
    views = ready.num_views(schedule, reuse=place.reuse).num_views
    teacher = ["--teacher", place.teacher]
    teacher += [] if place.weights is None else ["--weights", str(place.weights)]
    kept = [*teacher, *_words(ready.precompute)]
    job = ["precompute", "--data", train, *kept, "--recipe", ready.views]
    measured = ["precompute", "--data", val, *kept, "--recipe", ready.central]
    wished = ["--epochs", str(training["epochs"]), "--reuse", str(place.reuse)]
    planned = ["--recipe", ready.views, *wished, "--gpus", str(place.gpus)]
    several = place.gpus > 1
    engine = ["--engine", "processes"] if several else []
    torchrun = ("torchrun", "--no-python", "--nproc-per-node", str(place.gpus)) if several else ()
    student = ["train", "--data", train, "--cache", cache, *_words(training)]
    student += ["--val-data", val, "--val-cache", central, "--out", run, "--resume"]
    found = [
        _pack(ready.train, train, place=place),
        _pack(ready.val, val, place=place),
        Command(Step.plan, ("plan", "--data", train, *kept, *planned)),
        Command(Step.precompute, (*job, "--views", str(views), "--cache", cache, *engine)),
        Command(Step.precompute, (*measured, "--views", "1", "--cache", central)),
        Command(Step.verify, ("verify", cache, "--data", train, "--replay", str(REPLAYED))),
        Command(Step.train, tuple(student), launcher=torchrun),
        Command(Step.eval, ("eval", run, "--data", val, "--cache", central)),
    ]
    for command in found:
        parse(command)
    return found


def _pack(part: Part, out: str, *, place: Place) -> Command:
    words = ["pack", part.source, out, *_words(part.options)]
    there = tuple(word.replace("{data}", str(place.data)) for word in words)
    return Command(Step.pack, there, done=Path(out) / "dataset.json")


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


def main(
    name: Annotated[str, typer.Argument(help=f"A recipe: {READY.name}/NAME.toml.")],
    schedule: Annotated[str, typer.Argument(help="One of its schedules.")],
    data: Annotated[Path, typer.Option(help="Folder of the dataset's own files.")],
    teacher: Annotated[str, typer.Option(help="Its spec; see docs/how-to/teachers.md.")],
    weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    out: Annotated[Path, typer.Option(help="All is made in OUT/NAME.")] = Path("build/recipes"),
    reuse: Annotated[float, typer.Option(help="Uses of each view: epochs over views.")] = 3.0,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of this machine.")] = 1,
    step: Annotated[list[Step] | None, typer.Option(help="Only this step, or these.")] = None,
) -> None:
    """Print a recipe's commands, a line each."""
    place = Place(data, teacher, weights, out / name, reuse=reuse, gpus=gpus)
    try:
        found = commands(load_ready(READY / f"{name}.toml"), schedule, place=place)
    except KdcacheError as error:
        typer.echo(f"recipe {name}: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    for command in found:
        if not step or command.step in step:
            print(command)


if __name__ == "__main__":
    typer.run(main)
