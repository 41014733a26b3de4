"""A seed's digits through tars, teacher, store and stream, then held in memory for many students.

Letters: V views, R samples of an epoch, H and W pixels, C classes, K kept ones.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.store import Cache
from kdcache.data.dataset import Dataset
from kdcache.data.document import load_dataset
from kdcache.errors import CorruptError, UsageError
from kdcache.models.teacher import Teacher, load_teacher
from kdcache.recipe.plan import mixing_partners
from kdcache.replay.formats import TargetFormat
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import StreamOptions
from kdcache.student.config import make_config
from kdcache.student.folder import WEIGHTS
from kdcache.student.loop import train
from kdcache.student.setup import make_run
from kdcache.student.sources import Sources
from kdcache.targets.target import Fields, SparseTarget
from pipelines.demo import GREY, TEACHER, Demo, pack_digits, precompute
from pipelines.digits import NUM_CLASSES, load_split
from pipelines.study.design import NUM_VALIDATION, Part

_SPAN_VIEWS = 100  # at most; commits cost as much as the teacher where a span has 8 views
_VIEWS_PER_LOAD = 20  # at most; images are read once for so many views

Pupils = Literal["teacher", "student"]  # whose digits the teacher learns from


@dataclass(frozen=True, eq=False)
class Table:
    """All stored views of R samples as the stream handed them over, proven by their witnesses.

    pixels_VRHW: uint8, grey. labels_R: int64. partners_VR: int64, rows that are mixed in;
    weights_VR: float32, shares of the rows themselves. fields: encoded targets (V, R, width).
    bytes_per_view: what they take in the store.
    """

    pixels_VRHW: Tensor
    labels_R: Tensor
    partners_VR: Tensor
    weights_VR: Tensor
    fields: Fields
    format: TargetFormat
    bytes_per_view: float

    def target(self, temperature: float, *, num_views: int | None = None) -> SparseTarget:
        """Return the targets (V, R, K) of the first views, of all by default."""
        fields = {name: field[:num_views] for name, field in self.fields.items()}
        shape = next(iter(fields.values())).shape[:2]
        flat = {name: field.flatten(0, 1) for name, field in fields.items()}
        found = self.format.decode(flat, temperature=temperature)
        indices = found.indices_NK
        return SparseTarget(
            None if indices is None else indices.view(*shape, -1),
            found.log_probs_NK.view(*shape, -1),
            found.log_tail_N.view(shape),
        )


def replay(cache: Cache, dataset: Dataset) -> Table:
    """Return the table of a cache of one tar."""
    (num_rows,), num_views = cache.rows.tolist(), cache.grid.num_views  # one tar
    together = _divisor(num_views, most=_VIEWS_PER_LOAD)
    stream = replay_stream(
        cache,
        dataset,
        StreamOptions(
            batch_size=num_rows,
            num_epochs=num_views,
            shuffle=together > 1,  # each sample's place in the table is known
            views_per_load=together,
        ),
    )
    recipe, uids = stream.recipe, dataset.uids
    pixels = torch.zeros(num_views, num_rows, recipe.size, recipe.size, dtype=torch.uint8)
    weights = torch.full((num_views, num_rows), math.nan)
    labels = torch.full((num_rows,), -1)
    fields: Fields = {}
    for batch in stream:
        assert batch.fields is not None
        place = batch.views, batch.rows
        pixels[place], weights[place] = batch.pixels[:, 0], batch.weights
        labels[batch.rows] = batch.labels
        for name, values in batch.fields.items():
            whole = torch.zeros(num_views, num_rows, values.shape[1], dtype=values.dtype)
            stored = fields.setdefault(name, whole).numpy()  # torch cannot place uint16
            stored[batch.views.numpy(), batch.rows.numpy()] = values.numpy()
    assert not weights.isnan().any()
    partners = np.tile(np.arange(num_rows), (num_views, 1))
    if recipe.mix is not None:
        for view in range(num_views):
            partners[view] = mixing_partners(recipe.seed, uids, view=view, block=recipe.block)
    return Table(
        pixels,
        labels,
        torch.from_numpy(partners),
        weights,
        fields,
        TargetFormat(cache.info.encoding, cache.info.num_classes),
        cache.totals().size_bytes / weights.numel(),
    )


def _divisor(number: int, *, most: int) -> int:
    """Return the largest divisor of a number up to `most`."""
    return max(d for d in range(1, most + 1) if number % d == 0)


@dataclass(frozen=True)
class Source:
    """A seed's folder, and what is made in it. views: stored of each recipe."""

    folder: Path
    seed: int
    views: Mapping[str, int]
    pupils: Pupils
    teacher_epochs: int
    measured: Part

    @property
    def demo(self) -> Demo:
        """Return the demonstration whose stages are used."""
        return Demo(self.folder, self.seed, 0, self.teacher_epochs, 0, 0)

    def _pack(self) -> None:
        """Write the tars that are not there: of the teacher, the student, and the measured part."""
        demo = self.demo
        names = {self.pupils, "student", "measured"}
        absent = [n for n in sorted(names) if not (demo.data(n) / "dataset.json").exists()]
        if not absent:
            return
        split = load_split(self.seed)
        rows = np.arange(len(split.test.labels))
        validation, test = rows[:NUM_VALIDATION], rows[NUM_VALIDATION:]
        parts = {
            "teacher": split.teacher,
            "student": split.student,
            "measured": split.test.take(test if self.measured == "test" else validation),
        }
        for name in absent:
            shutil.rmtree(demo.data(name), ignore_errors=True)
            pack_digits(parts[name], name, demo=demo)

    @cached_property
    def teacher(self) -> Teacher:
        """Return the trained teacher; what is there already is used again."""
        demo = self.demo
        self._pack()
        weights = demo.out / "runs/teacher" / WEIGHTS
        if not weights.exists():
            shutil.rmtree(weights.parent, ignore_errors=True)
            self._train_teacher(weights.parent)
        try:
            return load_teacher("pipelines.digits:teacher", weights, preprocessing=GREY)
        except UsageError as error:  # the weights are the study's own, not its user's
            raise CorruptError(str(error)) from None

    def _train_teacher(self, folder: Path) -> None:
        """Train the teacher in a folder, telling which one it is."""
        most = self.teacher_epochs
        config = make_config(
            student="pipelines.digits:teacher",
            seed=self.seed,
            num_workers=0,
            learn="labels",
            epochs=most,
            save_every=most,
            **vars(GREY),
            **TEACHER,
        )
        name = f"seed {self.seed}: {'small teacher' if self.pupils == 'student' else 'teacher'}"

        def report(metrics: dict[str, Any]) -> None:
            done = metrics["epoch"]
            if done % max(most // 4, 1) == 0 and done < most:
                print(f"          {name}: epoch {done} of {most}", flush=True)

        sources = Sources(self.demo.data(self.pupils), recipe=self.demo.recipe("funmatch"))
        train(make_run(config, sources, folder=folder), report=report)

    def cache(
        self, recipe: str, *, views: int, part: str = "student", encoding: str | None = None
    ) -> Cache:
        """Return a part's cache, made by the batch job where it is not complete."""
        return precompute(
            self.demo,
            self.teacher,
            part=part,
            recipe=recipe,
            views=views,
            folder=f"cache-{part}-{recipe}-{encoding or 'dense'}".replace(":", "-"),
            encoding=encoding,
            span_views=_divisor(views, most=_SPAN_VIEWS),
        )

    def table(self, recipe: str, *, encoding: str | None = None) -> Table:
        """Return the student's views under a recipe."""
        cache = self.cache(recipe, views=self.views[recipe], encoding=encoding)
        return replay(cache, load_dataset(self.demo.data("student")))

    def centre(self, part: str) -> Table:
        """Return the one central view of a part."""
        cache = self.cache("centre", views=1, part=part)
        return replay(cache, load_dataset(self.demo.data(part)))


def teacher_accuracy(table: Table) -> float:
    """Return the share of samples of which the teacher names the label first."""
    best_R = table.target(1.0).dense(NUM_CLASSES)[0].argmax(1)
    return float((best_R == table.labels_R).double().mean())
