"""Distil handwritten digits three ways, through the real tars, store and stream.

    python -m pipelines.demo --seed 0 --out build/demo

A teacher learns from 1,000 digits; a small student has 100 of them and learns from their labels,
from one stored prediction of each (a fixed teacher), or from a cache of mixed views. All three take
the same number of steps with the same settings. Writes OUT/report.html and OUT/result.json.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer

from kdcache.cache.store import Cache
from kdcache.data.blocks import dataset_source
from kdcache.data.document import load_dataset
from kdcache.data.pack import PackOptions, pack
from kdcache.data.sources import open_source
from kdcache.models.teacher import Preprocessing, Teacher, load_teacher
from kdcache.precompute.engines import run_inline
from kdcache.precompute.prepare import describe_cache, prepare_cache
from kdcache.precompute.span import Job
from kdcache.recipe.schema import Recipe, load_recipe
from kdcache.student.checkpoint import METRICS
from kdcache.student.config import make_config
from kdcache.student.folder import WEIGHTS
from kdcache.student.loop import train as train_run
from kdcache.student.setup import make_run
from kdcache.student.sources import Sources
from pipelines.demo_report import write_report
from pipelines.digits import Digits, load_split

Arm = Literal["labels", "fixed", "cache"]
ARMS: tuple[Arm, ...] = ("labels", "fixed", "cache")
TEACHER = {"batch_size": 100, "learning_rate": 3e-3, "weight_decay": 1e-2}
STUDENT = {"batch_size": 50, "learning_rate": 1e-2, "weight_decay": 1e-4}
RECIPES = Path(__file__).parent / "recipes"
GREY = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Demo:
    """Settings of one demonstration."""

    out: Path
    seed: int
    epochs: int
    teacher_epochs: int
    views: int
    num_workers: int

    def recipe(self, name: str) -> Recipe:
        """Return a recipe of the digits under this demonstration's seed."""
        recipe = load_recipe(RECIPES / f"digits_{name}.toml")
        return recipe.model_copy(update={"seed": self.seed})

    def data(self, part: str) -> Path:
        """Return the folder of a part's tars."""
        return self.out / "data" / part

    def train(
        self, name: str, spec: str, sources: Sources, **settings: Any
    ) -> list[dict[str, Any]]:
        """Train a network in its own folder; return the metrics of its epochs."""
        shared = {"seed": self.seed, "num_workers": self.num_workers, **GREY.__dict__}
        config = make_config(student=f"pipelines.digits:{spec}", **shared, **settings)
        folder = self.out / "runs" / name

        def report(metrics: dict[str, Any]) -> None:
            done = metrics["epoch"]
            if done % max(config.epochs // 4, 1) == 0 and done < config.epochs:
                print(f"          {name}: epoch {done} of {config.epochs}", flush=True)

        train_run(make_run(config, sources, folder=folder), report=report)
        return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def pack_digits(digits: Digits, name: str, *, demo: Demo) -> None:
    """Write one part of the split as tars of PNG images."""
    demo.out.joinpath("arrays").mkdir(parents=True, exist_ok=True)
    arrays = demo.out / "arrays" / f"{name}.npz"
    np.savez(arrays, images=digits.images, labels=digits.labels)
    options = PackOptions(rows_per_tar=512, shuffle_seed=demo.seed)
    pack(open_source(str(arrays)), demo.data(name), options=options)


def precompute(
    demo: Demo,
    teacher: Teacher,
    *,
    part: str,
    recipe: str,
    views: int,
    folder: str,
    encoding: str | None = None,
    span_views: int | None = None,
) -> Cache:
    """Return the complete cache of a part under a recipe."""
    dataset, plan = load_dataset(demo.data(part)), demo.recipe(recipe)
    info = describe_cache(dataset, plan, teacher=teacher, encoding=encoding)
    path = demo.out / folder
    cache = prepare_cache(path, info, dataset=dataset, num_views=views, span_views=span_views)
    run_inline(Job(dataset_source(dataset, plan), teacher, cache, batch_size=256, skip_bad=False))
    return cache


def run_demo(demo: Demo) -> dict[str, Any]:
    """Run all stages; return the result, as in OUT/result.json."""
    started = time.monotonic()
    torch.set_num_threads(1)  # networks this small lose by more, and the renderer has a core

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)

    split = load_split(demo.seed)
    for name, digits in (
        ("teacher", split.teacher),
        ("student", split.student),
        ("test", split.test),
    ):
        pack_digits(digits, name, demo=demo)
    say("packed 1,797 digits: 1,000 for the teacher, 100 of them for the student, 797 to test on")

    sources = Sources(demo.data("teacher"), recipe=demo.recipe("funmatch"))
    epochs = demo.teacher_epochs
    demo.train("teacher", "teacher", sources, **TEACHER, learn="labels", epochs=epochs)
    weights = demo.out / "runs/teacher" / WEIGHTS
    teacher = load_teacher("pipelines.digits:teacher", weights, preprocessing=GREY)
    say(f"trained the teacher for {demo.teacher_epochs} epochs")

    cache = precompute(
        demo, teacher, part="student", recipe="funmatch", views=demo.views, folder="cache"
    )
    precompute(demo, teacher, part="student", recipe="centre", views=1, folder="fixed-cache")
    tests = precompute(demo, teacher, part="test", recipe="centre", views=1, folder="test-cache")
    say(f"precomputed {demo.views} mixed views of the student's 100 digits, and the test targets")

    curves: dict[str, list[dict[str, Any]]] = {}
    for arm in ARMS:
        curves[arm] = demo.train(
            arm,
            "student",
            Sources(
                demo.data("student"),
                cache={"labels": None, "fixed": demo.out / "fixed-cache", "cache": cache.path}[arm],
                recipe=None if arm == "cache" else demo.recipe("consistent"),
                val_data=demo.data("test"),
                val_cache=tests.path,
            ),
            **STUDENT,
            learn=arm,
            epochs=demo.epochs,
            eval_every=max(demo.epochs // 30, 1),
            save_every=max(demo.epochs // 10, 1),
        )
        last = curves[arm][-1]
        say(f"trained on {arm}: {100 * last['val_top1']:.1f}%, KL {last['val_kl_nats']:.3f} nats")

    arms = {
        arm: {"accuracy": 100 * curve[-1]["val_top1"], "kl": curve[-1]["val_kl_nats"]}
        for arm, curve in curves.items()
    }
    result = {
        "seed": demo.seed,
        "arms": arms,
        "epochs": demo.epochs,
        "views": demo.views,
        "teacher": {"accuracy": teacher_accuracy(tests, demo)},
        "seconds": round(time.monotonic() - started, 1),
    }
    (demo.out / "result.json").write_text(json.dumps(result, indent=1))
    source = dataset_source(load_dataset(demo.data("student")), demo.recipe("funmatch"))
    write_report(demo.out / "report.html", result, curves=curves, cache=cache, source=source)
    return result


def teacher_accuracy(cache: Cache, demo: Demo) -> float:
    """Return the teacher's accuracy on the test digits, in per cent."""
    dataset, right = load_dataset(demo.data("test")), 0
    for tar in range(len(dataset.tars)):
        fields = cache.read_tile(tar, 0).fields
        target = cache.info.encoding.decode(fields, num_classes=10, temperature=1.0)
        labels = torch.from_numpy(dataset.labels[dataset.rows(tar)].astype(np.int64))
        right += int((target.dense(10).argmax(1) == labels).sum())
    return 100 * right / dataset.num_samples


def table(result: dict[str, Any]) -> str:
    """Return the arms' accuracy and KL as lines of text."""
    lines = [f"{'student of':<12}{'accuracy':>10}{'KL to teacher':>16}"]
    for arm, score in result["arms"].items():
        lines.append(f"{arm:<12}{score['accuracy']:>9.1f}%{score['kl']:>11.3f} nats")
    return "\n".join([*lines, f"{'(teacher)':<12}{result['teacher']['accuracy']:>9.1f}%"])


def main(
    seed: Annotated[int, typer.Option(help="Split, weights, order and views.")] = 0,
    out: Annotated[Path, typer.Option(help="Replaced if it is there.")] = Path("build/demo"),
    epochs: Annotated[int, typer.Option(help="Of each student.")] = 900,
    teacher_epochs: Annotated[int, typer.Option(help="Of the teacher.")] = 60,
    views: Annotated[int, typer.Option(help="Stored views of each image.")] = 256,
    num_workers: Annotated[int, typer.Option("--workers", help="Rendering processes.")] = 1,
) -> None:
    """Distil handwritten digits three ways."""
    if out.exists():
        if any(out.iterdir()) and not (out / "arrays").is_dir():
            raise typer.BadParameter(f"{out} holds something else; name another folder as --out")
        shutil.rmtree(out)
    result = run_demo(Demo(out, seed, epochs, teacher_epochs, views, num_workers))
    print(f"\n{table(result)}\n\n{result['seconds']} s; see {out / 'report.html'}")


if __name__ == "__main__":
    typer.run(main)
