"""Jobs as text: what a process on any machine is given to take part in one."""

from dataclasses import dataclass
from pathlib import Path

from kdcache.cache.store import open_cache
from kdcache.data.blocks import dataset_source
from kdcache.data.document import load_dataset
from kdcache.models.ensemble import TeacherSpec
from kdcache.precompute.batching import fit_batch_size
from kdcache.precompute.prepare import check_same, describe_cache
from kdcache.precompute.span import Job
from kdcache.stores.location import Place


@dataclass(frozen=True)
class JobSpec:
    """A job over a cache that is there. batch_size: None to find one; others as of Job."""

    data: Place
    cache: Path
    teacher: TeacherSpec
    batch_size: int | None
    skip_bad: bool
    num_workers: int

    def open(self, device: str) -> Job:
        """Return the job, its teacher on a device.

        Raises:
            MismatchError: data or teacher are not those of the cache.
            UsageError: one of them cannot be opened.
        """
        dataset, cache = load_dataset(self.data), open_cache(self.cache)
        recipe, encoding = cache.info.recipe, str(cache.info.encoding)
        teacher = self.teacher.load(device)
        info = describe_cache(
            dataset, recipe, teacher=teacher, encoding=encoding, other_classes=True
        )
        check_same(cache, info)
        batch_size = self.batch_size or fit_batch_size(teacher, recipe.size_for("teacher"))
        source = dataset_source(dataset, recipe)
        return Job(source, teacher, cache, batch_size, self.skip_bad, self.num_workers)
