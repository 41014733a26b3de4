"""What a cache is and holds, as plain values."""

from typing import Any

from kdcache.cache.quarantine import quarantined
from kdcache.cache.store import Cache


def summarise_cache(cache: Cache) -> dict[str, Any]:
    """Return ids, extent, coverage, bytes a view and fidelity of a cache, fit for JSON."""
    info, grid, totals = cache.info, cache.grid, cache.totals()
    absent = cache.missing()
    spans = grid.num_tars * (grid.num_views // grid.span_views)
    missing_rows = sum(int(cache.rows[span.tar]) for span in absent)
    stored = int(cache.rows.sum()) * grid.num_views - missing_rows * grid.span_views
    return {
        "id": info.id,
        "path": str(cache.place),
        "dataset": {"id": info.dataset["id"], "num_samples": info.dataset["num_samples"]},
        "recipe": {"id": info.recipe.id, **info.recipe.canonical()},
        "teacher": info.teacher,
        "encoding": str(info.encoding),
        "num_classes": info.num_classes,
        "tars": grid.num_tars,
        "views": grid.num_views,
        "span_views": grid.span_views,
        "spans": spans,
        "spans_missing": len(absent),
        "quarantined": {str(s): str(e) for s, e in quarantined(cache.objects).items()},
        "coverage": 1 - len(absent) / spans,
        "views_stored": stored,
        "rows_unusable": sum(len(rows) for rows in totals.unusable.values()),
        "size_bytes": totals.size_bytes,
        "bytes_per_view": totals.size_bytes / stored if stored else None,
        "fidelity": totals.fidelity.summary(),
        "licences": info.licences,
        "versions": info.versions,
    }
