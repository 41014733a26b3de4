"""The pages of training and of many GPUs run as scripts, in a network of their own: real torchrun,
real Ray. tests/pipelines/test_slurm.py runs the lines for Slurm.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest

from kdcache.cache.store import open_cache
from tests import tiny
from tests.cli.conftest import Run
from tests.cli.making import TEACHER
from tests.docs.blocks import lines_of, words_of
from tests.docs.running import exchanged, precompute, run_script
from tests.worlds import can_isolate

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(not can_isolate(), reason="no network namespaces here, which need root"),
]

GPUS = "docs/how-to/many-gpus.md"
TRAIN = "--data build/train --cache build/cache --student tests.student.nets:small --epochs 2"
EIGHT = "--nproc-per-node 8"  # on a machine of two cores: 2
TWO = "--nproc-per-node 2"


def test_the_page_of_training_runs(place: Path, kdcache: Run) -> None:
    precompute(kdcache, "build/cache")
    resume, torchrun, *rest = lines_of("README.md", heading="Training")
    assert lines_of("docs/how-to/train.md") == [resume, torchrun, rest[0]]
    compiled = {} if shutil.which("g++") else {" --compile": ""}
    small = "--batch-size 8 --workers 0 --out build/run"
    lines = exchanged([resume], {"…": f"{TRAIN} {small}"})
    lines += exchanged([torchrun], {"…": f"{TRAIN} {small}-2", EIGHT: TWO, **compiled})
    said = run_script([*lines, *rest], folder=place)
    assert "epoch 2/2" in said
    assert "on 2 processes" in said
    assert (place / "curves.png").is_file()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray: make ray")
def test_the_page_of_many_gpus_runs(place: Path) -> None:
    lines = [line for line in lines_of(GPUS) if not line.startswith("sbatch")]
    workers, processes, ray, torchrun, start, again = lines
    ours = lines_of("README.md", heading="One GPU, eight, or a cluster")
    assert ours[:3] == [workers, processes, ray]
    assert words_of(again) == words_of(ray)
    options = f"--data build/train --teacher {TEACHER} --weights teacher.safetensors"
    options += " --recipe funmatch --views 16 --cache build/"
    run = exchanged([workers], {"…": f"{options}workers", "--workers 8": "--workers 2"})
    run += exchanged([processes], {"…": f"{options}processes"})
    run += exchanged(
        [torchrun], {"…": f"{options}torchrun", EIGHT: TWO, " --device cuda:$LOCAL_RANK": ""}
    )
    run += [start, *exchanged([ray], {"…": f"{options}ray"}), "ray stop --force"]
    run_script(run, folder=place)
    made = [open_cache(place / "build" / name) for name in ("processes", "torchrun", "ray")]
    assert [cache.missing() for cache in [*made, open_cache(place / "build/workers")]] == [[]] * 4
    whole = [tiny.tree(cache.path / "tiles") for cache in made]
    assert whole[0] == whole[1] == whole[2]
