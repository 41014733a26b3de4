import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from pipelines import digits
from pipelines.digits import FRAME, Digits, Split, load_split


@pytest.fixture(scope="module")
def split() -> Split:
    """The split of seed 0."""
    return load_split(0)


def _names(part: Digits) -> set[bytes]:
    return {image.tobytes() for image in part.images}


def test_the_networks_have_the_stated_numbers_of_parameters() -> None:
    teacher, student = digits.teacher(), digits.student()
    assert sum(p.numel() for p in teacher.parameters()) == 390_890
    assert sum(p.numel() for p in student.parameters()) == 14_458


@pytest.mark.parametrize("side", [12, 32])
def test_the_networks_give_ten_logits_and_read_one_channel(side: int) -> None:
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    other = torch.cat([images[:, :1], torch.zeros(3, 2, side, side)], 1)
    for factory in (digits.teacher, digits.student):
        network = factory().eval()
        assert network(images).shape == (3, 10)
        assert torch.equal(network(images), network(other))


def test_a_thousand_teach_a_hundred_of_them_the_student_and_the_others_test(split: Split) -> None:
    assert [len(part.labels) for part in (split.teacher, split.student, split.test)] == [
        1000,
        100,
        797,
    ]
    assert _names(split.student) <= _names(split.teacher)
    assert not _names(split.teacher) & _names(split.test)
    everything = np.sort(np.concatenate([split.teacher.labels, split.test.labels]))
    assert np.array_equal(everything, np.sort(load_digits().target))


def test_the_student_has_ten_of_each_class(split: Split) -> None:
    assert np.bincount(split.student.labels).tolist() == [10] * 10


def test_labels_stay_with_their_images(split: Split) -> None:
    label = {
        image.tobytes(): int(n)
        for image, n in zip(split.teacher.images, split.teacher.labels, strict=True)
    }
    for image, number in zip(split.student.images, split.student.labels, strict=True):
        assert label[image.tobytes()] == number


def test_the_same_seed_makes_the_same_bytes_and_another_others(split: Split) -> None:
    again, other = load_split(0), load_split(1)
    for name in ("teacher", "student", "test"):
        ours, theirs = getattr(split, name), getattr(again, name)
        assert np.array_equal(ours.images, theirs.images)
        assert np.array_equal(ours.labels, theirs.labels)
        assert ours.images.dtype == np.uint8
        assert ours.images.shape[1:] == (32, 32)
        assert not np.array_equal(ours.images, getattr(other, name).images)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_a_digit_is_enlarged_within_its_frame(seed: int) -> None:
    """A full square shows its place: 0.6 to 1.0 of the frame, wholly inside."""
    frame = digits.place(np.full((8, 8), 16.0), np.random.default_rng(seed))
    assert frame.shape == (FRAME, FRAME)
    rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height == width
    assert round(0.6 * FRAME) <= width <= FRAME
    assert (frame[np.ix_(rows, columns)] == 255).all()
