"""The layers of any network, in order: a pure function of its modules."""

from collections.abc import Iterator

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers_of(network: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer, from input to output; each parameter once.

    The walk from the root opens containers, and modules that hold containers as long as it has
    passed none; what it does not open is one layer. So a residual block is one, though it holds a
    container, and so is a stem or a head. Parameters of an opened module itself, such as class
    tokens, belong to the layer that comes next. Order is that of registration.
    """
    layers: list[list[nn.Parameter]] = []
    waiting: list[nn.Parameter] = []
    seen: set[nn.Parameter] = set()
    for whole, parameters in _pieces(network, inside=False):
        fresh = [p for p in parameters if p not in seen]
        seen.update(fresh)
        waiting += fresh
        if whole and fresh:
            layers.append(waiting)
            waiting = []
    return [*layers, waiting] if waiting else layers


def _pieces(module: nn.Module, *, inside: bool) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    """Yield what an opened module holds: whole layers, and (False) parameters of its own.

    inside: a container has been passed.
    """
    yield False, list(module.parameters(recurse=False))
    inside = inside or isinstance(module, CONTAINERS)
    for child in module.children():
        if isinstance(child, CONTAINERS) or (not inside and _holds_container(child)):
            yield from _pieces(child, inside=inside)
        else:
            yield True, list(child.parameters())


def _holds_container(module: nn.Module) -> bool:
    return any(isinstance(m, CONTAINERS) and len(list(m.parameters())) for m in module.modules())
