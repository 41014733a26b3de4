"""Archives and models as a stranger might have changed them, and what plain torch does with them.

Each trick leaves a folder or a file behind, a marker, if its code ever runs.
"""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.running import run_network
from kdcache.models.source import Model

SIDE, CLASSES = 8, 5

Members = dict[str, bytes]
Change = Callable[[Members, str], None]


class Nested(nn.Module):
    """Convolution, normalisation and a layer, with a constant, autocast, and in-place steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, CLASSES)
        with torch.no_grad():
            self.norm.running_mean += torch.arange(4.0)
            self.norm.running_var += torch.arange(4.0)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        with torch.autocast(images_N3HW.device.type, enabled=False):
            shifted = images_N3HW + torch.tensor([0.5])
        maps = torch.relu_(self.norm(self.conv(shifted)))
        left, right = maps.mean(3).chunk(2, dim=2)
        with torch.no_grad():
            pooled = torch.cat([left, right], 2).amax(2)
        logits_NC: Tensor = self.linear(pooled.view(pooled.shape[0], -1))
        return logits_NC


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return Nested().eval()


def make_images(count: int, *, side: int = SIDE) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def save_program(
    network: nn.Module,
    path: Path,
    *,
    images: Tensor | None = None,
    fixed: bool = False,
    **more: Any,
) -> Path:
    """Export a network as .pt2; of any number of images unless it is fixed."""
    images = make_images(4) if images is None else images
    shapes = None if fixed else ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(network, (images,), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, path, **more)
    return path


# --- what a reader makes of a file ---------------------------------------------------------


def logits_of(model: Model, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return run_network(model.network, images, name=model.name, num_classes=None)


def refusal_of(opens: Callable[[Path], Model], path: Path) -> str:
    """Return the one sentence with which a file is refused."""
    with pytest.raises(UsageError) as caught:
        opens(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    return text


# --- archives ------------------------------------------------------------------------------


def read_members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write_members(path: Path, members: Mapping[str, bytes], *, root: str = "root") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def change_json(members: Members, name: str, change: Callable[[Any], None]) -> None:
    document = json.loads(members[name])
    change(document)
    members[name] = json.dumps(document).encode()


# --- tricks --------------------------------------------------------------------------------

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def pickled(marker: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(marker), buffer)
    return buffer.getvalue()


def _sample_inputs(members: Members, marker: str) -> None:
    members["data/sample_inputs/model.pt"] = pickled(marker)


def _weight(members: Members, marker: str) -> None:
    def change(config: Any) -> None:
        config["config"]["conv.weight"]["use_pickle"] = True
        members["data/weights/" + config["config"]["conv.weight"]["path_name"]] = pickled(marker)

    change_json(members, WEIGHTS, change)


def _constant(members: Members, marker: str) -> None:
    def change(config: Any) -> None:
        (payload,) = config["config"].values()
        payload["use_pickle"] = True
        members["data/constants/" + payload["path_name"]] = pickled(marker)

    change_json(members, CONSTANTS, change)


def _opaque(members: Members, marker: str) -> None:
    def change(config: Any) -> None:
        config["config"]["more"] = {
            "path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
        }  # fmt: skip
        members["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(marker))

    change_json(members, CONSTANTS, change)


def _legacy_weights(members: Members, marker: str) -> None:
    members["data/weights/model.pt"] = pickled(marker)


def _legacy_constants(members: Members, marker: str) -> None:
    members["data/constants/model.pt"] = pickled(marker)


def _code(marker: str) -> str:
    return f"__import__('os').mkdir({marker!r})"


def _graph(members: Members, change: Callable[[Any], None]) -> None:
    change_json(members, MODEL, lambda document: change(document["graph_module"]["graph"]))


def _expression(members: Members, marker: str) -> None:
    def change(graph: Any) -> None:
        graph["tensor_values"]["linear"]["sizes"][0]["as_expr"]["expr_str"] = _code(marker)

    _graph(members, change)


def _images_expression(members: Members, marker: str) -> None:
    def change(graph: Any) -> None:
        name = graph["inputs"][-1]["as_tensor"]["name"]
        graph["tensor_values"][name]["sizes"][0]["as_expr"]["expr_str"] = _code(marker)

    _graph(members, change)


def _step(target: str, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    named = [{"name": name, "arg": argument, "kind": 1} for name, argument in inputs]
    return {
        "target": target, "inputs": named, "outputs": outputs, "metadata": {}, "name": "planted",
        "is_hop_single_tensor_return": None,
    }  # fmt: skip


def _operator(members: Members, marker: str) -> None:
    """A name that getattr walks from torch to the os module; torch's verifier finds it."""
    step = _step("torch.hub.os.mkdir", [("", {"as_string": marker})], [{"as_none": True}])
    _graph(members, lambda graph: graph["nodes"].insert(0, step))


def _importing_operator(members: Members, marker: str) -> None:
    """A function of torch's own that imports the module that it is told."""
    _write_module(marker)
    target = "torch.export.custom_ops._call_custom_autograd_function_in_pre_dispatch"
    name = {"as_string": f"{Path(marker).name}.Kind"}
    step = _step(target, [("", name)], [{"as_none": True}])
    _graph(members, lambda graph: graph["nodes"].insert(0, step))


def _writing_operator(members: Members, marker: str) -> None:
    """An operator of aten that makes a file."""
    given = [
        ("filename", {"as_string": marker}),
        ("shared", {"as_bool": True}),
        ("size", {"as_int": 4}),
    ]
    step = _step("torch.ops.aten.from_file.default", given, [{"as_tensor": {"name": "planted"}}])

    def change(graph: Any) -> None:
        shape = {"sizes": [{"as_int": 4}], "strides": [{"as_int": 1}]}
        graph["tensor_values"]["planted"] = {**graph["tensor_values"]["linear"], **shape}
        graph["nodes"].insert(0, step)

    _graph(members, change)


def _guard(members: Members, marker: str) -> None:
    def change(document: Any) -> None:
        document["guards_code"] = [_code(marker)]

    change_json(members, MODEL, change)


def _input_name(members: Members, marker: str) -> None:
    """A name that torch writes into the source text of a function."""
    document = json.loads(members[MODEL])
    name = document["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
    text = json.dumps(document)
    planted = json.dumps(f"{name} = {_code(marker)}")
    members[MODEL] = text.replace(json.dumps(name), planted).encode()


def _tree(members: Members, in_spec: str) -> None:
    def change(document: Any) -> None:
        for entry in document["graph_module"]["module_call_graph"]:
            if entry["signature"] is not None:
                entry["signature"]["out_spec"] = in_spec

    change_json(members, MODEL, change)


def _defaultdict(members: Members, marker: str) -> None:
    """A tree of values that names the module and the function of its defaults."""
    _write_module(marker)
    context = {
        "default_factory_module": Path(marker).name,
        "default_factory_name": "list",
        "dict_context": ["a"],
    }
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
    _tree(members, json.dumps([1, spec]))


def _enumeration(members: Members, marker: str) -> None:
    """A key of a dictionary that says of which module's enumeration it is."""
    _write_module(marker)
    key = {"__enum__": True, "fqn": f"{Path(marker).name}:Kind", "name": "ONE"}
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": [leaf]}
    _tree(members, json.dumps([1, spec]))


def _write_module(marker: str) -> None:
    """Write a module of the marker's name beside the archives; importing it leaves the marker."""
    path = Path(marker)
    (path.parent.parent / f"{path.name}.py").write_text(f"import os\nos.mkdir({marker!r})\n")


def _library(members: Members, marker: str) -> None:
    members["data/aotinductor/model/planted.so"] = b"\x7fELF" + marker.encode()
    members["data/aotinductor/model/planted.cpp"] = b"int main() { return 0; }"


def _python(members: Members, marker: str) -> None:
    members["code/planted.py"] = f"import os\nos.mkdir({marker!r})\n".encode()
    members["extra/planted.pkl"] = pickled(marker)


@dataclass(frozen=True)
class Trick:
    """A change; live: whether plain torch runs its code; opens: whether kdcache takes the rest."""

    change: Change
    live: bool
    opens: bool


TRICKS = {
    "sample inputs": Trick(_sample_inputs, live=True, opens=True),
    "weight": Trick(_weight, live=True, opens=False),
    "constant": Trick(_constant, live=True, opens=False),
    "opaque object": Trick(_opaque, live=True, opens=True),
    "weights of the older layout": Trick(_legacy_weights, live=True, opens=False),
    "constants of the older layout": Trick(_legacy_constants, live=True, opens=False),
    "expression": Trick(_expression, live=True, opens=True),
    "expression of the images": Trick(_images_expression, live=True, opens=False),
    "operator": Trick(_operator, live=False, opens=False),
    "operator that imports": Trick(_importing_operator, live=True, opens=False),
    "operator that makes a file": Trick(_writing_operator, live=True, opens=False),
    "guard": Trick(_guard, live=True, opens=True),
    "name of an input": Trick(_input_name, live=True, opens=True),
    "tree of defaults": Trick(_defaultdict, live=True, opens=True),
    "tree of an enumeration": Trick(_enumeration, live=True, opens=True),
    "compiled library": Trick(_library, live=False, opens=True),
    "python files": Trick(_python, live=False, opens=True),
}


def plant(folder: Path, honest: Path) -> dict[str, tuple[Path, Path]]:
    """Return, for each trick, an archive with it and the marker that its code would leave."""
    (folder / "markers").mkdir()
    found = {}
    for number, (name, trick) in enumerate(TRICKS.items()):
        marker, members = folder / "markers" / f"planted{number}", read_members(honest)
        trick.change(members, str(marker))
        found[name] = write_members(folder / f"{number}.pt2", members), marker
    return found


_PLAIN = """
import sys, torch
for path in sys.argv[1:]:
    try:
        torch.export.load(path).module()(torch.zeros(2, 3, 8, 8))
    except BaseException as error:
        print(path, repr(error)[:300])
"""


def load_plainly(paths: list[Path], folder: Path) -> str:
    """Let torch load and run files in a process of its own; return what it says of failures."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PLAIN, *map(str, paths)],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def flips(data: bytes, *, step: int) -> Iterator[tuple[int, bytes]]:
    """Yield copies of data with one bit changed, each `step` bytes."""
    for place in range(0, len(data), step):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        yield place, bytes(changed)
