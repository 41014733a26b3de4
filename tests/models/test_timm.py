"""Claims about timm's models: weights of a tag from the hub's cache, files, and no network."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.source import Inputs
from kdcache.models.specs import build_network, open_model
from tests.models.hubs import fill_cache, serve

timm: Any = pytest.importorskip("timm")

NAME = "test_resnet.r160_in1k"
HUB = f"timm/{NAME}"


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(3)
    network: nn.Module = timm.create_model(NAME).eval()
    return network


def encode(state: dict[str, Tensor]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in state.items()})


@pytest.fixture
def published(hub_cache: Path, trained: nn.Module) -> Path:
    return fill_cache(hub_cache, HUB, {"model.safetensors": encode(trained.state_dict())})


def test_a_tag_gives_its_weights_and_all_that_timm_knows(published: Path) -> None:
    model = open_model(f"timm:{NAME}", num_classes=5)
    assert (model.name, model.trained, model.takes) == (f"timm:{NAME}", True, "images")
    assert model.inputs == Inputs(160, 0.95, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert model.licence == "apache-2.0"
    assert model.classes is not None
    assert (len(model.classes), model.classes[0]) == (1000, "n01440764")
    assert model.graph is None


def test_logits_are_those_of_timm_with_its_own_transform(
    published: Path, trained: nn.Module
) -> None:
    model = open_model(f"timm:{NAME}")
    config = timm.data.resolve_model_data_config(trained)
    transform = timm.data.create_transform(**config, is_training=False)
    generator = torch.Generator().manual_seed(0)
    side = round(160 / 0.95)  # the resize changes nothing, the crop takes 160
    pixels = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
    expected = transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))[None]
    assert (model.inputs.mean, model.inputs.std) != (None, None)
    edge = (side - 160) // 2
    ours = pixels[None, :, edge : edge + 160, edge : edge + 160].float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.inputs.mean, model.inputs.std))
    with torch.no_grad():
        found = model.network.eval()((ours - mean) / std)
        torch.testing.assert_close(found, trained(expected), rtol=1e-5, atol=1e-5)


def test_a_tags_weights_are_fetched_once(
    hub_cache: Path, trained: nn.Module, reach: Callable[[str], None], capfd: Any
) -> None:
    data = encode(trained.state_dict())
    with serve({f"{HUB}/resolve/main/model.safetensors": data}) as address:
        reach(address)
        assert open_model(f"timm:{NAME}").trained
    assert open_model(f"timm:{NAME}").trained, "the server is gone, the file is here"
    assert capfd.readouterr() == ("", "")


def test_no_network_is_one_sentence_that_says_what_to_do() -> None:
    begun = time.monotonic()
    with pytest.raises(UsageError, match="not in the hub's cache, and cannot be fetched") as caught:
        open_model(f"timm:{NAME}")
    message = str(caught.value)
    assert f"model.safetensors of {HUB}" in message
    assert f"give the file: timm:{NAME}@FILE" in message
    assert "\n" not in message
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "dla46_c.in1k"])
def test_published_weights_that_lack_some_are_refused(hub_cache: Path, name: str) -> None:
    """Timm itself takes dla's weights as far as they go."""
    state = timm.create_model(name).state_dict()
    dropped = next(key for key in state if key.endswith("conv1.weight"))
    del state[dropped]
    fill_cache(hub_cache, f"timm/{name}", {"model.safetensors": encode(state)})
    with pytest.raises(UsageError, match=r"lacks weights of timm:dla|timm cannot make it: Error"):
        open_model(f"timm:{name}")
    assert nn.Module.load_state_dict.__module__ == "torch.nn.modules.module"


def test_weights_without_a_classifier_or_not_on_the_hub_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="gives features, and has no classifier"):
        open_model("timm:vit_small_patch14_dinov2.lvd142m")
    settings = timm.models.get_pretrained_cfg(NAME)
    settings.hf_hub_id, settings.url = None, "https://example.org/w.pth"
    monkeypatch.setattr(timm.models, "get_pretrained_cfg", lambda _: settings)
    with pytest.raises(UsageError, match=r"download them from https://example\.org/w\.pth, and gi"):
        open_model(f"timm:{NAME}")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:test_resnett", r"timm has no model 'test_resnett'; near it: .*test_resnet"),
        ("timm:zzzz", "timm has no model 'zzzz'"),
        ("timm:test_resnet.nope", "timm has no weights 'nope' of test_resnet; it has r160_in1k"),
        ("timm:timm/test_resnet.r160_in1k", "name a model of the hub as hf:OWNER/NAME"),
        ("timm:hf-hub:timm/test_resnet", "name a model of the hub as hf:OWNER/NAME"),
        ("timm:local-dir:folder", "expected a name of timm's own"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_model(spec)
    with pytest.raises(UsageError, match=words):
        build_network(spec, num_classes=3)


def test_a_file_beside_a_tag_is_taken_for_its_weights(tmp_path: Path, trained: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(encode(trained.state_dict()))
    tagged, plain = open_model(f"timm:{NAME}@{path}"), open_model("timm:test_resnet", path)
    for model in (tagged, plain):
        assert model.trained
        found = model.network.state_dict()
        assert all(torch.equal(found[key], value) for key, value in trained.state_dict().items())
    assert (tagged.name, tagged.inputs.size, tagged.licence) == (f"timm:{NAME}", 160, "apache-2.0")
    assert tagged.classes is not None
    assert (plain.name, plain.inputs) == ("timm:test_resnet", Inputs())
    assert (plain.classes, plain.licence) == (None, None)


def test_a_file_of_other_classes_is_not_the_tags(tmp_path: Path) -> None:
    torch.save(build_network("timm:test_vit", num_classes=7).state_dict(), tmp_path / "w.pth")
    for spec in ("timm:test_vit.r160_in1k", "timm:test_vit"):
        model = open_model(spec, tmp_path / "w.pth", num_classes=7)
        assert (model.name, model.classes, model.licence) == ("timm:test_vit", None, None)
        assert model.inputs == Inputs(size=160), "this network takes one size only"


def test_labels_of_the_settings_are_the_classes(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcache.models.from_timm import _classes

    assert _classes(timm, {"label_names": ["cat", "dog"], "num_classes": 2}) == ("cat", "dog")
    assert _classes(timm, {"num_classes": 2}) is None


def test_students_are_fresh_and_have_the_classes_asked_for() -> None:
    for name in ("test_resnet", NAME):
        torch.manual_seed(0)
        first = build_network(f"timm:{name}", num_classes=5)
        torch.manual_seed(0)
        again = build_network(f"timm:{name}", num_classes=5).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())
        assert first.training
        assert first.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert not open_model("timm:test_resnet").trained


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    words = r"timm:test_resnet: needs timm; pip install 'kdcache\[timm\]'"
    with pytest.raises(UsageError, match=words):
        open_model("timm:test_resnet")
    with pytest.raises(UsageError, match=words):
        build_network("timm:test_resnet", num_classes=3)


def test_what_timm_says_of_its_own_weights_is_taken() -> None:
    """All of them; three frame the image instead of cropping it."""
    import timm

    for name in timm.list_pretrained():
        settings = timm.models.get_pretrained_cfg(name)
        found = Inputs(
            size=settings.input_size[-1],
            crop=settings.crop_pct,
            interpolation=settings.interpolation,
            mean=settings.mean,
            std=settings.std,
        )
        assert found.size
