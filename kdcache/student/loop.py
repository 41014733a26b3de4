"""The training loop: one student, one stream, exact resume."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.files import alone
from kdcache.identity import canonical_json
from kdcache.models.specs import build_network, run_network
from kdcache.models.teacher import Preprocessing
from kdcache.replay.batch import Batch
from kdcache.replay.stream import ReplayStream
from kdcache.student.checkpoint import METRICS, RunState, open_run, save_weights
from kdcache.student.config import TrainConfig
from kdcache.student.losses import label_loss, sparse_kl
from kdcache.student.metrics import evaluate
from kdcache.student.optim import make_optimizers, make_schedules

Metrics = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """A run's settings, data and place.

    validation: makes the stream that the student is measured on, anew each time; None measures
    nothing. provenance: ids of what the stream hands over, kept with the settings.
    """

    config: TrainConfig
    preprocessing: Preprocessing
    num_classes: int
    stream: ReplayStream
    validation: Callable[[], ReplayStream] | None
    folder: Path
    device: torch.device
    provenance: dict[str, Any]


def train(
    run: Run, *, resume: bool = False, report: Callable[[Metrics], None] = lambda _: None
) -> nn.Module:
    """Return the trained student, its weights and metrics written to the run's folder.

    resume: go on from the checkpoint in the folder, if there is one. report: given the metrics of
    each epoch.

    Raises:
        UsageError: the folder holds another run, the student does not fit the views, or the loss
            is no longer finite.
    """
    config = run.config
    chosen = config.model_dump(mode="json", exclude={"num_workers"})  # which changes no result
    settings = json.loads(canonical_json(chosen | run.provenance))
    torch.manual_seed(config.seed)
    network = _build_student(run)
    open_run(run.folder, settings, resume=resume)
    with alone(run.folder, "another process trains there; name another folder"):
        _run_epochs(run, network, resume=resume, report=report)
    return network


def _run_epochs(
    run: Run, network: nn.Module, *, resume: bool, report: Callable[[Metrics], None]
) -> None:
    config = run.config
    optimizers = make_optimizers(network, config)
    num_steps = config.epochs * run.stream.batches_per_epoch
    (schedule,) = make_schedules(optimizers, config, num_steps=num_steps)
    state = RunState(network, optimizers[0], schedule, run.stream)
    done = state.load(run.folder) if resume else 0
    batches = iter(run.stream)
    for epoch in range(done, config.epochs):
        metrics = _train_epoch(run, state, batches=batches) | {"epoch": epoch + 1}
        if _due(epoch, config.eval_every, config.epochs) and run.validation is not None:
            metrics |= _measure(run, network)
        with (run.folder / METRICS).open("a") as file:
            file.write(json.dumps(metrics, sort_keys=True) + "\n")
        report(metrics)
        if _due(epoch, config.save_every, config.epochs):
            state.save(run.folder, epoch=epoch + 1)
    metadata = {
        "student": config.student,
        "num_classes": run.num_classes,
        "size": run.stream.recipe.size,
        "mean": run.preprocessing.mean,
        "std": run.preprocessing.std,
    }
    save_weights(run.folder, network, metadata=metadata)


def _build_student(run: Run) -> nn.Module:
    """Return the fresh student, tried on a black image."""
    spec, size = run.config.student, run.stream.recipe.size
    network = build_network(spec, num_classes=run.num_classes)
    network.to(run.device).to(memory_format=torch.channels_last)
    black = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=run.device)
    with torch.no_grad():
        run_network(
            network.eval(),
            run.preprocessing(black),
            name=f"student {spec}",
            num_classes=run.num_classes,
        )
    return network


def _due(epoch: int, every: int, epochs: int) -> bool:
    return (epoch + 1) % every == 0 or epoch + 1 == epochs


def _measure(run: Run, network: nn.Module) -> Metrics:
    assert run.validation is not None
    score = evaluate(
        network,
        run.validation(),
        preprocessing=run.preprocessing,
        device=run.device,
    )
    return {f"val_{name}": value for name, value in score.to_dict().items() if value is not None}


def _train_epoch(run: Run, state: RunState, *, batches: Any) -> Metrics:
    """Return the mean loss, learning rate and speed of one epoch."""
    config, network = run.config, state.network
    network.train()
    started, count = time.monotonic(), 0
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    sound = torch.ones((), dtype=torch.bool, device=run.device)
    autocast = torch.autocast(
        run.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"
    )
    for _ in range(run.stream.batches_per_epoch):
        batch = next(batches).to(run.device)
        with autocast:
            logits_NC = run_network(
                network,
                run.preprocessing(batch.pixels),
                name=f"student {config.student}",
                num_classes=run.num_classes,
            )
        loss = _loss(config, logits_NC, batch)
        state.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        state.optimizer.step()
        rate = state.optimizer.param_groups[0]["lr"]
        state.schedule.step()
        total += loss.detach() * len(batch)
        sound &= norm.isfinite()
        count += len(batch)
    mean = float(total) / count
    if not math.isfinite(mean) or not bool(sound):
        found = "a gradient is not finite" if math.isfinite(mean) else f"the loss is {mean}"
        raise UsageError(
            f"{run.folder}: {found}; the checkpoint is of the last epoch before that; train with a "
            "lower learning rate"
        )
    seconds = time.monotonic() - started
    return {"loss": mean, "learning_rate": rate, "images_per_s": round(count / seconds, 1)}


def _loss(config: TrainConfig, logits_NC: Tensor, batch: Batch) -> Tensor:
    if config.learn == "labels":
        losses_N = label_loss(
            logits_NC,
            batch.labels,
            partner_labels_N=batch.partner_labels,
            weights_N=batch.weights,
        )
    else:
        target = batch.target(config.temperature)
        losses_N = sparse_kl(logits_NC, target, temperature=config.temperature)
    return losses_N.mean()
