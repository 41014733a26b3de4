"""Claims about the job array, run by a real Slurm."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdcache.cache.layout import Span
from kdcache.cache.store import Cache, open_cache
from kdcache.models.teacher import load_teacher
from kdcache.precompute.engines import slice_of
from tests import tiny
from tests.cli.making import PLAIN, ROOT, write_recipe, write_weights
from tests.cli.making import TEACHER as TINY
from tests.docs.blocks import lines_of, words_of
from tests.docs.running import exchanged
from tests.pipelines import slurm
from tests.pipelines.slurm import Slurm, wait_until

SCRIPT = ROOT / "pipelines/slurm_precompute.sh"
KDCACHE = Path(sys.executable).with_name("kdcache")
TEACHER = "tests.pipelines.slurm:slow_teacher"

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(slurm.missing() is not None, reason=slurm.missing() or ""),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    """A running Slurm."""
    with slurm.running() as started:
        yield started


def submit(cluster: Slurm, folder: Path, *words: object, **environment: str) -> str:
    """Submit with options before "--", the script's arguments after it; return the job."""
    before, after = words[: words.index("--")], words[words.index("--") + 1 :]
    logs = ("--parsable", f"--chdir={ROOT}", f"--output={folder}/%a.log")
    done = cluster.run("sbatch", *logs, *before, SCRIPT, *after, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- with kdcache --------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """A cache that an array of two tasks filled, of which the second was stopped and went on.

    missing: the spans that were, meanwhile. seen: the digests of views that a teacher saw, in the
    first task, in the second, and in its second turn.
    """

    cache: Cache
    missing: list[Span]
    seen: list[list[str]]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The same cache as an array's, made in this process."""
    folder = tmp_path_factory.mktemp("a folder")
    return tiny.precompute(
        folder / "inline",
        tiny.make_dataset(folder),
        tiny.make_recipe(),
        teacher=load_teacher(TEACHER, None, num_classes=None, preprocessing=tiny.PLAIN),
        num_views=8,
        span_views=1,
        batch_size=256,
    )


@pytest.fixture(scope="module")
def filled(cluster: Slurm, inline: Cache) -> Filled:
    """Run the array, stopping its second task as the time limit does."""
    folder = inline.path.parent
    path, seen = folder / "the cache", folder / "seen"
    seen.mkdir()
    recipe = write_recipe(folder / "recipe.toml", inline.info.recipe)
    job = submit(
        cluster,
        folder,
        *("--array=0-1", "--", "--data", folder / "data", "--teacher", TEACHER, *PLAIN),
        *("--recipe", recipe, "--views", "8", "--span-views", "1", "--encoding", "topk:3"),
        *("--workers", "0", "--cache", path),
        KDCACHE=str(KDCACHE),
        SEEN=str(seen),
    )

    def said() -> str:
        return "\n".join(log.read_text() for log in folder.glob("*.log")) + cluster.logs()

    second = slice_of(list(inline.grid.spans()), 1, 2)
    wait_until(lambda: any((path / span.commit_name).exists() for span in second), said)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_1")
    cluster.wait_for(job, {"1": "PENDING"})
    cluster.wait_for(job, {"0": "COMPLETED"})
    missing = open_cache(path).missing()
    # Slurm's own wait is two minutes. Within the second of the stop, it would refuse the start.
    cluster.run("scontrol", "update", f"JobId={job}_1", "StartTime=now+2seconds")
    wait_until(lambda: cluster.states(job)["1"] not in ("PENDING", "RUNNING", "COMPLETING"), said)
    assert cluster.states(job)["1"] == "COMPLETED", said()
    cache, probed = open_cache(path), slurm.probed(inline.info.recipe.size)
    lists = [(seen / name).read_text().split() for name in ("0.0", "1.0", "1.1")]
    return Filled(cache, missing, [[d for d in digests if d not in probed] for digests in lists])


@pytest.mark.slow
def test_an_array_makes_the_cache_that_one_process_makes(filled: Filled, inline: Cache) -> None:
    assert filled.cache.missing() == []
    assert filled.cache.valid_seal() is not None
    assert tiny.tree(filled.cache.path) == tiny.tree(inline.path)


@pytest.mark.slow
def test_a_stopped_task_goes_on_and_computes_only_what_was_missing(filled: Filled) -> None:
    second = slice_of(list(filled.cache.grid.spans()), 1, 2)
    assert set(filled.missing) < set(second)
    one, before, after = filled.seen
    rows = [len(filled.cache.uids(span.tar)) for span in filled.missing]
    assert len(after) == sum(rows)
    assert len({*before, *after}) + len(one) == len({*one, *before, *after}) == 8 * 24


# --- with a command that only says what it was given ---------------------------------------

STUB = """#!/bin/bash
{ echo "$CUDA_VISIBLE_DEVICES"; printf '%s\\n' "$@"; } > "$SAID/$SLURM_ARRAY_TASK_ID"
[[ -z ${EXIT:-} ]] || exit "$EXIT"
exec sleep 300
"""


@pytest.mark.slow
def test_the_line_of_the_page_runs(cluster: Slurm, tmp_path: Path) -> None:
    """With two slices in place of 32; the README's line is its beginning."""
    tiny.pack_images(tiny.write_images(tmp_path / "images", 12), tmp_path / "build/train")
    write_weights(tmp_path / "teacher.safetensors")
    [line] = [one for one in lines_of("docs/how-to/many-gpus.md") if one.startswith("sbatch")]
    [short] = [one for one in lines_of("README.md") if one.startswith("sbatch")]
    assert line.startswith(short.partition("…")[0])
    here = {"0-31%8": "0-1", "pipelines/slurm": f"{SCRIPT.parent}/slurm"}
    [line] = exchanged([line], {**here, "torchvision:resnet50": TINY})
    given = {"KDCACHE": str(KDCACHE), "PYTHONPATH": str(ROOT)}
    words = ["--parsable", f"--chdir={tmp_path}", *words_of(line)[1:]]
    done = cluster.run("sbatch", *words, **given)
    assert done.returncode == 0, done.stderr
    cluster.wait_for(done.stdout.strip(), {"0": "COMPLETED", "1": "COMPLETED"})
    assert open_cache(tmp_path / "build/cache").valid_seal() is not None


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that notes its GPU and arguments; it sleeps without $EXIT."""
    path = tmp_path / "a stub"
    path.write_text(STUB)
    path.chmod(0o755)
    return {"KDCACHE": str(path), "SAID": str(tmp_path)}


def test_each_task_has_its_gpu_its_slice_and_the_arguments_as_they_are(
    cluster: Slurm, tmp_path: Path, stub: dict[str, str]
) -> None:
    words = ("--data", "a  folder", "*", "$HOME", "it's")
    job = submit(cluster, tmp_path, "--array=4-5", "--", *words, **stub, EXIT="0")
    cluster.wait_for(job, {"4": "COMPLETED", "5": "COMPLETED"})
    for part in range(2):
        said = (tmp_path / str(4 + part)).read_text().splitlines()
        expected = ["precompute", "--workers", "7", "--slice", f"{part}/2", *words]
        assert said[1:] == expected
        assert len(said[0]) == 1


def test_an_exit_code_is_the_tasks_and_fails_it(
    cluster: Slurm, tmp_path: Path, stub: dict[str, str]
) -> None:
    job = submit(cluster, tmp_path, "--array=0", "--", **stub, EXIT="3")
    cluster.wait_for(job, {"0": "FAILED"})
    assert "ExitCode=3:0" in cluster.run("scontrol", "show", "job", job).stdout


def test_an_array_with_gaps_is_refused(
    cluster: Slurm, tmp_path: Path, stub: dict[str, str]
) -> None:
    job = submit(cluster, tmp_path, "--array=0,2", "--", **stub, EXIT="0")
    cluster.wait_for(job, {"0": "FAILED", "2": "FAILED"})
    assert "give a range" in (tmp_path / "2.log").read_text()
    assert not (tmp_path / "0").exists()


def test_the_time_limit_requeues_one_task_and_cancelled_tasks_stay_so(
    cluster: Slurm, tmp_path: Path, stub: dict[str, str]
) -> None:
    job = submit(cluster, tmp_path, "--array=0-1", "--", **stub)
    wait_until(lambda: all((tmp_path / part).exists() for part in "01"), cluster.logs)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_1")  # as the time limit
    cluster.wait_for(job, {"0": "RUNNING", "1": "PENDING"})
    cluster.run("scancel", job)
    cluster.wait_for(job, {"0": "CANCELLED", "1": "CANCELLED"})


def test_a_preempted_task_is_requeued_by_slurm_alone(
    cluster: Slurm, tmp_path: Path, stub: dict[str, str]
) -> None:
    job = submit(cluster, tmp_path, "--array=0", "--", **stub)
    wait_until((tmp_path / "0").exists, cluster.logs)
    cluster.run("scontrol", "requeue", f"{job}_0")
    cluster.wait_for(job, {"0": "PENDING"})
    assert "goes back" not in (tmp_path / "0.log").read_text()
