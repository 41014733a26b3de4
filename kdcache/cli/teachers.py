"""Options that name a teacher, for the commands that run one."""

import re
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.errors import UsageError

if TYPE_CHECKING:
    from kdcache.cache.store import Cache
    from kdcache.models.ensemble import TeacherSpec
    from kdcache.models.source import Triple

PANEL = "Teacher"
_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)
IMAGENET_MEAN = "0.485,0.456,0.406"
SPEC_HELP = (
    "torchvision:NAME, timm:NAME, hf:FOLDER or hf:ID, pt2:FILE, onnx:FILE, or "
    "package.module:factory; weights follow as @NAME or @FILE"
)


def torchvision_names(incomplete: str) -> list[str]:
    """Return the networks of torchvision that a shell may complete a name to.

    They are read off its source: importing it takes seconds.
    """
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        return []
    texts = (file.read_text() for file in (Path(found.origin).parent / "models").glob("*.py"))
    names = [name for text in texts for name in _REGISTERED.findall(text)]
    return sorted(s for name in names if (s := f"torchvision:{name}").startswith(incomplete))


class Precision(StrEnum):
    """How a network computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Average(StrEnum):
    """What a mean of teachers is of."""

    logits = "logits"
    probabilities = "probabilities"


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=PANEL, **more)


_SPEC: dict[str, Any] = {"metavar": "SPEC", "autocompletion": torchvision_names}
Teachers = Annotated[
    list[str], _option(f"{SPEC_HELP}. Several are averaged.", "--teacher", **_SPEC)
]
OptionalTeachers = Annotated[
    list[str] | None, _option(f"{SPEC_HELP}. Several are averaged.", "--teacher", **_SPEC)
]
Weights = Annotated[
    Path | None,
    _option(
        "Weights of the one teacher, if its name has none: safetensors, or a PyTorch state_dict.",
        "--weights",
    ),
]
Shares = Annotated[
    str | None,
    _option("Of each teacher in the mean, as 0.7,0.3 or 7,3; default: equal", "--shares"),
]
AverageOption = Annotated[
    Average, _option("What the mean is of: logits (so log-probabilities), or probabilities.")
]
Labels = Annotated[
    Path | None,
    _option(
        "TOML that maps the teacher's classes to those of the targets (docs/how-to/teachers.md).",
        metavar="FILE.toml",
    ),
]
TeacherClasses = Annotated[
    int | None, _option("Classes of the teacher, if they are not the dataset's labels.", min=2)
]
Mean = Annotated[
    str | None,
    _option("Mean of the pixels in 0 to 1, by channel; default: its source's, or ImageNet's."),
]
Std = Annotated[str | None, _option("Standard deviation of the same.")]
PrecisionOption = Annotated[
    Precision | None, _option("Default: float32, or as the cache was made.")
]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, …")]


def teacher_given(
    options: dict[str, Any], num_classes: int | None, *, like: "Cache | None" = None
) -> "TeacherSpec":
    """Return how the teacher is loaded that a command's options name, which have the names above.

    num_classes: the teacher's, unless options say that it has others. like: a cache whose teacher's
    preprocessing and precision hold where the options say nothing; the name that it keeps of the
    teacher is never looked at.

    Raises:
        UsageError: an option says something else than it should.
    """
    from kdcache.models.ensemble import TeacherSpec
    from kdcache.models.teacher import Preprocessing
    from kdcache.targets.labels import load_labels

    mean, std = (
        None if options[name] is None else triple(options[name], f"--{name}")
        for name in ("mean", "std")
    )
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std: give both, or neither")
    stored = {} if like is None else like.info.teacher
    precision: Precision = options["precision"] or Precision(stored.get("precision", "float32"))
    usual = tuple(
        Preprocessing(tuple(member["mean"]), tuple(member["std"]))
        for member in stored.get("members", [stored] if "mean" in stored else [])
    )
    first, *others = options["teacher"]
    shares, labels = options["shares"], options["labels"]
    return TeacherSpec(
        first,
        options["weights"],
        num_classes=options["teacher_classes"] or (num_classes if labels is None else None),
        preprocessing=None if mean is None or std is None else Preprocessing(mean, std),
        usual=usual if len(usual) == 1 + len(others) else (),
        precision=precision.value,
        compiled=options.get("compiled", False),
        others=tuple(others),
        shares=None if shares is None else numbers(shares, "--shares"),
        average=options["average"].value,
        labels=None if labels is None else load_labels(labels),
    )


def triple(text: str, option: str) -> "Triple":
    """Return three comma-separated numbers.

    Raises:
        UsageError: the text holds something else.
    """
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected three numbers, as {IMAGENET_MEAN}") from None
    return first, second, third


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Return comma-separated numbers.

    Raises:
        UsageError: the text holds something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        hint = "; weights to start from are --init, a teacher's --teacher-weights"
        raise UsageError(
            f"{option} {text!r}: expected numbers, as 0.7,0.3{hint if Path(text).suffix else ''}"
        ) from None
