"""A program read from a document, as steps that this module runs itself.

Invariant: no source text is generated or evaluated; a step is an operator that operators.py lists,
the names of values, and literals. Device arguments are the device of the images, so a
program runs where its weights are.

Departure from torch.export: `view` runs as `reshape`, which is the same where a view exists, and
else takes the copy that a program traced on contiguous images needs on channels-last ones; not so
in graphs that write through a view.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from kdcache.errors import UsageError
from kdcache.models.graph_document import Argument, Graph, Node
from kdcache.models.operators import CHECKS, SCALARS, find_aten, normalise

T = TypeVar("T")

_DEEPEST = 8  # graphs within graphs
_AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"
_GRAD = "torch.ops.higher_order.wrap_with_set_grad_enabled"

DTYPES = {  # torch's ScalarType
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED = 7
_CHECKED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten._native_batch_norm_legit_no_training.default: normalise
}
_RESHAPED: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}


@dataclass(frozen=True)
class Value:
    """The value of a name, looked up when a step runs."""

    name: str


@dataclass(frozen=True)
class Here:
    """The device of the images."""


@dataclass(frozen=True)
class Step:
    """A call, and the names of what it gives; None for what nothing needs.

    many: whether the result is a sequence, of which each output has a part.
    done: values that no later step needs.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: tuple[str | tuple[str, ...] | None, ...]
    many: bool
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Steps in their order; inputs are None where the program takes a constant."""

    inputs: tuple[str | None, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]


# --- running -------------------------------------------------------------------------------


def run_plan(plan: Plan, inputs: Sequence[Tensor | None], device: torch.device) -> list[Any]:
    """Return the outputs of a plan; whatever torch raises passes through."""
    values: dict[str, Any] = {
        name: value for name, value in zip(plan.inputs, inputs, strict=True) if name is not None
    }
    for step in plan.steps:
        args = [_look_up(arg, values, device) for arg in step.args]
        kwargs = {name: _look_up(arg, values, device) for name, arg in step.kwargs}
        result = step.call(*args, **kwargs)
        for output, part in zip(step.outputs, result if step.many else (result,), strict=True):
            if isinstance(output, tuple):
                values.update(zip(output, part, strict=True))
            elif output is not None:
                values[output] = part
        for name in step.done:
            del values[name]
    return [_look_up(output, values, device) for output in plan.outputs]


def _look_up(arg: Any, values: dict[str, Any], device: torch.device) -> Any:
    if isinstance(arg, Value):
        return values[arg.name]
    if isinstance(arg, list):
        return [_look_up(item, values, device) for item in arg]
    return device if isinstance(arg, Here) else arg


def _run_with_grad(plan: Plan, device: torch.device, enabled: bool, *inputs: Tensor) -> list[Any]:
    with torch.set_grad_enabled(enabled and torch.is_grad_enabled()):
        return run_plan(plan, inputs, device)


def _run_with_autocast(
    plan: Plan, device: torch.device, dtype: torch.dtype, enabled: bool, *inputs: Tensor
) -> list[Any]:
    with torch.autocast(device.type, dtype=dtype, enabled=enabled):
        return run_plan(plan, inputs, device)


# --- reading -------------------------------------------------------------------------------


def make_plan(graph: Graph, depth: int = 0) -> Plan:
    """Return the steps of a graph.

    Raises:
        UsageError: it names an operator or a value that is not there, or would change its inputs.
    """
    if depth > _DEEPEST:
        raise UsageError(f"has graphs in graphs, more than {_DEEPEST} deep")
    inputs = tuple(_input_name(argument) for argument in graph.inputs)
    names = {name for name in inputs if name is not None}
    if len(names) != sum(name is not None for name in inputs):
        raise UsageError("has two inputs of one name")
    aliases, steps = _Aliases(set(names)), []
    for node in graph.nodes:
        if node.target in CHECKS:
            continue
        step = _make_step(node, depth)
        for name in _names((step.args, step.kwargs)):
            if name not in names:
                raise UsageError(f"{node.target[:60]!r} needs {name[:60]!r}, which nothing gives")
        _follow(step, node, aliases)
        for name in _flat(step.outputs):
            if name in names:
                raise UsageError(f"gives two values the name {name[:60]!r}")
            names.add(name)
        steps.append(step)
    outputs = tuple(_read(argument) for argument in graph.outputs)
    for name in _names(outputs):
        if name not in names:
            raise UsageError(f"gives {name[:60]!r}, which no step makes")
    others = _CHECKED if aliases.view_written else _CHECKED | _RESHAPED
    steps = [replace(step, call=others.get(step.call, step.call)) for step in steps]
    return Plan(inputs, tuple(_forget(steps, set(_names(outputs)))), outputs)


def _input_name(argument: Argument) -> str | None:
    if argument.kind == "as_tensor":
        return str(argument.value.name)
    if argument.kind == "as_sym_int" and argument.value.kind == "as_name":
        return str(argument.value.value)
    if argument.kind in ("as_int", "as_float", "as_bool", "as_none", "as_string"):
        return None
    raise UsageError(f"has an input of the kind {argument.kind}; kdcache gives it images alone")


def _make_step(node: Node, depth: int) -> Step:
    outputs = tuple(map(_output_names, node.outputs))
    if node.target in (_AUTOCAST, _GRAD):
        return _nested(node, outputs, depth)
    if (scalar := SCALARS.get(node.target)) is not None:
        args = tuple(_read(given.arg) for given in node.inputs)
        return Step(scalar, args, (), outputs, many=False)
    operator = find_aten(node.target)
    given = {named.name: _read(named.arg) for named in node.inputs}
    call: Callable[..., Any] = operator
    if _standardises(operator, given):
        call = _norm_of_one
    elif given.get("train") is True or given.get("training") is True:
        raise UsageError(
            f"runs {node.target!r} as in training, so equal images would get other logits; call "
            "network.eval() before torch.export"
        )
    args, kwargs = _by_schema(operator, given)
    if len(outputs) != (expected := len(operator._schema.returns)):
        raise UsageError(f"{node.target!r} has {len(outputs)} outputs, expected {expected}")
    return Step(call, args, kwargs, outputs or (None,), many=expected > 1)


def _standardises(operator: "OpOverload[..., Any]", given: dict[str, Any]) -> bool:
    """Return whether a step is batch norm without running statistics, as of weights."""
    kept = (given.get("running_mean"), given.get("running_var"))
    return operator is torch.ops.aten.batch_norm.default and kept == (None, None)


def _norm_of_one(*args: Any, **kwargs: Any) -> Tensor:
    """Return the batch norm of a batch of one, such as weights that a network standardises."""
    if len(args[0]) != 1:
        raise ValueError(
            "normalises by the statistics of a batch, so equal images would get other logits; call "
            "network.eval() before torch.export"
        )
    normalised: Tensor = torch.ops.aten.batch_norm.default(*args, **kwargs)
    return normalised


def _by_schema(
    operator: "OpOverload[..., Any]", given: dict[str, Any]
) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    """Return arguments by position as far as none is left out, and the others by name."""
    args: list[Any] = []
    kwargs: list[tuple[str, Any]] = []
    gap = False
    for expected in operator._schema.arguments:
        if expected.name not in given:
            gap = True
        elif gap or expected.kwarg_only:
            kwargs.append((expected.name, given.pop(expected.name)))
        else:
            args.append(given.pop(expected.name))
    if given:
        raise UsageError(f"{operator} has no argument {next(iter(given))[:60]!r}")
    return tuple(args), tuple(kwargs)


def _nested(node: Node, outputs: tuple[str | tuple[str, ...] | None, ...], depth: int) -> Step:
    """Return a step that runs a graph within a graph, under autocast or without gradients."""
    count = 4 if node.target == _AUTOCAST else 1
    settings, rest = node.inputs[:count], node.inputs[count + 1 :]
    graph = node.inputs[count].arg if len(node.inputs) > count else Argument(as_none=True)
    if graph.kind != "as_graph" or len(graph.value.graph.outputs) != len(outputs):
        raise UsageError(f"{node.target!r} is not given as torch.export gives it")
    plan = make_plan(graph.value.graph, depth + 1)
    given = tuple(_read(named.arg) for named in rest)
    call: Callable[..., Any]
    if node.target == _AUTOCAST:
        _, dtype, enabled, _ = (_read(named.arg) for named in settings)
        call, args = _run_with_autocast, (Here(), dtype, enabled, *given)
    else:
        call, args = _run_with_grad, (Here(), _read(settings[0].arg), *given)
    if len(rest) != len(plan.inputs):
        raise UsageError(f"{node.target!r} gives {len(rest)} values to {len(plan.inputs)} inputs")
    return Step(partial(call, plan), args, (), outputs, many=True)


def _output_names(argument: Argument) -> str | tuple[str, ...] | None:
    if argument.kind == "as_none":
        return None
    if argument.kind == "as_tensors":
        return tuple(named.name for named in argument.value)
    name = _read(argument)
    if not isinstance(name, Value):
        raise UsageError(f"has a step that gives {argument.kind}, expected the name of a value")
    return name.name


def _read(argument: Any) -> Any:
    """Return a literal, a Value, Here, or a list of these."""
    kind, value = argument.kind, argument.value
    if kind in ("as_tensor", "as_name"):
        return Value(value if kind == "as_name" else value.name)
    if kind == "as_tensors":
        return [Value(named.name) for named in value]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return _read(value)
    if kind in ("as_sym_ints", "as_sym_floats", "as_optional_tensors"):
        return [_read(item) for item in value]
    if kind == "as_scalar_type":
        return _known(DTYPES, value, "dtype")
    if kind == "as_memory_format":
        return _known(_FORMATS, value, "memory format")
    if kind == "as_layout":
        return _known({_STRIDED: torch.strided}, value, "layout")
    if kind == "as_device":
        return Here()
    if kind == "as_float":
        return float(value)
    if kind == "as_floats":
        return [float(number) for number in value]
    if kind == "as_graph":
        raise UsageError("gives a graph to an operator that takes none")
    return None if kind == "as_none" else value


def _known(table: dict[int, T], number: int, what: str) -> T:
    if number not in table:
        raise UsageError(f"has a {what} of number {number}, kdcache knows {sorted(table)}")
    return table[number]


# --- what values become --------------------------------------------------------------------


@dataclass
class _Aliases:
    """Names of values that share memory with a graph's inputs, or with what a view gave."""

    frozen: set[str]
    views: set[str] = field(default_factory=set)
    view_written: bool = False


def _follow(step: Step, node: Node, aliases: _Aliases) -> None:
    """Add the outputs of a step to the aliases.

    Raises:
        UsageError: the step would write to the graph's inputs.
    """
    if not isinstance(step.call, OpOverload):
        return
    schema = step.call._schema
    given = dict(zip((argument.name for argument in schema.arguments), step.args, strict=False))
    given.update(step.kwargs)
    shares = any(returned.alias_info is not None for returned in schema.returns)
    for argument in schema.arguments:
        if argument.alias_info is None or argument.name not in given:
            continue
        names = set(_names(given[argument.name]))
        if argument.alias_info.is_write and names & aliases.frozen:
            raise UsageError(
                f"{node.target[:60]!r} changes weights or images in place; export the network in "
                "evaluation mode, without in-place operators on its input"
            )
        if argument.alias_info.is_write and names & aliases.views:
            aliases.view_written = True
        if shares and names & aliases.frozen:
            aliases.frozen.update(_flat(step.outputs))
        if shares and (names & aliases.views or step.call in _RESHAPED):
            aliases.views.update(_flat(step.outputs))


def _forget(steps: list[Step], needed: set[str]) -> Iterator[Step]:
    """Yield the steps in order, each with the values that are of no use after it."""
    found = []
    for step in reversed(steps):
        mentioned = {*_names((step.args, step.kwargs)), *_flat(step.outputs)}
        found.append(replace(step, done=tuple(sorted(mentioned - needed))))
        needed |= mentioned
    return reversed(found)


def _names(arg: Any) -> Iterator[str]:
    """Yield the names of the values in arguments."""
    if isinstance(arg, Value):
        yield arg.name
    elif isinstance(arg, list | tuple):
        for item in arg:
            yield from _names(item)


def _flat(outputs: tuple[str | tuple[str, ...] | None, ...]) -> Iterator[str]:
    for output in outputs:
        if isinstance(output, tuple):
            yield from output
        elif output is not None:
            yield output
