"""Claims about torchvision's models: its weights from its cache, files, and no network."""

import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights, get_model

from kdcache.errors import UsageError
from kdcache.models.source import Inputs
from kdcache.models.specs import build_network, open_model
from tests.models.hubs import NOBODY, serve

ENTRY = SqueezeNet1_1_Weights.IMAGENET1K_V1
SPEC = "torchvision:squeezenet1_1@IMAGENET1K_V1"


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(3)
    network: nn.Module = get_model("squeezenet1_1").eval()
    return network


@pytest.fixture
def published(tmp_path: Path, trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as torchvision publishes it: its name ends in its hash, and the entry's URL in it."""
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    return publish(tmp_path / "plain.pth", monkeypatch)


def publish(path: Path, monkeypatch: pytest.MonkeyPatch, address: str = NOBODY) -> Path:
    start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    named = path.rename(path.parent / f"squeezenet1_1-{start}.pth")
    monkeypatch.setattr(ENTRY.value, "url", f"{address}/{named.name}")
    return named


def cached(published: Path, torch_home: Path) -> Path:
    torch_home.mkdir(parents=True)
    return published.rename(torch_home / published.name)


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("entry", ["IMAGENET1K_V1", "DEFAULT"])
def test_an_entry_gives_its_weights_and_all_that_torchvision_knows(
    published: Path, torch_home: Path, trained: nn.Module, entry: str
) -> None:
    cached(published, torch_home)
    model = open_model(f"torchvision:squeezenet1_1@{entry}", num_classes=5)
    with torch.no_grad():
        assert torch.equal(model.network.eval()(images()), trained(images()))
    assert (model.name, model.trained, model.takes) == ("torchvision:squeezenet1_1", True, "images")
    assert model.inputs == Inputs(
        size=224,
        crop=0.875,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert model.classes is not None
    assert (len(model.classes), model.classes[0]) == (1000, "tench")
    assert (model.graph, model.licence) == (None, None)


def test_the_licence_is_what_the_entry_says(
    published: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(published, torch_home)
    monkeypatch.setitem(ENTRY.meta, "license", "https://example.org/LICENSE")
    assert open_model(SPEC).licence == "https://example.org/LICENSE"


def test_an_entry_is_fetched_once(
    published: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with serve({published.name: published.read_bytes()}) as address:
        publish(published, monkeypatch, address)
        assert open_model(SPEC).trained
    assert (torch_home / published.name).exists()
    assert open_model(SPEC).trained, "the server is gone, the file is here"
    assert capfd.readouterr() == ("", "")


def test_no_network_is_one_sentence_that_says_where_the_file_goes(
    published: Path, torch_home: Path
) -> None:
    begun = time.monotonic()
    with pytest.raises(UsageError, match="not in torch's cache, and cannot be fetched") as caught:
        open_model(SPEC)
    message = str(caught.value)
    assert f"download {NOBODY}/{published.name} and put it at {torch_home}" in message
    assert "\n" not in message
    assert time.monotonic() - begun < 10


def test_a_fetched_file_of_another_hash_is_refused(
    published: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve({published.name: published.read_bytes()[:-1] + b"x"}) as address:
        publish(published, monkeypatch, address)
        with pytest.raises(UsageError, match="cannot be fetched: invalid hash value"):
            open_model(SPEC)
    assert not list(torch_home.iterdir())


def test_a_damaged_file_of_the_cache_is_refused(published: Path, torch_home: Path) -> None:
    path = cached(published, torch_home)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UsageError, match=r"its sha256 is \w{12}, its name says \w{8}; delete it"):
        open_model(SPEC)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("bomb_went_off"),))


def test_published_code_is_refused_and_not_run(
    tmp_path: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Bomb()}, tmp_path / "plain.pth")
    cached(publish(tmp_path / "plain.pth", monkeypatch), torch_home)
    with pytest.raises(UsageError, match="cannot be read: Weights only load failed"):
        open_model(SPEC)
    assert not (tmp_path / "bomb_went_off").exists()


def test_published_weights_of_another_network_are_refused(
    tmp_path: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "plain.pth")
    cached(publish(tmp_path / "plain.pth", monkeypatch), torch_home)
    with pytest.raises(UsageError, match="torchvision cannot load it: Error"):
        open_model(SPEC)


def test_weights_that_are_no_entry_and_no_file_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no weights 'V9', .*; it has IMAGENET1K_V1, DEFAULT"):
        open_model("torchvision:squeezenet1_1@V9")
    with pytest.raises(UsageError, match="some/file: no such weights file"):
        open_model("torchvision:squeezenet1_1@some/file")
    with pytest.raises(UsageError, match="DEFAULT: no such weights file"):
        open_model("torchvision:squeezenet1_1", Path("DEFAULT"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights of six classes, in a folder whose name holds "@"."""
    (tmp_path / "a@b").mkdir()
    path = tmp_path / "a@b" / "w.safetensors"
    save_file(build_network("torchvision:squeezenet1_1", num_classes=6).state_dict(), path)
    return path


def test_a_file_gives_weights_and_nothing_else_is_claimed(file: Path) -> None:
    for model in (
        open_model(f"torchvision:squeezenet1_1@{file}", num_classes=6),
        open_model("torchvision:squeezenet1_1", file, num_classes=6),
    ):
        assert (model.name, model.trained) == ("torchvision:squeezenet1_1", True)
        assert model.inputs == Inputs()
        assert (model.classes, model.licence) == (None, None)
        assert model.network.eval()(images()).shape == (2, 6)
    with pytest.raises(UsageError, match="weights do not fit the model"):
        open_model("torchvision:squeezenet1_1", file)


def test_without_weights_a_model_says_that_it_is_not_trained() -> None:
    assert not open_model("torchvision:squeezenet1_1").trained


def test_every_classifier_of_torchvision_has_weights_that_can_be_named() -> None:
    from torchvision.models import list_models

    from kdcache.models.from_torchvision import _entries

    assert all("DEFAULT" in _entries(name) for name in list_models())
