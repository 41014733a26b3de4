import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from kdcache.errors import UsageError
from kdcache.student.config import TrainConfig, make_config
from kdcache.student.optim import make_optimizer, make_schedule
from tests.student.nets import small


def _config(**changes: Any) -> TrainConfig:
    values = {"student": "s", "epochs": 1, "learning_rate": 0.5, "weight_decay": 0.1, **changes}
    return make_config(**values)


def _rates(num_steps: int, warmup: float) -> list[float]:
    """Return the learning rate under which each step is taken."""
    config = _config(warmup=warmup)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    schedule = make_schedule(optimizer, config, num_steps=num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def _formula(step: int, num_steps: int, warmup: float) -> float:
    """Return the rate of a step, counted from 0: linear to the peak, then half a cosine to 0."""
    rising = min(round(warmup * num_steps), num_steps - 1)
    if step < rising:
        return 0.5 * (step + 1) / (rising + 1)
    done = (step - rising) / (num_steps - rising)
    return 0.5 * (1 + math.cos(math.pi * done)) / 2


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.5, 0.99]))
@example(1, 0.0)
@example(1, 0.99)
@example(2, 0.5)
@example(2, 0.99)
def test_the_rate_rises_linearly_and_falls_as_a_cosine(num_steps: int, warmup: float) -> None:
    expected = [_formula(step, num_steps, warmup) for step in range(num_steps)]
    assert _rates(num_steps, warmup) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_first_peak_middle_and_last_rates_are_as_written() -> None:
    rates = _rates(100, 0.1)
    assert rates[0] == pytest.approx(0.5 / 11)
    assert rates[9] == pytest.approx(0.5 * 10 / 11)
    assert rates[10] == pytest.approx(0.5)
    assert rates[55] == pytest.approx(0.25)
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert max(rates) == rates[10]


def test_a_run_of_one_step_takes_it_at_the_full_rate() -> None:
    assert _rates(1, 0.03) == [0.5]


def test_every_step_has_a_rate_above_zero() -> None:
    assert min(_rates(7, 0.5)) > 0


def _groups(optimizer: Optimizer) -> dict[float, list[tuple[int, ...]]]:
    return {
        g["weight_decay"]: [tuple(p.shape) for p in g["params"]] for g in optimizer.param_groups
    }


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    network = small(5)
    groups = _groups(make_optimizer(network, _config()))
    assert sorted(groups[0.1]) == [(5, 72), (8, 3, 3, 3)]
    assert sorted(groups[0.0]) == [(5,), (8,), (8,)]


def test_a_step_without_gradient_shrinks_matrices_by_the_decay_alone() -> None:
    """Torch's AdamW: weight decay times the learning rate."""
    network = nn.Linear(3, 2)
    before = [p.detach().clone() for p in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(network, _config()).step()
    torch.testing.assert_close(network.weight, before[0] * (1 - 0.5 * 0.1))
    assert torch.equal(network.bias, before[1])


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    groups = _groups(make_optimizer(network, _config()))
    assert groups == {0.1: [(2, 4)], 0.0: [(2,)]}


def test_a_network_without_vectors_has_one_group() -> None:
    groups = _groups(make_optimizer(nn.Linear(3, 2, bias=False), _config()))
    assert groups == {0.1: [(2, 3)]}


class Scale(nn.Module):
    """One number that multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_network_without_matrices_has_one_group() -> None:
    assert _groups(make_optimizer(Scale(), _config())) == {0.0: [()]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs: .*found 0"),
        ({"batch_size": 0}, "batch_size: .*found 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup": 1.0}, "warmup"),
        ({"clip": 0.0}, "clip"),
        ({"temperature": 0.0}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"num_workers": -1}, "num_workers"),
        ({"first_view": -1}, "first_view"),
        ({"learn": "luck"}, "learn: .*'cache', 'fixed' or 'labels'"),
        ({"precision": "float16"}, "precision"),
        ({"mean": (1.0, 2.0)}, "mean"),
        ({"save_every": 0, "eval_every": 0}, "eval_every.*; save_every"),
        ({"momentum": 0.9}, "momentum"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _config(**changes)
