"""Who learns best from a teacher: the study on digits, through the real store and stream.

    python -m pipelines.paper --out build/paper

Writes docs/results/digits.{json,md,html} and pictures; with --quick, a short trial of the same
code, into OUT/results. What is done stands in OUT: a run that was killed goes on, and ends with the
same numbers. Imports what is heavy where it is used: workers import this module, too.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.errors import KdcacheError, UsageError
from kdcache.processes import num_cores, terminable
from pipelines.study.design import ARMS, FULL, NUM_TEST, QUICK, Design, student
from pipelines.study.made import made_here
from pipelines.study.run import run_study

MEND = (
    "expected a place of its own to write to: move what is there away, or free the disk; run again"
)

if TYPE_CHECKING:
    from torch import nn

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def describe(design: Design) -> dict[str, Any]:
    """Return the design as the result states it."""
    from pipelines import digits

    return {
        "budgets": list(design.budgets),
        "seeds": list(design.seeds),
        "side_seeds": list(design.side_seeds),
        "batch_size": design.batch_size,
        "images": digits.NUM_CLASSES * digits.NUM_STUDENT_PER_CLASS,
        "test_images": NUM_TEST,
        "temperature_grid": list(design.temperatures),
        "learning_rate_grid": list(design.learning_rates),
        "weight_decay_grid": list(design.weight_decays),
        "tuning_seeds": list(design.tuning_seeds),
        "tuning_epochs": design.tuning_epochs,
        "view_counts": list(design.view_counts),
        "mild_views": design.mild_views,
        "margin_nats": design.margin_nats,
        "student_parameters": _num_parameters(student()),
        "teacher_parameters": _num_parameters(digits.teacher()),
        "arms": dict(ARMS),
    }


def _num_parameters(network: "nn.Module") -> int:
    return sum(p.numel() for p in network.parameters())


def write_result(
    design: Design, study: Mapping[str, Any], folder: Path, *, quick: bool
) -> dict[str, Any]:
    """Write what was found, and where and when, into FOLDER as data and as a report; return it."""
    from pipelines.study.report import write_results

    result = {
        "command": "make paper-quick" if quick else "make paper",
        "date": datetime.now(UTC).date().isoformat(),
        "quick": quick,
        **made_here(),
        "seconds": study["seconds"],
        "design": describe(design),
        **study,
    }
    write_results(result, folder)
    return result


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A short trial, under 5 minutes.")] = False,
    out: Annotated[Path, typer.Option(help="What is done; results of --quick.")] = Path(
        "build/paper"
    ),
    workers: Annotated[int, typer.Option(help="Processes; by default one a core.")] = num_cores(),
) -> None:
    """Run the study on digits; stopped, the same command goes on."""
    started = time.monotonic()
    design, folder = (QUICK, out / "results") if quick else (FULL, RESULTS)
    try:
        with terminable():
            study = run_study(design, out, workers=workers)
            write_result(design, study, folder, quick=quick)
    except KeyboardInterrupt as end:
        typer.echo("stopped; the same command goes on", err=True)
        raise typer.Exit(143 if end.args else 130) from None
    except KdcacheError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        typer.echo(f"{error.filename or out}: {error.strerror or error}; {MEND}", err=True)
        raise typer.Exit(UsageError.exit_code) from None
    this_run_min, all_runs_min = (time.monotonic() - started) / 60, study["seconds"] / 60
    print(f"see {folder / 'digits.md'} and digits.html")
    print(f"this run {this_run_min:.1f} min, all runs {all_runs_min:.1f} min")


if __name__ == "__main__":
    typer.run(main)
