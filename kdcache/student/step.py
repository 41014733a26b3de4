"""A step: forward, backward, update, over all processes.

What happens in it is fixed by settings, data and the step's number: the samples by the stream,
random numbers of the network (dropout) by a seed made of the run's seed, the step and the rank.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdcache.identity import content_digest
from kdcache.models.running import NoMemoryError, run_network
from kdcache.replay.batch import Batch
from kdcache.student.checkpoint import RunState
from kdcache.student.run import Run


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a process' random numbers in a step."""
    return content_digest(f"step {seed} {step} {rank}".encode()) >> 1


class Stepper:
    """Trains the network of a state, a batch at a time. learning_rate: of the last step."""

    def __init__(self, run: Run, state: RunState) -> None:
        self.learning_rate = run.config.learning_rate
        self._run, self._state = run, state
        state.network.train()
        if run.config.compile:
            state.network.compile()
        self._shared = run.world.share(state.network)
        self._parameters = [p for p in state.network.parameters() if p.requires_grad]

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Train on a batch; return its mean loss, of this process."""
        config, state = self._run.config, self._state
        torch.manual_seed(step_seed(config.seed, state.counts.step, self._run.world.rank))
        self.learning_rate = state.optimizers[0].param_groups[0]["lr"]
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self._run.world.device)
        try:
            parts = batch.parts(config.accumulate) if config.accumulate > 1 else [batch]
            for number, part in enumerate(parts):
                with self._syncing(last=number == len(parts) - 1):
                    share = self._loss(part) * (len(part) / len(batch))
                    torch.autograd.backward(state.scaler.scale(share))
                loss += share.detach()
            norm = self._update()
        except torch.OutOfMemoryError as error:
            raise NoMemoryError(self._no_memory(batch)) from error
        state.counts.totals += torch.stack((loss, norm)).double()
        return loss

    def _loss(self, part: Batch) -> torch.Tensor:
        run, device = self._run, self._run.world.device
        moved = part.to(device)
        half = run.config.precision != "float32"
        dtype = getattr(torch, run.config.precision) if half else None
        try:
            with torch.autocast(device.type, dtype=dtype, enabled=half):
                logits_NC = run_network(
                    self._shared,
                    run.preprocessing(moved.pixels),
                    name=f"student {run.config.student}",
                    num_classes=run.num_classes,
                )
        except NoMemoryError as error:
            raise NoMemoryError(self._no_memory(part)) from error
        return run.objective(logits_NC, moved).mean()

    def _update(self) -> torch.Tensor:
        """Step the optimisers; return the norm of the gradient before it was clipped."""
        state = self._state
        for optimizer in state.optimizers:
            if state.scaler.is_enabled():
                state.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._run.config.clip)
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
        state.scaler.update()
        with warnings.catch_warnings():
            # Where the scaler leaves the first steps out, torch takes the order to be wrong.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for schedule in state.schedules:
                schedule.step()
        if state.average is not None:
            state.average.update_parameters(state.network)
        if state.scaler.is_enabled():  # its search for a scale leaves out steps that overflow
            norm = norm.nan_to_num(0.0, 0.0, 0.0)
        return norm

    def _syncing(self, *, last: bool) -> AbstractContextManager[None]:
        """Leave the exchange of gradients to the last part of a batch."""
        if last or not isinstance(self._shared, DistributedDataParallel):
            return nullcontext()
        return self._shared.no_sync()

    def _no_memory(self, batch: Batch) -> str:
        config = self._run.config
        return (
            f"student {config.student}: out of memory on {len(batch)} images at once; raise "
            f"--accumulate (now {config.accumulate}), which changes no step's samples, lower "
            "--batch-size, or try --precision bfloat16"
        )
