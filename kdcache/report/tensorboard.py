"""A run's metrics as TensorBoard's scalars, in the folder tensorboard of the run.

The events always say what metrics.jsonl says: they are written again from it when a run goes on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.errors import UsageError
from kdcache.report.runs import METRICS, Line, parse_line, read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "tensorboard"
SPEED = ("images_per_s", "wait_share", "memory_bytes")


@contextmanager
def tensorboard_writer(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that is to be given each line of metrics that a run writes.

    folder: of the run. At the first line, events that are there are written anew: those of the
    lines of metrics.jsonl before it.

    Raises:
        UsageError: TensorBoard is not installed.
        CorruptError: metrics.jsonl is damaged; when the first line is given.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "TensorBoard is not installed: pip install 'kdcache[tensorboard]'"
        ) from None
    writer: SummaryWriter | None = None

    def write(metrics: Mapping[str, Any]) -> None:
        nonlocal writer
        line = parse_line(metrics)
        if writer is None:
            earlier = _before(folder, line)
            for path in (folder / EVENTS).glob("events.out.tfevents.*"):
                path.unlink()
            # Purging makes a TensorBoard that has them in memory forget them.
            writer = SummaryWriter(str(folder / EVENTS), purge_step=0)
            for one in earlier:
                _add(writer, one)
        _add(writer, line)
        if line.epoch is not None:
            writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def scalars(line: Line) -> dict[str, float]:
    """Return a line's numbers by their tags; step/ is within epochs, the others at their ends."""
    if line.epoch is None:
        return {f"step/{name}": value for name, value in line.numbers.items()}
    return {_tag(name): value for name, value in line.numbers.items()}


def _tag(name: str) -> str:
    if name.startswith("val_"):
        return f"val/{name.removeprefix('val_')}"
    return f"{'speed' if name in SPEED else 'train'}/{name}"


def _before(folder: Path, line: Line) -> list[Line]:
    """Return the lines of a run's metrics that stand before one, which may be there too."""
    path = folder / METRICS
    lines = read_metrics(path) if path.exists() else ()
    place = (line.step, line.epoch or 0)
    return [one for one in lines if (one.step, one.epoch or 0) < place]


def _add(writer: "SummaryWriter", line: Line) -> None:
    for tag, value in scalars(line).items():
        writer.add_scalar(tag, value, line.step)
