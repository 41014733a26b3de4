import math
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdcache.errors import UsageError
from kdcache.student.config import OptimizerName, TrainConfig, make_config
from kdcache.student.optim import make_optimizers, make_schedules
from tests.student.nets import small

NAMES = get_args(OptimizerName)


def _config(**changes: Any) -> TrainConfig:
    values = {"student": "s", "epochs": 1, "learning_rate": 0.5, "weight_decay": 0.1, **changes}
    return make_config(**values)


# --- schedules -----------------------------------------------------------------------------


def _rates(num_steps: int, warmup: float, *, schedule: str = "cosine") -> list[float]:
    """Return the learning rate under which each step is taken."""
    config = _config(warmup=warmup, schedule=schedule)
    (optimizer,) = make_optimizers(nn.Linear(2, 2), config)
    (scheduler,) = make_schedules([optimizer], config, num_steps=num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


FALLING = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def _formula(step: int, num_steps: int, warmup: float, *, schedule: str) -> float:
    """Return the rate of a step, counted from 0: linear to the peak, then as the schedule falls."""
    rising = min(round(warmup * num_steps), num_steps - 1)
    if step < rising:
        return 0.5 * (step + 1) / (rising + 1)
    return 0.5 * FALLING[schedule]((step - rising) / (num_steps - rising))


@pytest.mark.parametrize("schedule", FALLING)
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.5, 0.99]))
@example(1, 0.0)
@example(1, 0.99)
@example(2, 0.5)
@example(2, 0.99)
def test_the_rate_rises_linearly_and_falls_as_told(
    schedule: str, num_steps: int, warmup: float
) -> None:
    expected = [_formula(step, num_steps, warmup, schedule=schedule) for step in range(num_steps)]
    rates = _rates(num_steps, warmup, schedule=schedule)
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-9)


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


def test_each_optimiser_has_its_schedule() -> None:
    config = _config(optimizer="muon", warmup=0.5)
    optimizers = make_optimizers(small(5), config)
    schedules = make_schedules(optimizers, config, num_steps=4)
    assert len(optimizers) == len(schedules) == 2
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * 2 / 3] * (
            len(optimizer.param_groups)
        )


# --- groups --------------------------------------------------------------------------------


def _groups(network: nn.Module, **changes: Any) -> dict[float, list[tuple[int, ...]]]:
    """Return the shapes of what each weight decay is for."""
    (optimizer,) = make_optimizers(network, _config(**changes))
    return {
        g["weight_decay"]: [tuple(p.shape) for p in g["params"]] for g in optimizer.param_groups
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "muon"])
def test_matrices_are_decayed_and_vectors_are_not(name: str) -> None:
    groups = _groups(small(5), optimizer=name)
    assert groups == {0.1: [(8, 3, 3, 3), (5, 72)], 0.0: [(8,), (8,), (5,)]}


def test_muon_takes_hidden_weights_and_adamw_the_rest() -> None:
    network = small(5)
    muon, adamw = make_optimizers(network, _config(optimizer="muon"))
    assert isinstance(adamw, AdamW)
    shapes = [[tuple(p.shape) for p in g["params"]] for g in muon.param_groups]
    assert shapes == [[(8, 3, 3, 3)]]
    shapes = [[tuple(p.shape) for p in g["params"]] for g in adamw.param_groups]
    assert shapes == [[(5, 72)], [(8,), (8,), (5,)]]
    decays = [g["weight_decay"] for o in (muon, adamw) for g in o.param_groups]
    assert decays == [0.1, 0.1, 0.0]


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_momentum_is_as_told(name: str) -> None:
    optimizer = make_optimizers(small(5), _config(optimizer=name, momentum=0.7))[0]
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_muon_without_hidden_weights_is_adamw() -> None:
    (optimizer,) = make_optimizers(nn.Linear(3, 2), _config(optimizer="muon"))
    assert isinstance(optimizer, AdamW)


@pytest.mark.parametrize("name", NAMES)
def test_optimisers_hold_the_networks_own_parameters_each_once(name: str) -> None:
    network = small(5)
    optimizers = make_optimizers(network, _config(optimizer=name, layer_decay=0.5))
    held = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, network.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    assert _groups(network) == {0.1: [(2, 4)], 0.0: [(2,)]}


def test_a_network_without_vectors_has_one_group() -> None:
    assert _groups(nn.Linear(3, 2, bias=False)) == {0.1: [(2, 3)]}


class Scale(nn.Module):
    """One number that multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_network_without_matrices_has_one_group() -> None:
    assert _groups(Scale()) == {0.0: [()]}


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_parameters_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="student s: has no parameters to train"):
        make_optimizers(nn.Flatten(), _config(optimizer=name))


def test_layer_decay_lowers_the_rate_from_each_layer_to_the_one_before() -> None:
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3), nn.Linear(3, 4))
    (optimizer,) = make_optimizers(network, _config(layer_decay=0.5))
    found = [(g["lr"], len(g["params"][0]), g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [
        (rate, width, decay)
        for rate, width in [(0.5, 4), (0.25, 3), (0.125, 2)]
        for decay in (0.1, 0.0)
    ]


def test_a_frozen_layer_still_counts() -> None:
    network = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3))
    network[1].requires_grad_(False)
    (optimizer,) = make_optimizers(network, _config(layer_decay=0.5))
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_muon_and_its_adamw_share_the_layers_rates() -> None:
    network = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3), nn.Linear(3, 4))
    muon, adamw = make_optimizers(network, _config(optimizer="muon", layer_decay=0.5))
    assert [group["lr"] for group in muon.param_groups] == [0.25, 0.125]
    assert [group["lr"] for group in adamw.param_groups] == [0.5, 0.5, 0.25, 0.125]


def test_schedules_keep_the_ratio_between_layers() -> None:
    config = _config(layer_decay=0.5, warmup=0.5)
    (optimizer,) = make_optimizers(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3)), config)
    (schedule,) = make_schedules([optimizer], config, num_steps=10)
    for _ in range(9):
        last, _, first, _ = (group["lr"] for group in optimizer.param_groups)
        assert first == pytest.approx(last / 2)
        optimizer.step()
        schedule.step()


# --- steps ---------------------------------------------------------------------------------


def _step_without_gradient(network: nn.Module, **changes: Any) -> None:
    optimizers = make_optimizers(network, _config(**changes))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        if changes.get("optimizer") == "soap":
            optimizer.step()  # the first step takes no update
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_gradient_shrinks_matrices_by_the_decay_alone(name: str) -> None:
    """By weight decay times the learning rate."""
    network = small(5)
    before = [p.detach().clone() for p in network.parameters()]
    _step_without_gradient(network, optimizer=name, momentum=0.0)
    for old, new in zip(before, network.parameters(), strict=True):
        torch.testing.assert_close(new, old * (1 - 0.5 * 0.1) if old.ndim > 1 else old)


def test_sgd_adds_the_decay_to_its_momentum() -> None:
    network = nn.Linear(3, 2)
    before = network.weight.detach().clone()
    _step_without_gradient(network, optimizer="sgd", momentum=0.9)
    torch.testing.assert_close(network.weight, before * (1 - 0.5 * 0.1 * (1 + 0.9)))


def _conv_net() -> nn.Module:
    """Return a network of convolutions of all kinds, channels last, of fixed weights."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 24, 3, groups=24),
        nn.GELU(),
        nn.Conv2d(24, 6, 1, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 24),
        nn.GELU(),
        nn.Linear(24, 4),
    )
    return network.to(memory_format=torch.channels_last)


def _loss(network: nn.Module, *, seed: int) -> Tensor:
    """Return the loss over a batch of noisy images, each class of other brightness."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (16,), generator=generator)
    images = torch.randn(16, 3, 8, 8, generator=generator) + classes.view(-1, 1, 1, 1)
    return nn.functional.cross_entropy(network(images), classes)


class Training:
    """A network, its optimisers and schedules, in training for 45 steps."""

    def __init__(self, name: str) -> None:
        config = _config(
            optimizer=name,
            learning_rate=0.3 if name == "sgd" else 0.03,
            weight_decay=0.01,
            layer_decay=0.9,
            warmup=0.1,
        )
        self.network = _conv_net()
        self.optimizers = make_optimizers(self.network, config)
        self.schedules = make_schedules(self.optimizers, config, num_steps=45)

    @property
    def parts(self) -> list[nn.Module | Optimizer | LRScheduler]:
        return [self.network, *self.optimizers, *self.schedules]

    def steps(self, first: int, stop: int) -> None:
        for seed in range(first, stop):
            self.network.zero_grad()
            torch.autograd.backward(_loss(self.network, seed=seed))
            for optimizer in self.optimizers:
                optimizer.step()
            for schedule in self.schedules:
                schedule.step()


@pytest.mark.parametrize("done", [3, 23])
@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_training_equals_the_uninterrupted_one(
    tmp_path: Path, name: str, done: int
) -> None:
    """SOAP turns its bases every 10 steps, Shampoo takes roots every 20."""
    training = Training(name)
    training.steps(0, done)
    torch.save([part.state_dict() for part in training.parts], tmp_path / "state.pt")
    training.steps(done, 45)
    torch.manual_seed(99)
    resumed = Training(name)
    states = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip(resumed.parts, states, strict=True):
        part.load_state_dict(state)
    resumed.steps(done, 45)
    for expected, found in zip(
        training.network.state_dict().items(), resumed.network.state_dict().items(), strict=True
    ):
        assert expected[0] == found[0]
        assert torch.equal(expected[1], found[1]), expected[0]


def test_shampoos_saved_state_holds_roots_of_equal_blocks_and_of_others() -> None:
    """Which the package keeps in two ways; the resumed trainings above hold both."""
    training = Training("shampoo")
    training.steps(0, 21)
    states = training.optimizers[0].state_dict()["state"].values()
    roots = [s["pre_conditioner"]["pre_conditioners"] for s in states]
    turned = [
        root for each in roots for root in each if not torch.equal(root, torch.eye(len(root)))
    ]
    assert {len(root) for root in turned} == {3, 24, 216}


@pytest.mark.parametrize("name", NAMES)
def test_a_training_lowers_its_loss_and_keeps_channels_last(name: str) -> None:
    training = Training(name)
    strides = [p.stride() for p in training.network.parameters()]
    before = float(sum(_loss(training.network, seed=seed).detach() for seed in range(90, 99)))
    training.steps(0, 45)
    after = float(sum(_loss(training.network, seed=seed).detach() for seed in range(90, 99)))
    assert after < 0.5 * before
    assert [p.stride() for p in training.network.parameters()] == strides


@pytest.mark.parametrize("name", NAMES)
def test_steps_take_no_random_numbers(name: str) -> None:
    """Else processes that train one network would drift apart."""
    trainings = [Training(name), Training(name)]
    for seed, training in enumerate(trainings):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        training.steps(0, 45)
        assert torch.equal(torch.get_rng_state(), state)
    weights = [training.network.state_dict().values() for training in trainings]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_scaler_changes_no_step(name: str) -> None:
    """Scales are powers of two, so that unscaled gradients are the same numbers."""
    plain, scaled = Training(name), Training(name)
    plain.steps(0, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for seed in range(3):
        scaled.network.zero_grad()
        torch.autograd.backward(scaler.scale(_loss(scaled.network, seed=seed)))
        for optimizer in scaled.optimizers:
            scaler.unscale_(optimizer)
        for optimizer, schedule in zip(scaled.optimizers, scaled.schedules, strict=True):
            scaler.step(optimizer)
            schedule.step()
        scaler.update()
    for a, b in zip(plain.network.parameters(), scaled.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["soap", "shampoo"])
def test_without_the_extra_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UsageError, match=rf"{name}: .*pip install 'kdcache\[optim\]'"):
        make_optimizers(small(5), _config(optimizer=name))


# --- settings ------------------------------------------------------------------------------


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
        ({"learn": "luck"}, "learn: .*'cache', .* or 'labels'"),
        ({"precision": "float64"}, "precision"),
        ({"optimizer": "lamb"}, "optimizer: .*'adamw', .* or 'shampoo'"),
        ({"schedule": "steps"}, "schedule: .*'cosine', 'linear' or 'constant'"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.1}, "layer_decay"),
        ({"mean": (1.0, 2.0)}, "mean"),
        ({"save_every": 0, "eval_every": 0}, "eval_every.*; save_every"),
        ({"momentum": 1.0}, "momentum"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _config(**changes)
