"""Claims about settled networks: an image's logits do not depend on the images next to it."""

from typing import Any

import pytest
import torch
from torch import nn

from kdcache.errors import UsageError
from kdcache.models.checks import settle


def norms(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.Dropout(0.5))


class Stubborn(nn.Module):
    def train(self, mode: bool = True) -> "Stubborn":
        return self


def test_a_settled_network_is_frozen_and_evaluates() -> None:
    network = norms()
    network(torch.randn(8, 3, 5, 5))  # its statistics are no longer the first ones
    assert settle(network, "net") == ()
    assert not any(module.training for module in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    images = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_statistics_that_no_training_changed_are_told() -> None:
    (warning,) = settle(norms(), "net")
    assert warning.startswith("net: its batch-norm statistics are those of an untrained network")
    assert settle(nn.Conv2d(3, 4, 3), "net") == ()
    half = nn.Sequential(norms(), norms())
    half[1](torch.randn(8, 3, 5, 5))
    assert settle(half, "net") == (), "one norm that saw images is enough"


def test_batch_statistics_in_evaluation_are_refused() -> None:
    with pytest.raises(UsageError, match=r"net: 1 \(BatchNorm2d\) keeps no running statistics"):
        settle(norms(track_running_stats=False), "net")
    network = norms()
    network[1].running_var = None
    with pytest.raises(UsageError, match="keeps no running statistics"):
        settle(network, "net")


def test_instance_norms_know_one_image_only() -> None:
    assert settle(nn.Sequential(nn.InstanceNorm2d(4)), "net") == ()


def test_a_part_that_stays_in_training_is_refused() -> None:
    network = nn.Sequential(nn.Identity(), Stubborn())
    with pytest.raises(UsageError, match=r"net: 1 \(Stubborn\) stays in training mode"):
        settle(network, "net")
    with pytest.raises(UsageError, match="net: Stubborn stays"):
        settle(Stubborn(), "net")
