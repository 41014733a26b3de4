"""Muon for the hidden weights of image networks: torch's own, on convolutions too.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/: weights of convolutions are matrices
(outputs, everything else); the classifier, embeddings and vectors are left to AdamW. Updates are
scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that its learning rate and
weight decay serve.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class Muon(Optimizer):
    """torch.optim.Muon on weights of two and more dimensions, flattened from the second on."""

    def __init__(self, params: ParamsT, *, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(  # type: ignore[override] # torch declares overloads
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Take a step; return what the closure returns."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            weights = {p: nn.Parameter(p.flatten(1).clone()) for p in trained}
            if not weights:
                continue
            inner = torch.optim.Muon(
                weights.values(),
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                adjust_lr_fn="match_rms_adamw",
            )
            for weight, matrix in weights.items():
                matrix.grad = weight.grad.flatten(1)
                inner.state[matrix] = self.state[weight]  # one dictionary, which the step changes
            inner.step()  # type: ignore[no-untyped-call] # torch leaves it untyped
            for weight, matrix in weights.items():
                weight.copy_(matrix.view_as(weight))  # keeps its memory format
        return loss


def hidden_weights(network: nn.Module) -> set[nn.Parameter]:
    """Return what Muon is for: all weights of two and more dimensions but tables and the last.

    A weight is what is named so, as in torch's modules; a class token, a position embedding or a
    scale is none. Tables: embeddings. The last weight is the classifier's.
    """
    tables = {
        module.weight
        for module in network.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    weights = [
        parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1 and "weight" in name.rpartition(".")[2] and parameter not in tables
    ]
    return set(weights[:-1])
