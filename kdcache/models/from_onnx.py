"""Teachers from ONNX models, onnx:FILE, computed by ONNX Runtime.

Its kernels round otherwise than torch's, so the fingerprint is another one than that of the same
network in torch.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.counts import Counts, run_in_counts
from kdcache.models.notes import known_inputs, read_notes
from kdcache.models.onnx_file import OnnxFile, check_onnx_installed, read_onnx
from kdcache.models.source import Model, Takes

_FLOATS = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
}
_INPUTS = {**_FLOATS, "tensor(uint8)": torch.uint8}
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def open_onnx(path: Path) -> Model:
    """Return the network of an .onnx file, in evaluation mode, on the CPU.

    It takes (N, 3, H, W) of any N: normalised images of any floating dtype, or uint8 pixels, as the
    model does. Its graph is the sha256 of the file and of the data beside it.

    Raises:
        UsageError: a library is missing, or the file is not there or damaged, is no image
            classifier, needs code of others, or names data outside its folder.
    """
    try:
        check_onnx_installed()
        file = read_onnx(path)
        session = _open_session(file, _CPU)
        images = _read_images(session)
        takes: Takes = "images" if images.dtype.is_floating_point else "pixels"
        notes = read_notes(file.notes)
        inputs = known_inputs(notes, takes=takes, height=images.height, width=images.width)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Model(
        network=OnnxNetwork(file, session, images),
        name=f"onnx:{path.name}",
        trained=True,
        inputs=inputs,
        takes=takes,
        graph=file.digest,
        classes=notes.classes,
    )


@dataclass(frozen=True)
class _Images:
    """What a model takes, and the output of its logits. height, width: None for any."""

    name: str
    output: str
    dtype: torch.dtype
    counts: Counts
    height: int | None
    width: int | None


class OnnxNetwork(nn.Module):
    """A session of ONNX Runtime as a module in evaluation mode.

    It computes on the CPU, or on a CUDA device if its images are there and ONNX Runtime can; logits
    are where the images are. sha256: of all that was read, which stands for the weights.
    """

    sha256: Tensor

    def __init__(self, file: OnnxFile, session: Any, images: _Images) -> None:
        super().__init__()
        digest = torch.frombuffer(bytearray.fromhex(file.digest), dtype=torch.uint8)
        self.register_buffer("sha256", digest)
        self._images = images
        self._sessions = {torch.device("cpu"): session}
        self._open = partial(_open_session, file, _CUDA) if _has_cuda() else None
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch leaves it untyped
    def forward(self, images_N3HW: Tensor) -> Tensor:
        wanted = self._images.dtype
        if wanted.is_floating_point != images_N3HW.is_floating_point():
            raise TypeError(f"takes {wanted}, was given {images_N3HW.dtype}")
        session = self._session(images_N3HW.device)

        def run(images_nCHW: Tensor) -> Tensor:
            given = {self._images.name: images_nCHW.detach().cpu().contiguous().numpy()}
            (logits_nC,) = session.run([self._images.output], given)
            return torch.from_numpy(logits_nC).to(images_N3HW.device)

        return run_in_counts(run, images_N3HW.to(wanted), self._images.counts)

    def _session(self, device: torch.device) -> Any:
        if device.type != "cuda" or self._open is None:
            device = torch.device("cpu")
        elif device not in self._sessions:
            self._sessions[device] = self._open(device_id=device.index or 0)
        return self._sessions[device]


# --- sessions ------------------------------------------------------------------------------


def _has_cuda() -> bool:
    from onnxruntime import get_available_providers

    return _CUDA in get_available_providers()


def _open_session(file: OnnxFile, provider: str, device_id: int = 0) -> Any:
    """Return a session; it reads no file, and no settings from the model."""
    from onnxruntime import InferenceSession, OrtValue, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # fatal alone: it writes past Python's stderr
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.load_model_format", "ONNX")
    values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in file.arrays.items()}
    options.add_external_initializers([*values], [*values.values()])
    providers = [_CPU] if provider == _CPU else [(provider, {"device_id": device_id}), _CPU]
    try:
        return InferenceSession(file.data, options, providers=providers, enable_fallback=0)
    except Exception as error:  # it has many kinds
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"ONNX Runtime cannot run it: {line[:300]!a}") from None


def _read_images(session: Any) -> _Images:
    """Return what a model takes and gives.

    Raises:
        UsageError: it is no classifier of images (N, 3, H, W).
    """
    given = session.get_inputs()
    if len(given) != 1:
        names = ", ".join(repr(one.name[:60]) for one in given[:8])
        raise UsageError(f"takes {len(given)} inputs ({names}), expected images alone")
    sides = [side if isinstance(side, int) else None for side in given[0].shape]
    shown = f"{given[0].type} ({', '.join('any' if n is None else str(n) for n in sides)})"
    if given[0].type not in _INPUTS:
        raise UsageError(f"takes {shown}, expected floating images or uint8 pixels")
    if len(sides) != 4 or sides[1] not in (3, None):
        advice = ""
        if len(sides) == 4 and sides[3] == 3:
            advice = "; its channels come last, convert it with a transposed input"
        raise UsageError(f"takes {shown}, expected images (N, 3, H, W){advice}")
    if any(side is not None and side < 1 for side in sides):
        raise UsageError(f"takes {shown}, expected sides above 0")
    count = sides[0]
    return _Images(
        name=given[0].name,
        output=_find_output(session),
        dtype=_INPUTS[given[0].type],
        counts=Counts() if count is None else Counts(count, count),
        height=sides[2],
        width=sides[3],
    )


def _find_output(session: Any) -> str:
    """Return the name of the one output of logits (N, C), or of that named logits."""
    found = session.get_outputs()
    fitting = [one.name for one in found if one.type in _FLOATS and len(one.shape) == 2]
    if len(fitting) > 1:
        fitting = [name for name in fitting if name == "logits"]
    if len(fitting) != 1:
        shown = ", ".join(f"{one.name[:60]} {one.type} {one.shape}" for one in found[:8])
        raise UsageError(f"gives {shown}; expected one output of logits (N, C), or one so named")
    return str(fitting[0])
