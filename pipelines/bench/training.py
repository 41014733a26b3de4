"""Training loops that are measured: ours as `kdcache train` runs it, and the usual one.

Loops yield the images of a stretch of steps, once the device has done them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder

from kdcache.models.ensemble import TeacherSpec
from kdcache.models.specs import build_network
from kdcache.recipe.schema import Recipe
from kdcache.student.config import TrainConfig, make_config
from kdcache.student.loop import build_student, make_state
from kdcache.student.run import Run
from kdcache.student.setup import make_run
from kdcache.student.sources import Sources
from kdcache.student.step import Stepper
from kdcache.student.world import alone_on
from pipelines.bench.material import NUM_CLASSES, Material
from pipelines.bench.stream import usual_transform
from pipelines.bench.timing import Batches


@dataclass(frozen=True)
class Plan:
    """What both loops have in common. student: a spec. epochs: that the data last for.

    stretch: steps between two yields.
    """

    student: str
    precision: str
    batch: int
    workers: int
    epochs: int
    stretch: int = 1
    views_per_load: int = 1

    def config(self, *, learn: str) -> TrainConfig:
        """Return our settings for it."""
        return make_config(
            student=self.student,
            learn=learn,
            epochs=self.epochs,
            batch_size=self.batch,
            num_workers=self.workers,
            precision=self.precision,
            views_per_load=self.views_per_load,
        )


def synchronise() -> None:
    """Wait for what the GPU was asked to do, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def stretches(counts: Iterable[int], steps: int) -> Batches:
    """Yield the images of so many steps together, once they are done."""
    images = 0
    for number, count in enumerate(counts, 1):
        images += count
        if number % steps == 0:
            synchronise()
            yield images
            images = 0


# --- ours ----------------------------------------------------------------------------------


def cached_run(material: Material, plan: Plan) -> Run:
    """Return a run that learns from the material's cache, opened afresh."""
    sources = Sources(material.data, material.cache)
    return _make_run(material, plan.config(learn="cache"), sources)


def online_run(material: Material, plan: Plan, *, recipe: Recipe, teacher: str) -> Run:
    """Return a run whose teacher looks at each batch itself. teacher: a spec."""
    config = plan.config(learn="online")
    spec = TeacherSpec(teacher, None, num_classes=NUM_CLASSES, precision=config.precision)
    return _make_run(material, config, Sources(material.data, recipe=recipe, teacher=spec))


def _make_run(material: Material, config: TrainConfig, sources: Sources) -> Run:
    return make_run(config, sources, folder=material.data.parent / "run", world=alone_on("auto"))


def make_stepper(run: Run) -> Stepper:
    """Return what trains a run's student, with fresh weights; as kdcache.student.loop starts it."""
    torch.manual_seed(run.config.seed)
    return Stepper(run, make_state(run, build_student(run)))


def our_loop(run: Run, plan: Plan) -> Batches:
    """Train, and yield the images of each stretch."""
    step = make_stepper(run)

    def counts() -> Iterator[int]:
        for batch in run.stream:
            step(batch)
            yield len(batch)

    return stretches(counts(), plan.stretch)


# --- the usual loop ------------------------------------------------------------------------


def usual_loop(folder: Path, plan: Plan, *, size: int) -> Batches:
    """Train from labels by ImageFolder and DataLoader, and yield the images of each stretch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu, half = device.type == "cuda", plan.precision != "float32"
    torch.manual_seed(0)
    network = build_network(plan.student, num_classes=NUM_CLASSES).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    dataset = ImageFolder(str(folder), usual_transform(size, normalise=True))
    loader = DataLoader(
        dataset,
        batch_size=plan.batch,
        sampler=RandomSampler(dataset, num_samples=plan.epochs * len(dataset)),
        num_workers=plan.workers,
        pin_memory=on_gpu,
        drop_last=True,
    )
    dtype = getattr(torch, plan.precision) if half else None

    def counts() -> Iterator[int]:
        for images, labels in loader:
            images_N3HW = images.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype=dtype, enabled=half):
                logits_NC = network(images_N3HW)
                loss = F.cross_entropy(logits_NC, labels.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            yield len(images)

    return stretches(counts(), plan.stretch)


# --- networks ------------------------------------------------------------------------------


def gflops(spec: str, *, size: int) -> float:
    """Return the 10^9 operations of a forward pass on one image; a product and sum is two."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        network: nn.Module = build_network(spec, num_classes=NUM_CLASSES).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops()) / 1e9
