"""What a training run is told."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcache.errors import UsageError
from kdcache.models.teacher import Triple

Positive = Annotated[float, Field(gt=0)]


class TrainConfig(BaseModel):
    """The settings of a run; kept in its folder as config.json.

    student: spec of the network. init: seed of its fresh weights. learn: from the cached targets of
    replayed views, from one fixed target per image, or from labels. temperature: of the KL.
    views_per_load: views made of an image at each reading, a divisor of the epochs. warmup: share
    of the steps. clip: greatest norm of the gradient. eval_every, save_every: epochs; the last
    epoch is always measured and saved. mean, std: of the pixels in 0 to 1; None takes those of the
    cache's teacher, or ImageNet's without a cache.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    student: str
    learn: Literal["cache", "fixed", "labels"] = "cache"
    epochs: Annotated[int, Field(ge=1, le=10_000_000)]
    batch_size: Annotated[int, Field(ge=1)] = 256
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    clip: Positive = 1.0
    temperature: Annotated[float, Field(ge=0.01, le=1000)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    num_workers: Annotated[int, Field(ge=0)] = 0
    window: Annotated[int, Field(ge=1)] = 16
    first_view: Annotated[int, Field(ge=0)] = 0
    views_per_load: Annotated[int, Field(ge=1)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    mean: Triple | None = None
    std: Triple | None = None
    eval_every: Annotated[int, Field(ge=1)] = 1
    save_every: Annotated[int, Field(ge=1)] = 1


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
