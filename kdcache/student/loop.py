"""The training loop: one student, one stream, any number of processes, exact resume."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdcache.errors import MismatchError, UsageError
from kdcache.files import alone
from kdcache.identity import digest
from kdcache.models.running import run_network
from kdcache.processes import Stopped, noting_stops
from kdcache.replay.batch import Batch
from kdcache.student.checkpoint import Counts, RunState, checkpoints, start_afresh
from kdcache.student.classes import write_classes
from kdcache.student.config import FREE
from kdcache.student.folder import (
    BEST,
    CLASSES,
    WEIGHTS,
    append_metrics,
    note_session,
    open_run,
    save_weights,
)
from kdcache.student.metrics import evaluate
from kdcache.student.optim import make_optimizers, make_schedules
from kdcache.student.run import Pace, Run
from kdcache.student.step import Stepper

Metrics = dict[str, Any]

Report = Callable[[Metrics], None]


def train(
    run: Run,
    *,
    resume: bool = False,
    report: Report = lambda _: None,
    progress: Callable[[Pace], None] = lambda _: None,
) -> nn.Module:
    """Return the trained student, averaged if the run averages; the rest is in the run's folder.

    resume: go on from the newest checkpoint in the folder, if there is one. report: given each line
    of metrics, and progress what the pace is after each step, in the first process.

    Raises:
        UsageError: the folder holds another run, the student does not fit the views or the memory,
            or the loss is no longer finite.
        Stopped: SIGINT or SIGTERM came; a checkpoint of the step was saved.
    """
    torch.manual_seed(run.config.seed)
    network = build_student(run)
    state = make_state(run, network)
    with ExitStack() as stack:
        if run.world.is_first:
            open_run(run.folder, run.settings, resume=resume)
            refusal = "another process trains there; name another folder"
            stack.enter_context(alone(run.folder, refusal))
        stack.enter_context(noting_stops(run.stop))
        _go_on(run, state, resume=resume)
        _Loop(run, state, report=report, progress=progress).run_steps()
    return network if state.average is None else state.average.module


def build_student(run: Run) -> nn.Module:
    """Return the student on its device, tried on a black image."""
    network, size, device = run.network(), run.stream.recipe.size, run.world.device
    network.to(device).to(memory_format=torch.channels_last)
    black = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    with torch.no_grad():
        run_network(
            network.eval(),
            run.preprocessing(black),
            name=f"student {run.config.student}",
            num_classes=run.num_classes,
        )
    return network


def make_state(run: Run, network: nn.Module) -> RunState:
    """Return the state of a run before its first step."""
    config, device = run.config, run.world.device
    average = None
    if config.ema is not None:
        average = AveragedModel(
            network,
            multi_avg_fn=get_ema_multi_avg_fn(config.ema),  # type: ignore[no-untyped-call]  # torch's own
            use_buffers=True,
        )
    optimizers = make_optimizers(network, config)
    return RunState(
        network,
        optimizers,
        make_schedules(optimizers, config, num_steps=run.num_steps),
        GradScaler(device.type, enabled=config.precision == "float16"),
        average,
        run.stream,
        Counts(torch.zeros(2, dtype=torch.float64, device=device)),
        digest(run.settings),
    )


def _go_on(run: Run, state: RunState, *, resume: bool) -> None:
    """Load the newest checkpoint, if any, and note the start of the session."""
    world = run.world
    metrics_bytes = 0
    if resume:
        metrics_bytes = state.load(run.folder, rank=world.rank, world=world.size)
    steps = world.gather(torch.tensor(state.counts.step))
    if bool((steps != steps[0]).any()):
        raise MismatchError(
            f"{run.folder}: the processes see different checkpoints, of steps {steps.tolist()}; "
            "name a folder that all of them share"
        )
    if world.is_first:
        start_afresh(run.folder, metrics_bytes=metrics_bytes, keep=run.config.keep)
        free = run.config.model_dump(mode="json", include=set(FREE))
        place = world.device
        name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
        session = {"step": state.counts.step, "processes": world.size, "device": name, **free}
        session["views"] = run.stream.num_views
        note_session(run.folder, session)


class _Clock:
    """The time of an epoch, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self.started, self.waited_s, self.images = time.monotonic(), 0.0, 0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        started = time.monotonic()
        batch = next(batches)
        self.waited_s += time.monotonic() - started
        return batch

    def pace(self, run: Run, step: int) -> Pace:
        seconds = max(time.monotonic() - self.started, 1e-9)
        device = run.world.device
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        speed = self.images * run.world.size / seconds
        return Pace(step, run.num_steps, speed, self.waited_s / seconds, memory)


class _Loop:
    """The steps of a run from its state on."""

    def __init__(
        self, run: Run, state: RunState, *, report: Report, progress: Callable[[Pace], None]
    ) -> None:
        self._run, self._state, self._report, self._progress = run, state, report, progress
        self._step = Stepper(run, state)

    def run_steps(self) -> None:
        """Train to the last step, then keep the weights."""
        run, counts, config = self._run, self._state.counts, self._run.config
        batches, clock = iter(run.stream), _Clock()
        while counts.step < run.num_steps:
            try:
                batch = clock.next_batch(batches)
            except Stopped:
                self._save()
                raise
            loss = self._step(batch)
            counts.step, clock.images = counts.step + 1, clock.images + len(batch)
            if run.world.is_first:
                self._progress(clock.pace(run, counts.step))
            if config.log_steps is not None and counts.step % config.log_steps == 0:
                self._note({"loss": self._mean(loss), "learning_rate": self._step.learning_rate})
            saved = False
            if counts.step % run.stream.batches_per_epoch == 0:
                saved = self._end_epoch(clock)
                clock = _Clock()
            elif config.save_steps is not None and counts.step % config.save_steps == 0:
                saved = self._save()
            # A signal that comes meanwhile is for the next step: all processes stop after one step.
            if stopped := run.world.largest(run.stop.number):
                if not saved:
                    self._save()
                raise Stopped.by(stopped)
        self._finish()

    # --- between steps -------------------------------------------------------------------------

    def _mean(self, loss: torch.Tensor) -> float:
        return float(self._run.world.gather(loss.double()).mean())

    def _note(self, metrics: Metrics) -> None:
        """Write a line of metrics of this step, and report it."""
        if self._run.world.is_first:
            metrics = {"step": self._state.counts.step, **metrics}
            append_metrics(self._run.folder, metrics)
            self._report(metrics)

    def _check_finite(self, totals_R2: torch.Tensor) -> None:
        loss, norm = totals_R2.sum(0).tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            return
        found = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        good = checkpoints(self._run.folder)[-1:]
        raise UsageError(
            f"{self._run.folder}: {found} by step {self._state.counts.step}; train a new run with "
            "a lower learning rate or a longer warm-up"
            + "".join(f"; {path} is from before, and may be its --init" for path in good)
        )

    def _save(self) -> bool:
        """Save a checkpoint of this step, if all is well; return True.

        Raises:
            UsageError: the loss is not finite, or the disk is full.
        """
        run = self._run
        totals_R2 = run.world.gather(self._state.counts.totals)
        self._check_finite(totals_R2)
        if run.world.is_first:
            self._state.save(run.folder, totals=totals_R2, keep=run.config.keep)
        return True

    def _end_epoch(self, clock: _Clock) -> bool:
        """Measure, write and report the epoch; return whether a checkpoint was saved."""
        run, counts, config = self._run, self._state.counts, self._run.config
        epoch = counts.step // run.stream.batches_per_epoch
        totals_R2 = run.world.gather(counts.totals)  # waits for the device
        pace = clock.pace(run, counts.step)
        self._check_finite(totals_R2)
        loss, norm = (totals_R2.mean(0) / run.stream.batches_per_epoch).tolist()
        counts.totals.zero_()
        metrics: Metrics = {
            "epoch": epoch,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": self._step.learning_rate,
            "images_per_s": round(pace.images_per_s, 1),
            "wait_share": round(pace.wait_share, 4),
        }
        if pace.memory_bytes is not None:
            metrics["memory_bytes"] = pace.memory_bytes
        last = epoch == config.epochs
        if run.validation is not None and (last or epoch % config.eval_every == 0):
            metrics |= self._measure(epoch)
        self._note(metrics)
        return (last or epoch % config.save_every == 0) and self._save()

    def _measure(self, epoch: int) -> Metrics:
        run, best = self._run, self._state.counts.best
        assert run.validation is not None
        network = self._kept()
        run.world.equalise(network)
        score = evaluate(
            network,
            run.validation(),
            preprocessing=run.preprocessing,
            device=run.world.device,
        )
        self._state.network.train()
        found = score.to_dict()
        by_labels = run.config.learn == "labels" or found["kl_nats"] is None
        name, better = ("top1", max) if by_labels else ("kl_nats", min)
        value = found[name]
        if value is not None and (not best or better(value, best["value"]) != best["value"]):
            best.update(epoch=epoch, measure=f"val_{name}", value=value)
            self._keep(BEST)
        if run.world.is_first and epoch == run.config.epochs and score.classes is not None:
            write_classes(score.classes, run.folder / CLASSES, names=run.class_names)
        return {f"val_{k}": v for k, v in found.items() if v is not None}

    def _kept(self) -> nn.Module:
        """Return the network that is measured and kept."""
        average = self._state.average
        return self._state.network if average is None else average.module

    def _keep(self, name: str) -> None:
        run = self._run
        if not run.world.is_first:
            return
        metadata = {
            "student": run.config.student,
            "num_classes": run.num_classes,
            "classes": run.classes,
            "size": run.stream.recipe.size,
            "mean": run.preprocessing.mean,
            "std": run.preprocessing.std,
            "step": self._state.counts.step,
        }
        save_weights(run.folder / name, self._kept(), metadata=metadata)

    def _finish(self) -> None:
        self._kept().eval()
        self._keep(WEIGHTS)
