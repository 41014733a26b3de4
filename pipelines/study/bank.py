"""Many small students trained side by side: one set of kernels for M networks.

Parameters are stacked over the students; convolutions are grouped, a group of channels a student.
Invariant: a student's numbers do not depend on who its neighbours are, but for the rounding of
kernels. Settings that the students share (schedule, warm-up, clipping, AdamW) are those of
kdcache.student.

Letters: M students, P parameters of one, B samples of a step, R of an epoch, V and W views, C
classes, K kept ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from kdcache.recipe.draws import Stream, permutation
from kdcache.student.config import make_config
from kdcache.student.losses import sparse_kl
from kdcache.student.optim import make_optimizers, make_schedules
from kdcache.targets.target import SparseTarget
from pipelines.demo import GREY
from pipelines.digits import DigitNet
from pipelines.study.design import Setting

_BETAS = (0.9, 0.999)  # torch's of AdamW, and so the library's
_EPSILON = 1e-8
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a student sees and learns. Epoch e shows view v = e modulo V.

    pixels_VRHW: uint8, grey. target: of (W, R) views; v learns from view v + shift modulo W.
    """

    pixels_VRHW: Tensor
    target: SparseTarget
    shift: int = 0

    def batch(self, epoch: int, rows_B: Tensor) -> tuple[Tensor, SparseTarget]:
        """Return the pixels (B, H, W) of some samples in an epoch, and their targets."""
        view = epoch % len(self.pixels_VRHW)
        taught = (view + self.shift) % len(self.target.log_probs_NK)
        indices = self.target.indices_NK
        target = SparseTarget(
            None if indices is None else indices[taught][rows_B],
            self.target.log_probs_NK[taught][rows_B],
            self.target.log_tail_N[taught][rows_B],
        )
        return self.pixels_VRHW[view][rows_B], target


class Bank:
    """M networks of one architecture; calling it gives their logits.

    flat_MP: their parameters, in the order of the network's. statistics: running means and
    variances of each normalisation, over the students' channels.
    """

    def __init__(self, networks: Sequence[DigitNet]) -> None:
        """networks: their parameters are copied."""
        first = networks[0]
        vectors = [parameters_to_vector(network.parameters()) for network in networks]
        self.flat_MP = torch.stack(vectors).detach().requires_grad_()
        self.shapes = [p.shape for p in first.parameters()]
        self._layers = list(first.features)
        self._count = len(networks)
        norms = [[m for m in n.features if isinstance(m, nn.BatchNorm2d)] for n in networks]
        self.statistics = [
            tuple(torch.cat([getattr(norm, name) for norm in same]) for name in _STATISTICS)
            for same in zip(*norms, strict=True)
        ]

    def __call__(self, pixels_BMHW: Tensor, *, training: bool = False) -> Tensor:
        """Return logits (B, M, C) of uint8 pixels, of which each student has its own.

        training: normalise by the batch, and move the running statistics.
        """
        parts = torch.split(self.flat_MP, [shape.numel() for shape in self.shapes], 1)
        parameters = iter(zip(parts, self.shapes, strict=True))
        statistics = iter(self.statistics)

        def stacked() -> Tensor:
            part, shape = next(parameters)
            return part.reshape(-1, *shape[1:])

        x = pixels_BMHW.float().mul_(1 / (255 * GREY.std[0])).sub_(GREY.mean[0] / GREY.std[0])
        x = x.contiguous(memory_format=torch.channels_last)  # in which convolutions take half
        for layer in self._layers:
            if isinstance(layer, nn.Conv2d):
                x = F.conv2d(x, stacked(), padding=1, groups=self._count)
            elif isinstance(layer, nn.BatchNorm2d):
                mean, variance = next(statistics)
                x = F.batch_norm(x, mean, variance, stacked(), stacked(), training=training)
            else:
                x = layer(x)
        features_MBF = F.adaptive_avg_pool2d(x, 1).view(len(x), self._count, -1).transpose(0, 1)
        weights, shape = next(parameters)
        biases, _ = next(parameters)
        weights_MFC = weights.view(self._count, *shape).transpose(1, 2)
        return torch.baddbmm(biases[:, None], features_MBF, weights_MFC).transpose(0, 1)


class _AdamW:
    """AdamW over a bank, each student with its own rates, its gradient clipped by itself."""

    def __init__(self, bank: Bank, settings: Sequence[Setting], *, clip: float) -> None:
        self._flat_MP, self._clip, self._step = bank.flat_MP, clip, 0
        self._first_MP = torch.zeros_like(bank.flat_MP)
        self._second_MP = torch.zeros_like(bank.flat_MP)
        self._rates_M1 = torch.tensor([[s.learning_rate] for s in settings])
        decayed_P = torch.cat([torch.full((s.numel(),), float(len(s) > 1)) for s in bank.shapes])
        self._decays_MP = torch.tensor([[s.weight_decay] for s in settings]) * decayed_P

    @torch.no_grad()
    def step(self, gradient_MP: Tensor, factor: float) -> None:
        """Update the bank; factor: of the learning rates, from the schedule."""
        self._step += 1
        norms_M1 = gradient_MP.norm(dim=1, keepdim=True)
        gradient_MP = gradient_MP * (self._clip / (norms_M1 + 1e-6)).clamp(max=1.0)
        corrections = [1 - beta**self._step for beta in _BETAS]
        rates_M1 = self._rates_M1 * factor
        self._flat_MP.mul_(1 - rates_M1 * self._decays_MP)
        self._first_MP.lerp_(gradient_MP, 1 - _BETAS[0])
        self._second_MP.mul_(_BETAS[1]).addcmul_(gradient_MP, gradient_MP, value=1 - _BETAS[1])
        spread_MP = self._second_MP.sqrt().div_(math.sqrt(corrections[1])).add_(_EPSILON)
        self._flat_MP.sub_(self._first_MP * (rates_M1 / corrections[0]) / spread_MP)


def schedule(num_steps: int) -> list[float]:
    """Return the factor of the learning rate in each step, as the library's loop has it."""
    config = make_config(student="", epochs=1, learning_rate=1.0)
    optimizers = make_optimizers(nn.Linear(1, 1), config)
    schedules = make_schedules(optimizers, config, num_steps=num_steps)
    factors = []
    for _ in range(num_steps):
        factors.append(float(optimizers[0].param_groups[0]["lr"]))
        optimizers[0].step()
        schedules[0].step()
    return factors


def train_bank(
    bank: Bank,
    lessons: Sequence[Lesson],
    *,
    settings: Sequence[Setting],
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[Tensor]:
    """Train a bank, each student on its lesson; return each step's losses (M,), in nats.

    seed: of the order of samples, the same for all students. What fills no batch is not used.
    """
    num_rows = lessons[0].pixels_VRHW.shape[1]
    per_epoch = num_rows // batch_size
    config = make_config(student="", epochs=epochs)
    optimizer = _AdamW(bank, settings, clip=config.clip)
    temperatures_M1 = torch.tensor([[s.temperature or 1.0] for s in settings])
    losses = []
    for step, factor in enumerate(schedule(epochs * per_epoch)):
        epoch, number = divmod(step, per_epoch)
        if number == 0:
            order = permutation(seed, epoch, view=0, count=num_rows, stream=Stream.SHUFFLE)
        rows_B = torch.from_numpy(order[number * batch_size : (number + 1) * batch_size])
        batches = [lesson.batch(epoch, rows_B) for lesson in lessons]
        logits_BMC = bank(torch.stack([pixels for pixels, _ in batches], 1), training=True)
        cooled = logits_BMC / temperatures_M1  # so that one call serves all temperatures
        kl_N = sparse_kl(cooled.flatten(0, 1), _joined([target for _, target in batches]))
        losses_M = kl_N.view(batch_size, -1).mean(0) * temperatures_M1[:, 0] ** 2
        (gradient_MP,) = torch.autograd.grad(losses_M.sum(), bank.flat_MP)
        optimizer.step(gradient_MP, factor)
        losses.append(losses_M.detach())
    return losses


def _joined(targets: Sequence[SparseTarget]) -> SparseTarget:
    """Return the students' targets (B, K) as one, a sample's side by side."""
    indices = [t.indices_NK for t in targets if t.indices_NK is not None]
    return SparseTarget(
        torch.stack(indices, 1).flatten(0, 1) if indices else None,
        torch.stack([t.log_probs_NK for t in targets], 1).flatten(0, 1),
        torch.stack([t.log_tail_N for t in targets], 1).flatten(),
    )


@torch.no_grad()
def score_bank(
    bank: Bank, pixels_NHW: Tensor, *, target: SparseTarget, labels_N: Tensor
) -> list[dict[str, float]]:
    """Return each student's KL to the teacher, agreement with it, and accuracy.

    target: of the N samples at temperature 1, all classes kept.
    """
    count = len(bank.flat_MP)
    logits_NMC = bank(pixels_NHW[:, None].expand(-1, count, -1, -1))
    best_N = target.log_probs_NK.argmax(1)
    return [
        {
            "kl": float(sparse_kl(logits_NC, target).double().mean()),
            "agreement": float((logits_NC.argmax(1) == best_N).double().mean()),
            "accuracy": float((logits_NC.argmax(1) == labels_N).double().mean()),
        }
        for logits_NC in logits_NMC.unbind(1)
    ]
