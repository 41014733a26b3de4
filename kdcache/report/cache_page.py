"""The page of a cache: what it is, what is there, what the teacher said, images and their views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdcache.cache.quarantine import quarantined
from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.report.charts import bars, coverage_map
from kdcache.report.describe import describe_cache
from kdcache.report.figures import Picture
from kdcache.report.page import Section
from kdcache.report.said import F32, NONE, Said, class_rows, coverage, histogram
from kdcache.report.sampling import Sample, labels_known, named_otherwise
from kdcache.texts import first_of, human_bytes, printable

BINS = 20
MAP = (80, 80)  # cells, at most
LISTED = 20
WRONG, DAMAGED = "Not what the teacher saw", "Damaged"  # titles of what comes first
OTHERWISE = "Classes of other names"
UNCOMPARED = "Labels are not compared with what the teacher said: give the dataset it was made of."
_HEADS = ["what", "is"]


@dataclass(frozen=True, eq=False)
class Inspection:
    """A cache with what was read of it. source: its images, if they are at hand."""

    cache: Cache
    source: BlockSource | None
    sample: Sample


def cache_title(cache: Cache) -> str:
    """Return the title of a cache's page."""
    return f"Cache {cache.info.id[:12]}"


def cache_sections(seen: Inspection, *, loud: Mapping[str, Sequence[str]]) -> list[Section]:
    """Return the sections that show no images. loud: what comes first, by title, if it is any."""
    if seen.source is not None and (other := named_otherwise(seen.cache, seen.source)):
        loud = {**loud, OTHERWISE: [f"The cache and its images disagree: {other}. {UNCOMPARED}"]}
    first = [Section(title, _listed(texts)) for title, texts in loud.items() if texts]
    return [*first, _what(seen.cache), _there(seen), *_said(seen)]


def class_names(seen: Inspection) -> Sequence[str] | None:
    """Return the names of the teacher's classes: the cache's or the dataset's."""
    if seen.cache.info.classes is not None or seen.source is None:
        return seen.cache.info.classes
    return seen.source.dataset.classes if labels_known(seen.cache, seen.source) else None


def class_name(names: Sequence[str] | None, number: int) -> str:
    """Return the name of a class that can be shown, or its number; a dash for none."""
    if number == NONE:
        return "–"
    if names is None or number >= len(names):  # a stranger's cache may name fewer
        return str(number)
    return printable(names[number]) or str(number)


def _listed(texts: Sequence[str]) -> list[str]:
    return [printable(text) for text in first_of(texts, LISTED)]


def _what(cache: Cache) -> Section:
    licences = {part: text or "unknown" for part, text in cache.info.licences.items()}
    lines = describe_cache(cache) | {
        "place": str(cache.place),
        "licences": ", ".join(f"{part} {text}" for part, text in licences.items()),
        "made with": ", ".join(f"{name} {text}" for name, text in cache.info.versions.items()),
    }
    return Section("What it is", table=[_HEADS, *([n, printable(t)] for n, t in lines.items())])


def _there(seen: Inspection) -> Section:
    """Return what is computed, and what it costs and loses."""
    cache, grid, totals = seen.cache, seen.cache.grid, seen.sample.totals
    num_runs = grid.num_views // grid.span_views
    num_done, num_spans = len(seen.sample.done), grid.num_tars * num_runs
    absent = num_spans - num_done
    aside = quarantined(cache.objects)
    words = f"{num_done / num_spans:.1%} of the views are there: {num_done} of {num_spans} spans."
    measured = "" if totals.records == num_done else f" Measured on {totals.records} spans of them."
    paragraphs = [words]
    if absent:
        paragraphs.append(
            f"{absent} spans are missing, {len(aside)} of them set aside after an error; "
            "the same kdcache precompute goes on."
        )
    if totals.records and totals.views:
        size = totals.size_bytes * (num_done / totals.records)
        paragraphs.append(
            f"{totals.size_bytes / totals.views:.1f} bytes a view, {human_bytes(size)} in all."
            f"{measured} {totals.unusable} images without targets."
        )
    rows = [[f"set aside: span {span}", printable(str(error))] for span, error in aside.items()]
    done = coverage(seen.sample.done, num_tars=grid.num_tars, num_runs=num_runs, most=MAP)
    return Section(
        "What is there",
        paragraphs=paragraphs,
        figures=[coverage_map(done, tars=grid.num_tars, views=grid.num_views, words=words)],
        table=[_HEADS, *_fidelity(seen), *rows[:LISTED]],
    )


def _fidelity(seen: Inspection) -> list[list[str]]:
    found = seen.sample.totals.fidelity.summary()
    if not found:
        return []
    return [
        ["same top-1 as the teacher", f"{found['top1_agreement']:.2%}"],
        *(
            [f"at temperature {t}", f"KL {max(kl, 0):.2g} nats, gradient error {error:.2%}"]
            for (t, kl), error in zip(
                found["kl_nats"].items(), found["gradient_error"].values(), strict=True
            )
        ),
    ]


def _said(seen: Inspection) -> list[Section]:
    """Return what the teacher said of the sample: histograms and the table of classes."""
    sample, said, num_classes = seen.sample, seen.sample.said, seen.cache.info.num_classes
    if said is None or len(said) == 0:
        why = "Nothing can be read yet." if said is None else "None of the images has targets."
        return [Section("What the teacher said", [why])]
    share = (
        f"Counted over {len(said):,} views in {sample.tiles} of {sample.of_tiles} tiles "
        f"({sample.tiles / sample.of_tiles:.2%}), drawn at random."
    )
    greatest = float(np.log(num_classes))
    figures = [
        _bars("confidence", "probability of the likeliest class", said.confidence, top=1.0),
        _bars("entropy", f"entropy, of at most {greatest:.2f} nats", said.entropy, top=greatest),
    ]
    paragraphs = [share]
    if (said.labels >= 0).any():
        paragraphs.append(_agreement(said))
        figures.append(_bars("label", "probability of the label", said.agreed, top=1.0))
    else:
        paragraphs.append(_no_labels(seen))
    return [
        Section("What the teacher said", paragraphs=paragraphs, figures=figures),
        Section("Classes", table=_class_table(seen, said)),
    ]


def _bars(name: str, title: str, values: F32, *, top: float) -> Picture:
    counts = histogram(values, top=top, bins=BINS)
    there = values[~np.isnan(values)]
    middle, mean = (f"{number:.3g}" for number in (np.median(there), there.mean()))
    words = f"Histogram: {title}; median {middle}, mean {mean}"
    return bars(name, f"{title}: mean {mean}", counts, top=top, words=words)


def _agreement(said: Said) -> str:
    labelled = said.labels >= 0
    right = float((said.best == said.labels)[labelled].mean())
    return (
        f"The teacher's likeliest class is the label of {right:.1%} of the {labelled.sum():,} "
        "views whose image has one; of mixed views, the label of the image with the larger share."
    )


def _no_labels(seen: Inspection) -> str:
    if seen.source is None:
        return "Give the images (--data) to see labels, and images with their views."
    classes = seen.source.dataset.num_classes
    if classes != seen.cache.info.num_classes:
        return (
            f"The images have {classes or 'no'} classes, the teacher {seen.cache.info.num_classes}:"
            " labels are not compared."
        )
    if named_otherwise(seen.cache, seen.source):
        return UNCOMPARED
    return "The images have no labels."


def _class_table(seen: Inspection, said: Said) -> list[list[str]]:
    """Return a line for each class: by label or, without labels, by the teacher's likeliest."""
    names, with_labels = class_names(seen), bool((said.labels >= 0).any())
    if with_labels:
        wrong = np.where(said.best == said.labels, NONE, said.best)
        rows = class_rows(said.labels, wrong, said)
        heads = ["class", "images", "views", "confidence", "agreement", "most taken for"]
    else:
        rows = class_rows(said.best, said.second, said)
        heads = ["likeliest class", "views", "confidence", "most often second"]
    images = np.bincount([0])
    if with_labels and seen.source is not None:
        labels = seen.source.dataset.labels[seen.source.places]
        images = np.bincount(labels[labels >= 0], minlength=seen.cache.info.num_classes)
    return [
        heads,
        *(
            [
                class_name(names, row.number),
                *([f"{images[row.number]:,}"] if with_labels else []),
                f"{row.views:,}",
                f"{row.confidence:.1%}",
                *([f"{row.agreement:.1%}"] if with_labels else []),
                f"{class_name(names, row.other)} ({row.times:,})" if row.times else "–",
            ]
            for row in rows
        ),
    ]
