"""What a view takes on the disk and what its encoding loses, for every kind of teacher.

Bytes are those of the encoding's objects as stored, with their index, in tiles of 1,024 rows and
spans of up to eight views. Errors are those of kdcache/targets/fidelity.py.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit
from pipelines.bench.filled import (
    DEFAULT,
    CacheSizes,
    Found,
    Targets,
    empty_cache,
    encode,
    fill_span,
)
from pipelines.bench.logits import simulate_logits
from pipelines.bench.record import Bar, make_bar
from pipelines.bench.timing import rounded

WITH_BARS = ("packed:32", "packed:10", "adaptive:0.0022", "adaptive:0.01")
OTHERS = ("packed:50", "topk:10", "topk:32", "topk:50", "dense:u1", "dense:f2")
BYTES_BARS = {"packed:32": 58.0, "adaptive:0.0022": 58.0, "packed:10": 24.0, "adaptive:0.01": 24.0}
ERROR_BARS = {
    ("packed:32", 1): 0.008,
    ("packed:32", 2): 0.027,
    ("adaptive:0.0022", 1): 0.008,
    ("adaptive:0.0022", 2): 0.027,
    ("packed:10", 1): 0.023,
    ("adaptive:0.01", 1): 0.023,
}
# Fewer bytes than the other, and no larger errors at these temperatures.
RIVALS = {"adaptive:0.0022": ("packed:32", (1, 2)), "adaptive:0.01": ("packed:10", (1,))}


@dataclass(frozen=True)
class Loss:
    """One encoding of one kind. bytes_per_view: of the targets alone; aside: of all else."""

    bytes_per_view: float
    aside: dict[str, float]
    summary: dict[str, Any]

    def error(self, temperature: int) -> float:
        """Return the relative error of the gradient."""
        return float(self.summary["gradient_error"][f"{temperature}"])

    def figures(self) -> dict[str, float]:
        """Return a row of the table."""
        found = {"bytes": self.bytes_per_view, "top1": self.summary["top1_agreement"]}
        found |= {f"kl_t{t}": kl for t, kl in self.summary["kl_nats"].items()}
        found |= {f"error_t{t}": e for t, e in self.summary["gradient_error"].items()}
        return {name: rounded(value) for name, value in found.items()}


def stored(folder: Path, targets: Targets, *, num_rows: int) -> Loss:
    """Write targets as one span of tiles of num_rows; return what they take and lost."""
    path, views = folder / "stored", targets.fidelity.rows // num_rows
    cache = empty_cache(
        path,
        str(targets.encoding),
        rows=[num_rows],
        num_views=views,
        span_views=views,
        num_classes=targets.num_classes,
    )
    shape = (views, num_rows, -1)
    tiles = {name: array.reshape(shape) for name, array in targets.fields.items()}
    span = Span(0, 0)
    commit = fill_span(cache, span, tiles, fidelity=targets.fidelity)
    record = (path / span.commit_name).stat().st_size
    shutil.rmtree(path)
    return _loss(commit, record, num_views=views * num_rows)


def _loss(commit: Commit, record: int, *, num_views: int) -> Loss:
    sizes = {name: int(entry["size_bytes"]) for name, entry in commit.objects.items()}
    witness = sum(size for name, size in sizes.items() if name.startswith("witness/"))
    return Loss(
        (sum(sizes.values()) - witness) / num_views,
        {
            "witness_bytes_per_view": rounded(witness / num_views),
            "commit_record_bytes_per_view": rounded(record / num_views),
            "uids_and_contents_bytes_per_image": 16,
        },
        commit.fidelity.summary(),
    )


def kind_losses(
    folder: Path, kind: str, names: Sequence[str], *, num_rows: int, tile_rows: int, seed: int = 0
) -> dict[str, Loss]:
    """Return what each of the encodings makes of a kind of logits."""
    logits_NC = simulate_logits(kind, num_rows=num_rows, seed=seed)
    return {
        name: stored(folder, encode(name, logits_NC), num_rows=min(tile_rows, num_rows))
        for name in names
    }


def encoding_bars(folder: Path, sizes: CacheSizes) -> Found:
    """Return the bars of bytes and errors, a run for each seed, and a table for each kind."""
    rows = {"ce": 8 * sizes.rows, **sizes.kind_rows}
    figures: dict[str, Any] = {}
    seeds: list[dict[str, Loss]] = []
    for seed in range(sizes.seeds):
        names = WITH_BARS if seed else (*WITH_BARS, *OTHERS)
        seeds.append(
            kind_losses(folder, "ce", names, num_rows=rows["ce"], tile_rows=sizes.rows, seed=seed)
        )
    for kind, num_rows in rows.items():
        losses = seeds[0]
        if kind != "ce":
            names = (*WITH_BARS, *OTHERS)
            losses = kind_losses(folder, kind, names, num_rows=num_rows, tile_rows=sizes.rows)
        figures[f"a_view_of_{kind}"] = {name: loss.figures() for name, loss in losses.items()}
    figures["beside_the_targets"] = seeds[0][DEFAULT].aside
    return [*_own_bars(seeds), *_rival_bars(seeds)], figures


def _own_bars(seeds: Sequence[dict[str, Loss]]) -> list[Bar]:
    bars = []
    for name, bar in BYTES_BARS.items():
        runs = [losses[name].bytes_per_view for losses in seeds]
        bars.append(make_bar(f"{_plain(name)}_bytes", runs, bar=bar, better="lower", unit="B"))
    for (name, temperature), bar in ERROR_BARS.items():
        runs = [losses[name].error(temperature) for losses in seeds]
        title = f"{_plain(name)}_error_t{temperature}"
        bars.append(make_bar(title, runs, bar=bar, better="lower", unit="share"))
    return bars


def _rival_bars(seeds: Sequence[dict[str, Loss]]) -> list[Bar]:
    bars = []
    for name, (rival, temperatures) in RIVALS.items():
        pairs = [(losses[name], losses[rival]) for losses in seeds]
        found = {"bytes": [own.bytes_per_view / other.bytes_per_view for own, other in pairs]}
        for t in temperatures:
            found[f"error_t{t}"] = [own.error(t) / other.error(t) for own, other in pairs]
        for what, runs in found.items():
            title = f"{_plain(name)}_{what}_vs_{_plain(rival)}"
            bars.append(make_bar(title, runs, bar=1.0, better="lower"))
    return bars


def _plain(name: str) -> str:
    return name.replace(":", "_")
