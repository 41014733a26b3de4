"""Claims about weights files: tensors that fit, or an error that says what to fix."""

import contextlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.weights import load_matching, load_weights


def make_net(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return {
        name: torch.randn(t.shape) if t.is_floating_point() else t
        for name, t in make_net().state_dict().items()
    }


def equal(network: nn.Module, expected: dict[str, Tensor]) -> bool:
    found = network.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def _wrapped(kind: str) -> Any:
    if kind == "module.":
        return {f"module.{name}": tensor for name, tensor in state().items()}
    return state() if kind == "plain" else {kind: state(), "epoch": 3}


@pytest.mark.parametrize("kind", ["plain", "state_dict", "model", "model_state_dict", "module."])
def test_weights_of_a_pytorch_file_are_loaded(tmp_path: Path, kind: str) -> None:
    torch.save(_wrapped(kind), tmp_path / "w.pt")
    network = make_net()
    load_weights(network, tmp_path / "w.pt")
    assert equal(network, state())


def test_weights_of_a_safetensors_file_are_loaded(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    network = make_net()
    load_weights(network, tmp_path / "w.safetensors")
    assert equal(network, state())


class Bomb:
    """What a hostile pickle looks like: loading it would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("bomb_went_off"),))


@pytest.mark.parametrize("content", [Bomb(), {"w": Bomb()}, make_net()])
def test_a_file_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"w\.pt: holds more than tensors.*as safetensors"):
        load_weights(make_net(), tmp_path / "w.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(UsageError, match=r"old\.pt: "):
        load_weights(make_net(), tmp_path / "old.pt")
    assert not (tmp_path / "bomb_went_off").exists()


def test_a_file_that_does_not_fit_names_what_differs(tmp_path: Path) -> None:
    wrong = state()
    del wrong["0.weight"], wrong["1.running_var"]
    wrong["0.bias"] = torch.zeros(8)
    wrong["head.weight"] = torch.zeros(1)
    save_file(wrong, tmp_path / "w.safetensors")
    network = make_net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_weights(network, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "weights do not fit the model" in message
    assert "missing: 0.weight, 1.running_var" in message
    assert "unknown: head.weight" in message
    assert "shaped otherwise: 0.bias (8,) instead of (4,)" in message
    assert equal(network, before), "a refused file must not be loaded in part"


def test_many_differences_are_shortened(tmp_path: Path) -> None:
    save_file({f"layer{n}": torch.zeros(1) for n in range(10)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="unknown: layer0, layer1, layer2, and 7 more"):
        load_weights(make_net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.pth"])
def test_a_file_that_is_not_readable_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(UsageError, match="no such weights file"):
        load_weights(make_net(), path)
    for data in (b"", b"garbage", b"\0" * 100, b"PK\x03\x04" + b"x" * 50):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=name):
            load_weights(make_net(), path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=name):
        load_weights(make_net(), path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "w.pt":
        torch.save(state(), path)
    else:
        save_file(state(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=name):
            load_weights(make_net(), path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"a": 1}, {0: torch.zeros(1)}, None])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"w\.pt: expected a state_dict of tensors"):
        load_weights(make_net(), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
def test_planted_pickles_are_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A pickle under any name, bare or in the archive of a sound file."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UsageError, match=name):
        load_weights(make_net(), path)
    torch.save(state(), tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(path, "w") as planted:
        for entry in sound.namelist():
            bad = entry.endswith("data.pkl")
            planted.writestr(entry, pickle.dumps(Bomb(), protocol=2) if bad else sound.read(entry))
    with pytest.raises(UsageError, match=name):
        load_weights(make_net(), path)
    assert not (tmp_path / "bomb_went_off").exists()


def test_any_changed_byte_of_a_pickle_loads_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        with contextlib.suppress(UsageError):
            load_matching(make_net(), path)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused_with_advice(tmp_path: Path) -> None:
    traced = torch.jit.trace(make_net().eval(), torch.zeros(1, 3, 8, 8))
    torch.jit.save(traced, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="TorchScript archive, which carries code; save its state"):
        load_weights(make_net(), tmp_path / "w.pt")


def test_an_exported_program_is_no_weights_file(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "w.pt2")
    with pytest.raises(UsageError, match=r"program of torch\.export .*; name it as pt2:FILE"):
        load_weights(make_net(), tmp_path / "w.pt2")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (
            lambda: torch.zeros(3, 4).to_sparse(),
            "4.weight is a sparse_coo tensor, expected a plain one",
        ),
        (lambda: torch.eye(3, 4).to_sparse_csr(), "4.weight is a sparse_csr tensor"),
        (lambda: torch.zeros(3, 4, device="meta"), "4.weight is a meta tensor"),
        (
            lambda: torch.zeros(3, 4, dtype=torch.int8),
            "4.weight is torch.int8, expected torch.float32",
        ),
        (lambda: torch.zeros(3, 4, dtype=torch.complex64), "4.weight is torch.complex64, expected"),
    ],
)
def test_tensors_of_another_kind_are_refused(
    tmp_path: Path, odd: Callable[[], Tensor], words: str
) -> None:
    torch.save(state() | {"4.weight": odd()}, tmp_path / "w.pt")
    network = make_net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for load in (load_weights, load_matching):
        with pytest.raises(UsageError, match=words):
            load(network, tmp_path / "w.pt")
    assert equal(network, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    rounded = {name: tensor.to(dtype) for name, tensor in state().items()}
    save_file(rounded, tmp_path / "w.safetensors")
    network = make_net()
    load_weights(network, tmp_path / "w.safetensors")
    assert equal(
        network, {name: t.to(make_net().state_dict()[name]) for name, t in rounded.items()}
    )


class Refuses(nn.Linear):
    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        raise ValueError("not\nwith me")


def test_a_network_that_refuses_its_weights_is_one_sentence(tmp_path: Path) -> None:
    save_file(nn.Linear(2, 2).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"cannot be loaded into the model: not with me$"):
        load_weights(Refuses(2, 2), tmp_path / "w.safetensors")


def test_what_fits_is_loaded_and_the_rest_is_named(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.safetensors")
    network = make_net(7)
    left = load_matching(network, tmp_path / "w.safetensors")
    assert "4.bias (3,) instead of (7,)" in left
    assert torch.equal(network.state_dict()["0.weight"], state()["0.weight"])
    with pytest.raises(UsageError, match="nothing fits the model"):
        load_matching(nn.Linear(1, 1), tmp_path / "w.safetensors")
