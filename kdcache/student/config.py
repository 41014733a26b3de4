"""What a training run is told."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcache.errors import UsageError
from kdcache.models.source import Triple

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Learn = Literal[
    "cache", "function-matching", "consistent", "fixed", "independent", "online", "labels"
]
OptimizerName = Literal["adamw", "sgd", "muon", "soap", "shampoo"]
ScheduleName = Literal["cosine", "linear", "constant"]
Direction = Literal["forward", "reverse"]

# What may change when a run is resumed: how it is computed, not what.
FREE = frozenset(
    {"accumulate", "compile", "keep", "log_steps", "num_workers", "save_every", "save_steps"}
)
USUAL_LANES = 8


class TrainConfig(BaseModel):
    """The settings of a run; kept in its folder as config.json.

    student: spec of the network. learn: what from, see setup.py. batch_size: samples of a step,
    over all processes, of which each takes an equal share in `accumulate` parts. lanes: parts of
    an epoch of which each step takes equal shares; the processes share them, so that their number
    divides this one and may change. views_per_load: views made of an image at each reading, a
    divisor of the epochs.

    weight_decay: as torch's, times the learning rate; spares vectors. momentum: of SGD, Muon.
    layer_decay: factor of the learning rate from each layer to the one before it. warmup: share of
    the steps. clip: greatest norm of the gradient. ema: decay of the averaged weights, which are
    then those that are measured and kept; None averages nothing.

    temperature, direction: of the KL. label_weight: share of the loss that is the labels'.
    eval_every, save_every: epochs; the last epoch is always measured and saved. save_steps,
    log_steps: steps between checkpoints and lines of metrics within epochs; None for none. keep:
    newest checkpoints kept. mean, std: of the pixels in 0 to 1; None takes those of the teacher, or
    ImageNet's without one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    student: str
    learn: Learn = "cache"
    epochs: Annotated[int, Field(ge=1, le=10_000_000)]
    batch_size: Annotated[int, Field(ge=1)] = 256
    accumulate: Annotated[int, Field(ge=1)] = 1
    lanes: Annotated[int, Field(ge=1)] | None = None
    window: Annotated[int, Field(ge=1)] = 16
    first_view: Annotated[int, Field(ge=0)] = 0
    views_per_load: Annotated[int, Field(ge=1)] = 1
    num_workers: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    optimizer: OptimizerName = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    schedule: ScheduleName = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    clip: Positive = 1.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None

    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 1.0
    direction: Direction = "forward"
    label_weight: Share = 0.0

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    mean: Triple | None = None
    std: Triple | None = None

    eval_every: Annotated[int, Field(ge=1)] = 1
    save_every: Annotated[int, Field(ge=1)] = 1
    save_steps: Annotated[int, Field(ge=1)] | None = None
    log_steps: Annotated[int, Field(ge=1)] | None = None
    keep: Annotated[int, Field(ge=1)] = 2


def make_config(**values: Any) -> TrainConfig:
    """Return the settings, checked.

    Raises:
        UsageError: a setting is unknown or out of range; names each.
    """
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}, found {item['input']!r}"
            for item in error.errors()
        ]
        raise UsageError("; ".join(problems)) from None


def usual_lanes(batch_size: int, world: int) -> int:
    """Return the lanes of a run that is told none: near 8, shared out evenly by both.

    Raises:
        UsageError: so many processes cannot share a batch evenly.
    """
    fitting = [n for n in range(world, batch_size + 1, world) if batch_size % n == 0]
    if not fitting:
        raise UsageError(
            f"batch size {batch_size}: is that of a step, and {world} processes cannot share it "
            f"evenly; use a multiple of {world} (--batch-size)"
        )
    return min(fitting, key=lambda n: (abs(math.log2(n / USUAL_LANES)), -n))
