"""Claims about what no teacher or student may be."""

import math
import sys

import pytest
from torch import nn

from kdcache.errors import UsageError
from kdcache.models.running import open_device
from kdcache.models.specs import build_network
from kdcache.models.teacher import Preprocessing


def lazy() -> nn.Module:
    return nn.LazyLinear(3)


def exits() -> nn.Module:
    sys.exit(9)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tests.models.test_refusals:lazy", "has lazy layers"),
        ("tests.models.test_refusals:exits", r"its factory failed: SystemExit\(9\)"),
        ("builtins:dict", "failed|expected a torch Module"),
    ],
)
def test_a_factory_that_makes_no_network_is_refused(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_network(spec, num_classes=None)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((math.nan, 0, 0), (1, 1, 1)),
        ((math.inf, 0, 0), (1, 1, 1)),
        ((0, 0, 0), (1, 0, 1)),
        ((0, 0, 0), (1, math.inf, 1)),
        ((0, 0, 0), (1, -1, 1)),
    ],
)
def test_a_normalisation_is_finite(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    with pytest.raises(UsageError, match="expected finite numbers"):
        Preprocessing(mean, std)


def test_a_device_that_computes_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="computes nothing"):
        open_device("meta")
    assert open_device("auto").type in ("cpu", "cuda")
