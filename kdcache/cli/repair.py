"""kdcache repair."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.caches import FINDINGS_SHOWN, CachePath, finding_value
from kdcache.cli.data import Json
from kdcache.cli.output import give, say
from kdcache.cli.places import DATA_HELP, PLACE, path
from kdcache.cli.running import run_visibly
from kdcache.cli.teachers import (
    Average,
    AverageOption,
    Device,
    Labels,
    Mean,
    OptionalTeachers,
    PrecisionOption,
    Shares,
    Std,
    TeacherClasses,
    Weights,
    teacher_given,
)
from kdcache.cli.upkeep import copy_visibly
from kdcache.errors import CorruptError, IncompleteError, UsageError
from kdcache.stores.location import parse_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdcache.cache.layout import Span
    from kdcache.cache.repair import Plan
    from kdcache.cache.store import Cache
    from kdcache.data.dataset import Dataset
    from kdcache.models.teacher import Teacher


def repair(
    cache: CachePath,
    origins: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", parser=path, help="A copy of the cache, or of a part; may be repeated."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar=PLACE, help=f"The images that the cache was made from. {DATA_HELP}"),
    ] = None,
    teacher: OptionalTeachers = None,
    weights: Weights = None,
    shares: Shares = None,
    average: AverageOption = Average.logits,
    labels: Labels = None,
    teacher_classes: TeacherClasses = None,
    mean: Mean = None,
    std: Std = None,
    precision: PrecisionOption = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Views in one call of the teacher.")] = 256,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that render.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find damage and mend it: from the cache itself, a copy, or the teacher.

    Damaged spans are withdrawn, then copied --from others or, with --data and --teacher, computed
    again; so are spans that were missing already.

    Examples:

      kdcache repair build/cache --dry-run

      kdcache repair build/cache --from backup/cache

      kdcache repair build/cache --data build/photos --teacher torchvision:resnet50
      --weights resnet50.pth
    """
    given = dict(locals())
    from kdcache.cache.copy import check_copies
    from kdcache.cache.merge import open_sources
    from kdcache.cache.repair import carry_out, is_readable, plan_repair, restore_root
    from kdcache.cache.store import open_cache
    from kdcache.data.document import load_dataset

    if teacher and data is None:
        raise UsageError("--teacher needs the images: give --data")
    copies = open_sources(cache, origins or [])
    value: dict[str, Any] = {"path": str(cache), "dry_run": dry_run, "root": "sound"}
    if not is_readable(cache):
        restore_root(cache, copies, dry_run=dry_run)
        value["root"] = "restored"
        if dry_run:  # without it, nothing says what else should be there
            return _give_repair(value, as_json=as_json)
    store = open_cache(cache, checked=False)
    check_copies(store, copies)
    dataset = None if data is None else load_dataset(parse_place(data))
    run = None
    if teacher and dataset is not None:
        made = teacher_given(given, store.info.num_classes, like=store)
        network = _checked_teacher(store, dataset, made.load(device))
        run = _Recomputing(dataset, network, batch_size, skip_bad, workers)
    plan = plan_repair(store, copies, dataset)
    value |= _planned(plan)
    if dry_run:
        value |= _foreseen(store, plan, copies=copies, computes=run is not None)
    else:
        store = store if plan.is_empty else carry_out(store, plan)
        value |= _fill(store, copies, run=run, as_json=as_json)
    _give_repair(value, as_json=as_json)
    if not dry_run:
        _refuse_unsound(cache, plan, absent=store.missing())


@dataclass(frozen=True)
class _Recomputing:
    """What computes spans again, but for the cache."""

    dataset: "Dataset"
    teacher: "Teacher"
    batch_size: int
    skip_bad: bool
    workers: int


def _checked_teacher(store: "Cache", dataset: "Dataset", network: "Teacher") -> "Teacher":
    """Return the teacher that the options name, if it is the cache's.

    Raises:
        MismatchError: it is another.
    """
    from kdcache.precompute.prepare import check_same, describe_cache

    encoding = str(store.info.encoding)
    check_same(
        store,
        describe_cache(
            dataset, store.info.recipe, teacher=network, encoding=encoding, other_classes=True
        ),
    )
    return network


def _planned(plan: "Plan") -> dict[str, Any]:
    return {
        "damaged": [finding_value(finding) for finding in plan.findings],
        "written": [*plan.metadata, *plan.samples],
        "withdrawn": [str(span) for span in plan.spans],
        "not_repaired": [finding_value(finding) for finding in plan.lost],
    }


def _foreseen(
    store: "Cache", plan: "Plan", *, copies: "Sequence[Cache]", computes: bool
) -> dict[str, Any]:
    """Return what would become of the spans that are missing or to be withdrawn."""
    from kdcache.cache.copy import find_sound

    absent = {*store.missing(), *plan.spans}.intersection(store.grid.spans())
    left = absent.difference(find_sound(copies, sorted(absent)))
    return {
        "spans_copied": len(absent) - len(left),
        "spans_computed": len(left) if computes else 0,
        "spans_missing": 0 if computes else len(left),
        "damaged_copies": [],
    }


def _fill(
    store: "Cache", copies: "tuple[Cache, ...]", *, run: _Recomputing | None, as_json: bool
) -> dict[str, Any]:
    """Copy what is missing, compute what then is, and seal the cache when it is complete."""
    from kdcache.cache.merge import Copying
    from kdcache.cache.sealing import seal
    from kdcache.data.blocks import dataset_source
    from kdcache.precompute.engines import run_inline
    from kdcache.precompute.span import Job

    copied = None
    absent = store.missing()
    if copies and absent:
        copied = copy_visibly("copy", Copying(store, copies, tuple(absent)))
    left = store.missing()
    if run is not None and left:
        source = dataset_source(run.dataset, store.info.recipe)
        job = Job(source, run.teacher, store, run.batch_size, run.skip_bad, run.workers)
        compute = partial(run_inline, job, retry_quarantined=True)
        run_visibly(store, left, compute, as_json=as_json)
    missing = store.missing()
    if not missing:
        seal(store)
    return {
        "spans_copied": len(copied.spans) if copied else 0,
        "spans_computed": len(left) - len(missing),
        "spans_missing": len(missing),
        "damaged_copies": [finding_value(finding) for finding in copied.damaged] if copied else [],
    }


def _give_repair(value: dict[str, Any], *, as_json: bool) -> None:
    would = "would be " if value["dry_run"] else ""
    lines: dict[str, object] = {"cache": value["path"]}
    if value["root"] == "restored":
        lines["zarr.json"] = f"{would}restored from a copy"
    if "damaged" in value:
        lines["damage"] = f"{len(value['damaged'])} found" if value["damaged"] else "none found"
        if value["written"]:
            lines["written"] = f"{would}{', '.join(value['written'])}"
        lines["spans"] = (
            f"{would}{len(value['withdrawn'])} withdrawn, {value['spans_copied']} copied, "
            f"{value['spans_computed']} computed; {value['spans_missing']} missing"
        )
        if value["not_repaired"]:
            lines["not mended"] = f"{len(value['not_repaired'])}"
    give(value, as_json=as_json, lines=lines)
    shown = [*value.get("damaged", []), *value.get("damaged_copies", [])]
    for finding in shown[:FINDINGS_SHOWN]:
        say(f"  {finding['where']}: {finding['problem']}", as_json=as_json)


def _refuse_unsound(cache: Path, plan: "Plan", *, absent: "Sequence[Span]") -> None:
    if plan.lost:
        raise CorruptError(
            f"{cache}: {len(plan.lost)} findings are not mended, the first is "
            f"{plan.lost[0].where}; run kdcache repair with --from a sound copy, or with --data"
        )
    if absent:
        raise IncompleteError(
            f"{cache}: sound, but {len(absent)} spans are missing, the first is {absent[0]}; run "
            "kdcache precompute again as it was run, or kdcache repair --from a copy"
        )
