"""Shampoo in blocks with grafting, of the package pytorch-optimizer: the extra `optim`.

Anil et al. 2020, arXiv:2002.09018. The package's plain Shampoo decomposes matrices as wide as a
layer at every step, and its momentum mixes gradients of two scales; so this is ScalableShampoo.

Departures from the package: its state holds objects, which torch.load refuses with weights_only, so
that it is saved as tensors; and it draws random vectors from the global generator, which would make
processes differ, so that each step draws the same.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import ScalableShampoo
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting
from torch import Tensor
from torch.optim.optimizer import ParamsT

EVERY = 20  # steps between inverse roots: dear, so that their cost is spread
BETAS = (0.9, 0.99)
_OBJECTS = ("pre_conditioner", "graft")
_TENSORS = ("statistics", "pre_conditioners", "momentum")


class Shampoo(ScalableShampoo):
    """Shampoo whose updates have the size of RMSProp's, and which takes those until step 20.

    So its learning rate is of the order of AdamW's; weight decay is AdamW's. RMSProp lacks Adam's
    bias correction, so that the first steps are larger: warm up.
    """

    def __init__(self, params: ParamsT, *, lr: float) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=BETAS,
            moving_average_for_momentum=True,
            decoupled_weight_decay=True,
            start_preconditioning_step=EVERY,
            preconditioning_compute_steps=EVERY,
            graft_type=LayerWiseGrafting.RMSPROP,
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; its random numbers are always the same, generators are left as found."""
        device = self.param_groups[0]["params"][0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(0)
            if device.type == "cuda":
                torch.cuda.default_generators[device.index].manual_seed(0)
            return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors."""
        state = super().state_dict()
        tensors = {index: _to_tensors(values) for index, values in state["state"].items()}
        return state | {"state": tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what state_dict returned."""
        super().load_state_dict(state_dict)
        loaded, self.state = self.state, defaultdict(dict)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in loaded:
                    self.state[parameter] = self._to_objects(
                        loaded[parameter], parameter, group=group
                    )

    def _to_objects(
        self, values: dict[str, Any], parameter: Tensor, *, group: dict[str, Any]
    ) -> dict[str, Any]:
        """Return a parameter's state with the objects that the package makes for its like."""
        like = torch.zeros_like(parameter)
        like.grad = like.clone()
        self.init_group({**group, "params": [like]})
        objects = self.state.pop(like)
        for name in _OBJECTS:
            vars(objects[name]).update(values[name])
        return values | {name: objects[name] for name in _OBJECTS}


def _to_tensors(values: dict[str, Any]) -> dict[str, Any]:
    objects = {name: vars(values[name]) for name in _OBJECTS}
    return values | {
        name: {key: fields[key] for key in _TENSORS if key in fields}
        for name, fields in objects.items()
    }
