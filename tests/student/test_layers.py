import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdcache.student.layers import layers_of


def _names(network: nn.Module) -> list[list[str]]:
    """Return the names of each layer's parameters."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [[names[parameter] for parameter in layer] for layer in layers_of(network)]


def _of(network: nn.Module, *owners: str) -> list[list[str]]:
    """Return the names of what each of these modules holds."""
    names = [name for name, _ in network.named_parameters()]
    return [[name for name in names if name.startswith(f"{owner}.")] for owner in owners]


def test_layers_of_a_resnet_are_its_blocks_and_what_stands_around_them() -> None:
    with torch.device("meta"):
        network = torchvision.models.resnet18()
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert _names(network) == _of(network, "conv1", "bn1", *blocks, "fc")
    assert any("downsample" in name for name in _names(network)[4])


def test_layers_of_a_vit_are_its_blocks_tokens_are_of_what_comes_next() -> None:
    with torch.device("meta"):
        network = torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16
        )
    stem, *blocks, norm, head = _names(network)
    expected = _of(network, *(f"encoder.layers.encoder_layer_{i}" for i in range(3)))
    assert stem == ["class_token", "conv_proj.weight", "conv_proj.bias"]
    assert blocks == [["encoder.pos_embedding", *expected[0]], *expected[1:]]
    assert [norm, head] == _of(network, "encoder.ln", "heads.head")


def test_layers_of_a_convnext_are_its_blocks_and_the_steps_between_stages() -> None:
    with torch.device("meta"):
        network = torchvision.models.convnext_tiny()
    owners = ["features.0.0", "features.0.1"]
    for stage, num_blocks in zip((1, 3, 5, 7), (3, 3, 9, 3), strict=True):
        owners += [f"features.{stage}.{block}" for block in range(num_blocks)]
        owners += [f"features.{stage + 1}.{step}" for step in (0, 1)] if stage < 7 else []
    assert _names(network) == _of(network, *owners, "classifier.0", "classifier.2")


def test_layers_of_a_sequence_are_its_members_that_hold_parameters() -> None:
    network = nn.Sequential(
        nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3)), nn.Flatten()
    )
    assert _names(network) == [["0.weight", "0.bias"], ["2.0.weight", "2.0.bias"]]


def test_a_module_that_only_holds_others_is_one_layer() -> None:
    network = nn.ModuleDict({"a": nn.TransformerEncoderLayer(8, 2, 8), "b": nn.Linear(8, 2)})
    assert _names(network) == _of(network, "a", "b")


def test_a_lone_layer_is_a_network_of_one() -> None:
    assert _names(nn.Linear(2, 3)) == [["weight", "bias"]]
    assert _names(nn.Flatten()) == []


def test_a_tied_weight_is_of_the_layer_that_has_it_first() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    network[2].weight = network[0].weight
    assert _names(network) == [["0.weight", "0.bias"], ["1.weight", "1.bias"], ["2.bias"]]


class Own(nn.Module):
    """A module with a parameter of its own, before any children."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1))
        for index, child in enumerate(children):
            self.add_module(str(index), child)


MODULES = st.recursive(
    st.builds(lambda: nn.Linear(1, 1, bias=False)) | st.builds(nn.ReLU),
    lambda children: st.builds(
        lambda make, members: make(*members),
        st.sampled_from([Own, nn.Sequential, lambda *members: nn.ModuleList(members)]),
        st.lists(children, max_size=3),
    ),
    max_leaves=12,
)


@given(MODULES)
def test_layers_part_a_networks_parameters_in_order(network: nn.Module) -> None:
    layers = layers_of(network)
    assert all(layers)
    joined = [parameter for layer in layers for parameter in layer]
    expected = list(network.parameters())
    assert len(joined) == len(expected)
    assert all(a is b for a, b in zip(joined, expected, strict=True))
