"""The cache that a batch job fills: made anew, or opened and checked against the job."""

from pathlib import Path

from kdcache.cache.create import create_cache
from kdcache.cache.in_place import check_unpublished
from kdcache.cache.info import CacheInfo
from kdcache.cache.store import Cache, is_cache, open_cache
from kdcache.data.classes import check_order
from kdcache.data.dataset import Dataset
from kdcache.errors import MismatchError, UsageError
from kdcache.files import sync
from kdcache.models.steadiness import Steadiness
from kdcache.models.teacher import Teacher
from kdcache.precompute.span import write_versions
from kdcache.recipe.schema import Recipe
from kdcache.targets.encoding import parse_encoding

DEFAULT_K = 32


def default_encoding(num_classes: int) -> str:
    """Return the encoding for a number of classes: dense f2 up to 64, then the 32 largest."""
    return "dense:f2" if num_classes <= 2 * DEFAULT_K else f"packed:{DEFAULT_K}"


def check_classes(
    dataset: Dataset, recipe: Recipe, *, teacher: Teacher, other_classes: bool = False
) -> int:
    """Return the teacher's number of classes. other_classes: it may differ from the dataset's.

    Raises:
        MismatchError: the teacher has another number of classes than the dataset, or knows one of
            them by another number.
        UsageError: the teacher does not serve.
    """
    num_classes = teacher.num_classes(recipe.size_for("teacher"))
    if other_classes:
        return num_classes
    if dataset.num_classes in (None, num_classes):
        check_order(
            dataset,
            teacher.classes,
            whose=f"teacher {teacher.spec}",
            advice="pack the images with kdcache pack … --classes-of the teacher's own, map its "
            "classes with --labels, or give --teacher-classes if the labels mean something else",
        )
        return num_classes
    mapped = " by --labels" if "labels" in teacher.parts else ""
    raise MismatchError(
        f"teacher {teacher.spec} has {num_classes} classes{mapped}, dataset {dataset.root} has "
        f"{dataset.num_classes}; pass another teacher, index the tars again with --num-classes "
        "if the greatest labels are not in them, or give --teacher-classes if the labels mean "
        f"something else{', as the classes before the mapping' if mapped else ''}"
    )


def describe_cache(
    dataset: Dataset,
    recipe: Recipe,
    *,
    teacher: Teacher,
    encoding: str | None = None,
    licences: dict[str, str | None] | None = None,
    other_classes: bool = False,
    steadiness: Steadiness | None = None,
) -> CacheInfo:
    """Return what the cache of a dataset, recipe and teacher is.

    encoding: by default dense f2 up to 64 classes, else packed:32. licences: SPDX expressions of
    data, weights and output. other_classes: the dataset's labels are not the teacher's classes.
    steadiness: the teacher's, which is kept with its name.

    Raises:
        MismatchError: the teacher has another number of classes than the dataset.
        UsageError: the encoding is unknown, or the teacher does not serve.
    """
    num_classes = check_classes(dataset, recipe, teacher=teacher, other_classes=other_classes)
    same = dataset.num_classes == num_classes and not other_classes
    named = teacher.classes if len(teacher.classes or ()) == num_classes else None
    measured = {} if steadiness is None else {"steadiness": steadiness.to_dict()}
    return CacheInfo(
        dataset={
            "id": dataset.id,
            "num_samples": dataset.num_samples,
            "tars": [
                {"name": tar.name, "num_rows": tar.num_rows, "digest": tar.digest}
                for tar in dataset.tars
            ],
        },
        recipe=recipe,
        teacher=teacher.description | measured,
        encoding=parse_encoding(encoding or default_encoding(num_classes), num_classes),
        num_classes=num_classes,
        classes=dataset.classes if same and dataset.classes is not None else named,
        licences={part: (licences or {}).get(part) for part in ("data", "weights", "output")},
        versions=write_versions(teacher),
    )


def prepare_cache(
    path: Path, info: CacheInfo, *, dataset: Dataset, num_views: int, span_views: int | None = None
) -> Cache:
    """Return the cache at path: opened if it is this one, created if nothing is there.

    Raises:
        MismatchError: the cache there has another dataset, recipe, teacher or encoding.
        UsageError: it is published, has another number of views, or something else stands there.
    """
    check_unpublished(path)
    if not is_cache(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path}: holds something that is no cache; choose an empty path")
        rows = [dataset.rows(tar) for tar in range(len(dataset.tars))]
        try:
            return create_cache(
                path,
                info,
                num_views=num_views,
                span_views=span_views,
                uids=[dataset.uids[r] for r in rows],
                contents=[dataset.contents[r] for r in rows],
            )
        except UsageError:
            if not is_cache(path):  # else another process has just made it
                raise
    cache = open_cache(path)
    try:
        sync(path.parent)  # whoever made it may have died before it did
    except OSError as error:
        raise cache.cannot_write("its folder", error) from error
    check_same(cache, info)
    if cache.grid.num_views != num_views or span_views not in (None, cache.grid.span_views):
        more = num_views > cache.grid.num_views and span_views in (None, cache.grid.span_views)
        raise UsageError(
            f"{path}: has {cache.grid.num_views} views in spans of {cache.grid.span_views}, this "
            f"run asks for {num_views} views"
            + (f" in spans of {span_views}; " if span_views else "; ")
            + (f"run kdcache extend {path} --views {num_views} first" if more else "pass the same")
            + ", or choose another path for a new cache"
        )
    return cache


def check_same(cache: Cache, info: CacheInfo) -> None:
    """Check that a cache is the one described.

    Raises:
        MismatchError: dataset, recipe, teacher or encoding differ; names each that does.
    """
    pairs = {
        "dataset": (cache.info.dataset["id"], info.dataset["id"]),
        "recipe": (cache.info.recipe.id, info.recipe.id),
        "teacher": (cache.info.teacher["id"], info.teacher["id"]),
        "encoding": (str(cache.info.encoding), str(info.encoding)),
        # Equal weights with other arithmetic have one fingerprint, but seldom one name.
        "teacher's name": (cache.info.teacher["spec"], info.teacher["spec"]),
    }
    differing = [
        f"{name} {found[:40]}, this run has {wanted[:40]}"
        for name, (found, wanted) in pairs.items()
        if found != wanted
    ]
    if differing:
        raise MismatchError(
            f"{cache.path}: made with {'; with '.join(differing)}; pass what it was made with, or "
            "choose another path for a new cache"
        )
