"""kdcache inspect, kdcache verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcache.cli.data import Json
from kdcache.cli.keys import RequireSignature, Trusted
from kdcache.cli.output import give, human_bytes, say
from kdcache.cli.places import CACHE_HELP, DATA_HELP, PLACE, path
from kdcache.cli.teachers import (
    PANEL,
    SPEC_HELP,
    Average,
    AverageOption,
    Device,
    Labels,
    Mean,
    PrecisionOption,
    Shares,
    Std,
    TeacherClasses,
    Weights,
    teacher_given,
)
from kdcache.errors import CorruptError, IncompleteError, MismatchError, UsageError
from kdcache.stores.location import Location, Place, parse_place
from kdcache.texts import counted

if TYPE_CHECKING:
    from kdcache.cache.audit import Finding
    from kdcache.cache.store import Cache
    from kdcache.data.blocks import BlockSource
    from kdcache.models.teacher import Teacher

CachePath = Annotated[Path, typer.Argument(parser=path, metavar="CACHE", help="The cache.")]
CacheText = Annotated[str, typer.Argument(metavar="CACHE", help=f"The cache {CACHE_HELP}.")]
FINDINGS_SHOWN = 20
REPLAY_SHARE = 0.05


def inspect(cache: CacheText, as_json: Json = False) -> None:
    """Say what a cache is, what it holds, what a view costs and what its encoding loses.

    Examples:

      kdcache inspect build/cache

      kdcache inspect s3://team/catalogue/refs/photos-resnet50
    """
    from kdcache.cache.store import open_cache
    from kdcache.cache.summary import summarise_cache
    from kdcache.report.describe import describe_cache

    store = open_cache(parse_place(cache))
    value = summarise_cache(store)
    lines: dict[str, object] = {
        **describe_cache(store),
        "coverage": f"{value['coverage']:.1%} ({value['spans_missing']} of {value['spans']} spans "
        "missing)",
        "size": human_bytes(value["size_bytes"]),
    }
    for span, error in list(value["quarantined"].items())[:FINDINGS_SHOWN]:
        lines[f"set aside, span {span}"] = error
    if value["rows_unusable"]:
        lines["unusable"] = f"{value['rows_unusable']} images"
    if value["bytes_per_view"] is not None:
        lines["a view"] = f"{value['bytes_per_view']:.1f} bytes"
    fidelity = value["fidelity"]
    if fidelity:
        lines["fidelity"] = (
            f"KL {fidelity['kl_nats']['1']:.2g} nats, same top-1 {fidelity['top1_agreement']:.2%}, "
            "gradient error "
            + ", ".join(f"{error:.2%} at T={t}" for t, error in fidelity["gradient_error"].items())
        )
    give(value, as_json=as_json, lines=lines)


def _signed(place: Place, trusted: Path | None) -> "tuple[Place, str, list[Finding]]":
    """Return a cache's place, who signed it, and what is unlike what was signed."""
    from kdcache.sharing.keys import load_trusted
    from kdcache.sharing.signed import check_folder, check_pinned

    keys = load_trusted(trusted)
    if isinstance(place, Location):
        return *check_pinned(place, keys), []
    return place, *check_folder(place, keys)


def verify(
    cache: CacheText,
    data: Annotated[
        str | None,
        typer.Option(metavar=PLACE, help=f"The images that the cache was made from. {DATA_HELP}"),
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Share of the blocks to render again; default: 0.05 with --data.",
        ),
    ] = None,
    teacher: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Share of the blocks to run the teacher on again."
        ),
    ] = 0.0,
    spec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help=f"The network, for --teacher: {SPEC_HELP}. Several are averaged.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    weights: Weights = None,
    shares: Shares = None,
    average: AverageOption = Average.logits,
    labels: Labels = None,
    teacher_classes: TeacherClasses = None,
    mean: Mean = None,
    std: Std = None,
    precision: PrecisionOption = None,
    device: Device = "auto",
    require_signature: RequireSignature = False,
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Check every object's digest; with --data the pixels, with --teacher the targets as well.

    Of a published cache that is not on this disk, every object is read whole from its store.

    Examples:

      kdcache verify build/cache

      kdcache verify build/cache --data build/photos --replay 1

      kdcache verify build/cache --data build/photos --teacher 0.01 --spec torchvision:resnet50
      --weights resnet50.pth
    """
    given = dict(locals())
    from kdcache.cache.audit import check_objects, check_replay
    from kdcache.cache.store import open_cache

    if (replay or teacher) and data is None:
        raise UsageError("--replay and --teacher need the images: give --data")
    if teacher and not spec:
        raise UsageError(
            "--teacher needs the network: give --spec and --weights; the name that a cache holds "
            "is never imported"
        )
    if replay is None:
        replay = 0.0 if data is None else REPLAY_SHARE
    place, signed = parse_place(cache), None
    unlike: list[Finding] = []
    if require_signature:
        place, signed, unlike = _signed(place, trusted)
    store = open_cache(place, checked=False)
    where = store.place
    damage = [*unlike, *check_objects(store)]
    absent = store.missing()
    value: dict[str, Any] = {
        "id": store.info.id,
        "damaged": [finding_value(finding) for finding in damage],
        "spans_missing": len(absent),
    }
    lines: dict[str, object] = {}
    if signed is not None:
        value["signed_by"] = lines["signed by"] = signed
    lines |= {
        "objects": (f"{len(damage)} damaged" if damage else "all as committed")
        + ("" if store.is_local else ", each read whole from its store"),
        "spans": f"{len(absent)} missing" if absent else "complete",
    }
    changed: list[Finding] = []
    if data is not None and (replay or teacher):
        source = _source(store, data)
        if replay:
            found = list(check_replay(store, source, share=replay))
            changed = [finding for finding in found if finding is not None]
            value["replay"] = {
                "blocks": len(found),
                "differing": [finding_value(finding) for finding in changed],
            }
            lines["replay"] = f"{len(found)} blocks rendered again, {len(changed)} differ"
        if teacher and spec and not damage:
            made = teacher_given({**given, "teacher": spec}, store.info.num_classes, like=store)
            value["teacher"] = _again(store, source, teacher, made.load(device), lines)
    give(value, as_json=as_json, lines=lines)
    for finding in (damage + changed)[:FINDINGS_SHOWN]:
        say(f"  {finding.where}: {finding.problem}", as_json=as_json)
    if damage or any(finding.span for finding in changed):
        raise CorruptError(
            f"{where}: {counted(len(damage), 'object is', 'objects are')} damaged; "
            + (
                f"run kdcache repair {where}, --from a sound copy if there is one"
                if store.is_local
                else "ask who published it to publish it again, or use another copy"
            )
        )
    if changed:
        raise MismatchError(
            f"{where}: {len(changed)} blocks are rendered otherwise here; compare the "
            "versions that kdcache inspect --json shows with those here"
        )
    if "teacher" in value and not value["teacher"]["same"]:
        raise MismatchError(f"{where}: this teacher did not make these targets")
    if absent:
        raise IncompleteError(
            f"{where}: what is there is sound, but {len(absent)} spans are missing; run kdcache "
            "precompute again"
        )


def finding_value(finding: "Finding") -> dict[str, Any]:
    """Return a finding as JSON has it."""
    span = None if finding.span is None else str(finding.span)
    return {"where": finding.where, "problem": finding.problem, "span": span}


def _source(store: "Cache", data: str) -> "BlockSource":
    from kdcache.data.document import load_dataset
    from kdcache.replay.open import cache_source

    return cache_source(store, load_dataset(parse_place(data)), store.info.recipe)


def _again(
    store: "Cache",
    source: "BlockSource",
    share: float,
    network: "Teacher",
    lines: dict[str, object],
) -> dict[str, Any]:
    """Return how the teacher, run again, compares; adds a line for people."""
    from dataclasses import asdict

    from kdcache.cache.audit import check_teacher

    if network.description["id"] != store.info.teacher["id"]:
        raise MismatchError(
            f"{store.place}: made by teacher {store.info.teacher['id'][:12]}, this one is "
            f"{network.description['id'][:12]}; pass its weights, preprocessing and precision"
        )
    check = check_teacher(store, source, network, share=share)
    lines["teacher"] = (
        f"{check.rows} views again: greatest difference {check.max_difference:.2g} nats, "
        f"KL {check.kl_nats:.2g} nats, same top-1 {check.top1_agreement:.2%}, "
        f"same bytes {check.rows_equal:.2%}"
    )
    return {**asdict(check), "same": check.same}
