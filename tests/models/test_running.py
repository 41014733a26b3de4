"""Claims about what a network gives: its logits are found, or the output is refused."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.running import logits_of, run_network

Outputs = namedtuple("Outputs", ["logits", "aux"])  # as torchvision's GoogLeNet gives them
LOGITS = torch.arange(10.0).view(2, 5)
MAP = torch.zeros(2, 5, 3, 3)


class Gives(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, images_N3HW: Tensor) -> Any:
        return self.give(images_N3HW)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "other": LOGITS + 1},
        OrderedDict(hidden=MAP, scores=LOGITS, index=torch.zeros(2, 5, dtype=torch.long)),
        (LOGITS, LOGITS + 1),
        [LOGITS, None],
        Outputs(LOGITS, LOGITS + 1),
    ],
)
def test_logits_are_found_in_what_networks_give(output: object) -> None:
    assert logits_of(output) is LOGITS
    images = torch.zeros(2, 3, 4, 4)
    network = Gives(lambda _: output)
    assert run_network(network, images, name="net", num_classes=5) is LOGITS


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"a": LOGITS, "b": LOGITS}, "dict"),
        ({}, "dict"),
        ({"logits": None, "scores": LOGITS}, "dict"),
        ({"logits": MAP}, r"\(2, 5, 3, 3\)"),
        ({"logits": LOGITS.long()}, r"torch.int64 \(2, 5\)"),
        ((MAP, LOGITS), "tuple"),
        ((), "tuple"),
        ([LOGITS.long()], "list"),
        (Outputs(None, LOGITS), "Outputs"),
        (None, "NoneType"),
        ("logits", "str"),
        ({"logits": LOGITS[:1]}, r"\(1, 5\)"),
    ],
)
def test_outputs_whose_logits_nothing_tells_are_refused(output: object, found: str) -> None:
    with pytest.raises(UsageError, match=f"net: gave {found} for 2 images, expected a tensor of"):
        run_network(Gives(lambda _: output), torch.zeros(2, 3, 4, 4), name="net", num_classes=None)


def test_the_number_of_classes_is_checked() -> None:
    with pytest.raises(UsageError, match=r"gave \(2, 5\) .* expected .* \(images, 6 classes\)"):
        run_network(
            Gives(lambda _: {"logits": LOGITS}),
            torch.zeros(2, 3, 4, 4),
            name="net",
            num_classes=6,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_keep_their_precision(dtype: torch.dtype) -> None:
    network = Gives(lambda _: {"logits": LOGITS.to(dtype)})
    found = run_network(network, torch.zeros(2, 3, 4, 4), name="net", num_classes=None)
    assert found.dtype == dtype
