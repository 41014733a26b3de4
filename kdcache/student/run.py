"""What a run is, and how it is getting on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdcache.identity import canonical_json
from kdcache.models.teacher import Preprocessing
from kdcache.processes import StopRequest
from kdcache.replay.stream import ReplayStream
from kdcache.student.config import FREE, TrainConfig
from kdcache.student.objective import Objective
from kdcache.student.world import World

# Fields of metrics that tell of the machine; all others are the same in each run of the settings.
MEASURED = frozenset({"images_per_s", "memory_bytes", "wait_share"})


@dataclass(frozen=True, eq=False)
class Run:
    """A run's settings, data and place.

    network: makes the student, with its first weights. validation: makes the stream that the
    student is measured on, anew each time; None measures nothing. class_names: of its labels, if
    they have names. classes: names of the student's, if known. provenance: ids of what the stream
    hands over, kept with the settings. stop: set when the run is to end early.
    """

    config: TrainConfig
    network: Callable[[], nn.Module]
    objective: Objective
    preprocessing: Preprocessing
    num_classes: int
    stream: ReplayStream
    validation: Callable[[], ReplayStream] | None
    class_names: Sequence[str] | None
    classes: Sequence[str] | None
    folder: Path
    world: World
    provenance: dict[str, Any]
    stop: StopRequest

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides the result: settings and ids, as plain values."""
        chosen = self.config.model_dump(mode="json", exclude=set(FREE))
        return dict(json.loads(canonical_json(chosen | self.provenance)))

    @property
    def num_steps(self) -> int:
        """Return the steps of the whole run."""
        return self.config.epochs * self.stream.batches_per_epoch


@dataclass(frozen=True)
class Pace:
    """How a run is getting on, a step later. step: steps done. wait_share: of the time, for data.

    images_per_s: of all processes, in this epoch. memory_bytes: most of the GPU's so far.
    """

    step: int
    num_steps: int
    images_per_s: float
    wait_share: float
    memory_bytes: int | None
