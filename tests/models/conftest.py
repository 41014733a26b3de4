"""No test of this folder reaches a network: hubs are empty folders, and nobody listens."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.hubs import NOBODY


@pytest.fixture(autouse=True)
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where torch.hub keeps files, empty."""
    home = tmp_path / "torch-home"
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home / "hub" / "checkpoints"


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the hub be at an address."""
    from huggingface_hub import constants

    def change(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return change


@pytest.fixture(autouse=True)
def hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """The folder where the hub's files are kept, empty; the hub itself is not to be reached."""
    cache = tmp_path / "hub-cache"
    if importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))  # it was read on import
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        request.getfixturevalue("reach")(NOBODY)
    return cache
