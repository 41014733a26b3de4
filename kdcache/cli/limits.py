"""Options that say what an encoding may lose or cost, and the choice by them."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdcache.cli.output import progress_bar, say
from kdcache.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.data.blocks import BlockSource
    from kdcache.models.teacher import Teacher
    from kdcache.targets.choice import Budget, Measured, Temperature

AUTO = "auto"


class AtTemperature(StrEnum):
    """Where losses are measured."""

    one = "1"
    two = "2"
    four = "4"


MaxGradientError = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Greatest relative error of the student's gradient, as 1% or 0.01.",
    ),
]
MaxKl = Annotated[
    float | None, typer.Option(metavar="NATS", help="Greatest KL(teacher || what is stored).")
]
MaxBytes = Annotated[
    float | None, typer.Option(metavar="BYTES", help="Greatest size of the target of one view.")
]
LimitTemperature = Annotated[
    AtTemperature,
    typer.Option(help="Distillation temperature that the limits on error and KL are for."),
]


def read_budget(
    max_gradient_error: str | None,
    max_kl: float | None,
    *,
    max_bytes: float | None,
    temperature: AtTemperature,
) -> "Budget | None":
    """Return the limits that were given; None if none was.

    Raises:
        UsageError: a limit is not a number above 0.
    """
    if max_gradient_error is None and max_kl is None and max_bytes is None:
        return None
    from kdcache.targets.choice import Budget

    share = None if max_gradient_error is None else _share(max_gradient_error)
    temperatures: dict[AtTemperature, Temperature]
    temperatures = {AtTemperature.one: 1, AtTemperature.two: 2, AtTemperature.four: 4}
    return Budget(share, max_kl, max_bytes, temperatures[temperature])


def _share(text: str) -> float:
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise UsageError(
            f"--max-gradient-error {text!r}: expected a share, as 1% or 0.01"
        ) from None
    share = number / 100 if text.endswith("%") else number
    if share > 1:
        raise UsageError(
            f"--max-gradient-error {text!r}: expected a share of at most 1, as 1% or 0.01"
        )
    return share


def sample_teacher(
    source: "BlockSource", teacher: "Teacher", *, samples: int, views: int, batch_size: int
) -> "Tensor":
    """Return the teacher's logits of random views, with a bar meanwhile."""
    from kdcache.precompute.sample import sample_logits

    def rates(done: int, seconds: float) -> str:
        return f"views, {done / seconds:.0f} views/s"

    with progress_bar("sample", samples, rates=rates) as advance:
        return sample_logits(
            source,
            teacher,
            num_rows=samples,
            num_views=views,
            batch_size=batch_size,
            progress=advance,
        )


def largest_tar(source: "BlockSource") -> int:
    """Return the rows of a source's largest tar."""
    return max(source.num_rows(tar) for tar in range(source.num_tars))


def measure_candidates(logits_NC: "Tensor", *, tar_rows: int) -> "tuple[Measured, ...]":
    """Return what all candidates cost and lose on logits, with a bar meanwhile.

    tar_rows: of the largest tar.
    """
    from kdcache.precompute.sample import TILE_ROWS, measure_encodings
    from kdcache.targets.choice import candidates

    encodings = candidates(logits_NC.shape[1])
    with progress_bar("measure", len(encodings), rates=lambda *_: "encodings") as advance:
        return measure_encodings(
            logits_NC, encodings, tile_rows=min(tar_rows, TILE_ROWS), progress=advance
        )


def settle_encoding(
    budget: "Budget",
    source: "BlockSource",
    *,
    teacher: "Teacher",
    cache: Path,
    views: int,
    batch_size: int,
    as_json: bool,
) -> str:
    """Return the encoding that a cache has, or is to have within a budget; says which and why.

    Raises:
        UsageError: no encoding meets the limits.
    """
    from kdcache.cache.store import is_cache, open_cache
    from kdcache.precompute.sample import SAMPLES
    from kdcache.targets.choice import choose, describe

    if is_cache(cache):
        stored = str(open_cache(cache).info.encoding)
        say(
            f"encoding {stored}: that of {cache}, which is there already; the limits are not "
            "looked at, kdcache inspect tells what it loses",
            as_json=as_json,
        )
        return stored
    logits_NC = sample_teacher(source, teacher, samples=SAMPLES, views=views, batch_size=batch_size)
    chosen = choose(measure_candidates(logits_NC, tar_rows=largest_tar(source)), budget)
    say(
        f"encoding {describe(chosen, budget)}, on {len(logits_NC)} views: {budget.aim} with "
        f"{budget}",
        as_json=as_json,
    )
    return str(chosen.encoding)


def check_auto(name: str | None, budget: "Budget | None") -> None:
    """Check that limits come with --encoding auto, and auto with limits.

    Raises:
        UsageError: one is without the other.
    """
    if name == AUTO and budget is None:
        raise UsageError(
            "--encoding auto: nothing to choose by; give --max-gradient-error, --max-kl or "
            "--max-bytes"
        )
    if name != AUTO and budget is not None:
        raise UsageError(
            f"--max-gradient-error, --max-kl, --max-bytes: go with --encoding auto, found "
            f"{name or 'none'}; leave them out, or let them choose"
        )
