"""Published caches by what they are; pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.sharing.index import Summary


@dataclass(frozen=True)
class Wanted:
    """What a cache should be; None for anything.

    dataset, recipe: ids, or how they begin. teacher: a part of its name, or how its id begins.
    licence: a part of one of the three. views: at least.
    """

    dataset: str | None = None
    recipe: str | None = None
    teacher: str | None = None
    classes: int | None = None
    licence: str | None = None
    views: int | None = None

    def is_met(self, summary: Summary) -> bool:
        """Return whether a cache is so."""
        texts = [text for text in summary.licences.model_dump().values() if text is not None]
        return (
            _begins(summary.dataset.id, self.dataset)
            and _begins(summary.recipe.id, self.recipe)
            and (
                _holds([summary.teacher.spec], self.teacher)
                or _begins(summary.teacher.id, self.teacher)
            )
            and self.classes in (None, summary.num_classes)
            and _holds(texts, self.licence)
            and (self.views is None or summary.views >= self.views)
        )


def _begins(text: str, start: str | None) -> bool:
    return start is None or text.startswith(start.lower())


def _holds(texts: list[str], part: str | None) -> bool:
    return part is None or any(part.lower() in text.lower() for text in texts)


def choose(summaries: Mapping[str, Summary], wanted: Wanted) -> list[Summary]:
    """Return the caches that are as wanted: of the most views first, then by id."""
    found = [summary for summary in summaries.values() if wanted.is_met(summary)]
    return sorted(found, key=lambda summary: (-summary.views, summary.cache))
