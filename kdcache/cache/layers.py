"""Why pixels differ from those that the teacher saw: the first layer that differs."""

from kdcache import __version__
from kdcache.cache.layout import Span
from kdcache.cache.manifest import Commit
from kdcache.cache.store import Cache
from kdcache.data.blocks import BlockSource
from kdcache.pixels.witness import (
    PIXEL_LIBRARIES,
    Layer,
    LayerDigests,
    join_layers,
    libraries,
    pixel_versions,
)


def explain_difference(cache: Cache, source: BlockSource, span: Span) -> str:
    """Return what to say of a span whose pixels are made otherwise here than by its writer."""
    commit, view = cache.commit(span), cache.grid.views(span)[0]
    names: tuple[str, ...] = PIXEL_LIBRARIES
    if LayerDigests().values().keys() - commit.layers.keys():
        found = "which layer cannot be told, since the commit record lacks digests of them"
    elif (layer := _first_layer(cache, source, commit, view=view)) is None:
        found = f"no layer differs in view {view} of this tar, the one whose layers are kept"
    else:
        found = f"the first layer that differs is {layer}"
        names = libraries(layer, resize=cache.info.recipe.resize)
    theirs, here = commit.versions, {**pixel_versions(), "kdcache": __version__}
    pairs = {name: (theirs.get(name, "unknown"), here[name]) for name in (*names, "kdcache")}
    versions = "; ".join(
        f"{name} {there} there and here" if there == ours else f"{name} {there} there, {ours} here"
        for name, (there, ours) in pairs.items()
    )
    if any(there != ours for there, ours in pairs.values()):
        advice = "install the versions of the cache, or precompute a new cache"
    else:
        advice = "another build or processor makes other pixels; precompute a new cache here"
    return f"{found} ({versions}): {advice}"


def _first_layer(cache: Cache, source: BlockSource, commit: Commit, *, view: int) -> Layer | None:
    """Return the first layer that differs in a span's first view, whose digests are kept.

    Renders the span's tar in that view. None where all is as the writer made it.
    """
    blocks, mixed = [], True
    stored = cache.read_witness(commit.tar, view).tolist()
    for rows, expected in zip(source.blocks(commit.tar), stored, strict=True):
        ours = LayerDigests()
        block = source.render(commit.tar, rows, views=[view], skip=commit.unusable, layers=ours)
        blocks.append(ours.values())
        if block.problems:
            return Layer.DECODE  # its writer decoded these images
        mixed &= int(block.witnesses()[0]) == expected
    for name, digest in join_layers(blocks).items():
        if commit.layers[name] != digest:
            return Layer(name)
    return None if mixed else Layer.MIX
