"""Claims about torch programs as teachers: the same logits, and nothing in a file runs."""

import json
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.from_pt2 import open_pt2
from kdcache.models.operators import ATEN, SCALARS, find_aten, normalise
from kdcache.models.running import run_network
from kdcache.models.source import Inputs, Model
from kdcache.models.teacher import Preprocessing, weights_digest
from kdcache.student.export import export_student
from kdcache.student.trained import Trained
from tests.models.planting import (
    CLASSES,
    CONSTANTS,
    MODEL,
    SIDE,
    TRICKS,
    WEIGHTS,
    change_json,
    flips,
    load_plainly,
    logits_of,
    make_images,
    make_network,
    plant,
    read_members,
    refusal_of,
    save_program,
    write_members,
)
from tests.student import nets


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_program(make_network(), tmp_path_factory.mktemp("honest") / "net.pt2")


def refusal(path: Path) -> str:
    return refusal_of(open_pt2, path)


# --- the same logits -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_program_gives_the_networks_logits_bit_for_bit(honest: Path, count: int) -> None:
    model, images = open_pt2(honest), make_images(count)
    expected = logits_of(Model(make_network(), "", True), images)
    assert torch.equal(logits_of(model, images), expected)
    assert torch.equal(logits_of(open_pt2(honest), images), expected)
    assert not model.network.training
    assert not model.network.train().training
    assert (model.name, model.trained, model.takes) == ("pt2:net.pt2", True, "images")
    assert model.inputs == Inputs(size=SIDE)
    assert (model.classes, model.licence) == (None, None)


def test_a_program_takes_the_place_of_a_teachers_network(honest: Path) -> None:
    """As load_teacher moves it: channels last, no gradients, lower precision."""
    model, images = open_pt2(honest), make_images(4)
    expected = logits_of(Model(make_network(), "", True), images)
    model.network.eval().requires_grad_(False)
    model.network.to("cpu").to(memory_format=torch.channels_last)
    found = logits_of(model, images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(logits_of(model, images).float(), expected, rtol=0.05, atol=0.05)
    half = model.network.to(torch.float64)
    assert half.weights.conv.weight.dtype == torch.float64


def test_a_compiled_program_gives_the_same_logits(honest: Path) -> None:
    model, images = open_pt2(honest), make_images(4)
    compiled = torch.compile(model.network, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(images), logits_of(model, images))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision_come_back(tmp_path: Path, name: str) -> None:
    from torchvision.models import get_model

    torch.manual_seed(1)
    network = get_model(name, weights=None, num_classes=CLASSES).eval()
    images = make_images(3, side=64)
    model = open_pt2(save_program(network, tmp_path / "net.pt2", images=images))
    assert torch.equal(logits_of(model, images), logits_of(Model(network, "", True), images))
    assert weights_digest(model.network) == weights_digest(nn.ModuleDict({"weights": network}))


@pytest.mark.parametrize("pixels", [True, False], ids=["pixels", "images"])
def test_exported_students_are_teachers(tmp_path: Path, pixels: bool) -> None:
    prepare = Preprocessing((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
    network = nets.contrast(CLASSES).eval().requires_grad_(False)
    student = Trained(network, "own:net", None, CLASSES, 24, prepare)
    export_student(student, tmp_path / "student.pt2", pixels=pixels)
    model = open_pt2(tmp_path / "student.pt2")
    assert model.takes == ("pixels" if pixels else "images")
    assert model.inputs == Inputs(size=24, mean=prepare.mean, std=prepare.std)
    raw = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8)
    expected = logits_of(Model(network, "", True), prepare(raw))
    found = logits_of(model, raw if pixels else prepare(raw))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"takes torch\.\w+, was given torch\.\w+"):
        logits_of(model, prepare(raw) if pixels else raw)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_program_of_a_fixed_number_of_images_takes_any(tmp_path: Path, count: int) -> None:
    path = save_program(make_network(), tmp_path / "net.pt2", fixed=True)
    expected = logits_of(Model(make_network(), "", True), make_images(count))
    found = logits_of(open_pt2(path), make_images(count))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_program_of_few_images_is_asked_in_parts(tmp_path: Path) -> None:
    network = make_network()
    dim = torch.export.Dim("batch", min=2, max=3)
    program = torch.export.export(
        network, (make_images(2),), dynamic_shapes=({0: dim},), strict=False
    )
    torch.export.save(program, tmp_path / "net.pt2")
    seen: list[int] = []
    model = open_pt2(tmp_path / "net.pt2")
    run = model.network._run
    model.network._run = lambda images: (seen.append(len(images)), run(images))[1]
    expected = logits_of(Model(network, "", True), make_images(7))
    torch.testing.assert_close(logits_of(model, make_images(7)), expected, rtol=1e-5, atol=1e-6)
    assert seen == [3, 3, 2]


def test_a_program_of_any_side_says_no_size(tmp_path: Path) -> None:
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        make_network(),
        (make_images(2),),
        dynamic_shapes=({0: free, 2: free, 3: free},),
        strict=False,
    )
    torch.export.save(program, tmp_path / "net.pt2")
    model = open_pt2(tmp_path / "net.pt2")
    assert model.inputs.size is None
    images = make_images(3, side=12)
    expected = logits_of(Model(make_network(), "", True), images)
    torch.testing.assert_close(logits_of(model, images), expected)


class Elsewhere(nn.Module):
    """Makes a tensor on the device of its images, which export writes down."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        more = torch.arange(3, device=images_N3HW.device, dtype=torch.float32)
        return images_N3HW.mean((2, 3)) + more.to(images_N3HW.device)


def test_a_program_runs_where_its_images_are(tmp_path: Path) -> None:
    model = open_pt2(save_program(Elsewhere(), tmp_path / "net.pt2"))
    assert model.network(make_images(2).to("meta")).device.type == "meta"


def test_a_program_that_was_decomposed_gives_the_same_logits(tmp_path: Path) -> None:
    program = torch.export.export(
        make_network(),
        (make_images(4),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        strict=False,
    ).run_decompositions()
    torch.export.save(program, tmp_path / "net.pt2")
    model, images = open_pt2(tmp_path / "net.pt2"), make_images(3)
    expected = logits_of(Model(make_network(), "", True), images)
    torch.testing.assert_close(logits_of(model, images), expected, rtol=1e-5, atol=1e-6)


def test_statistics_that_are_too_short_are_not_read_past_their_end(tmp_path: Path) -> None:
    maps, short, right = torch.ones(2, 4, 3, 3), torch.ones(2), torch.ones(4)
    with pytest.raises(RuntimeError, match="should contain 4 elements"):
        normalise(maps, right, right, short, right, 0.1, 1e-5)
    kernel = torch.ops.aten._native_batch_norm_legit_no_training.default
    found = normalise(maps, right, right, right, right, 0.1, 1e-5)
    expected = kernel(maps, right, right, right, right, 0.1, 1e-5)
    assert all(map(torch.equal, found, expected))


class Drifting(nn.Module):
    """Writes through a view of what it then reads."""

    def forward(self, images_N3HW: Tensor) -> Tensor:
        copy = images_N3HW * 1.0
        copy.view(copy.shape[0], -1).mul_(2)
        return copy.mean((2, 3))


def test_what_is_written_through_a_view_is_seen(tmp_path: Path) -> None:
    model = open_pt2(save_program(Drifting(), tmp_path / "net.pt2"))
    images = make_images(4)
    torch.testing.assert_close(logits_of(model, images), 2 * images.mean((2, 3)))
    last = images.contiguous(memory_format=torch.channels_last)
    with pytest.raises(UsageError, match="view"):  # as the network itself does, and not otherwise
        logits_of(model, last)


# --- fingerprints --------------------------------------------------------------------------


def test_equal_programs_have_one_fingerprint(honest: Path, tmp_path: Path) -> None:
    again = open_pt2(save_program(make_network(), tmp_path / "other.pt2"))
    first = open_pt2(honest)
    assert first.graph == again.graph
    assert re.fullmatch("[0-9a-f]{64}", str(first.graph))
    assert weights_digest(first.network) == weights_digest(again.network)


def test_every_number_that_decides_logits_is_in_the_fingerprint(
    honest: Path, tmp_path: Path
) -> None:
    first, members = open_pt2(honest), read_members(honest)
    tensors = [name for name in members if re.search(r"/(weight|tensor)_\d+$", name)]
    assert len(tensors) == 10  # with the constant, and what the normalisation counts
    for name in tensors:
        changed = bytearray(members[name])
        changed[-1] ^= 1
        other = open_pt2(write_members(tmp_path / "net.pt2", {**members, name: bytes(changed)}))
        assert weights_digest(other.network) != weights_digest(first.network), name
        assert other.graph == first.graph
    text = members[MODEL].replace(b'"as_float": 1e-05', b'"as_float": 1e-04')
    assert text != members[MODEL]
    other = open_pt2(write_members(tmp_path / "net.pt2", {**members, MODEL: text}))
    assert weights_digest(other.network) == weights_digest(first.network)
    assert other.graph != first.graph


def test_what_is_not_computed_is_not_in_the_fingerprint(honest: Path, tmp_path: Path) -> None:
    members = read_members(honest)

    def change(document: Any) -> None:
        document["torch_version"] = "9"
        document["guards_code"] = []
        for node in document["graph_module"]["graph"]["nodes"]:
            node["metadata"] = {"stack_trace": "elsewhere"}

    change_json(members, MODEL, change)
    assert open_pt2(write_members(tmp_path / "n.pt2", members)).graph == open_pt2(honest).graph


# --- nothing runs --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return archives and markers, once plain torch has run those that are live in it."""
    folder = tmp_path_factory.mktemp("planted")
    found = plant(folder, honest)
    said = load_plainly([path for path, _ in found.values()], folder)
    for name, trick in TRICKS.items():
        marker = found[name][1]
        assert marker.exists() == trick.live, f"{name}: {said[-3000:]}"
        if marker.is_dir():
            marker.rmdir()
        else:
            marker.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("name", TRICKS)
def test_nothing_planted_runs(
    honest: Path,
    planted: dict[str, tuple[Path, Path]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fixture has seen plain torch run it, where it is live."""
    path, marker = planted[name]
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.chdir(path.parent)
    if TRICKS[name].opens:
        found = logits_of(open_pt2(path), make_images(3))
        assert torch.equal(found, logits_of(open_pt2(honest), make_images(3)))
    else:
        refusal(path)
    assert not marker.exists()


TARGETS = [
    "torch.hub.load",
    "torch.hub.os.system",
    "torch.ops.aten.__class__.__init__",
    "torch.ops.aten.add.__class__",
    "torch.ops.aten.add.op",
    "torch.ops.aten.add.Tensor.__call__",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.as_strided.default",
    "torch.ops.aten.empty.memory_format",
    "torch.ops.aten.add.NoSuchOverload",
    "torch.ops.aten.add",
    "torch.ops.aten.set_.source_Storage",
    "torch.ops.higher_order.cond",
    "torch.ops.load_library",
    "torch.ops.prim.device.default",
    "_operator.attrgetter",
    "_operator.methodcaller",
    "_operator.add.__self__",
    "math.factorial",
    "#planted:op",
    "os.system",
    "builtins.eval",
    "torch.ops.aten.add.Tensor\n",
    "torch.ops.aten.\uff41dd.Tensor",
]


@pytest.mark.parametrize("target", TARGETS)
def test_an_operator_that_is_not_listed_is_refused(
    honest: Path, tmp_path: Path, target: str
) -> None:
    members = read_members(honest)

    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][-1]["target"] = target

    change_json(members, MODEL, change)
    assert "names the operator" in refusal(write_members(tmp_path / "net.pt2", members))


def test_the_listed_operators_are_there_and_take_no_files() -> None:
    assert not ATEN & {"from_file", "as_strided", "empty", "set", "resize", "_print"}
    missing = [name for name in ATEN if not hasattr(torch.ops.aten, name)]
    assert len(missing) <= 3, missing  # an older torch lacks the newest
    with pytest.raises(OverflowError):
        SCALARS["_operator.mul"](2**40, 2**40)


@given(st.text(max_size=60) | st.from_regex(r"torch\.ops\.aten\.\w+\.\w+", fullmatch=True))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_finds_a_listed_operator_or_none(text: str) -> None:
    try:
        found = find_aten(text)
    except UsageError:
        return
    assert str(found).split(".")[1].rstrip("_") in {name.rstrip("_") for name in ATEN}


# --- documents that do not serve -----------------------------------------------------------

Edit = Callable[[Any], None]


def graph_of(document: Any) -> Any:
    return document["graph_module"]["graph"]


def set_last_argument(argument: dict[str, Any]) -> Edit:
    return lambda document: graph_of(document)["nodes"][-1]["inputs"][-1].update(arg=argument)


def set_size(place: int, size: dict[str, Any]) -> Edit:
    def change(document: Any) -> None:
        graph = graph_of(document)
        name = graph["inputs"][-1]["as_tensor"]["name"]
        graph["tensor_values"][name]["sizes"][place] = size

    return change


def nest(document: Any) -> None:
    """Put the graph into itself, again and again."""
    node = next(n for n in graph_of(document)["nodes"] if "set_grad" in n["target"])
    text = json.dumps(node)
    for _ in range(9):
        inner = json.loads(text)
        graph = node["inputs"][1]["arg"]["as_graph"]["graph"]
        inner["inputs"][1]["arg"]["as_graph"]["graph"] = json.loads(json.dumps(graph))
        node["inputs"][1]["arg"]["as_graph"]["graph"]["nodes"].insert(0, inner)


def set_signature(kind: str, value: Any) -> Edit:
    def change(document: Any) -> None:
        document["graph_module"]["signature"]["input_specs"][0] = {kind: value}

    return change


def cut_autocast(document: Any) -> None:
    node = next(n for n in graph_of(document)["nodes"] if "autocast" in n["target"])
    del node["inputs"][1:]


def write_to_weights(document: Any) -> None:
    node = graph_of(document)["nodes"][-1]
    weight = graph_of(document)["inputs"][0]
    node.update(target="torch.ops.aten.relu_.default")
    node.update(inputs=[{"name": "self", "arg": weight, "kind": 1}])


def train(document: Any) -> None:
    text = json.dumps(document)
    changed = text.replace(
        '"training", "arg": {"as_bool": false}', '"training", "arg": {"as_bool": true}'
    )
    assert changed != text
    document.clear()
    document.update(json.loads(changed))


EDITS: dict[str, tuple[Edit, str]] = {
    "an object": (set_last_argument({"as_custom_obj": {"name": "a", "class_fqn": "b"}}), "objects"),
    "an operator": (set_last_argument({"as_operator": "torch.hub.load"}), "operators that are"),
    "two kinds": (set_last_argument({"as_int": 1, "as_bool": True}), "one key"),
    "text for a number": (set_last_argument({"as_int": "1"}), "valid integer"),
    "a graph": (
        set_last_argument(
            {"as_graph": {"graph": {"inputs": [], "outputs": [], "nodes": [], "tensor_values": {}}}}
        ),
        "gives a graph",
    ),
    "no such value": (set_last_argument({"as_tensor": {"name": "nothing"}}), "which nothing gives"),
    "a dtype": (set_last_argument({"as_scalar_type": 99}), "dtype of number 99"),
    "four channels": (set_size(1, {"as_int": 4}), r"expected images \(N, 3, H, W\)"),
    "no square": (set_size(3, {"as_int": 7}), "8 x 7 pixels"),
    "no images": (set_size(0, {"as_int": 0}), "expected"),
    "an expression": (
        set_size(0, {"as_expr": {"expr_str": "Mul(Integer(2), Symbol('s77'))"}}),
        "a free one",
    ),
    "graphs in graphs": (nest, "deep"),
    "a token": (set_signature("token", {"arg": {"name": "a"}}), "no objects with code"),
    "an object as input": (
        set_signature(
            "custom_obj", {"arg": {"name": "a", "class_fqn": "b"}, "custom_obj_name": ""}
        ),
        "no objects with code",
    ),
    "no such weights": (
        set_signature("parameter", {"arg": {"name": "p"}, "parameter_name": "no.such"}),
        "has 0 tensors 'no.such'",
    ),
    "nothing within autocast": (cut_autocast, "not given as torch.export gives it"),
    "writing to weights": (write_to_weights, "changes weights or images in place"),
    "training": (train, r"call network\.eval\(\)"),
    "another schema": (lambda document: document["schema_version"].update(major=9), "schema 9"),
    "no graph": (lambda document: document["graph_module"].pop("graph"), "Field required"),
    "a list": (lambda document: document.update(graph_module=[1]), "graph_module"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_document_that_does_not_serve_is_refused(honest: Path, tmp_path: Path, name: str) -> None:
    members = read_members(honest)
    edit, expected = EDITS[name]
    change_json(members, MODEL, edit)
    assert re.search(expected, refusal(write_members(tmp_path / "net.pt2", members)))


@pytest.mark.parametrize("member", [MODEL, WEIGHTS, CONSTANTS, "extra/kdcache"])
@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 10**6, b'{"a":' * 10**5, b"1" * 10**6, b"NaN"],
    ids=["empty", "cut", "null", "list", "bytes", "deep list", "deep object", "long number", "NaN"],
)
def test_broken_json_is_refused(honest: Path, tmp_path: Path, member: str, data: bytes) -> None:
    members = {**read_members(honest), member: data}
    refusal(write_members(tmp_path / "net.pt2", members))


PAYLOADS: dict[str, tuple[dict[str, Any], str]] = {
    "outside": ({"path_name": "../../extra/kdcache"}, "path_name"),
    "no such file": ({"path_name": "weight_99"}, "has no 'data/weights/weight_99'"),
    "pickled": ({"use_pickle": True}, "as a pickle, which could run code"),
    "no shape": ({"tensor_meta": None}, "as a pickle"),
    "too large": ({"sizes": [{"as_int": 2**50}]}, "of shape"),
    "too far": ({"storage_offset": {"as_int": 10**9}}, "of shape"),
    "huge for nothing": (
        {"sizes": [{"as_int": 2**40}], "strides": [{"as_int": 0}]},
        "of shape",
    ),
    "huger": ({"sizes": [{"as_int": 2**70}]}, "sizes"),
    "backwards": ({"strides": [{"as_int": -1}] * 4}, "not fixed"),
    "symbolic": ({"sizes": [{"as_expr": {"expr_str": "1"}}]}, "not fixed"),
    "of no dtype": ({"dtype": 0}, "dtype number 0"),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_weights_outside_their_bytes_are_refused(honest: Path, tmp_path: Path, name: str) -> None:
    members, (values, expected) = read_members(honest), PAYLOADS[name]

    def change(config: Any) -> None:
        payload = config["config"]["conv.weight"]
        for key, value in values.items():
            (payload if key in payload else payload["tensor_meta"])[key] = value

    change_json(members, WEIGHTS, change)
    assert expected in refusal(write_members(tmp_path / "net.pt2", members))


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({"takes": "anything"}, "takes"),
        ({"takes": "pixels"}, "its notes say pixels"),
        ({"size": 9}, "its notes say 9"),
        ({"size": -1}, "size"),
        ({"std": [1, 0, 1]}, "std"),
        ({"mean": [1, 2]}, "mean"),
    ],
)
def test_notes_that_are_wrong_are_refused(
    tmp_path: Path, notes: dict[str, Any], expected: str
) -> None:
    extra = {"kdcache": json.dumps(notes)}
    path = save_program(make_network(), tmp_path / "net.pt2", extra_files=extra)
    assert expected in refusal(path)


def test_the_student_in_notes_is_never_built(tmp_path: Path) -> None:
    extra = {"kdcache": json.dumps({"student": "antigravity:fly", "mean": [0.1, 0.2, 0.3]})}
    path = save_program(make_network(), tmp_path / "net.pt2", extra_files=extra)
    assert open_pt2(path).inputs.mean == (0.1, 0.2, 0.3)


# --- programs that do not serve ------------------------------------------------------------


class Two(nn.Module):
    def forward(self, images_N3HW: Tensor, other: Tensor) -> Tensor:
        return images_N3HW.mean((2, 3)) + other


class Pair(nn.Module):
    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        return images_N3HW.mean((2, 3)), images_N3HW.amax((2, 3))


def test_programs_of_other_inputs_and_outputs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    program = torch.export.export(Two(), (make_images(2), torch.ones(3)), strict=False)
    torch.export.save(program, path)
    assert "takes 2 inputs, expected images alone" in refusal(path)
    assert "gives 2 outputs, expected logits alone" in refusal(save_program(Pair(), path))
    flat = torch.export.export(nn.Flatten(), (torch.ones(2, 3),), strict=False)
    torch.export.save(flat, path)
    assert "takes (2, 3), expected images (N, 3, H, W)" in refusal(path)


def test_a_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    refusal(save_program(make_network().train(), tmp_path / "net.pt2"))


class Standardised(nn.Module):
    """Batch norm without statistics: of the weights, as in NFNets, or of the images."""

    def __init__(self, *, of_images: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.of_images = nn.Conv2d(3, 4, 3), of_images

    def forward(self, images_N3HW: Tensor) -> Tensor:
        weight = self.conv.weight.reshape(1, 4, -1)
        if self.of_images:
            images_N3HW = nn.functional.batch_norm(images_N3HW, None, None, training=True)
        else:
            weight = nn.functional.batch_norm(weight, None, None, training=True)
        kernel = weight.reshape_as(self.conv.weight)
        return nn.functional.conv2d(images_N3HW, kernel).mean((2, 3))


def test_weights_may_be_standardised_but_not_a_batch(tmp_path: Path) -> None:
    network, images = Standardised(of_images=False).eval(), make_images(3)
    model = open_pt2(save_program(network, tmp_path / "a.pt2"))
    assert torch.allclose(model.network(images), network(images), atol=1e-6)
    model = open_pt2(save_program(Standardised(of_images=True).eval(), tmp_path / "b.pt2"))
    with pytest.raises(UsageError, match="statistics of a batch"):
        run_network(model.network, images, name="teacher", num_classes=None)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_other_files_are_refused_with_advice(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "net.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(make_network(), make_images(2)), str(path))
    assert "is a TorchScript archive, which carries code; export the network" in refusal(path)
    torch.save(make_network().state_dict(), path)
    assert "holds weights without their program" in refusal(path)
    save_file(make_network().state_dict(), path)
    assert "is no .pt2 archive; it may be damaged, or holds weights" in refusal(path)
    assert "no such file" in refusal(tmp_path / "nothing.pt2")
    assert "no such file" in refusal(tmp_path)
    write_raw(path, ["serialized_exported_program.json", "version"])
    assert "of an older layout; save the program again, with torch.export" in refusal(path)
    compiled = {"archive_format": b"pt2", "archive_version": b"0"}
    compiled["data/aotinductor/model/a.so"] = b""
    assert "holds a compiled library, which is code" in refusal(write_members(path, compiled))


# --- archives that do not serve ------------------------------------------------------------


def write_raw(path: Path, names: list[str], **options: Any) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"0" * 1000, **options)
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["root/a", "root/a"],
        ["root/../a"],
        ["/top/a"],
        ["../a"],
        ["root//a"],
        ["root\\a"],
        ["a"],
        ["root/a", "other/a"],
        ["root/a\nb"],
    ],
    ids=repr,
)
def test_names_that_no_archive_has_are_refused(tmp_path: Path, names: list[str]) -> None:
    assert re.search("has a member|two members", refusal(write_raw(tmp_path / "n.pt2", names)))


def test_archives_that_grow_are_refused(honest: Path, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "net.pt2", ["root/a"], compress_type=zipfile.ZIP_DEFLATED)
    assert "is compressed, which torch never does" in refusal(path)
    _, whole = small_archive(honest, tmp_path)
    # A member that claims to be larger than the file, in both of its headers.
    place = whole.index(b"PK\x01\x02")
    sizes = (2**31).to_bytes(4, "little") * 2
    grown = bytearray(whole)
    grown[18:26] = sizes
    grown[place + 20 : place + 28] = sizes
    path.write_bytes(grown)
    assert "in a file of" in refusal(path)
    encrypted = bytearray(whole)
    encrypted[place + 8] |= 1
    path.write_bytes(encrypted)
    assert "encrypted" in refusal(path)


def small_archive(honest: Path, folder: Path) -> tuple[Path, bytes]:
    """Return a place, and an archive without what is never read."""
    members = read_members(honest)
    kept = {name: data for name, data in members.items() if "sample_inputs" not in name}

    def change(document: Any) -> None:
        for node in graph_of(document)["nodes"]:
            node["metadata"] = {}

    change_json(kept, MODEL, change)
    path = write_members(folder / "net.pt2", kept)
    return path, path.read_bytes()


def check_harmless(path: Path, expected: Tensor) -> None:
    """Open a file: it is refused, fails as a network may, or gives the logits."""
    try:
        found = logits_of(open_pt2(path), make_images(2))
    except UsageError:
        return
    assert torch.equal(found, expected)


def test_a_flipped_bit_is_refused_or_changes_nothing(honest: Path, tmp_path: Path) -> None:
    path, whole = small_archive(honest, tmp_path)
    expected = logits_of(open_pt2(path), make_images(2))
    for _, changed in flips(whole, step=23):
        path.write_bytes(changed)
        check_harmless(path, expected)


def test_an_archive_that_is_cut_is_refused(honest: Path, tmp_path: Path) -> None:
    path, whole = small_archive(honest, tmp_path)
    for end in [*range(60), *range(60, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:end])
        refusal(path)


def test_a_changed_document_is_refused_or_runs_as_a_network(honest: Path, tmp_path: Path) -> None:
    """With right checksums, so that all of it is read."""
    path, _ = small_archive(honest, tmp_path)
    members = read_members(path)
    for name in (MODEL, WEIGHTS, CONSTANTS):
        for _, changed in flips(members[name], step=31 if name == MODEL else 7):
            write_members(path, {**members, name: changed})
            with suppress(UsageError):
                logits_of(open_pt2(path), make_images(2))
