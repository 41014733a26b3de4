"""Claims of docs/how-to: each page's code, run as it stands there, trains on the stream and on all
of it, in one process and in two, whenever it is killed.
"""

import importlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader

from kdcache.cache.store import open_cache
from kdcache.data.document import load_dataset
from kdcache.replay.batch import Batch
from kdcache.replay.epochs import EpochStream
from kdcache.replay.open import replay_stream
from kdcache.replay.stream import ReplayStream, StreamOptions
from kdcache.student.losses import label_loss, sparse_kl
from tests import tiny
from tests.replay.streaming import digests
from tests.worlds import run_ranks

PAGES = Path(__file__).parents[2] / "docs/how-to"
KILLED = 9

# What stands in for a long run, and for the devices of the machine.
SHORTER = {
    "num_epochs=48": "num_epochs=3",
    "EPOCHS = 48": "EPOCHS = 3",
    "% 500": "% 2",
    "every_n_train_steps=500": "every_n_train_steps=2",
    "warmup_epochs=2": "warmup_epochs=1",
    '"resnet18"': '"test_resnet"',
    "models.resnet18": "models.shufflenet_v2_x0_5",
    "Trainer(": 'Trainer(accelerator="cpu", devices={world}, ',
    "Fabric()": 'Fabric(accelerator="cpu", devices={world})',
    "Accelerator()": "Accelerator(cpu=True)",
    "torch.cuda.is_available()": "False",
}

Step = list[Any]

# What Lightning says of a first start, of a second one, of so short an epoch, and what it has not
# adapted to yet.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The number of training batches .3. is smaller than"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
]


def _code(page: str, world: int = 1) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    code: str = blocks[0]
    for long, short in SHORTER.items():
        code = code.replace(long, short.format(world=world))
    assert not re.search(r"\b(48|500)\b", code)
    return code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with build/train and build/cache: 104 images of 5 classes, 3 batches of 32."""
    place = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (104, 12, 12, 3), dtype=np.uint8)
    np.savez(place / "arrays.npz", images=images, labels=np.arange(104) % 5)
    dataset = tiny.pack_images(place / "arrays.npz", place / "build/train", rows_per_tar=40)
    recipe = tiny.make_recipe(size=8)
    tiny.precompute(place / "build/cache", dataset, recipe, encoding="dense:f2")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to train in."""
    shutil.copytree(made / "build", tmp_path / "build")
    return tmp_path


def _stream(place: Path, **options: Any) -> ReplayStream:
    options = {"batch_size": 32, "num_epochs": 3} | options
    dataset = load_dataset(place / "build/train")
    return replay_stream(open_cache(place / "build/cache"), dataset, StreamOptions(**options))


def _plainly(place: Path, **options: Any) -> list[Step]:
    """Return the views of each step, of the stream alone."""
    return [_views(batch) for batch in _stream(place, **options)]


def _views(batch: Batch) -> Step:
    views: Step = json.loads(json.dumps(digests([batch])))
    return views


# --- running a page ------------------------------------------------------------------------


def _train(rank: int, place: Path, code: str, stop: int | None) -> None:
    """Run a page's code; note the views of each step, and in the end digests of the student."""
    os.chdir(place)
    target, numbers, out = Batch.target, itertools.count(), place / f"rank{rank}"

    def noted(self: Batch, temperature: float) -> Any:
        if next(numbers) == stop:
            os._exit(KILLED)
        tiny.append_line(out, json.dumps(digests([self])))
        return target(self, temperature)

    Batch.target = noted  # type: ignore[method-assign]  # this process is a child's
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "page.md", "exec"), names)
    student = names["student"]
    kept = [_digest(student.parameters()), _digest(student.buffers())]
    out.with_suffix(".weights").write_text(json.dumps(kept))


def _digest(tensors: Iterator[Tensor]) -> str:
    total = xxhash.xxh3_64()
    for tensor in tensors:
        total.update(tensor.detach().numpy().tobytes())
    return total.hexdigest()


def _run(place: Path, code: str, *, world: int = 1, stop: int | None = None) -> list[list[Step]]:
    """Return the views of each step of each rank; stop: steps after which all are killed."""
    notes = [place / f"rank{rank}" for rank in range(world)]
    for note in notes:
        note.write_text("")
    codes = set(run_ranks(world, _train, place, code, stop, as_torchrun=world > 1))
    if stop is None:
        assert codes == {0}
    else:  # whoever waits for one that was killed fails
        assert KILLED in codes
        assert codes.isdisjoint({0, None})
    return [[json.loads(line) for line in note.read_text().splitlines()] for note in notes]


def _weights(place: Path, rank: int = 0) -> list[str]:
    found: list[str] = json.loads((place / f"rank{rank}.weights").read_text())
    return found


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Imported once: children inherit them."""
    for name in ("accelerate.utils", "lightning", "timm.scheduler", "torchvision"):
        importlib.import_module(name)


# --- the pages -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["plain-pytorch", "lightning", "fabric", "accelerate", "timm"])
def test_a_page_trains_on_the_stream_and_goes_on_exactly_after_each_kill(
    place: Path, page: str
) -> None:
    """Nine steps, a checkpoint after each second one; killed in mid-epoch, and after an epoch."""
    lanes = {} if page == "timm" else {"lanes": 8}
    whole, code = _plainly(place, **lanes), _code(page)
    assert len(whole) == 9
    assert _run(place, code) == [whole]
    undisturbed = _weights(place)
    shutil.rmtree(place / "build/run")
    begun = 0
    for done in (5, 7, 8):
        assert _run(place, code, stop=done - begun) == [whole[begun:done]]
        begun = done - done % 2
    assert _run(place, code) == [whole[begun:]]
    assert _weights(place) == undisturbed


@pytest.mark.parametrize("page", ["plain-pytorch", "lightning", "fabric", "accelerate"])
def test_processes_share_each_step_of_a_page_and_their_number_may_change(
    place: Path, page: str
) -> None:
    """Two, then one, then two again; the two end with the same weights."""
    whole, begun = _plainly(place, lanes=8), 0
    for world, done in ((2, 3), (1, 5), (2, 9)):
        stop = done - begun if done < 9 else None
        by_rank = _run(place, _code(page, world), world=world, stop=stop)
        assert {len(batch) for steps in by_rank for batch in steps} == {32 // world}
        together = [list(itertools.chain(*shares)) for shares in zip(*by_rank, strict=True)]
        assert together == whole[begun:done]
        begun = done - done % 2
    assert _weights(place, 0)[0] == _weights(place, 1)[0]


# --- what the pages warn of ----------------------------------------------------------------


NO_STATE = {"def state_dict(self)": "def no_state_dict(self)"}
EPOCH_ENDS = {
    "every_n_train_steps=2": "every_n_epochs=1",
    ".estimated_stepping_batches": ".world_size",
}
BARE = {"EpochStream(replay_stream": "(replay_stream"}
LOADER = {
    "for batch in stream:": "loader = torch.utils.data.DataLoader(stream, batch_size=None)\n"
    "for batch in accelerator.prepare_data_loader(loader, False):"
}


@pytest.mark.parametrize(
    ("page", "changes", "first"),
    [
        ("lightning", NO_STATE, 0),
        ("lightning", NO_STATE | EPOCH_ENDS, 0),
        ("lightning", BARE, 5),
        ("accelerate", LOADER, 5),
    ],
)
def test_a_stream_used_otherwise_does_not_go_on_at_its_checkpoint(
    place: Path, page: str, changes: dict[str, str], first: int
) -> None:
    """Killed after five steps, with a checkpoint of four, or of the first epoch's three."""
    whole, code = _plainly(place, lanes=8), _code(page)
    for text, other in changes.items():
        assert text in code
        code = code.replace(text, other)
    assert _run(place, code, stop=5) == [whole[:5]]
    assert _run(place, code, stop=1) == [whole[first : first + 1]]


def _with_fabric(rank: int, place: Path) -> None:
    from lightning import Fabric

    fabric = Fabric(accelerator="cpu", devices=2)
    fabric.launch()
    share = _plainly(place, rank=rank, world=2)
    stream = EpochStream(_stream(place, rank=rank, world=2))
    with pytest.raises(TypeError, match="Only PyTorch DataLoader are currently supported"):
        fabric.setup_dataloaders(stream)
    loader = fabric.setup_dataloaders(DataLoader(stream, batch_size=None))
    assert [_views(batch) for _ in range(3) for batch in loader] == share


def _with_accelerate(rank: int, place: Path) -> None:
    from accelerate import Accelerator, DataLoaderConfiguration

    stream = _stream(place, rank=rank, world=2)
    loader = DataLoader(stream, batch_size=None)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    own = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    assert own.prepare(stream) is stream
    optimizer.step()
    own.prepare(schedule).step()
    assert schedule.last_epoch == 2
    with pytest.raises(TypeError, match="unsupported operand"):
        next(iter(own.prepare(loader)))
    with pytest.raises((TypeError, RuntimeError), match=r"Can only concatenate tensors|closed by"):
        next(iter(Accelerator(cpu=True).prepare(loader)))


@pytest.mark.parametrize("claims", [_with_fabric, _with_accelerate])
def test_what_frameworks_do_to_a_loader_of_a_stream_in_two_processes(
    place: Path, claims: Callable[..., None]
) -> None:
    assert run_ranks(2, claims, place) == [0, 0]


def test_lightning_casts_no_batch_in_mixed_precision_and_fails_in_true_half(place: Path) -> None:
    from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision

    batch = next(iter(_stream(place)))
    assert MixedPrecision("bf16-mixed", "cpu").convert_input(batch) is batch
    with pytest.raises(ValueError, match="A frozen dataclass was passed"):
        HalfPrecision("bf16-true").convert_input(batch)


def test_losses_of_timm_on_dense_targets_are_ours(place: Path) -> None:
    """The gradients of all, and of mixed labels the value, too."""
    from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

    batch = next(iter(_stream(place)))
    target = batch.target(1.0)
    teacher_NC = target.dense(5).exp()
    logits_NC = torch.randn(32, 5, requires_grad=True)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits_NC)[0]

    soft = SoftTargetCrossEntropy()
    ours = gradient(sparse_kl(logits_NC, target).mean())
    torch.testing.assert_close(gradient(soft(logits_NC, teacher_NC)), ours)
    binary = gradient(BinaryCrossEntropy(sum_classes=True)(logits_NC, teacher_NC))
    torch.testing.assert_close(binary, (logits_NC.sigmoid() - teacher_NC) / 32)

    own_NC, partner_NC = torch.eye(5)[batch.labels], torch.eye(5)[batch.partner_labels]
    labels_NC = torch.lerp(partner_NC, own_NC, batch.weights[:, None])
    mixing = {"partner_labels_N": batch.partner_labels, "weights_N": batch.weights}
    ours = label_loss(logits_NC, batch.labels, **mixing).mean()
    torch.testing.assert_close(soft(logits_NC, labels_NC), ours)
