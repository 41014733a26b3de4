"""Claims about ONNX models as teachers: the same logits, and no file but those in their folder."""

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models import onnx_file
from kdcache.models.from_onnx import open_onnx
from kdcache.models.source import Inputs, Model
from kdcache.models.teacher import Preprocessing, weights_digest
from kdcache.student.export import export_student
from kdcache.student.trained import Trained
from tests.models.planting import CLASSES, SIDE, flips, logits_of, make_images, refusal_of
from tests.student import nets

WEIGHT = np.arange(3 * CLASSES, dtype=np.float32).reshape(3, CLASSES) / 7


def make_model(
    *,
    shape: tuple[int | str, ...] = ("batch", 3, SIDE, SIDE),
    dtype: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("logits",),
) -> onnx.ModelProto:
    """Return a model: the mean of each channel, times a weight."""
    given = helper.make_tensor_value_info("images", dtype, shape)
    taken = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (shape[0], CLASSES))
        for name in outputs
    ]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["floats"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        *(helper.make_node("MatMul", ["flat", "weight"], [name]) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes, "net", [given], taken, [numpy_helper.from_array(WEIGHT, "weight")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def move_out(model: onnx.ModelProto, folder: Path, **entries: Any) -> onnx.ModelProto:
    """Put the weight into a file beside the model; entries say otherwise where it is."""
    (tensor,) = model.graph.initializer
    (folder / "net.data").write_bytes(b"\0" * 16 + WEIGHT.tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = {"location": "net.data", "offset": 16, "length": WEIGHT.nbytes} | entries
    for key, value in places.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return model


def expected_of(images: Tensor) -> Tensor:
    return images.float().mean((2, 3)) @ torch.from_numpy(WEIGHT)


def refusal(path: Path) -> str:
    return refusal_of(open_onnx, path)


# --- the same logits -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("batch", ["batch", 4])
def test_a_model_gives_its_logits_of_any_number(
    tmp_path: Path, count: int, batch: int | str
) -> None:
    path = save(make_model(shape=(batch, 3, SIDE, SIDE)), tmp_path / "net.onnx")
    model, images = open_onnx(path), make_images(count)
    torch.testing.assert_close(logits_of(model, images), expected_of(images))
    assert torch.equal(logits_of(model, images), logits_of(open_onnx(path), images))
    assert (model.name, model.trained, model.takes) == ("onnx:net.onnx", True, "images")
    assert model.inputs == Inputs(size=SIDE)
    assert not model.network.training
    assert not model.network.train().training


@pytest.mark.parametrize("pixels", [True, False], ids=["pixels", "images"])
def test_exported_students_are_teachers(tmp_path: Path, pixels: bool) -> None:
    prepare = Preprocessing((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
    network = nets.contrast(CLASSES).eval().requires_grad_(False)
    student = Trained(network, "own:net", None, CLASSES, 24, prepare)
    export_student(student, tmp_path / "student.onnx", pixels=pixels)
    model = open_onnx(tmp_path / "student.onnx")
    assert model.takes == ("pixels" if pixels else "images")
    assert model.inputs == Inputs(size=24, mean=prepare.mean, std=prepare.std)
    raw = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8)
    found = logits_of(model, raw if pixels else prepare(raw))
    expected = logits_of(Model(network, "", True), prepare(raw))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"takes torch\.\w+, was given torch\.\w+"):
        logits_of(model, prepare(raw) if pixels else raw)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_images_are_cast_to_what_a_model_takes(tmp_path: Path, dtype: int) -> None:
    model = open_onnx(save(make_model(dtype=dtype), tmp_path / "net.onnx"))
    images = make_images(2)
    torch.testing.assert_close(logits_of(model, images), expected_of(images), rtol=0.01, atol=0.01)
    torch.testing.assert_close(
        logits_of(model, images.half().contiguous(memory_format=torch.channels_last)),
        expected_of(images.half()),
        rtol=0.01,
        atol=0.01,
    )


def test_sides_and_channels_may_be_free(tmp_path: Path) -> None:
    path = save(make_model(shape=("n", "c", "h", "w")), tmp_path / "net.onnx")
    model, images = open_onnx(path), make_images(2, side=12)
    assert model.inputs == Inputs()
    torch.testing.assert_close(logits_of(model, images), expected_of(images))


def test_of_several_outputs_that_named_logits_is_taken(tmp_path: Path) -> None:
    path = save(make_model(outputs=("other", "logits")), tmp_path / "net.onnx")
    torch.testing.assert_close(
        logits_of(open_onnx(path), make_images(2)), expected_of(make_images(2))
    )
    assert "expected one output of logits" in refusal(
        save(make_model(outputs=("one", "other")), path)
    )


def test_a_compiled_model_gives_the_same_logits(tmp_path: Path) -> None:
    model = open_onnx(save(make_model(), tmp_path / "net.onnx"))
    compiled = torch.compile(model.network, backend="eager")
    with torch.inference_mode():
        assert torch.equal(compiled(make_images(3)), logits_of(model, make_images(3)))


# --- data beside the model -----------------------------------------------------------------


@pytest.mark.parametrize("inlined", [0, 2**20], ids=["as arrays", "inside"])
def test_data_beside_the_model_is_read(
    tmp_path: Path, inlined: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "INLINED_BYTES", inlined)
    path = save(move_out(make_model(), tmp_path), tmp_path / "net.onnx")
    model, images = open_onnx(path), make_images(3)
    torch.testing.assert_close(logits_of(model, images), expected_of(images))
    (tmp_path / "net.data").unlink()  # all of it was read
    torch.testing.assert_close(logits_of(model, images), expected_of(images))


def test_a_folder_below_and_a_link_within_are_the_models_own(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    path = save(move_out(make_model(), tmp_path, location="below/link"), tmp_path / "net.onnx")
    (tmp_path / "below" / "link").symlink_to("../net.data")
    torch.testing.assert_close(
        logits_of(open_onnx(path), make_images(2)), expected_of(make_images(2))
    )


SECRET = b"\0" * 16 + WEIGHT.tobytes()

Setup = Callable[[Path], None]


def link(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "secret")


def link_folder(folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def nothing(folder: Path) -> None:
    del folder


TRICKS: dict[str, tuple[dict[str, Any], Setup, str]] = {
    "absolute": ({"location": "SECRET"}, nothing, "expected a path within"),
    "above": ({"location": "../secret"}, nothing, "expected a path within"),
    "above, hidden": ({"location": "a/../../secret"}, nothing, "expected a path within"),
    "a drive": ({"location": "C:secret"}, nothing, "expected a path within"),
    "backslashes": ({"location": "..\\secret"}, nothing, "expected a path within"),
    "empty": ({"location": ""}, nothing, "expected a path within"),
    "no location": ({"location": None}, nothing, "expected a path within"),
    "a zero byte": ({"location": "net\0.data"}, nothing, "into one folder"),
    "a long name": ({"location": "n" * 5000}, nothing, "into one folder"),
    "a link out": ({"location": "link"}, link, "a link that leaves"),
    "a folder out": ({"location": "out/secret"}, link_folder, "a link that leaves"),
    "a pipe": ({"location": "pipe"}, pipe, "no regular file"),
    "a folder": ({"location": "below"}, lambda folder: (folder / "below").mkdir(), "folder"),
    "not there": ({"location": "nothing"}, nothing, "No such file"),
    "memory": ({"location": "*/_ORT_MEM_ADDR_/*"}, nothing, "No such file"),
    "beyond the end": ({"offset": 17}, nothing, "it is not whole"),
    "far beyond": ({"offset": 2**50}, nothing, "it is not whole"),
    "before the start": ({"offset": -16}, nothing, "expected a number of bytes"),
    "no number": ({"offset": "1e1"}, nothing, "expected a number of bytes"),
    "huge number": ({"offset": "9" * 5000}, nothing, "expected a number of bytes"),
    "too long": ({"length": 2**50}, nothing, "expected 60"),
    "too short": ({"length": 4}, nothing, "expected 60"),
    "unknown": ({"basepath": "/"}, nothing, "kdcache does not know"),
}


@pytest.mark.parametrize("name", TRICKS)
@pytest.mark.parametrize("place", ["weight", "constant", "branch", "function", "sparse"])
def test_data_outside_the_folder_is_refused(tmp_path: Path, name: str, place: str) -> None:
    entries, setup, expected = TRICKS[name]
    (tmp_path / "secret").write_bytes(SECRET)
    folder = tmp_path / "model"
    folder.mkdir()
    setup(folder)
    entries = {
        key: str(tmp_path / "secret") if value == "SECRET" else value
        for key, value in entries.items()
    }
    model = move_out(make_model(), folder, **entries)
    hide(model, place)
    assert expected in refusal(save(model, folder / "net.onnx"))


def hide(model: onnx.ModelProto, place: str) -> None:
    """Move the weight from the initialisers into another place that may hold a tensor."""
    if place == "weight":
        return
    tensor = TensorProto()
    tensor.CopyFrom(model.graph.initializer[0])
    del model.graph.initializer[:]
    constant = helper.make_node("Constant", [], ["weight"], value=tensor)
    if place == "constant":
        model.graph.node.insert(0, constant)
    elif place == "branch":
        out = helper.make_tensor_value_info("weight", TensorProto.FLOAT, WEIGHT.shape)
        branch = helper.make_graph([constant], "branch", [], [out])
        chosen = helper.make_node("If", ["yes"], ["weight"], then_branch=branch, else_branch=branch)
        yes = helper.make_tensor("yes", TensorProto.BOOL, (), [True])
        model.graph.initializer.append(yes)
        model.graph.node.insert(0, chosen)
    elif place == "function":
        function = helper.make_function(
            "own", "Weight", [], ["weight"], [constant], [helper.make_opsetid("", 18)]
        )
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node.insert(0, helper.make_node("Weight", [], ["weight"], domain="own"))
    else:
        indices = helper.make_tensor("i", TensorProto.INT64, (1,), [0])
        model.graph.sparse_initializer.add(values=tensor, indices=indices, dims=WEIGHT.shape)


@pytest.mark.parametrize("place", ["constant", "branch", "function"])
def test_data_in_its_folder_is_read_wherever_it_belongs(tmp_path: Path, place: str) -> None:
    model = move_out(make_model(), tmp_path)
    hide(model, place)
    found = logits_of(open_onnx(save(model, tmp_path / "net.onnx")), make_images(2))
    torch.testing.assert_close(found, expected_of(make_images(2)))


def test_plain_onnx_runtime_reads_what_a_model_names(tmp_path: Path) -> None:
    """So that the refusals above are of a model that is right but for its place.

    ONNX Runtime 1.32 refuses them as well; that of older ones is not for us to trust.
    """
    from onnxruntime import InferenceSession

    path = save(move_out(make_model(), tmp_path), tmp_path / "net.onnx")
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": make_images(2).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected_of(make_images(2)))


def test_data_that_is_read_again_and_again_is_refused(tmp_path: Path) -> None:
    model = move_out(make_model(), tmp_path)
    for number in range(4):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"more{number}"
    assert "the same bytes" in refusal(save(model, tmp_path / "net.onnx"))


# --- fingerprints --------------------------------------------------------------------------


def test_every_byte_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = save(move_out(make_model(), tmp_path), tmp_path / "net.onnx")
    first = open_onnx(path)
    assert first.graph == open_onnx(path).graph
    assert first.graph == first.network.state_dict()["sha256"].numpy().tobytes().hex()
    data = (tmp_path / "net.data").read_bytes()
    (tmp_path / "net.data").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    other = open_onnx(path)
    assert other.graph != first.graph
    assert weights_digest(other.network) != weights_digest(first.network)
    (tmp_path / "net.data").write_bytes(data)
    model = onnx.load(path, load_external_data=False)
    model.graph.node[2].attribute[0].i = -3
    assert open_onnx(save(model, path)).graph not in (first.graph, other.graph)


# --- models that do not serve --------------------------------------------------------------


def with_node(node: onnx.NodeProto) -> onnx.ModelProto:
    model = make_model()
    model.graph.node.insert(0, node)
    model.opset_import.append(helper.make_opsetid(node.domain, 1))
    return model


@pytest.mark.parametrize("domain", ["own.ops", "ai.onnx.contrib", "com.microsoft.extensions"])
def test_operators_of_others_are_refused(tmp_path: Path, domain: str) -> None:
    node = helper.make_node("Planted", ["images"], ["unused"], domain=domain)
    text = refusal(save(with_node(node), tmp_path / "net.onnx"))
    assert f"has the operator 'Planted' of {domain!r}, which is code of others" in text


def test_a_context_that_is_read_from_a_file_is_refused(tmp_path: Path) -> None:
    node = helper.make_node(
        "EPContext", ["images"], ["unused"], domain="com.microsoft", ep_cache_context="planted.bin"
    )
    assert "reads files" in refusal(save(with_node(node), tmp_path / "net.onnx"))


def test_settings_in_a_model_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    model = make_model()
    out = tmp_path / "written.onnx"
    settings = {"session_options": {"optimized_model_filepath": str(out), "no_such": 1}}
    model.metadata_props.add(key="ort_config", value=json.dumps(settings))
    model.metadata_props.add(key="kdcache", value=json.dumps({"student": "antigravity:fly"}))
    open_onnx(save(model, tmp_path / "net.onnx"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("n", SIDE, SIDE, 3), "its channels come last"),
        (("n", 4, SIDE, SIDE), "expected images (N, 3, H, W)"),
        (("n", 3, SIDE, 7), "8 x 7 pixels, kdcache makes squares"),
        (("n", 3, SIDE, "w"), "8 x any pixels"),
    ],
)
def test_inputs_of_another_shape_are_refused(
    tmp_path: Path, shape: tuple[int | str, ...], expected: str
) -> None:
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    taken = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", "c"))
    node = helper.make_node("Flatten", ["images"], ["logits"], axis=1)
    graph = helper.make_graph([node], "net", [given], [taken])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert expected in refusal(save(model, tmp_path / "net.onnx"))


def test_inputs_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert "takes tensor(int32)" in refusal(save(make_model(dtype=TensorProto.INT32), path))
    model = make_model()
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, (1,))
    model.graph.input.append(more)
    assert "takes 2 inputs ('images', 'more')" in refusal(save(model, path))


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04", b"not a model", b"\x08\x07", b"\x3a\x00", b"\xff" * 100],
    ids=repr,
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(data)
    assert "is no ONNX model, or is damaged" in refusal(tmp_path / "net.onnx")


def test_files_that_are_not_there_or_no_files_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing.onnx")
    assert "no such file" in refusal(tmp_path)


def test_notes_that_are_wrong_are_refused(tmp_path: Path) -> None:
    model = make_model()
    model.metadata_props.add(key="kdcache", value='{"std": [1, 0, 1]}')
    assert "std" in refusal(save(model, tmp_path / "net.onnx"))


def test_without_its_libraries_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    expected = r"net\.onnx: needs onnxruntime; pip install 'kdcache\[onnx\]'"
    with pytest.raises(UsageError, match=expected):
        open_onnx(tmp_path / "net.onnx")


def test_a_flipped_bit_or_a_cut_is_refused_or_runs_as_a_network(tmp_path: Path) -> None:
    path = save(move_out(make_model(), tmp_path), tmp_path / "net.onnx")
    whole = path.read_bytes()
    changed = [data for _, data in flips(whole, step=1)]
    for data in [*changed, *(whole[:end] for end in range(0, len(whole), 3))]:
        path.write_bytes(data)
        with suppress(UsageError):
            logits_of(open_onnx(path), make_images(2))


def test_a_graph_nested_without_end_is_refused(tmp_path: Path) -> None:
    """As protobuf counts it, before Python's own recursion does."""
    inner = b""
    for _ in range(2000):
        node = b"\x2a" + varint(len(inner)) + inner  # an attribute of a node
        graph = b"\x0a" + varint(len(node)) + node
        inner = b"\x32" + varint(len(graph)) + graph
    node = b"\x2a" + varint(len(inner)) + inner
    graph = b"\x0a" + varint(len(node)) + node
    (tmp_path / "net.onnx").write_bytes(b"\x3a" + varint(len(graph)) + graph)
    assert "damaged" in refusal(tmp_path / "net.onnx")


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += struct.pack("B", number % 128 + 128)
        number //= 128
    return out + struct.pack("B", number)


class Large(nn.Module):
    """A layer whose weights are more than ONNX Runtime is given inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE * SIDE, 2048)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        logits_NC: Tensor = self.linear(images_N3HW.flatten(1))
        return logits_NC


def test_large_weights_beside_a_model_of_torch_are_read(tmp_path: Path) -> None:
    network = Large().eval()
    program = torch.onnx.export(
        network, (make_images(2),), dynamo=True, verbose=False, dynamic_shapes=({0: "batch"},)
    )
    assert program is not None
    program.save(tmp_path / "net.onnx", external_data=True)
    assert len(list(tmp_path.iterdir())) == 2
    model = open_onnx(tmp_path / "net.onnx")
    with torch.no_grad():
        expected = network(make_images(3))
    torch.testing.assert_close(logits_of(model, make_images(3)), expected, rtol=1e-4, atol=1e-5)
