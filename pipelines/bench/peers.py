"""Our stream beside the loaders of others, each in its own format and setting.

    make bench-peers

Takes about 6 minutes on two quiet cores and writes build/bench/pixels_peers.json. There are no
bars: the loaders differ in what they promise. Ours mixes, proves its pixels and joins targets too.
"""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.bench.material import FULL, QUICK, Material, Sizes, make_material, make_photo_sets
from pipelines.bench.record import (
    OUT,
    Progress,
    load_average,
    make_record,
    require_linux,
    show,
    write_record,
)
from pipelines.bench.stream import kdcache_batches, stream_work
from pipelines.bench.timing import Batches, Cost, alternate, rounded, speedups, summary

PACKAGES = ("numpy", "pillow", "simplejpeg", "torch")
PEERS = ("litdata", "streaming", "dali")
LEFT_OUT = {
    "spdl": "0.8.0 decodes by FFmpeg's shared libraries, which no package of the registry brings",
    "ffcv": "1.0.2 is source only; building it needs the headers of OpenCV and libjpeg-turbo",
}
_TIMEOUT_S = 600


class PeerError(Exception):
    """A loader that does not run here; says why."""


def run_peer(name: str, *, python: Path, material: Material, sizes: Sizes, work: Path) -> Any:
    """Return what one process of a peer measured: its version and its cost.

    Raises:
        PeerError: it failed.
    """
    out = work / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [str(python), "-m", "pipelines.bench.peer_loaders", name]
    command += ["--photos", str(material.image_folder), "--work", str(work), "--out", str(out)]
    command += ["--epochs", str(sizes.epochs), "--batch-size", str(sizes.batch)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(str(error)) from error
    if done.returncode != 0 or not out.exists():
        raise PeerError((done.stderr.strip().splitlines() or ["ended without a reason"])[-1])
    return json.loads(out.read_text())


def compare(
    folder: Path, photos: Path, *, python: Path, sizes: Sizes, say: Progress
) -> dict[str, Any]:
    """Return the figures: each peer's rate and cost, and how many times ours is faster."""
    make_photo_sets(photos, sizes)
    material = make_material(folder, photos, rows_per_tar=sizes.rows_per_tar)
    work = folder / "peers"
    work.mkdir(parents=True, exist_ok=True)
    say("photographs, tars and cache")
    versions, left_out = {}, dict(LEFT_OUT)
    for name in PEERS:  # a first run converts the data, and shows whether the peer runs at all
        try:
            found = run_peer(name, python=python, material=material, sizes=sizes, work=work)
            versions[name] = found["version"]
        except PeerError as error:
            left_out[name] = str(error)
        say(name)

    def ours(number: int) -> Batches:
        return kdcache_batches(material, sizes, seed=number)

    def theirs(name: str) -> Cost:
        found = run_peer(name, python=python, material=material, sizes=sizes, work=work)
        return Cost(found["wall_s"], found["cpu_s"])

    works = {"kdcache": stream_work(material, sizes, ours)}
    works |= {name: lambda _, name=name: theirs(name) for name in versions}  # type: ignore[misc]
    costs = alternate(works, rounds=sizes.rounds)
    say("rounds")
    peers: dict[str, Any] = {"kdcache": summary(costs["kdcache"])}
    for name, version in versions.items():
        peers[name] = {
            "version": version,
            **summary(costs[name]),
            "kdcache_is_faster": ratios(costs["kdcache"], costs[name], clock="wall"),
            "kdcache_is_faster_in_cpu": ratios(costs["kdcache"], costs[name], clock="cpu"),
        }
    return {"peers": peers, "left_out": left_out, "cores_used_by_others": say.others}


def ratios(ours: Sequence[Cost], theirs: Sequence[Cost], *, clock: Any) -> list[float]:
    """Return how many times ours is faster, round by round."""
    return [rounded(ratio) for ratio in speedups(ours, theirs, clock=clock)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison, write its record, and print it."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench.peers",
        description="Compare our stream with the loaders of others.",
    )
    parser.add_argument("--python", type=Path, default=OUT / "peers/bin/python")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the record, and of data")
    parser.add_argument("--quick", action="store_true", help="a short trial; it means nothing")
    options = parser.parse_args(arguments)
    if not options.python.exists():
        parser.error(f"{options.python}: no such Python; make bench-peers makes it")
    require_linux()
    torch.set_num_threads(1)
    kind, sizes = ("quick", QUICK) if options.quick else ("full", FULL)
    load = round(load_average(), 2)
    folder, photos = options.out / "pixels-peers" / kind, options.out / "photos" / kind
    figures = compare(folder, photos, python=options.python, sizes=sizes, say=Progress())
    figures |= {"load_average_at_start": load, "quick": options.quick}
    record = make_record("pixels_peers", [], figures=figures, packages=PACKAGES)
    path = write_record(record, options.out)
    show(record)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
