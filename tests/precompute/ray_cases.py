"""Jobs on a real Ray, each run as a program of its own; the last line of stdout is its result.

python -m tests.precompute.ray_cases CASE DATA FOLDER
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from kdcache.cache.manifest import Commit
from kdcache.cache.store import open_cache
from kdcache.errors import UsageError
from kdcache.precompute.jobs import JobSpec
from kdcache.precompute.ray_engine import RayOptions, run_ray
from tests.precompute.fatal import SLOW, TEACHER


def _listeners() -> set[str]:
    """Return the addresses at which anything of this network listens, as /proc has them."""
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return {words[1].partition(":")[0] for words in lines if words[3] == "0A"}


def _kill(spec: JobSpec) -> dict[str, Any]:
    cache, done, images, heard = open_cache(spec.cache), [], [], set[str]()

    def note(commit: Commit) -> None:
        done.append(commit)
        heard.update(_listeners())

    run_ray(spec, RayOptions(), spans=cache.missing(), progress=images.append, committed=note)
    sealed = cache.valid_seal() is not None
    found = {"committed": len(done), "images": sum(images), "sealed": sealed}
    return {**found, "listeners": sorted(heard)}


def _poison(spec: JobSpec) -> dict[str, Any]:
    try:
        run_ray(spec, RayOptions(most=1), spans=open_cache(spec.cache).missing())
    except UsageError as error:
        return {"error": str(error)}
    return {}


def _machines(spec: JobSpec) -> dict[str, Any]:
    """Two machines come, the first one goes, without a word."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    first, done = cluster.add_node(num_cpus=1), []
    cache = open_cache(spec.cache)

    def change(commit: Commit) -> None:
        done.append(commit)
        if len(done) == 1:
            cluster.add_node(num_cpus=1)
        elif len(done) == 4:
            cluster.remove_node(first, allow_graceful=False)

    run_ray(spec, RayOptions(cluster.address), spans=cache.missing(), committed=change)
    cluster.shutdown()
    batches = Path(os.environ[SLOW]).read_text().split()
    sealed = cache.valid_seal() is not None
    return {"committed": len(done), "sealed": sealed, "processes": len(set(batches))}


CASES = {"kill": _kill, "poison": _poison, "machines": _machines}


def main() -> None:
    """Run one case."""
    case, data, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    spec = JobSpec(data, folder / "c", TEACHER, 5, skip_bad=False, num_workers=0)
    print(json.dumps(CASES[case](spec)))


if __name__ == "__main__":
    main()
