"""Students as programs of one file, for machines without kdcache: torch.export and ONNX.

A file is kept only once it was read again from the disk and gave the network's logits.
"""

import json
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdcache import __version__
from kdcache.errors import UsageError
from kdcache.files import write_whole
from kdcache.models.libraries import first_line, quiet
from kdcache.models.notes import NOTES
from kdcache.models.running import logits_of, run_network
from kdcache.models.teacher import Preprocessing
from kdcache.student.agreement import Agreement, compare, seeded_batches
from kdcache.student.trained import Trained

SUFFIXES = (".pt2", ".onnx")
_OTHER = f"try the other of {' and '.join(SUFFIXES)}"
_TRACED = 4  # images; another number than those that are compared
ONNX_BYTES = 2**31  # what protobuf holds in a file

Program = Callable[[Tensor], Tensor]


class _ToLogits(nn.Module):
    """A network whose output is its logits alone, whatever else it gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_N3HW: Tensor) -> Tensor:
        logits_NC = logits_of(self.network(images_N3HW))
        assert logits_NC is not None  # it was run before
        return logits_NC


class _FromPixels(_ToLogits):
    """A network behind its normalisation, in the arithmetic of Preprocessing."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__(network)
        mean_311 = torch.tensor(preprocessing.mean).view(3, 1, 1)
        std_311 = torch.tensor(preprocessing.std).view(3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std_311))
        self.register_buffer("shift", mean_311 / std_311)

    def forward(self, pixels_N3HW: Tensor) -> Tensor:
        return super().forward(pixels_N3HW.float() * self.scale - self.shift)


@torch.no_grad()
def export_student(
    student: Trained, out: Path, *, pixels: bool = True, overwrite: bool = False
) -> Agreement:
    """Write a student as .pt2 (torch.export) or .onnx; return how well the file agrees with it.

    The program maps a batch of any number of images to logits (N, C), float32.
        pixels: it takes uint8 (N, 3, size, size), and normalises them itself. That is the default,
            since nothing tells who forgets the normalisation, or takes another, but worse results.
            Otherwise it takes normalised float32 images, as the network does.

    Raises:
        UsageError: the file is there or cannot be written, a library is missing, the network
            cannot be exported, or the file's logits differ; nothing is left behind.
    """
    _check_place(out, overwrite=overwrite)
    if out.suffix == ".onnx":
        _check_onnx(student.network)
    agreements: list[Agreement] = []
    with quiet():
        batches = seeded_batches(student.size)
        expected_NC = _steady_logits(student, batches)
        program = _trace(student, pixels=pixels)
        encoded = _encode(program, out, student=student, takes="pixels" if pixels else "images")

        def write_and_compare(partial: Path) -> None:
            partial.write_bytes(encoded)
            inputs = batches if pixels else [student.preprocessing(batch) for batch in batches]
            found_NC = _run(partial, inputs, out=out)
            try:
                agreements.append(compare(found_NC, expected_NC))
            except UsageError as error:
                raise UsageError(f"{out}: {error}; no file was kept; {_OTHER}") from error

        try:
            kept = write_whole(out, write_and_compare, replace=overwrite)
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror}") from error
    if not kept:
        raise UsageError(_there(out))
    return agreements[0]


# --- before --------------------------------------------------------------------------------


def _check_place(out: Path, *, overwrite: bool) -> None:
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError(_there(out))


def _there(out: Path) -> str:
    return f"{out}: is there already; name another file, or add --overwrite"


def _check_onnx(network: nn.Module) -> None:
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise UsageError(
            f".onnx needs {name}; pip install 'kdcache[onnx]', or export to .pt2"
        ) from error
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size >= ONNX_BYTES:
        raise UsageError(f"one .onnx file holds 2 GiB, these weights take {size} B; use .pt2")


def _steady_logits(student: Trained, batches: list[Tensor]) -> Tensor:
    """Return a network's logits of the batches, one after the other.

    Raises:
        UsageError: they are not finite, or others the next time, so that no file can have them.
    """
    logits_NC, again_NC = (
        torch.cat(
            [
                run_network(
                    student.network,
                    student.preprocessing(batch),
                    name=f"student {student.spec}",
                    num_classes=student.num_classes,
                )
                for batch in batches
            ]
        )
        for _ in range(2)
    )
    if not bool(logits_NC.isfinite().all()):
        raise UsageError(f"student {student.spec}: gave logits that are not finite; train again")
    try:
        compare(again_NC, logits_NC)
    except UsageError as error:
        raise UsageError(
            f"student {student.spec}: run twice, its {error}; let its forward draw no random "
            "numbers in evaluation mode, as dropout(…, training=self.training) does"
        ) from error
    return logits_NC


# --- writing -------------------------------------------------------------------------------


def _trace(student: Trained, *, pixels: bool) -> ExportedProgram:
    network, dtype = _ToLogits(student.network), torch.float32
    if pixels:
        network, dtype = _FromPixels(student.network, student.preprocessing), torch.uint8
    example = torch.zeros(_TRACED, 3, student.size, student.size, dtype=dtype)
    shapes = ({0: Dim("batch", min=1)},)
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the network is the user's own code
        raise UsageError(
            f"student {student.spec}: torch cannot export it: {first_line(error)}; let no Python "
            "`if` or loop of its forward depend on pixels or on the number of images"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the folders of this machine
    return program


def _encode(program: ExportedProgram, out: Path, *, student: Trained, takes: str) -> bytes:
    """Return the bytes of the file. takes: pixels or images; what ONNX calls the input."""
    notes = _notes(student, takes)
    try:
        if out.suffix == ".pt2":
            buffer = BytesIO()
            torch.export.save(program, buffer, extra_files={NOTES: notes})
            return buffer.getvalue()
        converted = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[takes],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
        assert converted is not None
        converted.model.metadata_props[NOTES] = notes
        return bytes(converted.model_proto.SerializeToString())
    except Exception as error:  # both have many kinds
        raise UsageError(
            f"{out}: torch cannot write this network as {out.suffix}: {first_line(error)}; {_OTHER}"
        ) from error


def _notes(student: Trained, takes: str) -> str:
    """Return the JSON that goes into the file, under the same names as in the weights."""
    notes = {
        "takes": takes,
        "student": student.spec,
        "num_classes": student.num_classes,
        "classes": student.classes,
        "size": student.size,
        "mean": student.preprocessing.mean,
        "std": student.preprocessing.std,
        "version": __version__,
    }
    return json.dumps(notes, sort_keys=True)


# --- proving -------------------------------------------------------------------------------


def _run(path: Path, batches: list[Tensor], *, out: Path) -> Tensor:
    """Return the logits of a file that this process has just written; it may run code."""
    try:
        program = _open_onnx(path) if out.suffix == ".onnx" else _open_pt2(path)
        return torch.cat([program(batch) for batch in batches])
    except Exception as error:  # each library has its own
        raise UsageError(f"{out}: the file does not run: {first_line(error)}; {_OTHER}") from error


def _open_pt2(path: Path) -> Program:
    with path.open("rb") as file:
        return cast(Program, torch.export.load(file).module())


def _open_onnx(path: Path) -> Program:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # fatal alone: it writes past Python's stderr
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])
