"""What a cache is, for people: the same words on a terminal and on a page."""

from typing import Any

from kdcache.cache.store import Cache
from kdcache.models.steadiness import differences


def describe_cache(cache: Cache) -> dict[str, str]:
    """Return the ids and texts of all that decides a cache, each by its name."""
    info, grid, teacher = cache.info, cache.grid, cache.info.teacher
    return {
        "cache": info.id,
        "dataset": f"{info.dataset['num_samples']} samples in {grid.num_tars} tars "
        f"({info.dataset['id'][:12]})",
        "recipe": f"{', '.join(_flat(info.recipe.canonical()))} ({info.recipe.id[:12]})",
        "teacher": f"{teacher['spec']}{_mean(cache)}, "
        f"{teacher.get('precision', 'of unknown precision')} ({teacher['id'][:12]})",
        "steady": _steadiness(cache),
        "classes": str(info.num_classes),
        "encoding": str(info.encoding),
        "views": f"{grid.num_views} in spans of {grid.span_views}",
    }


def _flat(table: dict[str, Any], prefix: str = "") -> list[str]:
    """Return a recipe's fields as texts such as "crop.law inception"."""
    texts = []
    for name, value in table.items():
        if isinstance(value, dict):
            texts += _flat(value, f"{prefix}{name}.")
        else:
            shown = " to ".join(f"{v:.4g}" for v in value) if isinstance(value, list) else value
            texts.append(f"{prefix}{name} {shown}")
    return texts


def _mean(cache: Cache) -> str:
    """Return how several teachers were averaged; nothing for one."""
    teacher = cache.info.teacher
    if not teacher.get("members"):
        return ""
    return f" (mean of {teacher['average']}, {', '.join(f'{s:g}' for s in teacher['shares'])})"


def _steadiness(cache: Cache) -> str:
    """Return what was measured of the teacher when the cache was made."""
    found = cache.info.teacher.get("steadiness")
    if found is None:
        return "not measured"
    repeat, batch = found["repeat_nats"], found["batch_nats"]
    if repeat == batch == 0:
        return "deterministic"
    return f"differs {differences(repeat, batch)}"
