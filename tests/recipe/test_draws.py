"""Claims about draws: published numbers, NumPy's numbers, and nothing but the name counts."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdcache.recipe.draws import (
    Stream,
    permutation,
    permutations,
    philox,
    raw_words,
    uniforms,
)

MAX = 2**64 - 1
words = st.integers(0, MAX) | st.sampled_from((0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, MAX))
streams = st.sampled_from(Stream)
lists_of_uids = st.lists(words, min_size=1, max_size=8, unique=True)


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def numpy_words(seed: int, uid: int, *, view: int, count: int, stream: int) -> list[int]:
    # Integers of 2**63 and more pass through float64 in a list: only arrays are exact.
    generator = np.random.Philox(key=u64(seed, 0), counter=u64(0, view, uid, stream))
    return generator.random_raw(count).tolist()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (
            (0, 0, 0, 0),
            (0, 0),
            (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
        ),
        (
            (MAX, MAX, MAX, MAX),
            (MAX, MAX),
            (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
        ),
        (
            (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
            (0x452821E638D01377, 0xBE5466CF34E90C6C),
            (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert tuple(philox(u64(*counter), u64(*key)).tolist()) == expected


def at_carry(multiplier: int, low: int) -> int:
    """Return the word whose product with the multiplier ends in the 64 bits of low."""
    return pow(multiplier, -1, 2**64) * low % 2**64


edges = st.integers(0, 3) | st.integers(2**32 - 2, 2**32 + 2) | st.integers(MAX - 3, MAX)
first = words | edges.map(lambda low: at_carry(0xD2E7470EE14C6C93, low))
third = words | edges.map(lambda low: at_carry(0xCA5A826395121157, low))


@settings(deadline=None, max_examples=300)
@given(counter=st.tuples(first, words, third, words), key=st.tuples(words, words))
def test_philox_is_numpys_at_any_counter_and_key(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    """Products whose halves carry, or just do not, are among them."""
    # NumPy counts up before it draws.
    whole = (sum(word << 64 * place for place, word in enumerate(counter)) - 1) % 2**256
    before = u64(*((whole >> 64 * place) & MAX for place in range(4)))
    expected = np.random.Philox(key=u64(*key), counter=before).random_raw(4)
    assert philox(u64(*counter), u64(*key)).tolist() == expected.tolist()


@settings(deadline=None, max_examples=300)
@given(seed=words, uids=lists_of_uids, view=words, count=st.integers(1, 40), stream=streams)
@example(seed=0, uids=[0], view=0, count=9, stream=Stream.SAMPLE)
@example(seed=MAX, uids=[MAX, 0], view=MAX, count=9, stream=Stream.WITNESS)
def test_words_are_those_of_numpys_philox(
    seed: int, uids: list[int], view: int, count: int, stream: Stream
) -> None:
    found = raw_words(seed, u64(*uids), view=view, count=count, stream=stream)
    assert found.shape == (len(uids), count)
    assert found.tolist() == [
        numpy_words(seed, uid, view=view, count=count, stream=stream) for uid in uids
    ]


@pytest.mark.parametrize("stream", Stream)
def test_every_stream_gives_numpys_numbers_of_its_own(stream: Stream) -> None:
    found = raw_words(7, u64(1, 2), view=3, count=24, stream=stream)
    assert found.tolist() == [numpy_words(7, u, view=3, count=24, stream=stream) for u in (1, 2)]
    for other in set(Stream) - {stream}:
        assert not (raw_words(7, u64(1, 2), view=3, count=24, stream=other) == found).any()


def test_the_numbers_of_the_streams_never_change() -> None:
    assert {stream.name: stream.value for stream in Stream} == {
        "SAMPLE": 0,
        "BLOCK": 1,
        "ORDER": 2,
        "SHUFFLE": 3,
        "WITNESS": 4,
    }


@settings(deadline=None)
@given(seed=words, uids=lists_of_uids, view=words, data=st.data())
def test_a_samples_numbers_do_not_depend_on_order_or_company(
    seed: int, uids: list[int], view: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.sampled_from(uids), min_size=1, max_size=8))
    together = dict(zip(uids, uniforms(seed, u64(*uids), view=view, count=24), strict=True))
    again = uniforms(seed, u64(*chosen), view=view, count=24)
    assert again.tolist() == [together[uid].tolist() for uid in chosen]


@settings(deadline=None)
@given(seed=words, uid=words, view=words, count=st.integers(1, 50), more=st.integers(0, 50))
def test_asking_for_more_numbers_keeps_the_first(
    seed: int, uid: int, view: int, count: int, more: int
) -> None:
    few = uniforms(seed, u64(uid), view=view, count=count)
    many = uniforms(seed, u64(uid), view=view, count=count + more)
    assert (many[:, :count] == few).all()


@settings(deadline=None)
@given(
    seed=words,
    uids=lists_of_uids,
    view=words,
    skipped=st.integers(0, 9),
    count=st.integers(1, 50),
    stream=streams,
)
def test_numbers_can_be_drawn_from_any_fourth_word_on(
    seed: int, uids: list[int], view: int, skipped: int, count: int, stream: Stream
) -> None:
    first = 4 * skipped
    options = {"view": view, "stream": stream}
    whole = uniforms(seed, u64(*uids), count=first + count, **options)
    later = uniforms(seed, u64(*uids), first=first, count=count, **options)
    assert later.tolist() == whole[:, first:].tolist()
    words = raw_words(seed, u64(*uids), count=first + count, **options)
    assert raw_words(seed, u64(*uids), first=first, count=count, **options).tolist() == (
        words[:, first:].tolist()
    )


@pytest.mark.parametrize("first", [1, 2, 3, 13])
def test_other_words_to_draw_from_are_refused(first: int) -> None:
    with pytest.raises(ValueError, match=f"first is {first}, expected a multiple of 4"):
        raw_words(0, u64(1), view=0, count=4, first=first)


@settings(deadline=None)
@given(seed=words, uids=lists_of_uids, view=words, count=st.integers(1, 40))
def test_uniforms_are_the_words_upper_53_bits_below_one(
    seed: int, uids: list[int], view: int, count: int
) -> None:
    numbers = uniforms(seed, u64(*uids), view=view, count=count)
    raw = raw_words(seed, u64(*uids), view=view, count=count)
    assert numbers.dtype == np.float64
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert (numbers * 2.0**53).astype(np.uint64).tolist() == (raw >> np.uint64(11)).tolist()


@settings(deadline=None)
@given(seed=words, uid=words, view=words, data=st.data())
def test_seed_uid_and_view_each_give_other_numbers(
    seed: int, uid: int, view: int, data: st.DataObject
) -> None:
    other = data.draw(words)
    base = raw_words(seed, u64(uid), view=view, count=24)
    if other != seed:
        assert not (raw_words(other, u64(uid), view=view, count=24) == base).any()
    if other != uid:
        assert not (raw_words(seed, u64(other), view=view, count=24) == base).any()
    if other != view:
        assert not (raw_words(seed, u64(uid), view=other, count=24) == base).any()


def test_one_seed_more_is_not_one_view_or_uid_more() -> None:
    """Seeds that are added to names make one run repeat another's numbers."""
    grid = [(seed, uid, view) for seed in range(6) for uid in range(6) for view in range(6)]
    first = {int(raw_words(s, u64(u), view=v, count=1)[0, 0]) for s, u, v in grid}
    assert len(first) == len(grid)


@settings(deadline=None)
@given(seed=words, uid=words, view=words, count=st.integers(1, 200), stream=streams)
def test_a_permutation_holds_every_row_once_in_the_order_of_its_words(
    seed: int, uid: int, view: int, count: int, stream: Stream
) -> None:
    found = permutation(seed, uid, view=view, count=count, stream=stream)
    drawn = numpy_words(seed, uid, view=view, count=count, stream=stream)
    assert found.tolist() == sorted(range(count), key=lambda row: (drawn[row], row))


@settings(deadline=None, max_examples=100)
@given(seed=words, uids=lists_of_uids, view=words, count=st.integers(1, 40), stream=streams)
def test_permutations_drawn_together_are_those_drawn_alone(
    seed: int, uids: list[int], view: int, count: int, stream: Stream
) -> None:
    found = permutations(seed, u64(*uids), view=view, count=count, stream=stream)
    assert found.shape == (len(uids), count)
    for uid, order in zip(uids, found.tolist(), strict=True):
        alone = permutation(seed, uid, view=view, count=count, stream=stream)
        assert order == alone.tolist()


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_counters_of_another_dtype_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="uint64"):
        philox(np.zeros(4, dtype), u64(0, 0))
    with pytest.raises(ValueError, match="uint64"):
        philox(u64(0, 0, 0, 0), np.zeros(2, dtype))
