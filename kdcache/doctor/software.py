"""Versions of what makes pixels, and of what else a job rests on; which decoder is in use."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from PIL import features

from kdcache import __version__
from kdcache.doctor.section import Section
from kdcache.pixels.conformance import BACKENDS, available_backends, chosen_backends, conforming
from kdcache.pixels.witness import pixel_versions

OTHERS = (
    "torchvision", "zarr", "numcodecs", "obstore", "webdataset", "xxhash", "timm", "transformers",
    "onnxruntime", "ray",
)  # fmt: skip


def system() -> Section:
    """Return this Python and the system that it runs on."""
    text = f"kdcache {__version__}, Python {platform.python_version()}, {platform.platform()}"
    value = {"kdcache": __version__, "python": platform.python_version()}
    return Section(text, {**value, "platform": platform.platform()})


def pixel_libraries() -> Section:
    """Return the versions of the libraries whose change may change pixels."""
    found = pixel_versions()
    return Section(_listed(found), {"versions": found})


def other_libraries() -> Section:
    """Return the versions of libraries that change no pixels; those that are not there left out."""
    found = package_versions(OTHERS)
    return Section(_listed(found), {"versions": found})


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def decoders() -> Section:
    """Return the decoder of JPEGs in use and, of each other, why it is not.

    Raises:
        UsageError, MismatchError: none can be used as things are.
    """
    first = chosen_backends()[0]
    codec = "libjpeg_turbo" if features.check_feature("libjpeg_turbo") else "jpg"
    inside = f"{codec.replace('_', '-')} {features.version(codec)}"
    states = dict.fromkeys(BACKENDS, "in use")
    for backend in BACKENDS:
        if backend not in available_backends():
            states[backend] = "not found: the system has no libturbojpeg of version 3"
        elif not conforming(backend):
            states[backend] = "left out, since it makes other pixels here"
        elif backend != first:
            slower = BACKENDS.index(backend) < BACKENDS.index(first)
            states[backend] = "slower" if slower else "as good, but KDCACHE_JPEG names another"
    if first != "pillow":
        states["pillow"] = "for all that is no clean JPEG"
    shown = "; ".join(f"{backend} {states[backend]}" for backend in reversed(BACKENDS))
    value = {"in_use": first, "backends": states, "pillow_codec": inside}
    return Section(f"{shown} (Pillow has {inside})", value)
