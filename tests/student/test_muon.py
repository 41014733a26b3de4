import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdcache.student.muon import Muon, hidden_weights


def _step(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, *, seed: int) -> None:
    """Take a step by a gradient that the seed fixes, whatever its shape."""
    values = torch.randn(parameter.numel(), generator=torch.Generator().manual_seed(seed))
    parameter.grad = values.view(parameter.shape).clone(memory_format=torch.preserve_format)
    optimizer.step()


def _reference(parameter: nn.Parameter) -> tuple[nn.Linear, torch.optim.Muon]:
    """Return a linear layer of the same weights, and torch's Muon for it."""
    with torch.device("meta"):
        linear = nn.Linear(parameter[0].numel(), len(parameter), bias=False)
    linear.weight = nn.Parameter(parameter.detach().flatten(1).clone())
    muon = torch.optim.Muon(
        linear.parameters(),
        lr=0.1,
        weight_decay=0.3,
        momentum=0.8,
        adjust_lr_fn="match_rms_adamw",
    )
    return linear, muon


def _ours(parameter: nn.Parameter) -> Muon:
    return Muon([{"params": [parameter], "weight_decay": 0.3}], lr=0.1, momentum=0.8)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_a_weight_of_any_shape_moves_as_a_linear_layers_under_torchs_muon(shape: list[int]) -> None:
    weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    linear, theirs = _reference(weight)
    ours = _ours(weight)
    for seed in range(3):
        _step(ours, weight, seed=seed)
        _step(theirs, linear.weight, seed=seed)
    assert torch.equal(weight.flatten(1), linear.weight)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_channels_last_convolutions_move_alike_and_keep_their_format(groups: int) -> None:
    convolution = nn.Conv2d(8, 16, 3, groups=groups).to(memory_format=torch.channels_last)
    weight = convolution.weight
    linear, theirs = _reference(weight)
    before = weight.data_ptr(), weight.stride()
    ours = _ours(weight)
    for seed in range(3):
        _step(ours, weight, seed=seed)
        _step(theirs, linear.weight, seed=seed)
    assert torch.equal(weight.flatten(1), linear.weight)
    assert (weight.data_ptr(), weight.stride()) == before


def test_each_step_takes_the_rate_that_its_group_has_then() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    optimizer = _ours(weight)
    optimizer.param_groups[0]["lr"] = 0.0
    _step(optimizer, weight, seed=0)
    assert torch.equal(weight, torch.ones(3, 4))


def test_an_update_has_a_fifth_of_the_size_of_signs() -> None:
    """Which is AdamW's, as it is usually found, within what Newton and Schulz's steps leave."""
    weight = nn.Parameter(torch.zeros(64, 16, 3, 3))
    _step(Muon([weight], lr=1.0, momentum=0.9), weight, seed=0)
    assert 0.13 < float(weight.detach().square().mean().sqrt()) < 0.25


def test_weights_without_gradient_stay() -> None:
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    optimizer = Muon([{"params": [weights[0]]}, {"params": [weights[1]]}], lr=0.1, momentum=0.9)
    _step(optimizer, weights[1], seed=0)
    assert torch.equal(weights[0], torch.ones(2, 2))
    assert not torch.equal(weights[1], torch.ones(2, 2))


def test_a_closure_is_called_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def closure() -> float:
        loss = weight.square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    assert _ours(weight).step(closure) == 4.0
    assert float(weight.detach().sum()) < 4.0


def _left(network: nn.Module) -> set[str]:
    """Return the names of what is no vector and not for Muon."""
    hidden = hidden_weights(network)
    assert all(parameter.ndim > 1 for parameter in hidden)
    return {name for name, p in network.named_parameters() if p.ndim > 1 and p not in hidden}


def test_muon_takes_all_matrices_but_the_classifier() -> None:
    with torch.device("meta"):
        assert _left(torchvision.models.resnet18()) == {"fc.weight"}
        assert _left(torchvision.models.squeezenet1_1()) == {"classifier.1.weight"}


def test_muon_takes_no_tokens_positions_scales_and_tables() -> None:
    with torch.device("meta"):
        vit = torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
        )
        convnext = torchvision.models.convnext_tiny()
        swin = torchvision.models.swin_t()
    assert _left(vit) == {"class_token", "encoder.pos_embedding", "heads.head.weight"}
    words = {name.rpartition(".")[2] for name in _left(convnext) | _left(swin)}
    assert words == {"layer_scale", "relative_position_bias_table", "weight"}
    table = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert _left(table) == {"0.weight", "2.weight"}


def test_a_frozen_classifier_stays_the_last_weight() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    network[1].requires_grad_(False)
    assert _left(network) == {"1.weight"}
