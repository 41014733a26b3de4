"""How much the student benchmark measures, on two cores, on a GPU, and for a trial."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StudentSizes:
    """How much is measured.

    student, light, heavy: specs of the student and two teachers. step_batch, step_rounds, steps: of
    the comparison of steps; loss_calls: of that of losses. images, batch, workers, passes: of
    streams and whole loops; passes are those over the images that a round measures, and are more
    than workers run ahead. taught_*: of runs with a teacher, which starts to be measured after a
    stretch of steps. rounds: of all but steps and runs with a teacher.
    """

    student: str
    light: str
    heavy: str
    precision: str
    step_batch: int
    step_rounds: int
    steps: int
    loss_calls: int
    images: int
    rows_per_tar: int
    batch: int
    workers: int
    passes: int
    rounds: int
    taught_images: int
    taught_batch: int
    taught_workers: int
    taught_passes: int
    taught_stretch: int
    taught_rounds: int


FULL = StudentSizes(
    student="torchvision.models:mobilenet_v3_small",
    light="torchvision.models:resnet18",
    heavy="torchvision.models:resnet50",
    precision="float32",
    step_batch=64,
    step_rounds=15,
    steps=2,
    loss_calls=20,
    images=512,
    rows_per_tar=256,
    batch=64,
    workers=2,
    passes=3,
    rounds=5,
    taught_images=128,
    taught_batch=32,
    taught_workers=1,
    taught_passes=1,
    taught_stretch=2,
    taught_rounds=3,
)
ON_GPU = StudentSizes(
    student="torchvision.models:resnet50",
    light="torchvision.models:resnet50",
    heavy="torchvision.models:vit_l_16",
    precision="bfloat16",
    step_batch=256,
    step_rounds=9,
    steps=10,
    loss_calls=100,
    images=256,
    rows_per_tar=256,
    batch=128,
    workers=8,
    passes=8,
    rounds=5,
    taught_images=256,
    taught_batch=256,
    taught_workers=8,
    taught_passes=12,
    taught_stretch=4,
    taught_rounds=5,
)
QUICK = replace(
    FULL,
    light="torchvision.models:mobilenet_v3_small",
    heavy="torchvision.models:resnet18",
    step_batch=8,
    step_rounds=1,
    steps=1,
    loss_calls=1,
    images=64,
    rows_per_tar=32,
    batch=16,
    passes=1,
    rounds=1,
    taught_images=16,
    taught_batch=8,
    taught_stretch=1,
    taught_rounds=1,
)
