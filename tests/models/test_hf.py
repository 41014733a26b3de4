"""Claims about transformers' classifiers: folders, the hub's cache, its server, and no network."""

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdcache.errors import UsageError
from kdcache.models.running import run_network
from kdcache.models.source import Inputs
from kdcache.models.specs import build_network, open_model
from tests.models.hubs import COMMIT, fill_cache, read_folder, serve

pytest.importorskip("transformers")

NAME = "owner/tiny-vit"
CARD = b"---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as save_pretrained writes it: a ViT of five classes, its processor and a card."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    from kdcache.models.libraries import quiet

    folder = tmp_path_factory.mktemp("hf") / "tiny@vit"
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate("abcde")),
    )
    with quiet():
        ViTForImageClassification(config).save_pretrained(folder)
        processor = ViTImageProcessor(size={"height": 16, "width": 16}, rescale_factor=1 / 127.5)
        processor.save_pretrained(folder)
    (folder / "README.md").write_bytes(CARD)
    return folder


@pytest.fixture
def folder(tmp_path: Path, saved: Path) -> Path:
    """A copy of the folder, to be changed at will."""
    copy = tmp_path / "tiny@vit"
    copy.mkdir()
    for name, data in read_folder(saved).items():
        (copy / name).write_bytes(data)
    return copy


def change(path: Path, **values: Any) -> None:
    """Set entries of a JSON file; None takes them out."""
    content = json.loads(path.read_text()) | values
    gone = {key for key, value in values.items() if value is None}
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in gone}))


def pixels(count: int = 3, size: int = 16) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def normalise(images: Tensor, inputs: Inputs) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (inputs.mean, inputs.std))
    return (images.float() / 255 - mean) / std


def logits(network: nn.Module, inputs: Inputs) -> Tensor:
    images = normalise(pixels(), inputs)
    with torch.no_grad():
        return run_network(network.eval(), images, name="net", num_classes=None)


# --- folders -------------------------------------------------------------------------------


def test_logits_are_those_of_transformers_with_its_own_processor(folder: Path) -> None:
    from transformers import ViTForImageClassification, ViTImageProcessor

    from kdcache.models.libraries import quiet

    model = open_model(f"hf:{folder}")
    with quiet():
        theirs = ViTForImageClassification.from_pretrained(folder)
        processor = ViTImageProcessor.from_pretrained(folder)
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels()]
    with torch.no_grad():
        expected = theirs(**processor(images, return_tensors="pt")).logits
    torch.testing.assert_close(logits(model.network, model.inputs), expected, rtol=1e-5, atol=1e-5)


def test_a_folder_tells_all_that_its_files_say(folder: Path) -> None:
    model = open_model(f"hf:{folder}", num_classes=9)
    assert (model.name, model.trained, model.takes) == ("hf:tiny@vit", True, "images")
    assert model.inputs == Inputs(16, 1.0, "bilinear", (0.25, 0.25, 0.25), (0.25, 0.25, 0.25))
    assert model.classes == tuple("abcde")
    assert model.licence == "apache-2.0"
    assert model.graph is not None
    assert len(model.graph) == 64


def test_a_folder_that_says_less_tells_less(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    (folder / "README.md").unlink()
    change(folder / "config.json", id2label={str(n): f"LABEL_{n}" for n in range(5)})
    model = open_model(f"hf:{folder}")
    assert (model.inputs, model.classes, model.licence) == (Inputs(), None, None)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: x\nlicense_link: https://a/b\n---\n", "https://a/b"),
        ("---\nlicense: other\nlicense_name: x\n---\n", "x"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit AND apache-2.0"),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("license: mit", None),
        ("", None),
    ],
)
def test_the_licence_is_what_the_card_says(folder: Path, card: str, licence: str | None) -> None:
    (folder / "README.md").write_text(card)
    assert open_model(f"hf:{folder}").licence == licence


def test_the_graph_is_what_the_config_says_but_for_who_wrote_it(folder: Path) -> None:
    before = open_model(f"hf:{folder}").graph
    change(folder / "config.json", transformers_version="4.0", dtype=None, _name_or_path="x")
    assert open_model(f"hf:{folder}").graph == before
    change(folder / "config.json", hidden_act="relu")
    assert open_model(f"hf:{folder}").graph != before
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace("1e-12", "NaN")
    )
    with pytest.raises(UsageError, match=r"config\.json: "):
        open_model(f"hf:{folder}")


def test_loading_says_nothing_and_leaves_the_logs_as_they_were(folder: Path, capfd: Any) -> None:
    import transformers

    before = logging.root.manager.disable, transformers.logging.get_verbosity()
    open_model(f"hf:{folder}")
    build_network(f"hf:{folder}", num_classes=3)
    assert capfd.readouterr() == ("", "")
    assert (logging.root.manager.disable, transformers.logging.get_verbosity()) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_float32_when_loaded(
    folder: Path, dtype: torch.dtype
) -> None:
    whole = open_model(f"hf:{folder}").network.state_dict()
    halves = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    change(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
    found = open_model(f"hf:{folder}").network.state_dict()
    assert all(torch.equal(found[name], t.to(dtype).float()) for name, t in whole.items())
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    student = build_network(f"hf:{folder}", num_classes=3)
    assert {tensor.dtype for tensor in student.state_dict().values()} == {torch.float32}


def test_weights_of_a_pytorch_file_are_tensors_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_model(f"hf:{folder}").network.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = open_model(f"hf:{folder}").network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="transformers makes no image classifier of it"):
        open_model(f"hf:{folder}")
    assert not (tmp_path / "bomb_went_off").exists()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("bomb_went_off"),))


def test_weights_that_would_be_random_are_refused(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    headless = {k: v for k, v in whole.items() if not k.startswith("classifier")}
    save_file(headless, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"missing or do not fit: classifier\.bias, classifier\.w"):
        open_model(f"hf:{folder}")
    small = whole | {"classifier.weight": torch.zeros(4, 16)}
    save_file(small, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"tiny@vit: "):
        open_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auto_map": {"AutoConfig": "code.Config"}}, "asks for code that comes with it"),
        ({"vision_config": {"auto_map": {}}}, "asks for code that comes with it"),
        ({"attn_implementation": "somebody/kernel"}, "asks for the attention 'somebody/kernel'"),
        ({"model_type": "bert"}, "transformers makes no image classifier of it"),
        ({"model_type": "no_such_type"}, "transformers makes no image classifier of it"),
    ],
)
def test_configs_that_ask_for_other_code_are_refused(
    folder: Path, values: dict[str, Any], words: str
) -> None:
    (folder / "code.py").write_text("raise SystemExit('it ran')\n")
    change(folder / "config.json", **values)
    with pytest.raises(UsageError, match=words) as caught:
        open_model(f"hf:{folder}")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=words):
        build_network(f"hf:{folder}", num_classes=3)


def test_folders_that_are_none_of_transformers_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="holds an adapter of another model"):
        open_model(f"hf:{folder}")
    for text, words in (("{", "cannot be read"), ("[]", "expected an object of JSON, found list")):
        (folder / "config.json").write_text(text)
        with pytest.raises(UsageError, match=words):
            open_model(f"hf:{folder}")
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"has no config\.json; give the folder of save_pretrain"):
        open_model(f"hf:{folder}")
    for name in ("no-such-folder", "/no/such/folder", "../no-such-folder", "a/b/c", "a b/c"):
        with pytest.raises(UsageError, match="no such folder, and no name of the hub, which is OW"):
            open_model(f"hf:{name}")


def test_a_weights_file_goes_into_the_network_of_a_folder(folder: Path, tmp_path: Path) -> None:
    """As `kdcache train` writes it of a student of that folder."""
    student = build_network(f"hf:{folder}", num_classes=3)
    save_file(student.state_dict(), tmp_path / "w.safetensors")
    for model in (
        open_model(f"hf:{folder}", tmp_path / "w.safetensors", num_classes=3),
        open_model(f"hf:{folder}@{tmp_path / 'w.safetensors'}", num_classes=3),
    ):
        assert torch.equal(logits(model.network, model.inputs), logits(student, model.inputs))
        assert (model.name, model.classes) == ("hf:tiny@vit", None)
    with pytest.raises(UsageError, match="weights do not fit the model"):
        open_model(f"hf:{folder}", tmp_path / "w.safetensors")


def test_a_weights_file_may_have_the_names_that_transformers_writes(
    folder: Path, tmp_path: Path
) -> None:
    file = (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    model = open_model(f"hf:{folder}", file)
    file.rename(folder / file.name)
    whole = open_model(f"hf:{folder}")
    assert torch.equal(logits(model.network, model.inputs), logits(whole.network, whole.inputs))
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"w\.safetensors: weights do not fit .*unknown: w"):
        open_model(f"hf:{folder}", tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="no such weights file"):
        open_model(f"hf:{folder}@{tmp_path / 'none.safetensors'}")


def test_students_are_fresh_and_have_the_classes_asked_for(folder: Path) -> None:
    for file in ("model.safetensors", "preprocessor_config.json"):
        (folder / file).unlink()  # a config is enough
    torch.manual_seed(0)
    first = build_network(f"hf:{folder}", num_classes=3)
    torch.manual_seed(0)
    again = build_network(f"hf:{folder}", num_classes=3).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())
    assert first.training
    images = torch.zeros(2, 3, 16, 16)
    assert run_network(first, images, name="net", num_classes=3).requires_grad
    assert build_network(f"hf:{folder}", num_classes=None).config.num_labels == 5


def test_a_missing_library_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"needs transformers; pip install 'kdcache\[hf\]'"):
        open_model(f"hf:{folder}")
    with pytest.raises(UsageError, match=r"needs transformers; pip install 'kdcache\[hf\]'"):
        build_network("hf:owner/name", num_classes=3)


# --- the hub -------------------------------------------------------------------------------


def test_a_repository_in_the_cache_needs_no_network(
    hub_cache: Path, saved: Path, folder: Path
) -> None:
    fill_cache(hub_cache, NAME, read_folder(saved))
    model, local = open_model(f"hf:{NAME}"), open_model(f"hf:{folder}")
    assert model.name == f"hf:{NAME}"
    assert (model.inputs, model.classes) == (local.inputs, local.classes)
    assert (model.licence, model.graph) == (local.licence, local.graph)
    assert torch.equal(logits(model.network, model.inputs), logits(local.network, local.inputs))
    assert build_network(f"hf:{NAME}", num_classes=3).config.num_labels == 3


@pytest.mark.parametrize("revision", ["v2", COMMIT])
def test_a_revision_is_the_one_that_is_named(hub_cache: Path, saved: Path, revision: str) -> None:
    fill_cache(hub_cache, NAME, read_folder(saved), revision="v2")
    assert open_model(f"hf:{NAME}@{revision}").name == f"hf:{NAME}"
    with pytest.raises(UsageError, match=f"hf:{NAME}@v3: config.json of {NAME} is not"):
        open_model(f"hf:{NAME}@v3")


def test_a_folder_wins_over_the_hub(
    hub_cache: Path, saved: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(hub_cache, NAME, read_folder(saved))
    (tmp_path / "owner").mkdir()
    folder.rename(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert open_model(f"hf:{NAME}").name == "hf:tiny-vit"


def test_no_network_is_one_sentence_that_says_what_to_do(hub_cache: Path, saved: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(UsageError, match="not in the hub's cache, and cannot be fetched") as caught:
        open_model(f"hf:{NAME}")
    message = str(caught.value)
    assert f"run hf download {NAME} on a machine with a network" in message
    assert "give its folder as hf:FOLDER (there is no folder owner/tiny-vit here)" in message
    assert "\n" not in message
    assert time.monotonic() - begun < 10
    files = read_folder(saved)
    del files["preprocessor_config.json"]
    fill_cache(hub_cache, NAME, files)
    with pytest.raises(UsageError, match=r"preprocessor_config\.json of owner/tiny-vit is not in"):
        open_model(f"hf:{NAME}")  # rather than other pixels than with a network


def test_an_address_that_does_not_resolve_is_one_sentence(reach: Callable[[str], None]) -> None:
    reach("http://no-such-host.invalid")
    begun = time.monotonic()
    with pytest.raises(UsageError, match="cannot be fetched: "):
        open_model(f"hf:{NAME}")
    assert time.monotonic() - begun < 20


def test_a_switched_off_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be fetched: the hub is switched off by HF_HUB_OF"):
        open_model(f"hf:{NAME}")


def at_hub(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return files as the hub serves them, of main and of its commit."""
    return {
        f"{NAME}/resolve/{revision}/{name}": data
        for name, data in files.items()
        for revision in ("main", COMMIT)
    }


def test_a_repository_is_fetched_once(
    saved: Path, folder: Path, reach: Callable[[str], None], capfd: Any
) -> None:
    files = read_folder(saved)
    del files["README.md"], files["preprocessor_config.json"]
    with serve(at_hub(files)) as address:
        reach(address)
        assert open_model(f"hf:{NAME}").inputs == Inputs()
    model = open_model(f"hf:{NAME}")
    assert (model.inputs, model.licence) == (Inputs(), None), "what is not there was noted"
    assert model.classes == tuple("abcde")
    assert capfd.readouterr() == ("", "")


def test_weights_in_shards_are_fetched(
    saved: Path, reach: Callable[[str], None], hub_cache: Path
) -> None:
    files = read_folder(saved)
    names = sorted(load_file(saved / "model.safetensors"))
    shard = "model-00001-of-00001.safetensors"
    files[shard] = files.pop("model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    with serve(at_hub(files)) as address:
        reach(address)
        assert open_model(f"hf:{NAME}").trained
        index["weight_map"] = {"w": "pytorch_model.bin"}
    (found,) = hub_cache.rglob("model.safetensors.index.json")
    found.resolve().write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"names other files than \.safetensors"):
        open_model(f"hf:{NAME}")


def test_a_hubs_pickles_are_not_even_fetched(
    saved: Path, reach: Callable[[str], None], hub_cache: Path
) -> None:
    files = read_folder(saved)
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    with serve(at_hub(files)) as address:
        reach(address)
        with pytest.raises(UsageError, match=r"has no model\.safetensors on the hub, and other fi"):
            open_model(f"hf:{NAME}")
    assert not list(hub_cache.rglob("*.bin"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("RepoNotFound", "the hub has none of this name, or shows it to its owners only"),
        ("GatedRepo", "its owner must let you in"),
        ("RevisionNotFound", "it has no revision v7"),
        ("EntryNotFound", f"{NAME} has no config.json on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    reach: Callable[[str], None], code: str, words: str
) -> None:
    with serve({}, refusals={NAME: code}) as address:
        reach(address)
        with pytest.raises(UsageError, match=words) as caught:
            open_model(f"hf:{NAME}@v7")
    assert str(caught.value).startswith(f"hf:{NAME}@v7: ")
    assert "\n" not in str(caught.value)


def test_a_repository_takes_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has its own weights; leave --weights out, or give a fol"):
        open_model(f"hf:{NAME}", tmp_path / "w.safetensors")
