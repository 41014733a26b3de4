"""What preprocessor_config.json of a transformers model says of its images, as Inputs.

The file is read as data: transformers' own classes for it differ between its versions, and in what
they need. What an image processor does beside resizing, cropping, scaling and normalising is
refused, since the network would see other pixels than in training.
"""

import math
from collections.abc import Mapping
from typing import Any

from kdcache.errors import UsageError
from kdcache.models.source import Inputs, Triple

_WORDS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # PIL's, by number
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
DAMAGED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
_WARPS_FROM = 384  # ConvNeXt crops smaller images than this only


def inputs_of(settings: Mapping[str, Any], *, where: str) -> Inputs:
    """Return what an image processor's settings say. where: names them, for messages.

    Raises:
        UsageError: they ask for a step that kdcache does not take, or are damaged.
    """
    for key, value in settings.items():
        if key.startswith("do_") and value and key not in _STEPS:
            raise UsageError(
                f"{where}: asks for {key}, which kdcache does not do to images; let a factory do "
                "it before the network, and name that as package.module:factory"
            )
    try:
        mean, std = _normalisation(settings)
        size, crop = _geometry(settings)
        resample = settings.get("resample")
        word = _word(resample) if isinstance(resample, int) else resample
        return Inputs(size=size, crop=crop, interpolation=word, mean=mean, std=std)
    except DAMAGED as error:
        raise UsageError(
            f"{where}: cannot be understood: {type(error).__name__}: {error}"
        ) from error


def timm_inputs_of(settings: Mapping[str, Any], *, where: str) -> Inputs:
    """Return what timm's settings in a config.json say. where: names them, for messages.

    Raises:
        UsageError: they are damaged.
    """
    try:
        size = settings.get("input_size")
        mean, std = (
            None if (values := settings.get(key)) is None else _triple(values)
            for key in ("mean", "std")
        )
        return Inputs(
            size=None if size is None else size[-1],
            crop=settings.get("crop_pct"),
            interpolation=settings.get("interpolation"),
            mean=mean,
            std=std,
        )
    except DAMAGED as error:
        raise UsageError(
            f"{where}: cannot be understood: {type(error).__name__}: {error}"
        ) from error


def _word(number: int) -> str:
    if number < 0:
        raise ValueError(f"resample {number}")
    return _WORDS[number]


def _kind(settings: Mapping[str, Any]) -> str:
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    for ending in ("Fast", "ImageProcessor", "FeatureExtractor"):
        name = str(name).removesuffix(ending)
    return name.lower()


def _normalisation(settings: Mapping[str, Any]) -> tuple[Triple | None, Triple | None]:
    """Return mean and std of pixels in 0 to 1; None where the settings leave it to a class.

    Pixels p of 0 to 255 become (p f - o - m) / s, with factor f and offset o; that is
    (p / 255 - mean) / std with mean = (m + o) / 255 f and std = s / 255 f.
    """
    given = settings.get("image_mean"), settings.get("image_std")
    normalises = settings.get("do_normalize", True if None not in given else None)
    if normalises is None or (normalises and None in given):
        return None, None
    mean, std = (_triple(given[0]), _triple(given[1])) if normalises else ((0.0,) * 3, (1.0,) * 3)
    scale, offset = 255.0, 0.0
    if settings.get("do_rescale", True):
        scale *= settings.get("rescale_factor", 1 / 255)
        offset = 1.0 if settings.get("rescale_offset") or settings.get("offset") else 0.0
    if math.isclose(scale, 1.0, rel_tol=1e-9):
        scale = 1.0
    if _kind(settings) == "efficientnet" and settings.get("include_top", True):
        std = _triple([value * value for value in _triple(given[1])])  # it divides twice
    return (
        _triple([(value + offset) / scale for value in mean]),
        _triple([value / scale for value in std]),
    )


def _triple(values: Any) -> Triple:
    if isinstance(values, str) or (isinstance(values, list) and any(v is True for v in values)):
        raise TypeError(f"{values!r:.40} instead of numbers")
    red, green, blue = map(float, [values] * 3 if isinstance(values, int | float) else values)
    return red, green, blue


def _geometry(settings: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Return the side of the images, and the share of the shorter side that the crop keeps."""
    kind = _kind(settings)
    resized = _side(settings.get("size")) if settings.get("do_resize", True) else None
    cropped = _side(settings.get("crop_size")) if settings.get("do_center_crop") else None
    if kind == "perceiver":  # crops before it resizes
        return resized, resized / cropped if resized and cropped else None
    size = cropped or resized
    if kind == "convnext" and resized and resized >= _WARPS_FROM:
        return size, 1.0
    if "crop_pct" in settings and settings["crop_pct"] is not None:
        return size, float(settings["crop_pct"])
    if not size or not resized:
        return size, None
    if kind == "levit":  # resizes by 256 / 224 more than it says
        resized = int(256 / 224 * resized)
    return size, min(size / resized, 1.0)


def _side(size: Any) -> int | None:
    """Return a side from 224, {"shortest_edge": 224}, {"height": 224, "width": 224} or a pair."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        size = [size["height"], size["width"]]
    if isinstance(size, list | tuple):
        sides = {int(side) for side in size}
        if not sides:
            raise ValueError("a size of no sides")
        return sides.pop() if len(sides) == 1 else None
    return None if size is None else int(size)
