"""Claims about image processors: what their settings say is what they do to pixels."""

from typing import Any

import numpy as np
import pytest

from kdcache.errors import UsageError
from kdcache.models.hf_inputs import inputs_of
from kdcache.models.source import Inputs

HALF = (0.5, 0.5, 0.5)
PLAIN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("ViT", {}),
        ("ViT", {"rescale_factor": 1 / 127.5}),
        ("ViT", {"do_rescale": False, "image_mean": [120, 121, 122], "image_std": [60, 61, 62]}),
        ("ViT", {"do_normalize": False}),
        ("ViT", {"do_normalize": False, "rescale_factor": 1 / 100}),
        ("DeiT", {"image_mean": [0.1, 0.2, 0.3]}),
        ("CLIP", {}),
        ("ConvNext", {}),
        ("Levit", {}),
        ("Bit", {}),
        ("EfficientNet", {"include_top": True}),
        ("EfficientNet", {"include_top": False}),
        (
            "EfficientNet",
            {"include_top": True, "rescale_offset": True, "rescale_factor": 1 / 127.5},
        ),
    ],
)
def test_the_normalisation_is_that_of_the_processor_itself(kind: str, values: Any) -> None:
    transformers: Any = pytest.importorskip("transformers")
    from kdcache.models.libraries import quiet

    with quiet():
        processor = getattr(transformers, f"{kind}ImageProcessor")(**values)
        inputs = inputs_of(processor.to_dict(), where="here")
        assert inputs.mean is not None
        assert inputs.std is not None
        for colour in ((0, 100, 255), (255, 3, 77)):
            image = np.full((500, 400, 3), colour, dtype=np.uint8)
            theirs = processor(image, return_tensors="np", do_resize=True)["pixel_values"][0]
            assert theirs.shape[1:] == (inputs.size, inputs.size)
            ours = (np.array(colour) / 255 - inputs.mean) / inputs.std
            middle = theirs[:, inputs.size // 2, inputs.size // 2]
            np.testing.assert_allclose(middle, ours, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("values", "size", "crop"),
    [
        ({"size": 224}, 224, 1.0),
        ({"size": [224, 224]}, 224, 1.0),
        ({"size": {"height": 224, "width": 224}}, 224, 1.0),
        ({"size": {"height": 224, "width": 160}}, None, None),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, 224, 0.875),
        ({"size": 256, "crop_size": {"height": 224, "width": 224}}, 256, 1.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, 224, 0.9),
        ({"size": 200, "crop_size": 224, "do_center_crop": True}, 224, 1.0),
        ({"size": 224, "do_resize": False}, None, None),
        ({"crop_size": 224, "do_center_crop": True, "do_resize": False}, 224, None),
        ({"size": {"shortest_edge": 384}, "feature_extractor_type": "ConvNextFeatureExtractor",
          "crop_pct": 0.9}, 384, 1.0),
        ({"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessorFast",
          "crop_pct": 0.875}, 224, 0.875),
        ({"size": 224, "crop_size": 224, "do_center_crop": True,
          "feature_extractor_type": "LevitFeatureExtractor"}, 224, 0.875),
        ({"size": 224, "crop_size": 256, "do_center_crop": True,
          "image_processor_type": "PerceiverImageProcessor"}, 224, 0.875),
        ({}, None, None),
    ],
)  # fmt: skip
def test_size_and_crop_are_those_of_evaluation(
    values: dict[str, Any], size: int | None, crop: float | None
) -> None:
    inputs = inputs_of(values, where="here")
    assert (inputs.size, inputs.crop) == (size, crop)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        (PLAIN, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        (PLAIN | {"rescale_factor": 0.00392156862745098}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        (PLAIN | {"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ({"image_mean": 0.5, "image_std": 0.5}, HALF, HALF),
        ({"do_normalize": True}, None, None),
        ({}, None, None),
    ],
)
def test_a_normalisation_that_is_not_said_is_not_guessed(
    values: dict[str, Any], mean: object, std: object
) -> None:
    inputs = inputs_of(values, where="here")
    assert (inputs.mean, inputs.std) == (mean, std)


def test_the_resampling_is_a_word() -> None:
    words = [inputs_of({"resample": number}, where="here").interpolation for number in range(6)]
    assert words == ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
    assert inputs_of({"resample": "bicubic"}, where="here") == Inputs(interpolation="bicubic")


@pytest.mark.parametrize("key", ["do_flip_channel_order", "do_flip_channels", "do_color_quantize"])
def test_steps_that_kdcache_does_not_take_are_refused(key: str) -> None:
    with pytest.raises(UsageError, match=f"here: asks for {key}, which kdcache does not do"):
        inputs_of(PLAIN | {key: True}, where="here")
    assert inputs_of(PLAIN | {key: False}, where="here").mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "values",
    [
        {"resample": 9},
        {"size": {"longest_edge": 9}},
        {"size": "big"},
        {"size": []},
        {"image_mean": [1, 2], "image_std": [1, 2]},
        {"image_mean": ["a"] * 3, "image_std": [1] * 3},
        PLAIN | {"rescale_factor": 0},
        PLAIN | {"rescale_factor": "x"},
    ],
)
def test_damaged_settings_are_one_sentence(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="here: cannot be understood: "):
        inputs_of(values, where="here")
