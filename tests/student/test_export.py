"""Claims about exported students: they run without kdcache, and give the student's logits."""

import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from kdcache import __version__
from kdcache.errors import UsageError
from kdcache.models.specs import build_network
from kdcache.models.teacher import Preprocessing
from kdcache.student import export
from kdcache.student.agreement import TOLERANCE, compare, seeded_batches
from kdcache.student.export import SUFFIXES, export_student
from kdcache.student.trained import Trained
from tests.student import nets

SIZE, CLASSES = 24, 5
NORMALISE = Preprocessing((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))


def student_of(network: nn.Module) -> Trained:
    """Return a student with weights as training might leave them: no two alike, no zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += torch.empty_like(parameter).normal_(0, 0.05, generator=generator)
    network.eval().requires_grad_(False)
    return Trained(network, "own:net", None, CLASSES, SIZE, NORMALISE)


class Chatter(nn.Module):
    """Prints whenever it is called."""

    def forward(self, logits_NC: Tensor) -> Tensor:
        print("hello")
        return logits_NC


def run_file(path: Path, images: Tensor) -> Tensor:
    """Return a file's logits, as a deployer would ask for them."""
    if path.suffix == ".pt2":
        logits_NC: Tensor = torch.export.load(path).module()(images)
        return logits_NC
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(
        session.run(["logits"], {session.get_inputs()[0].name: images.numpy()})[0]
    )


def vit(num_classes: int) -> nn.Module:
    return VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64,
        num_classes=num_classes,
    )  # fmt: skip


def torchvision_net(name: str) -> Callable[[int], nn.Module]:
    return lambda num_classes: build_network(f"torchvision:{name}", num_classes=num_classes)


# --- what a file gives ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("pixels", [True, False])
def test_a_file_gives_the_students_logits_of_any_number_of_images(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str, pixels: bool
) -> None:
    student = student_of(nn.Sequential(nets.small(CLASSES), Chatter()))
    out = tmp_path / f"student{suffix}"
    agreement = export_student(student, out, pixels=pixels)
    assert capfd.readouterr() == ("", "")
    assert (agreement.images, agreement.top1) == (8, 1.0)
    assert agreement.relative < TOLERANCE / 30
    generator = torch.Generator().manual_seed(7)
    for count in (1, 2, 3, 4, 9):
        raw = torch.randint(256, (count, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
        images = student.preprocessing(raw)
        torch.testing.assert_close(
            run_file(out, raw if pixels else images), student.network(images)
        )
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


class GivesMapping(nn.Module):
    """Gives its logits among other things, as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nets.small(CLASSES)

    def forward(self, images_N3HW: Tensor) -> dict[str, Tensor | None]:
        return {"loss": None, "logits": self.network(images_N3HW), "images": images_N3HW}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("pixels", [True, False])
def test_of_all_that_a_student_gives_a_file_gives_the_logits(
    tmp_path: Path, suffix: str, pixels: bool
) -> None:
    student = student_of(GivesMapping())
    out = tmp_path / f"student{suffix}"
    assert export_student(student, out, pixels=pixels).relative <= TOLERANCE
    (batch, *_) = seeded_batches(SIZE)
    images = batch if pixels else NORMALISE(batch)
    expected = student.network(NORMALISE(batch))["logits"]
    torch.testing.assert_close(run_file(out, images), expected, rtol=1e-4, atol=1e-4)


def test_a_student_of_transformers_is_exported(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=SIZE, patch_size=8, num_labels=CLASSES,
    )  # fmt: skip
    student = student_of(transformers.ViTForImageClassification(config))
    for suffix in SUFFIXES:
        out = tmp_path / f"student{suffix}"
        assert export_student(student, out).relative <= TOLERANCE


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (torchvision_net("resnet18"), ".onnx"),
        (torchvision_net("mobilenet_v3_small"), ".pt2"),
        (vit, ".onnx"),
    ],
    ids=["resnet18", "mobilenet_v3_small", "vit"],
)
def test_rounding_alone_is_far_below_the_tolerance(
    tmp_path: Path, make: Callable[[int], nn.Module], suffix: str
) -> None:
    agreement = export_student(student_of(make(CLASSES)), tmp_path / f"student{suffix}")
    assert agreement.relative < TOLERANCE / 30
    assert agreement.top1 == 1.0


def test_files_say_what_they_are_of(tmp_path: Path) -> None:
    expected = {
        "student": "own:net", "num_classes": CLASSES, "size": SIZE, "takes": "images",
        "classes": [*"abcdé"],
        "mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "version": __version__,
    }  # fmt: skip
    student = replace(student_of(nets.contrast(CLASSES)), classes=tuple("abcdé"))
    extra = {"kdcache": ""}
    export_student(student, tmp_path / "student.pt2", pixels=False)
    torch.export.load(tmp_path / "student.pt2", extra_files=extra)
    assert json.loads(extra["kdcache"]) == expected
    export_student(student, tmp_path / "student.onnx", pixels=True)
    session = InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    found = json.loads(session.get_modelmeta().custom_metadata_map["kdcache"])
    assert found == expected | {"takes": "pixels"}
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape) == (
        "pixels", "tensor(uint8)", ["batch", 3, SIZE, SIZE],
    )  # fmt: skip
    assert (given.name, given.type, given.shape) == (
        "logits", "tensor(float)", ["batch", CLASSES],
    )  # fmt: skip
    onnx.checker.check_model(tmp_path / "student.onnx", full_check=True)
    with ZipFile(tmp_path / "student.pt2") as archive:
        program = b"".join(archive.read(name) for name in archive.namelist())
    for content in (program, (tmp_path / "student.onnx").read_bytes()):
        assert b"nets.Contrast" in content
        assert str(Path(nets.__file__).parent).encode() not in content  # of this machine


# --- networks that cannot be exported ------------------------------------------------------


class Pooled(nn.Module):
    """Logits of the mean colours, for the networks below to spoil."""

    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.spoil = nn.Linear(3, CLASSES), spoil

    def forward(self, images_N3HW: Tensor) -> Tensor:
        logits: Tensor = self.linear(images_N3HW.mean((2, 3)))
        return self.spoil(logits)


def singular(logits_NC: Tensor) -> Tensor:
    """Something that ONNX has no word for."""
    return logits_NC + torch.linalg.svdvals(logits_NC[:, None]).mean()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x if x.sum() > 0 else -x, "torch cannot export it: Could not guard on data-dep"),
        (lambda x: x if len(x) == 1 else 2 * x, "torch cannot export it: Constraints violated"),
        (lambda x: torch.stack([row * 2 for row in x]), "torch cannot export it: Constraints vio"),
        (lambda x: torch.from_numpy(x.numpy()), "torch cannot export it: .numpy() is not supp"),
        (nn.functional.dropout, "run twice, its logits differ by up to"),
        (lambda x: x / 0, "gave logits that are not finite"),
        (lambda x: x[:, :3], "gave (1, 3) for 1 images, expected a tensor of logits (images, 5"),
        (lambda x: x[:1], "gave (1, 5) for 2 images, expected a tensor of logits (images, 5"),
        (lambda x: x + 0.01 * torch.compiler.is_exporting(), "no file was kept; try the other of"),
    ],
    ids=["pixels", "batch", "loop", "numpy", "dropout", "infinite", "classes", "row", "differs"],
)
def test_a_network_that_cannot_be_exported_is_refused_in_one_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[Tensor], Tensor],
    words: str,
) -> None:
    with pytest.raises(UsageError) as caught:
        export_student(student_of(Pooled(spoil)), tmp_path / "student.pt2")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_what_onnx_cannot_say_may_be_a_torch_program(tmp_path: Path) -> None:
    student = student_of(Pooled(singular))
    with pytest.raises(UsageError, match=r"as \.onnx: No ONNX function found for .*try the other"):
        export_student(student, tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []
    export_student(student, tmp_path / "student.pt2")


# --- places ---------------------------------------------------------------------------------


def test_a_file_that_is_there_stays_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "student.pt2"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already; name another file, or add --overwrite"):
        export_student(student_of(nets.contrast(CLASSES)), out)
    with pytest.raises(UsageError, match="run twice"):
        export_student(student_of(Pooled(nn.functional.dropout)), out, overwrite=True)
    assert out.read_bytes() == b"mine"
    export_student(student_of(nets.contrast(CLASSES)), out, overwrite=True)
    assert len(run_file(out, torch.zeros(3, 3, SIZE, SIZE, dtype=torch.uint8))) == 3
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    out = tmp_path / "student.pt2"

    def meddle(logits_NC: Tensor) -> Tensor:
        out.write_bytes(b"another's")
        return logits_NC

    with pytest.raises(UsageError, match="is there already"):
        export_student(student_of(Pooled(meddle)), out)
    assert out.read_bytes() == b"another's"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("student.pth", r"expected a name that ends in \.pt2 or \.onnx"),
        ("student", r"expected a name that ends in \.pt2 or \.onnx"),
        ("none/student.pt2", "there is no folder .*none"),
        ("folder.pt2", "is there already"),
    ],
)
def test_a_place_that_does_not_serve_is_refused_first(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(UsageError, match=words):
        export_student(student_of(nets.contrast(CLASSES)), tmp_path / name, overwrite=True)


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, suffix: str) -> None:
    with full_disk(100), pytest.raises(UsageError, match="cannot be written: File too large"):
        export_student(student_of(nets.contrast(CLASSES)), tmp_path / f"student{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "onnxscript"])
def test_without_its_libraries_onnx_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"needs {library}; pip install 'kdcache\[onnx\]'"):
        export_student(student_of(nets.contrast(CLASSES)), tmp_path / "student.onnx")


def test_weights_that_one_onnx_file_cannot_hold_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ONNX_BYTES", 12 * CLASSES * 4)
    with pytest.raises(UsageError, match=r"these weights take 240 B; use \.pt2"):
        export_student(student_of(nets.contrast(CLASSES)), tmp_path / "student.onnx")


# --- nearness -------------------------------------------------------------------------------


def test_nearness_is_a_share_of_the_logits_range() -> None:
    expected_NC = torch.tensor([[0.0, 10.0], [4.0, -10.0]])
    assert compare(expected_NC, expected_NC).relative == 0
    found_NC = expected_NC + torch.tensor([[0.0, 1e-3], [0.0, 0.0]])
    agreement = compare(found_NC, expected_NC)
    assert agreement.max_difference == pytest.approx(1e-3, rel=1e-3)
    assert agreement.relative == pytest.approx(1e-3 / 20.1, rel=1e-3)
    with pytest.raises(UsageError, match=r"logits differ by up to 0\.003"):
        compare(expected_NC + 3e-3, expected_NC)
    with pytest.raises(UsageError, match="logits differ by up to nan"):
        compare(expected_NC * torch.nan, expected_NC)


def test_logits_that_are_all_alike_have_no_range_but_what_float32_holds() -> None:
    same_NC = torch.full((2, 3), 100.0)
    assert compare(same_NC, same_NC).relative == 0
    assert compare(0 * same_NC, 0 * same_NC).relative == 0
    assert compare(same_NC + 5e-5, same_NC).relative > 0
    with pytest.raises(UsageError):
        compare(same_NC + 1e-3, same_NC)


def test_a_tie_within_rounding_is_counted_and_not_refused() -> None:
    expected_NC = torch.tensor([[1.0, 1.0, -9.0], [0.0, 5.0, 0.0]])
    found_NC = expected_NC + torch.tensor([[0.0, 1e-6, 0.0], [0.0, 0.0, 0.0]])
    assert compare(found_NC, expected_NC).top1 == 0.5


def test_the_images_compared_differ_and_are_the_same_each_time() -> None:
    batches = seeded_batches(50)
    assert [tuple(batch.shape) for batch in batches] == [(n, 3, 50, 50) for n in (1, 2, 5)]
    assert len({image.numpy().tobytes() for batch in batches for image in batch}) == 8
    assert all(map(torch.equal, batches, seeded_batches(50)))
