"""Tiny real data for the tests: image files, tars, teachers and caches.

`tests.tiny:linear_teacher` is a teacher whose arithmetic is exact, so that its logits do not depend
on batch size, threads or machine.
"""

import ctypes
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from kdcache.cache.info import CacheInfo
from kdcache.cache.store import Cache
from kdcache.data.blocks import dataset_source
from kdcache.data.dataset import Dataset, tar_digest
from kdcache.data.document import save_dataset
from kdcache.data.pack import PackOptions, open_source, pack
from kdcache.identity import digest
from kdcache.models.steadiness import Steadiness
from kdcache.models.teacher import Preprocessing, Teacher, load_teacher
from kdcache.precompute.engines import run_inline
from kdcache.precompute.prepare import describe_cache, prepare_cache
from kdcache.precompute.span import Job, run_span
from kdcache.recipe.schema import Recipe, parse_recipe
from kdcache.targets.encoding import parse_encoding

NUM_CLASSES = 5
PLAIN = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FORK = multiprocessing.get_context("fork")
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(
    ["kdcache.student.setup", "tests.student.making", "accelerate", "lightning", "timm"]
)

# --- images and tars -----------------------------------------------------------------------


def write_images(
    folder: Path, count: int, *, seed: int = 0, sides: tuple[int, int] = (16, 90)
) -> Path:
    """Write JPEG and PNG files of many sizes to the folders of five classes."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        width, height = rng.integers(sides[0], sides[1] + 1, 2).tolist()
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        path = folder / f"class{number % NUM_CLASSES}" / f"{number:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 3:
            image.save(path.with_suffix(".jpg"), quality=85, subsampling=number % 3)
        else:
            image.save(path.with_suffix(".png"), compress_level=1)
    return folder


def pack_images(
    folder: Path, out: Path, *, rows_per_tar: int = 10, shuffle_seed: int | None = None
) -> Dataset:
    """Return the dataset of a folder's images, their files unchanged in tars, even bad ones."""
    options = PackOptions(rows_per_tar=rows_per_tar, shuffle_seed=shuffle_seed, bad="keep")
    return pack(open_source(str(folder)), out, options=options).dataset


def make_dataset(root: Path, count: int = 24, *, rows_per_tar: int = 10, seed: int = 0) -> Dataset:
    """Return a new dataset below root; by default of three tars, the last one shorter."""
    return pack_images(
        write_images(root / "images", count, seed=seed), root / "data", rows_per_tar=rows_per_tar
    )


def relabelled(dataset: Dataset, path: Path, names: Sequence[str]) -> Path:
    """Return where the same samples are saved with other names of their classes."""
    save_dataset(replace(dataset, classes=tuple(names)), path)
    return path


def make_recipe(**changes: Any) -> Recipe:
    """Return a recipe with crop, flip and mixup; a change to None leaves a field out."""
    fields: dict[str, Any] = {
        "seed": 5,
        "size": 12,
        "block": 4,
        "crop": {"law": "inception"},
        "flip": {"horizontal": 0.5},
        "mix": {"law": "mixup"},
        **changes,
    }
    return parse_recipe({k: v for k, v in fields.items() if v is not None}, source="tiny")


# --- teachers ------------------------------------------------------------------------------


class Exact(nn.Module):
    """Logits that are whole numbers over 512, sums of pixels times small whole weights."""

    def __init__(self, num_classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randint(-8, 9, (12, num_classes), generator=generator)
        self.weight = nn.Parameter(weight.float(), requires_grad=False)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        whole = (images_N3HW * 255).round()
        half, wide = (side // 2 for side in whole.shape[2:])
        parts = [
            whole[:, :, rows, columns].sum((2, 3))
            for rows in (slice(half), slice(half, None))
            for columns in (slice(wide), slice(wide, None))
        ]
        features = torch.cat(parts, 1).div(16).floor()
        return features @ self.weight / 512


def linear_teacher(num_classes: int = NUM_CLASSES) -> nn.Module:
    """Return an exact teacher; the factory of `tests.tiny:linear_teacher`."""
    return Exact(num_classes, seed=0)


def other_teacher(num_classes: int = NUM_CLASSES) -> nn.Module:
    """Return an exact teacher with other weights."""
    return Exact(num_classes, seed=1)


def make_teacher(name: str = "linear_teacher", *, num_classes: int | None = None) -> Teacher:
    """Return a teacher of this module by the name of its factory."""
    return load_teacher(f"tests.tiny:{name}", None, num_classes=num_classes, preprocessing=PLAIN)


def watched(teacher: Teacher, report: Callable[[NDArray[np.uint8]], None]) -> Teacher:
    """Return the same teacher, reporting the pixels (N, H, W, 3) of each call before its work."""
    return replace(teacher, network=_Watched(teacher.network, report))


class _Watched(nn.Module):
    def __init__(self, network: nn.Module, report: Callable[[NDArray[np.uint8]], None]) -> None:
        super().__init__()
        self.network, self.report = network, report

    def forward(self, images_N3HW: Tensor) -> Tensor:
        pixels = (images_N3HW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        self.report(pixels.contiguous().numpy())
        logits: Tensor = self.network(images_N3HW)
        return logits


# --- caches --------------------------------------------------------------------------------


def make_info(
    num_classes: int,
    encoding: str,
    *,
    block: int = 4,
    teacher: str = "t",
    uids: Sequence[NDArray[np.uint64]] = (),
    contents: Sequence[NDArray[np.uint64]] = (),
) -> CacheInfo:
    """Return the description of a cache whose images and teacher exist by name only."""
    tars = [
        {"name": f"{number}.tar", "num_rows": len(names), "digest": tar_digest(names, data)}
        for number, (names, data) in enumerate(zip(uids, contents, strict=True))
    ]
    return CacheInfo(
        dataset={
            "id": digest({"tars": [tar["digest"] for tar in tars]}),
            "num_samples": sum(map(len, uids)),
            "tars": tars,
        },
        recipe=make_recipe(block=block),
        teacher={"id": teacher, "spec": "none"},
        encoding=parse_encoding(encoding, num_classes),
        num_classes=num_classes,
        classes=None,
        licences={"data": None, "weights": None, "output": None},
        versions={"kdcache": "0"},
    )


def make_job(
    path: Path,
    dataset: Dataset,
    recipe: Recipe,
    *,
    teacher: Teacher | None = None,
    num_views: int = 4,
    span_views: int | None = 2,
    encoding: str | None = "topk:3",
    batch_size: int = 5,
    skip_bad: bool = False,
    other_classes: bool = False,
) -> Job:
    """Return the job that fills the cache at path, which is created or opened."""
    teacher = make_teacher() if teacher is None else teacher
    info = describe_cache(
        dataset,
        recipe,
        teacher=teacher,
        encoding=encoding,
        other_classes=other_classes,
        steadiness=Steadiness(0.0, 0.0),  # these teachers are exact
    )
    cache = prepare_cache(path, info, dataset=dataset, num_views=num_views, span_views=span_views)
    return Job(dataset_source(dataset, recipe), teacher, cache, batch_size, skip_bad)


def precompute(path: Path, dataset: Dataset, recipe: Recipe, **options: Any) -> Cache:
    """Return the complete cache at path; options as make_job."""
    job = make_job(path, dataset, recipe, **options)
    run_inline(job)
    return job.cache


def precompute_first(path: Path, dataset: Dataset, recipe: Recipe, *, spans: int) -> Cache:
    """Return a cache of which only the first spans are computed."""
    job = make_job(path, dataset, recipe)
    for span in job.cache.missing()[:spans]:
        run_span(job, span)
    return job.cache


def tree(path: Path) -> dict[str, bytes]:
    """Return the bytes of all files below path, but for commit records, the seal and the lock.

    Commit records hold times; the seal holds nothing that the objects and records do not.
    """
    left_out = ("commits/", "seal.json", ".lock")
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
    return {name: (path / name).read_bytes() for name in names if not name.startswith(left_out)}


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder but locks, which hold nothing, and what tells of starts."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "sessions.jsonl")
    }


# --- digests of views ----------------------------------------------------------------------


def pixel_digest(pixels_HW3: NDArray[np.uint8]) -> int:
    """Return the digest of one view's pixels."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels_HW3).tobytes())


def view_digest(pixels_HW3: NDArray[np.uint8], fields: Sequence[NDArray[Any]]) -> str:
    """Return the digest of one view's pixels and of its encoded target, fields in order."""
    total = xxhash.xxh3_64(np.ascontiguousarray(pixels_HW3).tobytes())
    for field in fields:
        total.update(np.ascontiguousarray(field).tobytes())
    return total.hexdigest()


# --- processes -----------------------------------------------------------------------------


def _in_child(function: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)  # the parent's OpenMP threads are not here
    function(*args)


def start(function: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    """Run a function in a forked child, which shares the imports of this process."""
    child = FORK.Process(target=_in_child, args=(function, *args))
    child.start()
    return child


def start_clean(function: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    """Run a function in a child that can train: one of a process that has never done so.

    Torch's gradients do not work in a child whose parent has threads for them, as some tests start.
    """
    child = CLEAN.Process(target=_in_child, args=(function, *args))
    child.start()
    return child


def without_root_rights() -> None:
    """Make permissions count for root too: drop the capabilities that override them."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Rights(ctypes.Structure):
        _fields_ = (
            ("effective", ctypes.c_uint32),
            ("permitted", ctypes.c_uint32),
            ("inheritable", ctypes.c_uint32),
        )

    libc = ctypes.CDLL(None, use_errno=True)
    header, rights = Header(0x20080522, 0), (Rights * 2)()
    assert libc.capget(ctypes.byref(header), rights) == 0
    rights[0].effective &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), rights) == 0


def append_line(path: Path, text: str) -> None:
    """Append a line in one write, so that processes share a file and a kill loses no line."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)
