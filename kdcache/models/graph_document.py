"""The JSON of a torch.export program, as records that hold names and numbers alone.

Invariant: what is not declared here is not read. So node metadata, guards, verifiers, pytree specs,
hints and symbolic expressions, all of which torch's own reader resolves by import, `getattr` or
`eval`, never leave the file.

Source: torch/_export/serde/schema.py, schema 8; unions have one key, the name of what they hold.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdcache.errors import UsageError

SCHEMA = 8  # the major version, of torch 2.5 and newer

Key = Annotated[str, Field(min_length=1, max_length=1000)]
Text = Annotated[str, Field(max_length=1000)]
File = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}$")]
R = TypeVar("R", bound=BaseModel)

Real = float | Literal["Infinity", "-Infinity", "NaN"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class _Union(_Record):
    """A record that has exactly one field."""

    model_config = ConfigDict(extra="forbid")
    refused: ClassVar[str] = "kdcache reads programs of tensors and numbers alone"

    @model_validator(mode="before")
    @classmethod
    def _one_known_key(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError("expected an object of one key")
        if (key := next(iter(value))) not in cls.model_fields:
            raise ValueError(f"holds {key[:40]!r}; {cls.refused}")
        return value

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        return getattr(self, self.kind)


class Expression(_Record):
    expr_str: Text


class Extent(_Union):
    as_int: Annotated[int, Field(ge=-(2**62), le=2**62)] | None = None
    as_expr: Expression | None = None


class TensorMeta(_Record):
    """Shape and dtype of a tensor; dtype and layout are numbers of torch's enumerations."""

    dtype: int
    sizes: list[Extent]
    strides: list[Extent]
    storage_offset: Extent
    layout: int


class Named(_Record):
    name: Key


class SymbolicInt(_Union):
    as_name: Key | None = None
    as_int: int | None = None


class SymbolicFloat(_Union):
    as_name: Key | None = None
    as_float: Real | None = None


class SymbolicBool(_Union):
    as_name: Key | None = None
    as_bool: bool | None = None


class OptionalTensor(_Union):
    as_tensor: Named | None = None
    as_none: bool | None = None


class Device(_Record):
    type: Text


class GraphArgument(_Record):
    graph: "Graph"


class Argument(_Union):
    refused = "kdcache runs neither objects with code nor operators that are passed as values"

    as_none: bool | None = None
    as_tensor: Named | None = None
    as_tensors: list[Named] | None = None
    as_int: int | None = None
    as_ints: list[int] | None = None
    as_float: Real | None = None
    as_floats: list[Real] | None = None
    as_string: Text | None = None
    as_sym_int: SymbolicInt | None = None
    as_sym_ints: list[SymbolicInt] | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: Device | None = None
    as_bool: bool | None = None
    as_bools: list[bool] | None = None
    as_sym_bool: SymbolicBool | None = None
    as_sym_float: SymbolicFloat | None = None
    as_sym_floats: list[SymbolicFloat] | None = None
    as_optional_tensor: OptionalTensor | None = None
    as_optional_tensors: list[OptionalTensor] | None = None
    as_graph: GraphArgument | None = None


class NamedArgument(_Record):
    name: Text
    arg: Argument


class Node(_Record):
    target: Key
    inputs: list[NamedArgument]
    outputs: list[Argument]


class Graph(_Record):
    inputs: list[Argument]
    outputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]


class UserInput(_Record):
    arg: Argument


class Parameter(_Record):
    parameter_name: Key


class Buffer(_Record):
    buffer_name: Key


class TensorConstant(_Record):
    tensor_constant_name: Key


class ConstantInput(_Record):
    name: Text


class InputSpec(_Union):
    refused = "kdcache reads no objects with code of their own"

    user_input: UserInput | None = None
    parameter: Parameter | None = None
    buffer: Buffer | None = None
    tensor_constant: TensorConstant | None = None
    constant_input: ConstantInput | None = None


class OutputSpec(_Union):
    refused = "the program changes its weights or its input; export the network in evaluation mode"

    user_output: UserInput | None = None


class Signature(_Record):
    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class GraphModule(_Record):
    graph: Graph
    signature: Signature


class Range(_Record):
    min_val: int | None
    max_val: int | None


class Version(_Record):
    major: int


class Document(_Record):
    """A program: its graph, its signature, and what its symbolic sizes may be."""

    graph_module: GraphModule
    range_constraints: dict[str, Range]
    schema_version: Version

    @model_validator(mode="after")
    def _known_version(self) -> Self:
        if self.schema_version.major != SCHEMA:
            raise ValueError(
                f"is of schema {self.schema_version.major}, kdcache reads {SCHEMA}; save the "
                "program again with torch 2.11 or newer"
            )
        return self


class Payload(_Record):
    """Where a tensor's numbers stand in the archive."""

    path_name: File
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None


class Payloads(_Record):
    config: dict[str, Payload]


def read_record(kind: type[R], data: bytes, *, name: str) -> R:
    """Return the record in JSON. name: of its file, for messages.

    Raises:
        UsageError: it is no JSON, is nested too deep, or holds something else.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ascii(".".join(map(str, first["loc"])))[1:200].rstrip("'")
        problem = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{name}{': ' if where else ''}{where}: {problem}") from None
    except RecursionError:
        raise UsageError(f"{name}: is nested too deep") from None
